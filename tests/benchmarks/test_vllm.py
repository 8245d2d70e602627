"""Adapters in a real vLLM engine: the page shows the committed rows, and the rules still predict them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import vllm
from benchmarks.pages import read_rows as read_lines
from meteora_registry.inspection.rules.all_rules import all_rules
from meteora_registry.schemas.finding import Effect
from support.models import LOADS_WITH_PEFT
from support.vllm_matrix import REFUSED, Predicted, ServedRow, Subject, save_served_base, subjects
from support.vllm_rows import read_rows

ROWS = read_rows()
SUBJECTS = {f"{each.kind.name}: {each.name}": each for each in subjects()}
# Of the rules that refuse, those that no engine on a CPU can be asked about, or that are about its start.
NOT_ASKED = {
    "MR806": "needs a base with images, whose processor no tiny base here has",
    "MR808": "the engine does not start: tests/vllm/test_classes.py",
}


def _one_of_each() -> list[ServedRow]:
    """Return the first sound adapter of each set of rules, and of none."""
    found: dict[tuple[str, str], ServedRow] = {}
    for row in ROWS:
        if row.verdict == "sound":
            found.setdefault((row.codes, row.predicted), row)
    return list(found.values())


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


def test_page_shows_the_committed_rows() -> None:
    page = vllm.PAGE.read_text(encoding="utf-8")
    assert vllm.page_of(page, read_lines(vllm.ROWS)) == page


def test_sound_adapters_were_served_as_predicted() -> None:
    assert sum(row.verdict == "sound" for row in ROWS) > 150
    assert [row.name for row in ROWS if row.breaks_the_law] == []


def test_rows_are_those_of_the_subjects() -> None:
    # PEFT does not make an adapter of every case, so not every subject has a row.
    names = [row.name for row in ROWS]
    assert names == [name for name in SUBJECTS if name in set(names)]


def test_every_rule_that_refuses_was_shown_on_an_engine() -> None:
    refusing = {rule.code for rule in all_rules() if rule.effect is Effect.NOT_SERVED}
    shown = {row.codes for row in ROWS if row.engine == REFUSED and row.verdict == "sound"}
    assert shown >= refusing - NOT_ASKED.keys()


@LOADS_WITH_PEFT
@pytest.mark.parametrize("row", _one_of_each(), ids=lambda row: row.codes or row.predicted)
def test_rules_predict_the_committed_rows(row: ServedRow, bases: Path, tmp_path: Path) -> None:
    subject: Subject = SUBJECTS[row.name]
    base = bases / subject.kind.name
    folder = subject.write(tmp_path / "adapter")
    assert folder is not None
    found = Predicted.of(folder, base if base.exists() else save_served_base(subject.kind, base))
    assert found == Predicted(row.verdict, row.predicted, row.codes)
