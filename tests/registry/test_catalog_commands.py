"""The commands that read the catalog: what they print, and their ways out."""

from __future__ import annotations

import json

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support.catalogued import new_adapter


def call(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    """Run a command and return its output."""
    found = run(arguments)
    out, err = capsys.readouterr()
    assert found == code, err
    return out, err


@pytest.fixture
def filled(home: Home, catalog: Catalog) -> Catalog:
    """Three adapters."""
    for index, name in enumerate(("legal", "medical", "code")):
        new = new_adapter(name, name, weights_bytes=1000 ** (index + 1), license=("mit", None)[index % 2])
        catalog.add_version(new, tags=[f"t{index % 2}"])
    return catalog


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["code", "legal", "medical"]),
        (["LEG"], ["legal"]),
        (["base", "c"], ["code", "legal", "medical"]),
        (["--base", "ORG/base", "--max-rank", "16"], ["code", "legal", "medical"]),
        (["--max-rank", "15"], []),
        (["--tag", "t0"], ["code", "legal"]),
        (["--tag", "t0", "--license", "mit", "--max-size", "999kB"], ["legal"]),
        (["--min-size", "1MB", "--sort", "size", "--descending"], ["code", "medical"]),
        (["--target", "q_proj", "--target", "up_proj", "--verdict", "fusable"], ["code", "legal", "medical"]),
        (["--verdict", "not-fusable"], []),
        (["--verdict", "broken"], []),
        (
            ["--added-from", "2020-01-01", "--added-before", "2199-12-31T23:59:59"],
            ["code", "legal", "medical"],
        ),
        (["--added-before", "2020-01-01"], []),
        (["--sort", "date"], ["legal", "medical", "code"]),
    ],
    ids=" ".join,
)
def test_search_prints_the_adapters_that_meet_its_options(
    filled: Catalog, arguments: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = call(capsys, "search", *arguments)
    assert [line.split()[0] for line in out.splitlines()[1:]] == names
    assert err == ("" if names else "no adapter meets all of this\n")


def test_search_tells_where_the_next_page_begins(filled: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = call(capsys, "search", "--limit", "2")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["code", "legal"]
    remark, _, cursor = err.strip().rpartition(" ")
    assert remark == "there are more: --after"
    out, err = call(capsys, "search", "--limit", "2", "--after", cursor, "--format", "json")
    page = json.loads(out)
    assert ([each["name"] for each in page["adapters"]], page["next"], err) == (["medical"], None, "")
    assert call(capsys, "search", "--after", "x", code=2) == (
        "",
        "error: `x` is not a cursor of such a page\n"
        "hint: take the cursor that was printed with the page before, with the same filters and order\n",
    )


def test_search_refuses_a_size_that_is_none(filled: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    _, err = call(capsys, "search", "--min-size", "20 miles", code=2)
    assert "`20 miles` is not a size, expected such as `4096` or `20MB`" in err
