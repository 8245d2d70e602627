"""The example of docs/catalog.md runs as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.home import Home
from support.pages import example_of
from support.small_adapters import make_adapter

PAGE = Path(__file__).parents[2] / "docs" / "catalog.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="an installed copy has no docs")
def test_the_example_runs(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_adapter(tmp_path / "summarise")
    monkeypatch.chdir(tmp_path)
    exec(compile(example_of("docs/catalog.md", "example"), str(PAGE), "exec"), {})
    assert capsys.readouterr().out.splitlines() == [
        "summarise@1 4 sound, fusable",
        "['summarise'] None",
        "alias 1 {'alias': 'champion', 'previous': None}",
        "tags 1 {'added': ['candidate'], 'removed': []}",
        next(line for line in [_added_line(home)]),
    ]


def _added_line(home: Home) -> str:
    from meteora_registry.registry.catalog.catalog import Catalog

    with Catalog.open(home) as catalog:
        (found,) = catalog.search(AdapterQuery()).items
        (event,) = [each for each in catalog.history(found.name).items if each.action == "add"]
    return f"add 1 {event.details}"
