"""The measurement of gates, run whole on a tiny model of random weights."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gates import measure
from benchmarks.gates.figure import FIGURE, OURS, draw
from benchmarks.gates.measure import Measurement, Sizes
from benchmarks.gates.prompts import composites, pieces_of, prompt_of, response_of
from benchmarks.gates.rows import by_task, interval_of, mean_of, read_rows, whole_of
from benchmarks.gates.scoring import EncodedText, encode_text, pad_left, score_texts
from benchmarks.gates.tables import END, PAGE, START, ratio, scores, sections, write_tables
from benchmarks.gates.tasks import TASK_NAMES, TASKS, spell, split_of
from benchmarks.gates.training import IGNORED, RECIPES, pack, samples_of
from benchmarks.gates.ways import Models, Way, served
from benchmarks.pages import percent
from support.byte_tokens import byte_tokenizer, save_byte_llama

pytestmark = pytest.mark.filterwarnings(
    "ignore::meteora_registry.runtime.GateNotFittedWarning",
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
)
ROOT = Path(__file__).parents[2]
TOKENIZER = byte_tokenizer(pad_token="\u0100", padding_side="left")
POOLS = {task.name: task.items("train", 20, 0) for task in TASKS}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_byte_llama(tmp_path_factory.mktemp("base"), TOKENIZER)


@pytest.fixture(scope="module")
def measured(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Measurement:
    """All stages, small: two steps of training, one validation and two test items of each task."""
    folder = tmp_path_factory.mktemp("measured")
    recipes = [replace(recipe, layers=(1, 2), steps=2, samples_per_step=3) for recipe in RECIPES]
    measurement = Measurement(base, recipes, folder, folder / "rows.jsonl")
    sizes = Sizes(
        validation_items=1, validation_composites=2, test_items=2, test_composites=2, composite_sizes=(3,)
    )
    measurement.prepare()
    measurement.describe()
    measure.validate(measurement, sizes)
    measure.test(measurement, sizes, "lda without 4")
    return measurement


@pytest.mark.slow
def test_measurement_writes_a_row_for_every_way(measured: Measurement) -> None:
    rows = read_rows(measured.rows)
    found = {(row["stage"], row["set"], row["way"]) for row in rows if row["kind"] == "score"}
    wanted = {("test", "single", way.name) for way in measure.test_ways("lda without 4")}
    wanted |= {("test", "composite-3", way.name) for way in measure.composite_test_ways("lda without 4")}
    wanted |= {("validation", "single", way.name) for way in measure.validation_ways()}
    assert wanted <= found
    assert sorted(row["task"] for row in rows if row["kind"] == "adapter") == sorted(TASK_NAMES)
    assert sum(row["kind"] == "fit" for row in rows) == 2


@pytest.mark.slow
def test_measurement_repeats_nothing_that_is_there(measured: Measurement) -> None:
    before = measured.rows.read_bytes()
    measured.score("test", "single", measured.texts("test", 2), measure.test_ways("lda without 4"))
    measured.describe()
    measured.fit_as_users_do("prompt", measure.GATE_FIT)
    measured.look_outside(measure.GATE_FIT, measured.texts("validation", 1))
    assert measured.rows.read_bytes() == before


@pytest.mark.slow
def test_tables_follow_from_rows(measured: Measurement, tmp_path: Path) -> None:
    page, plot = tmp_path / "page.md", tmp_path / "plot.svg"
    names = sections(read_rows(measured.rows))
    page.write_text("\n".join(f"{START.format(name)}\nold\n{END}" for name in names))
    write_tables(measured.rows, page, plot)
    text = page.read_text()
    assert "| oracle | " in text
    assert "\nold\n" not in text
    assert plot.stat().st_size > 1000
    write_tables(measured.rows, page, plot)
    assert page.read_text() == text


@pytest.fixture(scope="module")
def committed() -> dict[str, list[str]]:
    """The sections of the page, from the rows in the repository."""
    return sections(read_rows(ROOT / measure.ROWS))


@pytest.mark.parametrize("name", sections([]))
def test_page_has_what_the_committed_rows_say(committed: dict[str, list[str]], name: str) -> None:
    lines = committed[name]
    assert "\n".join([START.format(name), *lines, END]) in (ROOT / PAGE).read_text(encoding="utf-8")


def test_figure_is_what_the_committed_rows_say() -> None:
    rows = read_rows(ROOT / measure.ROWS)
    assert (ROOT / FIGURE).read_text(encoding="utf-8") == draw(rows)
    found = {row["way"]: row for row in scores(rows, "test", "single")}
    of_the_oracle = percent(ratio(found[OURS], found["oracle"]))
    page = (ROOT / "docs/gates.md").read_text(encoding="utf-8")
    assert f"reaches {of_the_oracle} of [the oracle]" in page
    assert f"({FIGURE.relative_to('docs')})" in page


@pytest.mark.slow
def test_oracle_of_one_item_is_its_adapter_alone(measured: Measurement, base: Path) -> None:
    """Forcing by token and PEFT's own adapter give the same next tokens."""
    from peft import PeftModel

    from meteora_registry.runtime import force_adapter

    text = encode_text([POOLS["clock"][0]], TOKENIZER)
    ids = torch.tensor([text.ids])
    alone = PeftModel.from_pretrained(measure.load_model(base), measured.adapters["clock"])(ids).logits
    model = Models(measure.load_model(base), measured.bundles, {}).model_for(Way("oracle"))
    with torch.no_grad(), force_adapter(model, "clock"):
        forced = model(ids).logits
    torch.testing.assert_close(forced, alone.detach(), rtol=0.02, atol=0.02)
    assert len(score_texts(model, [text], lambda batch: served(model, Way("oracle"), batch))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        Way("base"),
        Way("oracle"),
        *(Way("routed", "lda", scope) for scope in ("token", "layer", "prompt", "prompt+token", "segment")),
    ],
    ids=lambda way: way.name,
)
def test_one_pass_tells_what_generation_writes(measured: Measurement, base: Path, way: Way) -> None:
    """What the model itself writes is right; with the last token changed it is not."""
    model = Models(measure.load_model(base).float(), measured.bundles, {}).model_for(way)
    text = encode_text([POOLS["clock"][0]], TOKENIZER)
    prompt = [token for token, written in zip(text.ids, text.written, strict=True) if not written]
    ids = torch.tensor([prompt])
    alone = EncodedText(text.items, tuple(prompt), (0,) * len(prompt), (False,) * len(prompt))
    written: list[int] = []
    for _ in range(4):
        so_far = replace(
            alone,
            ids=(*prompt, *written),
            places=(0,) * (len(prompt) + len(written)),
            written=(*alone.written, *(True for _ in written)),
        )
        batch = pad_left([so_far])
        with torch.no_grad(), served(model, way, batch):
            logits = model(input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels).logits
        written.append(int(logits[0, -1].argmax()))
    if way.kind != "oracle":
        with torch.no_grad(), served(model, way, pad_left([alone])):
            generated = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=4,
                do_sample=False,
                pad_token_id=0,
            )
        assert generated[0, len(prompt) :].tolist() == written
    for last, right in ((written[-1], True), (written[-1] ^ 1, False)):
        whole = EncodedText(
            text.items,
            (*prompt, *written[:-1], last),
            (0,) * (len(prompt) + 4),
            (False,) * len(prompt) + (True,) * 4,
        )
        assert score_texts(model, [whole], lambda batch: served(model, way, batch))[0].right == (right,)


