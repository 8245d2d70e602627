"""``eval`` on the command line: tables, documents, figures, comparisons, and what is refused."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.eval import print_evaluation
from meteora_registry.registry.home import Home
from meteora_registry.schemas.evaluation import Evaluation
from meteora_registry.schemas.names import CatalogSource
from support.answering import MEMBERS, Workplace, make_workplace
from support.catalogued import new_bundle
from support.evaluations import make_evaluation
from support.models import LOADS_WITH_PEFT
from support.program import Run
from support.task_data import write_lines, write_task_data

pytestmark = [LOADS_WITH_PEFT]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("eval")
    write_task_data(folder / "data", MEMBERS, samples=4)
    return make_workplace(folder)


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "eval")


def arguments_for(workplace: Workplace, *more: object) -> list[object]:
    data = workplace.bundle.parent / "data"
    return [workplace.bundle, "--base", workplace.base, "--data", data, "--max-new-tokens", 2, *more]


def test_eval_prints_modes_and_tasks_and_writes_the_document(
    run: Run, workplace: Workplace, tmp_path: Path
) -> None:
    out = tmp_path / "results.json"
    result = run(*arguments_for(workplace, "--out", out))
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[:5] == [
        "bundle  bundle",
        "base    org/base",
        "scope   token",
        "items   12",
        "device  cpu, float32",
    ]
    assert lines[6].split() == [
        *("MODE", "SCORE", "95", "%", "INTERVAL", "OF", "MEMBER"),
        *("ROUTING", "TOKENS/S", "PEAK", "MEMORY"),
    ]
    assert [line.split()[0] for line in lines[7:12]] == ["base", "member", "routed", "arrow", "uniform"]
    assert lines[13].split() == ["TASK", "METRIC", "ITEMS", "BASE", "MEMBER", "ROUTED", "ARROW", "UNIFORM"]
    assert [line.split()[:3] for line in lines[14:]] == [[name, "exact", "4"] for name in MEMBERS]
    assert "the gate is not fitted" in result.stderr
    evaluation = Evaluation.from_bytes(out.read_bytes(), what="results.json")
    assert evaluation.manifest_sha256 is not None
    assert [task.max_new_tokens for task in evaluation.tasks] == [2, 2, 2]


def register(home: Home, bundle: Path) -> None:
    """Catalogue a bundle of that folder's manifest."""
    with Catalog.open(home) as catalog:
        digest = Bundle(bundle).manifest_sha256
        catalog.register_bundle(new_bundle(manifest_sha256=digest, path=bundle))


