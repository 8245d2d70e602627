"""The paper's tasks, measured in small: two tasks of BIG-bench's form on a tiny model of random weights."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from benchmarks.abstention_tables import ROWS as ABSTENTION_ROWS
from benchmarks.pages import read_rows
from benchmarks.paper import archive, tables
from benchmarks.paper import measure as paper_measure
from benchmarks.paper.archive import INSIDE, ITEMS_FILE, copy_members, prepare_items
from benchmarks.paper.changes import DECIDED_ITEMS
from benchmarks.paper.composite_answers import COMPOSITE_WAYS, members_of
from benchmarks.paper.composites import FORMS as COMPOSITE_FORMS
from benchmarks.paper.composites import Composite, Form, Piece
from benchmarks.paper.decisions import FORMS, QUESTIONS
from benchmarks.paper.evaluate import models_of
from benchmarks.paper.figures import ROC, SCORES, curve_of, figures_of
from benchmarks.paper.fits import COMPOSITE_FITS, SGD_TOP_1, SGD_TOP_2, cost_file, fits_for
from benchmarks.paper.items import (
    MIN_TEST_ITEMS,
    VALIDATION_ITEMS,
    Item,
    digest_of_items,
    fit_lines,
    item_of,
    prompts_in,
    read_items,
)
from benchmarks.paper.measure import Measurement, Sizes, main, run_stages
from benchmarks.paper.rows import RowsFile, of_kind
from benchmarks.paper.summary import (
    Tasks,
    compared_set,
    confidences_of,
    interval,
    last_decisions,
    means_of,
    scores_of,
    sets_of,
    shown_set,
    summaries_of,
)
from benchmarks.paper.tables import PAGE, README, ROWS, page_of, readme_of, sections
from benchmarks.paper.tasks import FOREIGN, MISSING, TASKS, PaperTask, chosen_tasks
from benchmarks.paper.training import (
    JOINT_RECIPES,
    LORA_B,
    LORA_F,
    RECIPES,
    AdapterRecipe,
    CompositeRecipe,
    batches_of,
    composite_sample,
    draw,
)
from benchmarks.paper.ways import (
    CANDIDATES,
    CENTROID,
    LIKELIHOOD,
    MAJORITY,
    MEMBER,
    PROMPT,
    PROMPT_MORE,
    WAYS,
    nearest,
)
from meteora_registry.files.digests import hash_file
from meteora_registry.runtime.training import TrainingOptions
from meteora_registry.scores.proportions import area_under_curve
from support.byte_tokens import byte_tokenizer, save_byte_llama
from support.patience import PATIENCE_SECONDS
from support.task_data import TEMPLATE

pytestmark = pytest.mark.filterwarnings(
    "ignore::meteora_registry.runtime.GateNotFittedWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
TOKENIZER = byte_tokenizer(pad_token="\u0100", padding_side="left", chat_template=TEMPLATE)
TINY_TASKS = (
    PaperTask("parity", "normalised", shows_choices=True),
    PaperTask("sums", "contains", ("small", "large")),
)


FITS = fits_for(len(TINY_TASKS))
FEW = {MAJORITY, LIKELIHOOD, MEMBER, "prompt", CENTROID, "LoRA-B"}


def parity(number: int) -> dict[str, Any]:
    return {"input": f"Is {number} odd?", "target_scores": {"yes": number % 2, "no": 1 - number % 2}}


def total(number: int) -> dict[str, Any]:
    return {"input": f"{number} and 1", "target": [str(number + 1), f"it is {number + 1}"]}


EXAMPLES = {
    "parity": [parity(number) for number in range(120)],
    "sums/small": [total(number) for number in range(60)],
    "sums/large": [total(number) for number in range(100, 160)],
}


@pytest.fixture(scope="module")
def items_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("items")
    for name, examples in EXAMPLES.items():
        (folder / name).mkdir(parents=True)
        (folder / name / ITEMS_FILE).write_text(json.dumps({"examples": examples}))
    for place, name in enumerate(FOREIGN):
        (folder / name).mkdir()
        examples = [{"input": f"Colour {place} of {number}: red"} for number in range(3)]
        (folder / name / ITEMS_FILE).write_text(json.dumps({"examples": examples}))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_llama(tmp_path_factory.mktemp("base"), TOKENIZER)


def tiny_recipe(name: str, rank: int = 4) -> AdapterRecipe:
    return AdapterRecipe(name, rank, ("q_proj", "down_proj"), layers=(0, 2), tokens=600)


@pytest.fixture(scope="module")
def measure(
    base: Path, items_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Measurement]:
    """A measurement in small, new at every call, whose adapters and bundles are always in the same folder."""
    folder = tmp_path_factory.mktemp("measured")
    names = [*(task.name for task in TINY_TASKS), LORA_F, LORA_B]
    recipes = [tiny_recipe(name, 4 + 4 * place) for place, name in enumerate(names)]

    def make(rows: str, *bundles: str) -> Measurement:
        sizes = Sizes(test_items=3, processes=1)
        fits = [fit for fit in FITS if fit.name in bundles]
        return Measurement(
            base, items_folder, TINY_TASKS, folder, folder / rows, sizes=sizes, recipes=recipes, fits=fits
        )

    return make


def measure_few(measurement: Measurement) -> Measurement:
    measurement.train()
    measurement.fit()
    measurement.ask([way for way in WAYS if way.name in FEW])
    return measurement


@pytest.fixture(scope="module")
def measured(measure: Callable[..., Measurement]) -> Measurement:
    """A few of the ways on the test items."""
    return measure_few(measure("few.jsonl", "prompt"))


@pytest.fixture(scope="module")
def whole(measured: Measurement, measure: Callable[..., Measurement]) -> Measurement:
    """All stages but the page, with every way."""
    measurement = measure("whole.jsonl", *(fit.name for fit in FITS))
    run_stages(measurement, ["train", "fit", "validation", "test"])
    return measurement


@pytest.mark.slow
def test_measurement_writes_a_row_for_every_way_and_task(whole: Measurement) -> None:
    there = [way.name for way in WAYS]
    wanted = {(way, task.name) for way in there for task in TINY_TASKS}
    # An item of the other task has no choices.
    rows = whole.rows.read()
    found = of_kind(rows, "score")
    assert {(row["way"], row["task"]) for row in found} == wanted - {(LIKELIHOOD, "sums")}
    assert {row["way"] for row in of_kind(rows, "summary")} == set(there)
    for row in found:
        assert len(row["scores"]) == row["items"] == 3
        assert row["way"] == MAJORITY or row["seconds"] > 0
    chosen = of_kind(rows, "choice")
    assert [(row["way"], row["task"]) for row in chosen] == [
        (way.name, task.name) for way in CANDIDATES for task in TINY_TASKS
    ]
    assert {sum(row["decided"].values()) for row in chosen} == {VALIDATION_ITEMS}
    first, second = sections(rows)["validation"][2:]
    assert first.startswith(f"| prompt | 2 | {2 * VALIDATION_ITEMS} | ")
    assert second.startswith(f"| {PROMPT_MORE.name} | 2 | {2 * VALIDATION_ITEMS} | ")
    fits = {row["bundle"]: row for row in of_kind(rows, "fit")}
    assert {*fits} == {fit.name for fit in FITS}
    assert [name for name, row in fits.items() if row["training"] is not None] == [SGD_TOP_1, SGD_TOP_2]


def test_rows_have_recipe_cost_and_routing(measured: Measurement) -> None:
    rows = measured.rows.read()
    assert {row["name"] for row in of_kind(rows, "adapter")} == {"parity", "sums", LORA_F, LORA_B}
    assert {row["steps"] > 0 for row in of_kind(rows, "adapter")} == {True}
    (fit,) = of_kind(rows, "fit")
    assert (fit["scope"], fit["adapters"]) == ("prompt", 2)
    scores = of_kind(rows, "score")
    assert {row["way"] for row in scores} == FEW
    for row in scores:
        if row["way"] in ("prompt", CENTROID):
            assert sum(row["decided"].values()) == row["items"] == 3
    for row in of_kind(rows, "score", way="prompt"):
        assert sum(row["shares"]) == pytest.approx(1)
    # The inputs differ in form, so even a base of random weights tells the tasks apart.
    assert [row["decided"] for row in of_kind(rows, "score", way="prompt", task="sums")] == [{"sums": 3}]


def test_decisions_about_prompts_alone_have_confidences(
    measured: Measurement, measure: Callable[..., Measurement]
) -> None:
    measurement = measure("decisions.jsonl", "prompt")
    measurement.decide()
    before = measurement.rows.path.read_bytes()
    measurement.decide()
    assert measurement.rows.path.read_bytes() == before
    rows = measurement.rows.read()
    counts = {"own": 2 * 3, "foreign": 3 * len(FOREIGN), "general": len(QUESTIONS)}
    found = confidences_of(rows, measured.members)
    assert {key: len(values) for key, values in found.items()} == {
        (group, form): count for group, count in counts.items() for form in FORMS
    }
    assert all(0 <= value <= 1 for values in found.values() for value in values)
    # Own prompts are more like those of the fit.
    assert area_under_curve(found["own", "plain"], found["general", "plain"]) > 0.6
    asked = RowsFile(measured.rows.path).read() + rows
    page = page_of(asked, PAGE.read_text(encoding="utf-8"))
    assert "| of a member's task | in plain text | 2 | 6 | " in page
    figures = figures_of(asked)
    assert {*figures} == {SCORES, ROC}
    assert figures[SCORES].count("<rect") == 1 + len({MEMBER, "prompt", CENTROID})
    assert figures[ROC].count("<path d") == 1 + 2 * 4


def test_decisions_of_one_recipe_are_shown_together(
    measured: Measurement, measure: Callable[..., Measurement]
) -> None:
    measurement = measure("two-recipes.jsonl", "prompt")
    measurement.decide()
    count = len(last_decisions(measurement.rows.read(), measured.members))
    other = replace(PROMPT, abstain=0.5)
    # Going back to the first recipe writes its rows again. Of a new one only what was written is shown.
    for way, begun in ((other, 3), (PROMPT, count)):
        before = len(measurement.rows.read())
        measurement.decide(way)
        rows = measurement.rows.read()
        assert len(rows) - before == count == len(last_decisions(rows, measured.members))
        assert len(last_decisions(rows[: before + 3], measured.members)) == begun


def test_members_come_and_go(measured: Measurement, measure: Callable[..., Measurement]) -> None:
    measurement = measure("changes.jsonl", "prompt")
    measurement.change()
    before = measurement.rows.path.read_bytes()
    measurement.change()
    assert measurement.rows.path.read_bytes() == before
    rows = of_kind(measurement.rows.read(), "change", scope="prompt")
    assert [row["member"] for row in rows] == ["parity", "sums"]
    for row in rows:
        assert {*row["seconds"]} == {"remove", "add", "replace"}
        assert row["factors_kept"] and row["gates_kept_by_replace"]
        # The order of the members is another, and so is that of the sums.
        assert row["farthest_after_add"] <= 1e-4
        assert row["decisions_kept"] == row["decisions"] == DECIDED_ITEMS
    asked = RowsFile(measured.rows.path).read() + measurement.rows.read()
    page = page_of(asked, PAGE.read_text(encoding="utf-8"))
    assert "| prompt | 2 | 2 of 2 | 2 of 2 | " in page
    (parts,) = of_kind(measurement.rows.read(), "parts")
    assert f"| prompt | 2 | {parts['gates']} | bit for bit |" in page


@pytest.mark.slow
def test_training_is_killed_and_goes_on(measured: Measurement, measure: Callable[..., Measurement]) -> None:
    measurement = measure("killed.jsonl", "token")
    options = TrainingOptions(start="zero", steps=5, batch_size=2, checkpoint_steps=2)
    measurement.kill_training(options, killed_at=3)
    measurement.kill_training(options, killed_at=3)
    (row,) = measurement.rows.read()
    assert (row["exit_code"], row["killed_at"], row["resumed_at"]) == (-9, 3, 2)
    assert row["same_gates"]
    page = page_of([*RowsFile(measured.rows.path).read(), row], PAGE.read_text(encoding="utf-8"))
    assert "was killed at step 3 and went on behind step 2;\nits gates are the same bit for bit as" in page


def test_cost_of_xlora_is_measured(measured: Measurement, measure: Callable[..., Measurement]) -> None:
    measurement = measure("xlora.jsonl", "prompt")
    measurement.cost_xlora()
    measurement.cost_xlora()
    (row,) = measurement.rows.read()
    assert (row["adapters"], row["prompts"], row["new_tokens"]) == (2, 2, 8)
    assert row["step_seconds"] > 0 < row["answer_seconds"]
    # 64 items of each task are far more than the eight of a step.
    assert row["learned_tokens"] > 4 * row["step_tokens"]
    page = page_of([*RowsFile(measured.rows.path).read(), row], PAGE.read_text(encoding="utf-8"))
    assert "With 2 adapters a training step of" in page and "the members forced took" in page


@pytest.mark.slow
def test_composites_are_asked_in_every_form(base: Path, items_folder: Path, tmp_path: Path) -> None:
    names = [task.name for task in TINY_TASKS]
    recipes = [CompositeRecipe(name, 4, ("q_proj", "down_proj"), layers=(0, 2), tokens=600) for name in names]
    measurement = Measurement(
        base,
        items_folder,
        TINY_TASKS,
        tmp_path,
        tmp_path / "rows.jsonl",
        sizes=Sizes(processes=1),
        recipes=recipes,
        fits=COMPOSITE_FITS,
    )
    measurement.train()
    measurement.fit()
    measurement.ask_composites({tuple(names): 2})
    before = measurement.rows.path.read_bytes()
    measurement.ask_composites({tuple(names): 2})
    assert measurement.rows.path.read_bytes() == before
    rows = of_kind(measurement.rows.read(), "composite")
    assert {(row["form"], row["way"]) for row in rows} == {
        (form, way.name) for form in COMPOSITE_FORMS for way in COMPOSITE_WAYS
    }
    assert {(row["size"], row["prompts"], len(row["scores"])) for row in rows} == {(2, 2, 2)}
    page = page_of([*RowsFile(ROWS).read(), *rows], PAGE.read_text(encoding="utf-8"))
    assert page.count("| oracle | 2 |") == len(COMPOSITE_FORMS)


COMPOSITE = Composite(
    (Item("sums", "1 and 1", ("2",)), Item("parity", "Is 3 odd?\nchoice: yes", ("yes",), ("yes", "no"))),
    "paper",
)


def test_composite_is_numbered_questions_and_then_numbered_answers() -> None:
    text = "".join(piece.text for piece in COMPOSITE.begin())
    assert text == "1. 1 and 1\n2. Is 3 odd?\nchoice: yes\n\n1."
    assert COMPOSITE.line(0, "2") == " 2\n"
    again = replace(COMPOSITE, form="restated")
    assert again.line(1, "yes") == " Is 3 odd? choice: yes -> yes\n"
    assert "".join(piece.text for piece in replace(COMPOSITE, form="turns").begin()) == "1 and 1 ->"


@pytest.mark.parametrize(
    ("form", "text", "answers"),
    [
        ("paper", " 2\n2. yes\n", ["2", "yes"]),
        ("paper", " 2", ["2", ""]),
        ("paper", " 2\nyes\n3. no", ["2", ""]),
        ("paper", " 2\n2. yes\n2. no", ["2", "yes"]),
        ("paper", "", ["", ""]),
        ("restated", " 1 and 1 -> 2\n2. yes", ["2", ""]),
    ],
)
def test_answers_of_a_composite_are_found_by_their_numbers(form: Form, text: str, answers: list[str]) -> None:
    assert replace(COMPOSITE, form=form).answers_in(text) == answers


def test_each_token_of_a_composite_has_its_questions_member(measured: Measurement) -> None:
    pieces = [*COMPOSITE.begin(), Piece(" 2\n", 0), *COMPOSITE.head(1)]
    loaded = models_of(measured._prepared()).loaded_for(PROMPT)
    found = members_of(loaded, pieces, [item.task for item in COMPOSITE.items])
    # One token for each letter.
    assert found == [COMPOSITE.items[piece.place].task for piece in pieces for _ in piece.text]


@pytest.mark.parametrize("form", COMPOSITE_FORMS)
def test_own_answer_and_numbers_of_a_composite_are_learned(form: Form) -> None:
    recipe = CompositeRecipe("sums", 4, ("q_proj",), switched_off=0.0)
    sample = composite_sample(replace(COMPOSITE, form=form), recipe, random.Random(0), TOKENIZER)
    learned = TOKENIZER.decode([label for label in sample.labels if label >= 0])
    assert learned == {"paper": " 2\n2.", "restated": " 1 and 1 -> 2\n2.", "turns": " 2\n"}[form]
    off = replace(recipe, switched_off=1.0)
    sample = composite_sample(replace(COMPOSITE, form=form), off, random.Random(0), TOKENIZER)
    assert 0 < sample.on < len(sample.ids)


def test_fit_that_was_killed_before_its_cost_was_written_is_made_again(
    measured: Measurement, measure: Callable[..., Measurement]
) -> None:
    measurement = measure("killed-fit.jsonl", "prompt")
    (place,) = measurement._fits.values()
    weights = (place / "adapter_model.safetensors").read_bytes()
    cost = cost_file(place).read_bytes()
    # The rows of other tests know the record of the first verification.
    kept = shutil.copytree(place, place.with_name("kept"))
    cost_file(place).unlink()
    measurement.fit()
    (row,) = of_kind(measurement.rows.read(), "fit")
    assert row["folder"] == place.name
    assert (place / "adapter_model.safetensors").read_bytes() == weights
    shutil.rmtree(place)
    kept.rename(place)
    cost_file(place).write_bytes(cost)


def test_foreign_tasks_are_neither_the_papers_nor_those_of_abstention() -> None:
    developed = {row.get("task", "").partition("/")[0] for row in read_rows(ABSTENTION_ROWS)}
    assert len({*FOREIGN}) == 16
    assert not {*FOREIGN} & (developed | {task.name for task in TASKS} | {*MISSING})


def test_curve_reaches_from_nothing_to_everything() -> None:
    assert curve_of([0.5, 0.9], [0.1, 0.5]) == [(0, 0), (0, 0.5), (0.5, 1), (1, 1)]


def test_figures_are_those_of_the_committed_rows() -> None:
    found = figures_of(RowsFile(ROWS).read())
    assert {path: path.read_text(encoding="utf-8") for path in (SCORES, ROC) if path.exists()} == found


def test_rows_have_no_item(measured: Measurement) -> None:
    text = measured.rows.path.read_text()
    for examples in EXAMPLES.values():
        assert not [each["input"] for each in examples if each["input"] in text]


def test_measurement_that_was_killed_goes_on_where_it_stopped(
    measured: Measurement, measure: Callable[..., Measurement]
) -> None:
    """The rows end within the last score: it alone is made again, as it was."""
    rows = measured.rows
    before = rows.read()
    data = rows.path.read_bytes()
    places = [place for place, row in enumerate(before) if row["kind"] == "score"]
    whole_lines = b"".join(data.splitlines(keepends=True)[: places[-1]])
    rows.path.write_bytes(data[: len(whole_lines) + 40])
    measure_few(measure("few.jsonl", "prompt"))
    assert rows.path.read_bytes().startswith(whole_lines)
    after = rows.read()
    assert [row["kind"] for row in after] == [row["kind"] for row in before]
    assert after[places[-1]]["scores"] == before[places[-1]]["scores"]
    settled = rows.path.read_bytes()
    measure_few(measure("few.jsonl", "prompt"))
    assert rows.path.read_bytes() == settled


def test_way_with_another_recipe_is_asked_again(
    measured: Measurement, measure: Callable[..., Measurement]
) -> None:
    rows = measure("again.jsonl").rows
    rows.path.write_bytes(measured.rows.path.read_bytes())
    changed = [replace(way, abstain=0.9) if way.name == "prompt" else way for way in WAYS if way.name in FEW]
    # The last row counts, so going back to the first recipe writes its rows again.
    for ways in (changed, [way for way in WAYS if way.name in FEW]):
        before = rows.read()
        measure("again.jsonl", "prompt").ask(ways)
        asked = of_kind(rows.read()[len(before) :], "score")
        assert [(row["way"], row["task"]) for row in asked] == [("prompt", "parity"), ("prompt", "sums")]
        measure("again.jsonl", "prompt").ask(ways)
        assert of_kind(rows.read(), "score") == [*of_kind(before, "score"), *asked]


def test_gates_fitted_on_other_items_are_not_taken(
    measured: Measurement,
    measure: Callable[..., Measurement],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(paper_measure, "FIT_ITEMS", 32)
    measurement = measure("other-items.jsonl", "prompt")
    measurement.ask([way for way in WAYS if way.name in (MAJORITY, "prompt")])
    assert {row["way"] for row in of_kind(measurement.rows.read(), "score")} == {MAJORITY}
    assert "prompt: left out, because `prompt` was not made" in capsys.readouterr().err


def test_set_with_the_most_ways_is_shown_and_the_largest_compared() -> None:
    rows = [
        {"kind": kind, "members": members, "tasks": tasks, "way": way}
        for members, tasks, ways in (("few", 2, (MEMBER, "prompt", "token")), ("all", 3, (MEMBER, "prompt")))
        for way in ways
        for kind in ("score", "summary")
    ]
    assert sets_of(rows) == ["few", "all"]
    assert shown_set(rows) == "few"
    assert [compared_set(rows, way) for way in ("prompt", "token", "arrow")] == ["all", "few", None]
    # Of equally many ways it is the larger one.
    assert shown_set([row for row in rows if row["way"] != "token"]) == "all"


def test_page_follows_from_rows(measured: Measurement) -> None:
    rows = measured.rows.read()
    page = page_of(rows, PAGE.read_text(encoding="utf-8"))
    assert f"| {MEMBER} | 2 | " in page
    missing = ", ".join(f"`{way.name}`" for way in WAYS if way.name not in FEW)
    assert f"- Ways without rows: {missing}." in page
    assert page_of(rows, page) == page
    readme = readme_of(rows, README.read_text(encoding="utf-8"))
    assert "of 2 of the paper's tasks, and 6 test questions" in " ".join(readme.split())


def test_ways_of_all_sets_of_members_stand_side_by_side(measured: Measurement) -> None:
    rows = measured.rows.read()
    more = [row | {"members": "more", "tasks": 3} for row in rows if row.get("way") in (MEMBER, "prompt")]
    heads, _, *lines = sections([*rows, *more])["sets"]
    assert heads == "| served by | 2 members, 6 items | minus forced | 3 members, 6 items | minus forced |"
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines}
    assert [*cells] == [way.name for way in WAYS if way.name in FEW]
    assert [name for name, own in cells.items() if own[2:] != ["", " |"]] == [MEMBER, "prompt"]
    # Each need is met by a row of the largest set that has one.
    needs = {line.split(" | ")[1]: line.split(" | ")[-1] for line in sections([*rows, *more])["needs"][2:]}
    assert (needs["`prompt`"], needs["`LoRA-B`"], needs["`arrow`"]) == ("3 |", "2 |", " |")


def test_page_shows_the_committed_rows() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == page_of(RowsFile(ROWS).read(), page)
    readme = README.read_text(encoding="utf-8")
    assert readme == readme_of(RowsFile(ROWS).read(), readme)


def test_sentences_about_missed_goals_are_those_of_the_rows() -> None:
    rows = RowsFile(ROWS).read()
    tasks = scores_of(rows, compared_set(rows, PROMPT.name))[PROMPT.name]
    missed = {name: row["items"] - row["decided"].get(name, 0) for name, row in tasks.items()}
    assert (len(tasks), sum(row["items"] for row in tasks.values())) == (22, 704)
    assert (sum(missed.values()), missed["vitaminc_fact_verification"]) == (10, 5)
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert "ten prompts of 704 went to another member, five of them of `vitaminc_fact_verification`" in page
    more = scores_of(rows, compared_set(rows, PROMPT_MORE.name))[PROMPT_MORE.name]
    assert sum(row["decided"].get(name, 0) for name, row in more.items()) == 704 - 10
    chosen = {
        way: sum(row["decided"].get(row["task"], 0) for row in of_kind(rows, "choice", way=way.name))
        for way in CANDIDATES
    }
    assert chosen[PROMPT_MORE] > chosen[PROMPT]
    assert "rightly, and the same number of the test items" in page
    few, all_of_them = (scores_of(rows, members)["token"] for members in sets_of(rows))
    rightly = [mean(row["tokens_rightly"] for row in own.values()) for own in (all_of_them, few)]
    found = summaries_of(rows, sets_of(rows)[0])
    assert (
        f"after {100 * found['token']['mean'] / found[MEMBER]['mean']:.1f} % with {len(few)} members" in page
    )
    told = "{:.1f} % of a task's tokens were decided rightly, where it had been {:.1f} %"
    assert told.format(*(100 * part for part in rightly)) in page


def test_committed_summaries_are_those_of_the_committed_scores() -> None:
    """The means of all, and one interval, because an interval takes long."""
    rows = RowsFile(ROWS).read()
    for members in sets_of(rows):
        scores = scores_of(rows, members)
        for row in of_kind(rows, "summary", members=members):
            tasks = scores[row["way"]]
            assert (row["mean"], row["difference"]) == means_of(tasks, scores.get(MEMBER))
            if row["way"] == MEMBER and members == shown_set(rows):
                assert row["interval"] == interval([each["scores"] for each in tasks.values()])


def test_page_without_rows_names_what_is_missing() -> None:
    found = sections([])
    ways, missing = (", ".join(f"`{name}`" for name in names) for names in ([w.name for w in WAYS], MISSING))
    assert f"- Ways without rows: {ways}." in found["state"]
    assert f"- Tasks of the paper that cannot be measured here: {missing}." in found["state"]
    assert found["test"] == found["adapters"] == [tables.NOT_MEASURED]


def test_table_of_tasks_is_the_papers() -> None:
    assert len(TASKS) + len(MISSING) == 28
    assert sum(task.is_core for task in TASKS) == 16
    assert chosen_tasks(["all"]) == TASKS
    assert chosen_tasks(["winowhy", "core"]) == chosen_tasks(["core"])
    assert {*RECIPES} == {task.name for task in TASKS}
    assert {*JOINT_RECIPES} == {LORA_F, LORA_B}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_adapters_have_shapes_that_differ(recipe: AdapterRecipe) -> None:
    assert 4 <= recipe.rank <= 16
    others = [each for each in RECIPES.values() if (each.rank, each.targets) != (recipe.rank, recipe.targets)]
    assert others


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "gsm8k",
            "`gsm8k` (problems of grade-school mathematics) is not in BIG-bench and cannot be measured",
        ),
        ("chess", "`chess` is not a task, expected `core`, `all` or abstract_narrative_understanding, "),
    ],
)
def test_task_that_cannot_be_had_is_refused(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--tasks", name, "--cache", str(tmp_path / "cache")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_splits_share_no_question(items_folder: Path) -> None:
    for task in TINY_TASKS:
        splits = read_items(task, items_folder)
        questions = [{item.question for item in items} for items in splits.values()]
        assert sum(map(len, questions)) == len(set().union(*questions)) == 120
        assert len(splits["test"]) >= MIN_TEST_ITEMS
        assert splits == read_items(task, items_folder)


def test_test_items_are_the_last_fifth_of_the_shuffled_file(items_folder: Path) -> None:
    """BIG-bench shuffles a file's examples with the seed 42; its validation split is the last fifth."""
    shuffled = [*EXAMPLES["parity"]]
    random.Random(42).shuffle(shuffled)
    tested = {item.question.partition("\n")[0] for item in read_items(TINY_TASKS[0], items_folder)["test"]}
    assert tested == {example["input"] for example in shuffled[96:]}


