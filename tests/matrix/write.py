"""Writes the rows of the verdict matrix: ``PYTHONPATH=tests python tests/matrix/write.py``.

With names of cases only their rows are made again, and the others stay as they are.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from support.verdict_files import FILE_CASES
from support.verdict_matrix import made_by_peft, of_files
from support.verdict_options import CASES
from support.verdict_rows import FILES_FILE, OPTIONS_FILE, read_file_rows, read_option_rows, render_rows


def main() -> None:
    """Run both tables, or the cases that the command line names, and write them."""
    torch.set_num_threads(1)
    wanted = set(sys.argv[1:])
    known = {(row.case, row.kind): row for row in read_option_rows()} if wanted else {}
    known_files = {row.case: row for row in read_file_rows()} if wanted else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            known[case.name, kind.name]
            if wanted and case.name not in wanted
            else made_by_peft(case, kind, folder / f"{number}-{kind.name}")
            for number, case in enumerate(CASES)
            for kind in case.kinds
        ]
        files = [
            known_files[case.name]
            if wanted and case.name not in wanted
            else of_files(case, folder / f"file-{number}")
            for number, case in enumerate(FILE_CASES)
        ]
        OPTIONS_FILE.write_text(render_rows(rows), encoding="utf-8")
        FILES_FILE.write_text(render_rows(files), encoding="utf-8")


if __name__ == "__main__":
    main()