def test_eval_keeps_the_scores_of_a_catalogued_bundle(run: Run, workplace: Workplace, tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    register(home, workplace.bundle)
    result = run(*arguments_for(workplace, "--modes", "member,routed", "--limit", 1))
    assert (result.returncode, "not kept" in result.stderr) == (0, False)
    with Catalog.open(home) as catalog:
        (found,) = catalog.find_bundle(CatalogSource("team")).evaluations
        (event,) = catalog.history("team", limit=1).items
    assert [task.member for task in found.summary.tasks] == list(MEMBERS)
    assert [mode.mode for mode in found.summary.modes] == ["member", "routed"]
    assert (found.items, event.action, event.details["items"]) == (3, "evaluate", 3)


def test_eval_of_changed_bytes_is_not_kept_as_the_bundles(
    run: Run, workplace: Workplace, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    changed = Workplace(shutil.copytree(workplace.bundle, tmp_path / "bundle"), workplace.base)
    register(home, changed.bundle)
    weights = changed.bundle / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (tmp_path / "data").symlink_to(workplace.bundle.parent / "data")
    result = run(*arguments_for(changed, "--modes", "routed", "--limit", 1))
    assert result.returncode == 0
    assert (
        "warning: the scores are not kept in the catalog, for the bundle was changed: `adap" in result.stderr
    )
    with Catalog.open(home) as catalog:
        assert catalog.find_bundle(CatalogSource("team")).evaluations == ()


def test_eval_prints_the_document_as_json(run: Run, workplace: Workplace) -> None:
    result = run(*arguments_for(workplace, "--modes", "base,prompt", "--limit", 1, "--format", "json"))
    evaluation = Evaluation.from_value(json.loads(result.stdout), what="stdout")
    assert [mode.mode for mode in evaluation.modes] == ["base", "prompt"]
    assert [mode.interval for mode in evaluation.modes] == [None, None]


def test_eval_draws_its_figures(run: Run, workplace: Workplace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    plots = tmp_path / "plots"
    result = run(*arguments_for(workplace, "--modes", "base,routed,prompt+token", "--plots", plots))
    assert result.returncode == 0, result.stderr
    assert {path.name for path in plots.iterdir()} == {
        "scores.png",
        "tasks.png",
        "routing-layers.png",
        "routing-positions.png",
        "shares-routed.png",
        "shares-prompt-token.png",
    }
    assert all(path.read_bytes().startswith(PNG) for path in plots.iterdir())


def test_settings_beside_the_data_are_read(run: Run, workplace: Workplace, tmp_path: Path) -> None:
    data = shutil.copytree(workplace.bundle.parent / "data", tmp_path / "data")
    (data / "tasks.toml").write_text('[tasks.two]\nmetric = "contains"\n')
    arguments = [workplace.bundle, "--base", workplace.base, "--data", data, "--modes", "base", "--limit", 1]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    metrics = [line.split()[1] for line in result.stdout.splitlines() if line.split()[:1] == ["two"]]
    assert metrics == ["contains"]
    (data / "tasks.toml").write_text('metrik = "contains"\n')
    refused = run(*arguments)
    assert refused.returncode == 1
    assert "`tasks.toml` breaks its schema: metrik: there is no such key, did you mean `metric`?" in (
        refused.stderr
    )


def test_data_is_refused_before_the_base_is_loaded(run: Run, workplace: Workplace, tmp_path: Path) -> None:
    write_lines(tmp_path / "one.jsonl", [{"text": "w1"}])
    weights = workplace.base / "model.safetensors"
    hidden = weights.rename(tmp_path / "hidden")
    try:
        result = run(workplace.bundle, "--base", workplace.base, "--data", tmp_path)
    finally:
        hidden.rename(weights)
    assert result.returncode == 1
    assert "`two.jsonl` is missing: there is no data for the member `two`" in result.stderr


def test_files_of_no_member_are_named_and_not_read_or_foreign(
    run: Run, workplace: Workplace, tmp_path: Path
) -> None:
    data = shutil.copytree(workplace.bundle.parent / "data", tmp_path / "data")
    write_lines(data / "stranger.jsonl", [{"text": "w50 w51"}, {"text": "w52"}])
    arguments = [workplace.bundle, "--base", workplace.base, "--data", data, "--modes", "base", "--limit", 1]
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "warning: not read, for they belong to no member: `stranger.jsonl`\n" in result.stderr
    # This bundle decides token by token, so its foreign prompts are read, and then refused.
    refused = run(*arguments, "--foreign", data)
    assert refused.returncode == 2
    assert "not read" not in refused.stderr
    assert "decides token by token, so no prompt is left to the base" in refused.stderr


def test_item_without_an_answer_is_refused_with_its_line(
    run: Run, workplace: Workplace, tmp_path: Path
) -> None:
    for member in MEMBERS:
        write_lines(tmp_path / f"{member}.jsonl", [{"prompt": "w1", "response": "w2"}, {"text": "w1"}])
    result = run(workplace.bundle, "--base", workplace.base, "--data", tmp_path)
    assert result.returncode == 1
    assert "`two.jsonl:2` has no answer to compare with" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--modes", "base,oracle"],
            "error: `--modes` is `base,oracle`, expected some of `all`, `base`, `member`",
        ),
        (
            ["--metric", "best"],
            "error: `--metric` is `best`, expected one of `exact`, `normalised`, `contains`",
        ),
        (["--metric", "exact", "--metric", "rouge"], "error: `--metric` is stated twice for all members"),
        (
            ["--metric", "one=exact", "--metric", "one=accuracy"],
            "error: `--metric` is stated twice for `one`",
        ),
        (
            ["--metric", "four=exact"],
            "error: a metric is stated for `four`, the bundle has the members `one`",
        ),
        (
            ["--as", "chat"],
            "error: the prompts are to be read as `chat`, but the base's tokenizer has no chat template",
        ),
    ],
    ids=["mode", "metric", "twice", "twice-for-one", "stranger", "form"],
)
def test_option_that_makes_no_sense_is_refused(
    run: Run, workplace: Workplace, options: list[str], message: str
) -> None:
    result = run(*arguments_for(workplace, *options))
    assert result.returncode == 2
    assert result.stderr.startswith(message)