def test_task_with_few_items_is_refused(items_folder: Path) -> None:
    few = replace(TINY_TASKS[1], subtasks=("small",), max_letters=7)
    with pytest.raises(ValueError, match=r"`sums` has .* items for the test, .* for training"):
        read_items(few, items_folder)


def test_item_has_every_right_answer_and_its_own_choices() -> None:
    task, other = TINY_TASKS
    item = item_of(task, parity(3))
    assert item is not None
    assert (item.question, item.targets) == ("Is 3 odd?\nchoice: yes\nchoice: no", ("yes",))
    assert (item.prompt[-3:], item.response) == (" ->", " yes\n")
    free = item_of(other, total(6))
    assert free is not None
    assert (free.targets, free.choices) == (("7", "it is 7"), ())
    assert item_of(other, {"input": "?", "target": []}) is None
    assert item_of(other, {"input": "?"}) is None


def test_half_of_the_lines_that_a_fit_reads_are_messages(items_folder: Path, tmp_path: Path) -> None:
    items = read_items(TINY_TASKS[0], items_folder)["train"][:16]
    lines = fit_lines(items)
    # A fit holds every second line out.
    for part in (lines[::2], lines[1::2]):
        assert sum("messages" in line for line in part) == len(part) / 2
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert prompts_in(path) == [item.prompt for item in items]


