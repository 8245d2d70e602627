"""The verdict matrix: what PEFT loads with effect is never broken; what it cannot use is never sound.

The committed rows are made again here, cell by cell: a sample of them, or with ``--matrix=whole`` every one.
After a change to a rule or to PEFT, ``PYTHONPATH=tests python tests/matrix/write.py`` writes them again.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import LoraConfig

from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.verdict_files import FILE_CASES
from support.verdict_kinds import BY_NAME
from support.verdict_matrix import FileRow, Row, made_by_peft, of_files
from support.verdict_options import CASES, covered_fields
from support.verdict_rows import (
    FILES_FILE,
    OPTIONS_FILE,
    read_file_rows,
    read_option_rows,
    render_rows,
)

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]

OPTIONS = {case.name: case for case in CASES}
FILES = {case.name: case for case in FILE_CASES}
OPTION_ROWS = read_option_rows()
FILE_ROWS = read_file_rows()


# One kind of base for each option, in turn, and every third of the files that PEFT did not save.
SAMPLE = {(case.name, case.kinds[number % len(case.kinds)].name) for number, case in enumerate(CASES)}
SAMPLE |= {(case.name, case.kind.name) for case in FILE_CASES[::3]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for argument, rows in (("option_row", OPTION_ROWS), ("file_row", FILE_ROWS)):
        if argument in metafunc.fixturenames:
            is_whole = metafunc.config.getoption("--matrix") == "whole"
            chosen = [row for row in rows if is_whole or (row.case, row.kind) in SAMPLE]
            metafunc.parametrize(argument, chosen, ids=[row.name for row in chosen])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@cache
def _option_row(folder: Path, case: str, kind: str) -> Row:
    number = list(OPTIONS).index(case)
    with _one_thread():
        return made_by_peft(OPTIONS[case], BY_NAME[kind], folder / f"{number}-{kind}")


@cache
def _file_row(folder: Path, case: str) -> FileRow:
    with _one_thread():
        return of_files(FILES[case], folder / f"file-{list(FILES).index(case)}")


class _one_thread:  # noqa: N801 - used like a function
    """Compute with one thread, which is faster for tiny models."""

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads)


def test_cases_cover_every_option_of_pefts_lora_config() -> None:
    assert covered_fields() == {field.name for field in fields(LoraConfig)}


def test_committed_rows_are_those_of_the_cases() -> None:
    assert [(row.case, row.kind) for row in OPTION_ROWS] == [(c.name, k.name) for c in CASES for k in c.kinds]
    assert [row.case for row in FILE_ROWS] == [case.name for case in FILE_CASES]
    assert OPTIONS_FILE.read_text(encoding="utf-8") == render_rows(OPTION_ROWS)
    assert FILES_FILE.read_text(encoding="utf-8") == render_rows(FILE_ROWS)
    assert len(OPTIONS) == len(CASES)
    assert len(FILES) == len(FILE_CASES)


def test_row_of_an_option_is_the_committed_one(option_row: Row, folder: Path) -> None:
    assert _option_row(folder, option_row.case, option_row.kind) == option_row


def test_row_of_changed_files_is_the_committed_one(file_row: FileRow, folder: Path) -> None:
    assert _file_row(folder, file_row.case) == file_row


def test_verdict_on_an_option_agrees_with_peft(option_row: Row, folder: Path) -> None:
    assert _option_row(folder, option_row.case, option_row.kind).breaches == ()


def test_verdict_on_changed_files_agrees_with_peft(file_row: FileRow, folder: Path) -> None:
    assert _file_row(folder, file_row.case).breaches == ()
