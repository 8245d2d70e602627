"""Real adapters: each has the verdict and the codes that the committed tables expect of it.

The tables were derived from the index of the collection and from the list of known defects, then
read line by line; they hold names and codes only.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from meteora_registry.inspection.adapter import Inspection, inspect_adapter, inspect_config
from support.adapters import codes_of
from support.models import CORPUS, needs_corpus

EXPECTED = Path(__file__).parent / "expected"
pytestmark = [pytest.mark.corpus, needs_corpus]


def read_table(name: str) -> list[tuple[str, str, list[str]]]:
    with (EXPECTED / f"{name}.csv").open(newline="") as file:
        return [(row["file"], row["verdict"], row["codes"].split()) for row in csv.DictReader(file)]


def inspect(path: Path) -> Inspection:
    return inspect_adapter(path) if path.is_dir() else inspect_config(path)


@pytest.mark.parametrize(
    ("folder", "count"), [("configs", 64), ("configs_peft", 411), ("weights", 10), ("negative", 54)]
)
def test_real_files_have_their_expected_findings(folder: str, count: int) -> None:
    table = read_table(folder)
    root = CORPUS if folder == "negative" else CORPUS / folder
    found = [(name, inspect(root / name)) for name, _, _ in table]
    assert [(name, str(each.verdict), codes_of(each)) for name, each in found] == table
    assert len(table) == count


def test_tables_cover_every_file() -> None:
    for folder in ("configs", "configs_peft", "weights"):
        assert {path.name for path in (CORPUS / folder).iterdir()} == {
            name for name, _, _ in read_table(folder)
        }
    listed = {name for name, _, _ in read_table("negative")}
    present = {f"negative/{path.parent.name}/{path.name}" for path in (CORPUS / "negative").glob("*/*")}
    assert present == listed


def test_texts_of_real_findings_print_as_they_are() -> None:
    for name, _, _ in read_table("configs"):
        for finding in inspect(CORPUS / "configs" / name).findings:
            assert finding.describe().isprintable()