def test_compare_prints_differences(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_bytes(make_evaluation({"base": {"one": [0.0] * 8, "two": [0.0, 1.0] * 4}}).to_bytes())
    better = make_evaluation({"base": {"one": [1.0] * 8, "two": [0.0, 1.0] * 4}}, bundle="after")
    second.write_bytes(better.to_bytes())
    result = run("compare", first, second)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "first   before",
        "second  after",
        "",
        "MODE  FIRST  SECOND  DIFFERENCE   95 % INTERVAL  SECOND IS",
        "base   25.0    75.0       +50.0  +50.0 to +50.0  higher",
        "",
        "MODE  TASK  DIFFERENCE     95 % INTERVAL  SECOND IS",
        "base  one       +100.0  +100.0 to +100.0  higher",
        "base  two         +0.0      +0.0 to +0.0  not told apart",
    ]
    as_json = run("compare", first, second, "--format", "json")
    assert json.loads(as_json.stdout)["modes"][0]["overall"]["difference"] == 0.5


def test_compare_prints_the_difference_of_two_modes(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    scores = {"member": {"one": [1.0] * 8}, "routed": {"one": [0.0] * 8}}
    file.write_bytes(make_evaluation(scores).to_bytes())
    result = run("compare", file, "--modes", "member,routed")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[4].split("  ")[0] == "routed against member"
    assert "-100.0 to -100.0  lower" in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "error: there is one evaluation, expected a second one, or two modes of it"),
        (["--modes", "member"], "error: `--modes` is `member`, expected two modes such as `member,routed`"),
        (["--modes", "all"], "error: `--modes` is `all`, expected two modes such as `member,routed`"),
        (["--modes", "member,best"], "error: `--modes` is `member,best`, expected some of `all`, `base`"),
    ],
    ids=["none", "one", "all", "unknown"],
)
def test_compare_of_one_file_wants_two_modes(
    run: Run, tmp_path: Path, options: list[str], message: str
) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(make_evaluation({"member": {"one": [1.0]}}).to_bytes())
    result = run("compare", file, *options)
    assert result.returncode == 2
    assert result.stderr.startswith(message)


def test_both_forms_are_shown_beside_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"base": {"one": [1.0, 1.0, 0.0, 1.0]}, "routed": {"one": [1.0, 0.0, 0.0, 0.0]}}
    print_evaluation(make_evaluation(scores, form="both"))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["MODE", "PLAIN", "PROMPTS", "CHAT", "PROMPTS"])
    assert lines[start + 1 : start + 3] == [["base", "100.0", "50.0"], ["routed", "50.0", "0.0"]]


def test_compare_refuses_another_form_of_the_prompts(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_bytes(make_evaluation({"base": {"one": [0.0, 1.0]}}).to_bytes())
    second.write_bytes(make_evaluation({"base": {"one": [0.0, 1.0]}}, form="chat").to_bytes())
    result = run("compare", first, second)
    assert result.returncode == 2
    assert "`one` has prompts read as `given` in the first and `chat` in the second" in result.stderr


def test_compare_refuses_other_data(run: Run, tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_bytes(make_evaluation({"base": {"one": [0.0, 1.0]}}).to_bytes())
    second.write_bytes(make_evaluation({"base": {"one": [0.0, 1.0]}}, data_sha256="b" * 64).to_bytes())
    result = run("compare", first, second)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the evaluations did not ask the same: ")


def test_compare_refuses_what_is_no_evaluation(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    result = run("compare", tmp_path / "a.json", tmp_path / "a.json")
    assert result.returncode == 1
    assert result.stderr.startswith("error: `a.json` breaks its schema: ")