def test_steps_have_the_stated_tokens_and_joint_samples_are_balanced(items_folder: Path) -> None:
    train = {task.name: read_items(task, items_folder)["train"] for task in TINY_TASKS}
    unequal = {"parity": train["parity"], "sums": train["sums"][:5]}
    batches = list(batches_of(draw(unequal, TOKENIZER, 0, balanced=True), 3000))
    sizes = [sum(len(sample.ids) for sample in batch) for batch in batches]
    assert sum(sizes) >= 3000 > sum(sizes[:-1])
    own = [TOKENIZER.decode(sample.ids).startswith("Is") for batch in batches for sample in batch]
    assert abs(2 * sum(own) - len(own)) <= 1
    pooled = [next(each) for each in [draw(unequal, TOKENIZER, 0, balanced=False)] * 60]
    assert sum(TOKENIZER.decode(sample.ids).startswith("Is") for sample in pooled) > 45


def test_training_on_items_that_are_all_too_long_ends(items_folder: Path) -> None:
    item = read_items(TINY_TASKS[0], items_folder)["train"][0]
    long = replace(item, question="a" * 600)
    with pytest.raises(ValueError, match="no item of long, other has at most 512 tokens"):
        next(draw({"long": [long], "other": [long] * 3}, TOKENIZER, 0, balanced=True))
    some = {"long": [long] * 9, "short": [item]}
    for balanced in (True, False):
        samples = draw(some, TOKENIZER, 0, balanced=balanced)
        assert all(len(next(samples).ids) < 600 for _ in range(20))


