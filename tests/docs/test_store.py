"""The example of the page on the content store, run as written."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

import pytest

from meteora_registry.registry.workflows.problem import Code
from support.pages import example_of
from support.small_adapters import make_adapter

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text()


def test_the_example_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = make_adapter(tmp_path / "legal")
    monkeypatch.chdir(tmp_path)
    # Where the doctor looks too.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(example_of("docs/store.md", "example"), {})
    size_bytes = sum(path.stat().st_size for path in adapter.iterdir())
    assert printed.getvalue() == f"2 blobs, {size_bytes} bytes, 0 to free\n()\n"


def test_every_code_of_the_doctor_is_in_the_table() -> None:
    assert re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE) == [code.value for code in Code]
