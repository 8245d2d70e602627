"""The package's source files, for tests that read the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "meteora_registry"
FOLDERS = sorted(
    path.name for path in (ROOT / "src" / PACKAGE).iterdir() if path.is_dir() and path.name != "__pycache__"
)


def python_files(*, without: str | None = None) -> Iterator[Path]:
    """Yield every Python file of the package's folders, but for those of one folder."""
    for folder in FOLDERS:
        if folder != without:
            yield from sorted((ROOT / folder).rglob("*.py"))
