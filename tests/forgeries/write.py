"""Make the rows of ``answers.jsonl`` again, and keep their reasons.

``PYTHONPATH=tests python tests/forgeries/write.py [NAME...]``; a changed answer needs its reason read again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# Read when huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

from support.forging.answers import workshop
from support.forging.catalogue import FORGERIES
from support.forging.rows import FILE, read_rows, write_rows


def main(names: list[str]) -> None:
    rows = read_rows() if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as folder, workshop(Path(folder)) as made:
        for name in names or FORGERIES:
            why = rows.get(name, {}).get("why", "")
            rows[name] = made.row(name) | {"why": why}
            write_rows([rows[name] for name in FORGERIES if name in rows])


if __name__ == "__main__":
    main(sys.argv[1:])
