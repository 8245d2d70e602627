"""Fitting gates through the command line, on a tiny base with adapters that PEFT made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import meteora_registry.runtime  # noqa: F401 - registers the peft type
from support.models import tiny_llama
from support.program import Run
from support.task_data import make_fit_workplace, write_lines, write_task_data

NAMES = ("rank4", "rank8", "rslora16")
BASE_ARGUMENTS = ("--base", "./base", "--data", "./data")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fit_workplace(tmp_path_factory.mktemp("workplace"), NAMES)


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace; the first use makes the catalog and the bundle."""
    if not (workplace / "bundle").exists():
        assert run("add", *(f"adapters/{name}" for name in NAMES)).returncode == 0
        assert run("fuse", *NAMES, "--out", "bundle", "--with-experts").returncode == 0
    return run


@pytest.fixture
def fitted(run: Run, workplace: Path) -> Path:
    """The bundle with fitted gates; made once, read only."""
    folder = workplace / "fitted"
    if not folder.exists():
        result = run("gate", "fit", "bundle", *BASE_ARGUMENTS, "--out", "fitted")
        assert result.returncode == 0, result.stderr
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "adapter_config.json").read_bytes()))


def test_fit_registers_a_verified_version_of_the_same_bundle(run: Run, fitted: Path) -> None:
    shown = json.loads(run("show", "bundle", "--format", "json").stdout)
    assert (shown["version"], shown["gate_scope"]) == (2, "prompt")
    assert shown["gate_fitted"] == "lda, shrinkage 0.1, on the plain base"
    assert [member["adapter"]["name"] for member in shown["members"]] == list(NAMES)
    assert [(each["level"], each["outcome"]) for each in shown["verifications"]] == [("source", "pass")]
    for level in ("integrity", "source"):
        result = run("verify", "bundle@2", "--level", level)
        assert (result.returncode, "not fitted" in result.stderr) == (0, False)


def test_fit_leaves_the_factors_and_the_experts_bit_for_bit(fitted: Path, workplace: Path) -> None:
    old = load_file(workplace / "bundle" / "adapter_model.safetensors")
    new = load_file(fitted / "adapter_model.safetensors")
    factors = [name for name in old if not name.endswith("gate")]
    assert factors
    assert all(torch.equal(old[name], new[name]) for name in factors)
    for path in (workplace / "bundle" / "experts").rglob("*"):
        if path.is_file():
            assert (fitted / path.relative_to(workplace / "bundle")).read_bytes() == path.read_bytes()
    manifests = [
        json.loads((folder / "meteora_manifest.json").read_bytes())
        for folder in (workplace / "bundle", fitted)
    ]
    assert manifests[0]["members"] == manifests[1]["members"]


def test_fit_says_on_what_it_was_fitted(fitted: Path) -> None:
    config = config_of(fitted)
    assert config["required_features"] == ["gate-request", "gate-scope", "gate-sources"]
    gate = config["gate"]
    assert isinstance(gate, dict)
    assert gate["bias"] is True
    assert [(data["member"], data["samples"]) for data in gate["fitted"]["data"]] == [
        (name, 10) for name in NAMES
    ]
    card = (fitted / "README.md").read_text()
    assert "The gate is fitted: lda, shrinkage 0.1, on the plain base." in card
    assert "10 of `rank4`, 10 of `rank8`, 10 of `rslora16`" in card
    # Six prompts were held out: too few to know a threshold.
    assert "Of 6 held-out prompts of the members (given)" in card
    assert "No prompt is left to the base alone." in card


def test_fitted_bundle_loads_and_computes(fitted: Path) -> None:
    model = PeftModel.from_pretrained(tiny_llama(), fitted)
    with torch.no_grad():
        assert model(torch.arange(8)[None]).logits.isfinite().all()


def test_the_same_fit_again_gives_the_same_bytes(run: Run, fitted: Path, workplace: Path) -> None:
    assert run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "again").returncode == 0
    for path in fitted.rglob("*"):
        if path.is_file() and path.name != "verification.json":
            assert (workplace / "again" / path.relative_to(fitted)).read_bytes() == path.read_bytes()


