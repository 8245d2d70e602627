"""Output of commands: nothing that moves a cursor, whole tables, and questions on a terminal."""

from __future__ import annotations

import json
import os
import re

import pytest
from rich.cells import cell_len

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.cli.output import describe_bytes, escape
from meteora_registry.registry.cli.tables import shorten
from meteora_registry.registry.home import Home
from support.catalogued import new_adapter, new_bundle
from support.program import PROGRAM
from support.terminal import run_in_terminal


def in_terminal(*arguments: str, columns: int, answer: bytes = b"") -> str:
    """Return what a command writes to a terminal of that width."""
    environment = os.environ | {"TERM": "xterm"}
    return run_in_terminal([PROGRAM, *arguments], environment=environment, columns=columns, answer=answer)[1]


def test_what_an_adapter_says_never_reaches_the_terminal_as_it_is(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[2Jb\rc\u202ed\x9be[bold]f"
    catalog.add_version(new_adapter(declared_base=hostile, license=hostile))
    assert run(["list"]) == 0
    assert run(["show", "legal", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.count("a\\x1b[2Jb\\rc\\u202ed\\x9be[bold]f") == 4
    assert not set(out) & {"\x1b", "\r", "\u202e", "\x9b"}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain ä 漢字 é", "plain ä 漢字 é"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x00\x7f\u200b\u2028\ud800\ufeff", "\\x00\\x7f\\u200b\\u2028\\ud800\\ufeff"),
    ],
)
def test_escape_leaves_what_can_be_seen(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_describe_bytes_has_one_decimal(size_bytes: int, text: str) -> None:
    assert describe_bytes(size_bytes) == text


def test_a_table_without_a_terminal_is_whole(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "organisation/" + "long-" * 17 + "name"
    catalog.add_version(new_adapter(declared_base=base, stated_base=base), tags=["t" * 96, "u" * 96])
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert base in out
    assert "t" * 96 + " " + "u" * 96 in out


def test_table_that_fits_the_terminal_is_printed_as_it_is(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter(declared_base="org/[red]base[/red]"), tags=["t" * 96])
    shown = in_terminal("list", columns=300)
    assert "org/[red]base[/red]" in shown
    assert "t" * 96 in shown


@pytest.mark.parametrize("columns", [40, 80, 100, 120])
def test_table_on_a_terminal_keeps_names_and_headers_whole(
    home: Home, catalog: Catalog, columns: int
) -> None:
    for name, rank in (("first", 4), ("second-" + "x" * 20, 8)):
        adapter = new_adapter(name, name, max_rank=rank, declared_base=f"organisation/{'base-' * 8}{name}")
        catalog.add_version(adapter, tags=["t" * 96])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", in_terminal("list", columns=columns)).splitlines()
    header, first, second, *rest = lines
    assert {*header.split()} <= {"NAME", "KIND", "STATUS", "VERSION", "BASE", "RANK", "SIZE", "GATE", "DTYPE"}
    assert first.split()[0] == "first"
    assert second.split()[0] == "second-" + "x" * 20
    assert max(map(len, lines)) <= columns
    assert " ".join(rest).startswith("2 adapters, ")


def test_columns_that_are_equal_or_unknown_in_every_row_are_said_once(home: Home, catalog: Catalog) -> None:
    for name in ("legal", "medical"):
        catalog.add_version(new_adapter(name, name, declared_base="org/base"))
    shown = in_terminal("list", columns=120)
    assert shown.count("org/base") == 1
    assert "2 adapters, 2.0 kB; all: kind adapter, version 1, base org/base" in shown
    assert "ALIASES" not in shown
    assert "ALIASES" in in_terminal("list", "--wide", columns=120)


def test_base_has_one_spelling_in_a_column(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = catalog.add_version(new_adapter(declared_base="gpt2")).version
    catalog.register_bundle(new_bundle(adapter, base="openai-community/gpt2"))
    assert run(["list"]) == run(["search"]) == 0
    cells = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [[cell for cell in line if "gpt2" in cell] for line in cells if "NAME" not in line] == [
        ["openai-community/gpt2"]
    ] * 3
    assert run(["list", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"][0]["base"] == "gpt2"


def test_columns_without_room_are_named_in_their_order(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    lines = in_terminal("history", columns=45).splitlines()
    last = re.sub(r"\x1b\[[0-9;]*m", "", " ".join(lines[-2:]))
    assert " ".join(last.split()).endswith("--wide also shows of, details")


def test_wide_characters_keep_the_columns_of_a_whole_table(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, base in (("first", "組織/漢字"), ("second", "org/base"), ("third", "org/e\u0301te")):
        catalog.add_version(new_adapter(name, name, declared_base=base))
    assert run(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ends = [match.end() for line in lines if (match := re.search("SIZE|kB", line))]
    assert len(ends) == 4
    assert len({cell_len(line[:end]) for line, end in zip(lines, ends, strict=True)}) == 1


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("meta-llama/Llama-3.1-8B", 23, "meta-llama/Llama-3.1-8B"),
        ("meta-llama/Llama-3.1-8B", 12, "meta-l….1-8B"),
        ("漢字漢字漢字漢字", 9, "漢字…漢字"),
    ],
)
def test_shorten_keeps_both_ends(text: str, width: int, short: str) -> None:
    assert shorten(text, width) == short


@pytest.mark.parametrize(("answer", "versions"), [(b"n\n", (1,)), (b"y\n", ())], ids=["no", "yes"])
def test_remove_asks_on_a_terminal(
    home: Home, catalog: Catalog, answer: bytes, versions: tuple[int, ...]
) -> None:
    catalog.add_version(new_adapter())
    out = in_terminal("remove", "legal", columns=80, answer=answer)
    assert "Remove every version of legal? [y/N]" in out
    assert ("nothing was removed" in out) == bool(versions)
    assert catalog.versions_of("legal") == versions
