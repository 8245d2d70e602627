"""A bundle of one member through every command and every scope: one is the least that a bundle may have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import meteora_registry.runtime as runtime
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.kernels.reference import relative_error
from meteora_registry.schemas.verification import Level, Outcome
from support.hub_commands import machine
from support.hub_commands import workplace as workplace_on
from support.hub_server import serve
from support.models import (
    LOADS_UNFITTED,
    LOADS_WITH_PEFT,
    logits_alone,
    logits_of,
    make_adapter,
    some_tokens,
    tiny_llama,
)
from support.program import Run
from support.task_data import save_text_base, write_task_data

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

SCOPES = ["token", "layer", "prompt", "prompt+token", "segment"]
FILES = ["adapter_config.json", "adapter_model.safetensors"]
ON_BASE = ["--base", "./base", "--data", "./data"]
MAX_ERROR = 1e-5


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, data and the adapter `only`."""
    folder = tmp_path_factory.mktemp("workplace")
    save_text_base(folder / "base")
    write_task_data(folder / "data", ["only"])
    make_adapter(
        tiny_llama, folder / "only", seed=1, base="org/base", r=4, target_modules=["q_proj", "v_proj"]
    )
    return folder


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace; the first use makes the catalog and the bundle."""
    if not (workplace / "bundle").exists():
        assert run("add", "only").returncode == 0
        assert run("fuse", "only", "--out", "bundle").returncode == 0
    return run


@pytest.fixture(params=SCOPES)
def fitted(request: pytest.FixtureRequest, run: Run, workplace: Path) -> Path:
    """The bundle with gates fitted for a scope; each made once, read only."""
    folder = workplace / f"fitted-{request.param.replace('+', '-')}"
    if not folder.exists():
        result = run("gate", "fit", "bundle@1", *ON_BASE, "--out", folder.name, "--scope", request.param)
        assert result.returncode == 0, result.stderr
    return folder


def data_of(run: Run, *words: object) -> Any:
    """Return the JSON that a command printed after it succeeded."""
    result = run(*words, "--format", "json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("level", ["integrity", "source"])
def test_one_member_verifies_at_either_level_on_every_backend(run: Run, level: str) -> None:
    record = data_of(run, "verify", "bundle@1", "--level", level)
    assert record["outcome"] == "pass"
    errors = {each["backend"]: each["max_error"] for each in record["backends_run"]}
    assert errors.keys() >= {"cpu", "triton"}
    # An error of exactly zero would mean that nothing was computed.
    assert 0 < errors["triton"] <= MAX_ERROR


def test_one_member_verifies_without_triton(run: Run, workplace: Path) -> None:
    assert verify_bundle(workplace / "bundle", level=Level.INTEGRITY).outcome is Outcome.PASS


def test_one_member_fitted_in_any_scope_verifies(fitted: Path) -> None:
    record = verify_bundle(fitted, level=Level.INTEGRITY)
    assert (record.outcome, record.problems) == (Outcome.PASS, ())


def test_one_member_fitted_in_any_scope_computes_what_it_does_alone(fitted: Path, workplace: Path) -> None:
    tokens = some_tokens()
    alone = logits_alone(tiny_llama(), workplace / "only", tokens).double()
    model = PeftModel.from_pretrained(tiny_llama(), fitted).eval()
    assert relative_error(logits_of(model, tokens), alone) <= MAX_ERROR
    with runtime.force_adapter(model, "only"):
        assert relative_error(logits_of(model, tokens), alone) <= MAX_ERROR
    with runtime.uniform(model):
        assert relative_error(logits_of(model, tokens), alone) <= MAX_ERROR


def test_one_member_fitted_in_any_scope_serves_every_token_of_an_answer(fitted: Path) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), fitted).eval()
    prompts = some_tokens(batch=2, length=5)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), runtime.routing(model) as record:
        answers = model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    assert answers.shape == (2, 8)
    for routing in record.modules.values():
        assert torch.equal(routing.selection, torch.zeros_like(routing.selection))
        assert torch.equal(routing.weights, torch.ones_like(routing.weights))
    assert all((each.members, each.weights) == (("only",), (1.0,)) for each in record.decisions)


@pytest.mark.parametrize("scope", SCOPES)
def test_one_member_that_is_not_fitted_loads_and_routes_in_any_scope(
    run: Run, workplace: Path, scope: str
) -> None:
    tokens = some_tokens()
    alone = logits_alone(tiny_llama(), workplace / "only", tokens).double()
    model = PeftModel.from_pretrained(tiny_llama(), workplace / "bundle").eval()
    with runtime.route_as(model, scope=scope):  # type: ignore[arg-type]  # a literal
        assert relative_error(logits_of(model, tokens), alone) <= MAX_ERROR


def test_one_member_is_evaluated_in_every_mode(run: Run, workplace: Path, tmp_path: Path) -> None:
    results, plots = tmp_path / "results.json", tmp_path / "plots"
    options = ["--modes", "all", "--limit", "2", "--max-new-tokens", "2", "--out", results, "--plots", plots]
    found = data_of(run, "eval", "bundle@1", *ON_BASE, *options)
    scores = {mode["mode"]: mode["score"] for mode in found["modes"]}
    assert scores["member"] == scores["routed"] == scores["uniform"] == scores["arrow"]
    assert any(plots.iterdir())
    assert run("eval", "compare", results, results).returncode == 0


def test_one_member_is_traced(run: Run, tmp_path: Path) -> None:
    words = ["--base", "./base", "--prompt", "w1 w2 w3", "--max-new-tokens", "2"]
    assert data_of(run, "trace", "bundle@1", *words)["members"] == ["only"]
    result = run("trace", "bundle@1", *words, "--html", tmp_path / "page.html")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "page.html").is_file()


def test_one_member_comes_out_byte_for_byte(run: Run, workplace: Path, tmp_path: Path) -> None:
    assert run("extract", "bundle@1", "only", "--out", tmp_path / "again").returncode == 0
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (workplace / "only" / name).read_bytes()


def test_one_member_goes_through_the_official_layout(run: Run, workplace: Path) -> None:
    assert run("export", "bundle@1", "--layout", "official", "--out", "official").returncode == 0
    weights = ["official/moe_lora.safetensors", "--layout", "official", "--member", "only-again:4:8"]
    result = run("import", *weights, "--base", "org/base", "--out", "imported")
    assert result.returncode == 0, result.stderr
    assert run("verify", "imported", "--level", "source").returncode == 0


@pytest.mark.parametrize(
    "options",
    [["--with-experts"], ["--dtype", "bfloat16"], ["--gate", "normal"], ["--gate", "arrow", "--top-k", "1"]],
    ids=["experts", "bfloat16", "normal", "arrow"],
)
def test_one_member_is_fused_with_any_option_and_verifies(
    run: Run, options: list[str], tmp_path: Path
) -> None:
    name = f"fused-{options[-1].strip('-')}"
    result = run("fuse", "only", "--out", tmp_path / "bundle", "--name", name, *options)
    assert result.returncode == 0, result.stderr
    assert run("verify", tmp_path / "bundle", "--level", "source").returncode == 0
    shown = data_of(run, "show", name)
    assert [member["name"] for member in shown["members"]] == ["only"]
    assert run("remove", name, "--yes").returncode == 0


def test_two_slots_for_one_member_are_refused(run: Run) -> None:
    result = run("fuse", "only", "--top-k", "2", "--out", "refused")
    assert result.returncode == 1
    assert "top_k is 2, expected at most the number of members, 1" in result.stderr


def test_one_member_is_shown_planned_validated_and_examined(run: Run) -> None:
    for words in (
        ["list"],
        ["show", "bundle@1"],
        ["fuse", "only", "--dry-run"],
        ["validate", "only", "--for", "fuse", "--with", "./bundle"],
        ["validate", "only", "--deep", "--with", "./bundle", "--base", "./base"],
        ["doctor"],
        ["tag", "bundle@1", "single"],
        ["store", "du"],
    ):
        result = run(*words)
        assert result.returncode == 0, (words, result.stdout, result.stderr)


def test_one_member_travels_over_the_hub(run: Run, workplace: Path, tmp_path: Path) -> None:
    catalog = tmp_path / "empty" / "catalog.db"
    assert run("--home", catalog.parent, "db", "upgrade").returncode == 0
    with serve() as hub, machine(tmp_path / "machine", hub) as on:
        here, there = (workplace_on(tmp_path / name, on, catalog) for name in ("here", "there"))
        for place, words in (
            (here, ["add", workplace / "only"]),
            (here, ["fuse", "only", "--out", "bundle"]),
            (here, ["push", "bundle", "org/bundle"]),
            (there, ["pull", "org/bundle", "--out", "bundle"]),
            (there, ["verify", "bundle"]),
            (there, ["verify", "org/bundle"]),
            (there, ["doctor"]),
        ):
            result = place.run(*words)
            assert result.code == 0, (words, result)
    pushed, pulled = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "bundle").iterdir()}
        for name in ("here", "there")
    )
    assert pushed == pulled