def test_an_interrupted_fit_is_catalogued_by_the_same_command(
    run: Run, fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    # The bundle is complete, and another catalog knows nothing of it.
    result = run("--home", str(tmp_path), "gate", "fit", "./bundle", *BASE_ARGUMENTS, "--out", "fitted")
    assert result.returncode == 0, result.stderr
    assert "fitted: fitted@1" in result.stdout


def test_what_a_killed_fit_left_is_taken_over(run: Run, workplace: Path) -> None:
    left = workplace / ".after-kill.partial"
    left.mkdir()
    (left / "adapter_model.safetensors").write_bytes(b"half")
    assert run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "after-kill").returncode == 0
    assert not left.exists()


def test_wrong_data_are_refused_with_every_problem(run: Run, workplace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_task_data(folder, [*NAMES[:2], "stranger"])
    write_lines(folder / "rank8.jsonl", [{"text": "w1 " * 70}, {"question": "w1"}])
    before = sorted(workplace.iterdir())
    result = run("gate", "fit", "bundle@1", "--base", "./base", "--data", str(folder), "--out", "wrong")
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"error: the data in `{folder}` cannot be used: 4 problems",
        "  `rslora16.jsonl` is missing: there is no data for the member `rslora16`",
        "  of no member, and maybe misnamed: `stranger.jsonl`",
        "  `rank8.jsonl:2` is of no known shape: found none of them, expected one of "
        '`{"prompt": ..., "response": ...}`, `{"messages": [...]}`, `{"text": ...}`',
        "  `rank8.jsonl:1` has a prompt of 70 tokens, the base takes at most 64",
        'hint: every member has a file `MEMBER.jsonl`, each line one of {"prompt": ..., "response": ...}, '
        '{"messages": [...]}, {"text": ...}, or its part in the folder of `--statistics`',
    ]
    assert sorted(workplace.iterdir()) == before