def test_nearest_centre_is_that_of_the_least_angle() -> None:
    prompts = torch.nn.functional.normalize(torch.tensor([[0.8, 0.6], [1.0, 0.1]]), dim=-1)
    # The mean of prompts that differ is short.
    assert nearest(prompts, torch.tensor([[0.95, 0.0], [0.3, 0.3]])) == [1, 0]


def test_way_is_compared_with_the_member_on_the_same_items_alone() -> None:
    own: Tasks = {"parity": {"scores": [0.0, 1.0], "items_sha256": "two items"}}
    way: Tasks = {"parity": {"scores": [1.0, 1.0], "items_sha256": "two items"}}
    fewer: Tasks = {"parity": {"scores": [1.0], "items_sha256": "one item"}}
    assert means_of(way, own) == (1.0, 0.5)
    assert means_of(fewer, own) == (1.0, None)
    assert means_of(way, {}) == (1.0, None)


def test_page_of_other_rows_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = PAGE.read_bytes()
    with pytest.raises(SystemExit, match="2"):
        main(["page", "--rows", str(tmp_path / "rows.jsonl")])
    assert f"the page shows the rows of `{ROWS}` alone" in capsys.readouterr().err
    assert PAGE.read_bytes() == before


@pytest.mark.parametrize("option", ["--test-items", "--processes"])
@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_number_below_one_is_refused(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", f"{option}={value}"])
    assert f"`{value}` is not a number from 1 on" in capsys.readouterr().err


def test_items_change_the_digest(items_folder: Path) -> None:
    items = read_items(TINY_TASKS[0], items_folder)["train"]
    assert digest_of_items(items) != digest_of_items(items[1:])


@pytest.fixture
def sdist(tmp_path: Path) -> Iterator[Path]:
    """An archive with items of one task, a link in place of those of another, and a file beside."""
    path = tmp_path / "source.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("other", "parity"):
            data = json.dumps({"examples": EXAMPLES["parity"]}).encode()
            entry = tarfile.TarInfo(f"{INSIDE}/{name}/{ITEMS_FILE}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo(f"{INSIDE}/sums/{ITEMS_FILE}")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    yield path


def test_only_the_wanted_files_are_copied(sdist: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    copy_members(sdist, {f"{INSIDE}/parity/{ITEMS_FILE}": Path("parity", ITEMS_FILE)}, folder)
    assert [path.relative_to(folder) for path in folder.rglob("*.*")] == [Path("parity", ITEMS_FILE)]
    assert json.loads((folder / "parity" / ITEMS_FILE).read_text()) == {"examples": EXAMPLES["parity"]}


@pytest.mark.parametrize(
    ("name", "message"),
    [("sums", "expected a regular file of at most"), ("absent", "lacks `bigbench-1.0.0/")],
)
def test_file_that_is_not_one_is_refused(sdist: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        copy_members(sdist, {f"{INSIDE}/{name}/{ITEMS_FILE}": Path(name, ITEMS_FILE)}, tmp_path)


def test_too_large_a_file_is_refused(sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match="expected a regular file of at most 100"):
        copy_members(sdist, {f"{INSIDE}/parity/{ITEMS_FILE}": Path("parity", ITEMS_FILE)}, tmp_path)


def test_another_source_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / archive.SDIST).write_bytes(b"another package")
    with pytest.raises(ValueError, match="has sha256 `"):
        prepare_items(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [archive.SDIST]


def test_task_that_was_added_has_its_items(
    sdist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "SDIST_SHA256", str(hash_file(sdist)))
    monkeypatch.setattr(archive, "FOREIGN", ())
    cache = tmp_path / "cache"
    cache.mkdir()
    for names in (["parity"], ["parity", "other"]):
        monkeypatch.setattr(archive, "TASKS", [PaperTask(name, "contains") for name in names])
        shutil.copy(sdist, cache / archive.SDIST)
        folder = prepare_items(cache)
        assert sorted(path.name for path in folder.iterdir()) == sorted(names)
        assert prepare_items(cache) == folder
        assert not (cache / archive.SDIST).exists()


def test_row_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    rows = RowsFile(tmp_path / "rows.jsonl")
    rows.append({"kind": "a"})
    rows.path.write_bytes(rows.path.read_bytes() + b'{"kind": "b", "scor')
    assert rows.read() == [{"kind": "a"}]
    rows.append({"kind": "c"})
    assert rows.path.read_text() == '{"kind": "a"}\n{"kind": "c"}\n'


@pytest.mark.slow
def test_workers_end_with_a_parent_that_was_killed() -> None:
    """The workers hold the other end of the pipe, so it ends when the last of them does."""
    program = (
        "import time\n"
        "from benchmarks.paper.pool import run_units\n"
        "if __name__ == '__main__':\n"
        "    for unit, _ in run_units(time.sleep, [0, 3600, 3600], 2):\n"
        "        print(unit, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(PAGE.parents[1])}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"0\n"
        parent.kill()
        assert parent.communicate(timeout=PATIENCE_SECONDS)[0] == b""
