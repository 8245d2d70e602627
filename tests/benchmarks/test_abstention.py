"""The measurement of request gates in small, the table of the rows, and the promise about own prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import abstention
from benchmarks.abstention_tables import END, PAGE, ROWS, START, average_rank, table
from benchmarks.pages import read_rows
from meteora_registry.runtime.fitting.chat_template import ChatTemplate
from meteora_registry.runtime.fitting.inputs import find_inputs
from meteora_registry.runtime.fitting.request_gates import candidate_inputs
from support.models import tiny_llama
from support.task_data import TEMPLATE, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(table(read_rows(ROOT / ROWS)))


def test_page_has_the_table_of_the_rows(lines: list[str]) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    section = text.partition(START)[2].partition(END)[0]
    assert section.strip("\n") == "\n".join(lines).strip("\n")


def test_product_loses_few_of_the_own_prompts_that_chose_nothing(lines: list[str]) -> None:
    """At most 5 % in both forms on the test stage, the upper end of the interval included."""
    test = lines[next(place for place, line in enumerate(lines) if line.startswith("**Test**")) :]
    lost = [line.split("|")[3] for line in test if line.startswith("| **both, the product's**")]
    assert len(lost) == 2
    for cell in lost:
        upper = float(cell.partition("-")[2].partition(")")[0])
        assert upper <= 5.0, cell


def write_task(tasks: Path, name: str, words: range, *, count: int) -> None:
    """Write a task of BIG-bench whose prompts have words of its own."""
    drawn = np.random.default_rng(words.start).choice(words, size=(count, 6))
    examples = [{"input": " ".join(f"w{word}" for word in row), "target": "w1"} for row in drawn]
    (tasks / name).mkdir(parents=True)
    (tasks / name / "task.json").write_text(json.dumps({"examples": examples}))


def test_stage_has_rows_of_every_task_from_which_the_table_is_made(tmp_path: Path) -> None:
    for place, name in enumerate(("first", "second", "foreign")):
        write_task(tmp_path, name, range(20 * place, 20 * place + 20), count=70)
    base = tiny_llama(layers=4)
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(4)]
    inputs = candidate_inputs(find_inputs(base, paths), base.config)
    own = {name: abstention.samples_of(tmp_path, name, 70) for name in ("first", "second")}
    foreign = {"foreign": abstention.samples_of(tmp_path, "foreign", 8)}
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE, pad_token="<unk>")
    with ChatTemplate(tokenizer):
        rows = list(abstention.measure_stage("test", base, tokenizer, inputs, own, foreign))
    prompts = {(row["group"], row["task"]): len(row["decided"]) for row in rows if row.get("form") == "plain"}
    assert prompts == {
        ("held out", "first"): 32,
        ("held out", "second"): 32,
        ("own", "first"): 6,
        ("own", "second"): 6,
        ("foreign", "foreign"): 8,
        ("general", "questions"): len(abstention.QUESTIONS),
    }
    lines = list(table(rows))
    assert lines[0].startswith("**Test**, 2 members: the fit chose the layers 1; ")
    product = [line for line in lines if line.startswith("| **both, the product's**")]
    assert len(product) == 2
    assert all("40 of 40" in line for line in product)


def test_average_rank_is_that_of_split_conformal_prediction() -> None:
    assert [average_rank(count, 0.05) for count in (18, 19, 39, 288)] == [0, 1, 2, 14]