def test_values_of_splits_are_disjoint() -> None:
    for task in TASKS:
        splits = {split: task.items(split, 60, 0) for split in ("train", "validation", "test")}
        questions = [{item.question for item in items} for items in splits.values()]
        assert not questions[0] & questions[1]
        assert not questions[0] & questions[2]
        assert not questions[1] & questions[2]


def test_test_has_sentences_that_training_lacks() -> None:
    for task in TASKS:
        kept = [sentence.partition("{}")[0] for sentence in task.test]
        starts = [
            i.question for i in task.items("test", 100, 0) if i.question.startswith(tuple(filter(None, kept)))
        ]
        assert 20 < len(starts) < 80
        assert set(task.test).isdisjoint({*task.train, *task.validation})


@pytest.mark.parametrize(
    ("number", "words"),
    [(21, "twenty-one"), (40, "forty"), (100, "one hundred"), (317, "three hundred and seventeen")],
)
def test_spell_writes_numbers_as_people_do(number: int, words: str) -> None:
    assert spell(number) == words


def test_split_of_depends_on_the_value_alone() -> None:
    splits = [split_of(f"value {i}") for i in range(1000)]
    assert 550 < splits.count("train") < 650
    assert splits == [split_of(f"value {i}") for i in range(1000)]


@pytest.mark.parametrize("size", [1, 3, 5])
def test_pieces_are_prompt_and_response(size: int) -> None:
    items = composites(POOLS, size, 1, 0)[0]
    assert len({item.task for item in items}) == size
    assert prompt_of(items) + response_of(items) == "".join(piece.text for piece in pieces_of(items))


def test_samples_learn_own_answers_and_no_others() -> None:
    recipe = replace(RECIPES[0], steps=3, samples_per_step=20, isolated=0.5)
    texts = []
    for sample in samples_of(recipe, TOKENIZER):
        text = TOKENIZER.decode(sample.ids)
        learned = TOKENIZER.decode([label for label in sample.labels if label != IGNORED])
        texts.append(text)
        assert re.search(r" \d\d:\d\d\n", learned)
        assert '{"' not in learned
        if text.count("\n") == 1:
            assert learned == text.partition("->")[2]
        assert sample.on < len(sample.ids)
    assert any('{"' in text for text in texts)


def test_pack_keeps_samples_apart() -> None:
    samples = samples_of(replace(RECIPES[0], steps=1, samples_per_step=7), TOKENIZER)
    packed = pack(samples, 2)
    for place, sample in enumerate(samples):
        row, column = torch.nonzero(packed.sample == place, as_tuple=True)
        assert packed.ids[row, column].tolist() == sample.ids
        assert packed.labels[row, column].tolist() == sample.labels
        assert packed.positions[row, column].tolist() == list(range(len(sample.ids)))
        assert packed.on[row, column, 0].sum() == len(sample.ids) - sample.on
    visible = packed.visible(torch.float32)[:, 0] == 0
    first, second = packed.sample.unsqueeze(2), packed.sample.unsqueeze(1)
    assert not (visible & (first != second)).any()


def test_intervals_hold_the_mean_and_ratios_of_equals_are_one() -> None:
    row = {"tasks": ["clock", "pair", "clock+pair"], "right": ["1", "0", "10"]}
    assert by_task(row)["clock"] == [1, 1]
    assert mean_of(row) == 0.5
    assert whole_of(row) == pytest.approx(1 / 3)
    low, high = interval_of(row)
    assert low <= 0.5 <= high
    assert interval_of(row, row) == (1.0, 1.0)