def test_another_base_is_refused_before_its_weights_are_loaded(
    run: Run, workplace: Path, tmp_path: Path
) -> None:
    shutil.copytree(workplace / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    config = json.loads((tmp_path / "base" / "config.json").read_bytes())
    (tmp_path / "base" / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    result = run("gate", "fit", "bundle@1", "--base", str(tmp_path / "base"), "--data", "data", "--out", "x")
    assert result.returncode == 1
    assert result.stderr.startswith(
        "error: `model.layers.0.mlp.down_proj` of the base is 40 -> 32, of the bundle 48 -> 32\n"
    )


def test_a_folder_that_is_taken_is_refused_with_exit_code_2(run: Run, workplace: Path) -> None:
    result = run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "data")
    assert (result.returncode, result.stderr.splitlines()[0]) == (
        2,
        "error: `data` exists and is not empty",
    )


def test_fit_with_members_taken_out_of_the_old_bundle_establishes_intact_alone(
    run: Run, tmp_path: Path
) -> None:
    result = run(
        "--home", str(tmp_path), "gate", "fit", "./bundle", *BASE_ARGUMENTS, "--out", str(tmp_path / "b")
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "verified: level integrity (intact), pass" in result.stdout


def test_fit_keeps_to_the_name_that_was_asked_for(run: Run, workplace: Path) -> None:
    # The same bundle under two names, of which the other comes first.
    assert run("fuse", *NAMES, "--out", "twin", "--with-experts").returncode == 0
    assert run("gate", "fit", "twin", *BASE_ARGUMENTS, "--out", "twin-fitted").returncode == 0
    assert json.loads(run("show", "twin@2", "--format", "json").stdout)["gate_scope"] == "prompt"
    assert run("show", "twin-fitted").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (
            ("--statistics", "bundle/statistics"),
            [
                "error: `bundle/statistics` is inside the bundle `{workplace}/bundle`, which may have only "
                "what its manifest lists",
                "hint: choose another path with `--statistics`",
            ],
        ),
        (
            ("--statistics", "no/statistics"),
            ["error: cannot write `no/statistics`: there is no folder `no`", "hint: make it first"],
        ),
        (
            ("--statistics", "base/config.json"),
            [
                "error: `base/config.json` is a file, expected a folder with a file for each member",
                "hint: name another path with `--statistics`",
            ],
        ),
        (
            ("--statistics", "statistics", "--scope", "segment"),
            [
                "error: there are no statistics for the scope `segment`, whose fit reads samples behind "
                "those of other members",
                "hint: leave out `--statistics`: members of such a bundle change with the data of all",
            ],
        ),
    ],
    ids=["in-a-bundle", "no-parent", "a-file", "segment"],
)
def test_statistics_that_cannot_be_kept_are_refused(
    run: Run, workplace: Path, arguments: tuple[str, ...], lines: list[str]
) -> None:
    before = sorted(workplace.rglob("*"))
    result = run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "x", *arguments)
    assert (result.returncode, result.stderr.splitlines()) == (
        2,
        [line.format(workplace=workplace) for line in lines],
    )
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "code", "lines"),
    [
        (
            (),
            2,
            [
                "error: there is nothing to fit the gates on",
                "hint: name the members' data with `--data`, or a folder with their parts with "
                "`--statistics`",
            ],
        ),
        (
            ("--statistics", "parts"),
            1,
            [
                "error: the statistics in `parts` have no part of `rank4`, `rank8`, `rslora16`",
                "hint: copy the parts of all members into one folder, or name the others' data with `--data`",
            ],
        ),
        (
            ("--statistics", "parts", "--data", "base"),
            1,
            [
                "error: the data in `base` cannot be used: 3 problems",
                *(f"  `{name}.jsonl` is missing: there is no data for the member `{name}`" for name in NAMES),
                'hint: every member has a file `MEMBER.jsonl`, each line one of {"prompt": ..., '
                '"response": ...}, {"messages": [...]}, {"text": ...}, or its part in the folder of '
                "`--statistics`",
            ],
        ),
    ],
    ids=["neither", "no-parts", "no-data"],
)
def test_members_without_data_and_parts_are_refused(
    run: Run, workplace: Path, arguments: tuple[str, ...], code: int, lines: list[str]
) -> None:
    result = run("gate", "fit", "bundle@1", "--base", "./base", "--out", "x", *arguments)
    assert (result.returncode, result.stderr.splitlines()) == (code, lines)
    assert not (workplace / "x").exists()


def test_fit_prints_json_with_scope_token(run: Run, tmp_path: Path) -> None:
    arguments = ("--out", str(tmp_path / "b"), "--scope", "token", "--name", "other", "--format", "json")
    result = run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, *arguments)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["version"]["name"], found["version"]["gate_scope"]) == ("other", "token")
    assert (found["gates"], found["modules"], found["record"]["outcome"]) == (8, 14, "pass")
    assert [data["samples"] for data in found["fitting"]["data"]] == [12, 12, 12]
    assert found["fitting"]["method"].endswith("without the first 4 tokens")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "answers in order go with the scope `segment`, found `prompt`"),
        (
            ("--scope", "segment"),
            "the base's tokenizer has no token with a line break, so that no numbered line can be found",
        ),
    ],
    ids=["scope", "tokenizer"],
)
def test_order_of_answers_that_cannot_be_followed_is_refused(
    run: Run, fitted: Path, workplace: Path, options: tuple[str, ...], message: str
) -> None:
    result = run(
        "gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "ordered", "--answers", "in-order", *options
    )
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert not (workplace / "ordered").exists()


def test_fit_for_segments_prints_which_gates_decide(run: Run, workplace: Path) -> None:
    result = run("gate", "fit", "bundle@1", *BASE_ARGUMENTS, "--out", "segments", "--scope", "segment")
    assert result.returncode == 0, result.stderr
    config = config_of(workplace / "segments")
    assert config["gate"]["evidence"] == ["model.layers.0.mlp.gate_proj"]
    assert "gate-evidence" in config["required_features"]
    assert "% of the tokens decided rightly by 1 of 8 gates, the last in `model.layers.0" in result.stdout
    card = (workplace / "segments" / "README.md").read_text()
    assert "Segments are decided by 1 gate, the last of them in `model.layers.0.mlp.gate_proj`." in card
