"""Export, import and backup: nothing lost on the way, and nothing that is not whole."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.query import AdapterQuery
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.catalog_files import backup_catalog, export_catalog, import_catalog
from meteora_registry.schemas.errors import (
    AlreadyInCatalog,
    CatalogUnusable,
    InvalidDocument,
    MeteoraError,
    SourceUnreadable,
    UsageError,
)
from meteora_registry.schemas.evaluation import EvaluationSummary
from meteora_registry.schemas.manifest import Origin
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_adapter, new_bundle, some_verification
from support.evaluations import make_evaluation
from support.first_catalog import read

LLAMA = "meta-llama/Llama-2-7b-hf"


def fill(catalog: Catalog) -> None:
    """Add rows to every table, versions and names that were removed, and unprintable text."""
    for index, name in enumerate(("legal", "code", "legal", "gone", "legal")):
        origin = Origin(kind="hub", location=f"hf://org/Straße-漢字-\u2028@{index}", commit=str(index))
        stated = LLAMA if index == 1 else None
        new = new_adapter(name, str(index), origin=origin, declared_base=f"m/B{index}", stated_base=stated)
        catalog.add_version(new, tags=[f"t{index}", "all"])
    catalog.add_version(new_adapter("team:member", "m", claimed_by="org/team@0"))
    catalog.add_version(new_adapter("headless", "h", inventory=None, weights_bytes=2**53 + 1))
    catalog.set_alias(CatalogSource("legal", 1), "champion")
    catalog.register_bundle(
        new_bundle(catalog.find(CatalogSource("code")), temperature=5e-324, verification=some_verification())
    )
    catalog.edit("legal", note="for \u2028 漢字", owner="us")
    catalog.record_evaluation(
        new_bundle().facts.manifest_sha256,
        EvaluationSummary.of(make_evaluation({"routed": {"code": [0.1, 0.2]}, "member": {"code": [1, 1]}})),
    )
    catalog.remove(CatalogSource("gone"))
    catalog.remove(CatalogSource("legal", 3))


def rows_of(catalog: Catalog) -> dict[str, list[dict[str, Any]]]:
    return read(catalog._engine)


@pytest.fixture
def other_catalog(any_catalog: Catalog, request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    """An empty catalog on the database that ``any_catalog`` is not on."""
    home = Home(tmp_path / "other")
    if any_catalog._engine.dialect.name == "sqlite":
        home = Home(home.folder, request.getfixturevalue("postgres_catalog_url"))
    catalog = Catalog.open(home)
    request.addfinalizer(catalog.close)
    return catalog


def test_a_catalog_moves_to_the_other_database_without_loss(
    any_catalog: Catalog, other_catalog: Catalog, tmp_path: Path
) -> None:
    fill(any_catalog)
    before = rows_of(any_catalog)
    assert all(before.values())
    written = export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    assert import_catalog(other_catalog, tmp_path / "catalog.jsonl") == written
    after = rows_of(other_catalog)
    imported = after["events"].pop()
    assert after == before
    assert (imported["action"], imported["subject"], imported["name"]) == ("import", "catalog", "catalog")
    assert sum(imported["details"]["rows"].values()) == written
    assert database.find_problems(other_catalog._engine) == []
    assert rows_of(any_catalog) == before


def test_an_imported_catalog_goes_on_where_the_other_was(
    any_catalog: Catalog, other_catalog: Catalog, tmp_path: Path
) -> None:
    fill(any_catalog)
    export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    import_catalog(other_catalog, tmp_path / "catalog.jsonl")
    for name, number in (("legal", 4), ("gone", 2), ("new", 1)):
        assert other_catalog.add_version(new_adapter(name, f"after {name}")).version.version == number
    code = other_catalog.find(CatalogSource("code"))
    assert other_catalog.register_bundle(new_bundle(code, content="2")).version == 2
    other_catalog.record_verification(some_verification(), Path("/bundles/team"))
    assert [each.name for each in other_catalog.search(AdapterQuery(text="after")).items] == []
    assert [each.name for each in other_catalog.search(AdapterQuery(base="m/b1")).items] == ["code"]
    assert database.find_problems(other_catalog._engine) == []


def test_the_same_catalog_gives_the_same_document(any_catalog: Catalog, tmp_path: Path) -> None:
    fill(any_catalog)
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path in paths:
        export_catalog(any_catalog, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().isascii()


def test_only_an_empty_catalog_takes_another_in(any_catalog: Catalog, tmp_path: Path) -> None:
    fill(any_catalog)
    before = rows_of(any_catalog)
    export_catalog(any_catalog, tmp_path / "catalog.jsonl")
    with pytest.raises(AlreadyInCatalog) as caught:
        import_catalog(any_catalog, tmp_path / "catalog.jsonl")
    assert str(caught.value) == "the catalog is not empty: it has rows in `base_models`"
    assert rows_of(any_catalog) == before


Lines = list[dict[str, Any]]


def of_table(lines: Lines, table: str, index: int = 0) -> dict[str, Any]:
    """Return a row of a table in a document."""
    rows = [line["row"] for line in lines if line.get("table") == table]
    found: dict[str, Any] = rows[index]
    return found


def without_first(lines: Lines, table: str) -> None:
    lines.remove(next(line for line in lines if line.get("table") == table))
    lines[-1]["rows"][table] -= 1


DAMAGES: dict[str, tuple[Callable[[Lines], object], str]] = {
    "nothing": (lambda lines: lines.clear(), "line 1: the document ends before its last line"),
    "another document": (lambda lines: lines.insert(0, {"a": 1}), "line 1: not a catalog that"),
    "another format": (lambda lines: lines[0].update(meteora_catalog=2), "a catalog of format 2 and schema"),
    "a newer schema": (lambda lines: lines[0].update(schema="9999"), "and schema '9999', expected 1 and"),
    "a schema that is not text": (lambda lines: lines[0].update(schema=2), "and schema 2, expected 1 and"),
    "a column less that may be null": (
        lambda lines: of_table(lines, "adapter_versions").pop("peft_version"),
        "the columns of `adapter_versions` differ: `peft_version`",
    ),
    "another schema": (lambda lines: lines[0].update(schema="0001"), "and schema '0001', expected 1 and"),
    "cut off": (lambda lines: lines.pop(), "the document ends before its last line"),
    "more behind": (lambda lines: lines.append({"a": 1}), "something follows the last line"),
    "a wrong count": (lambda lines: lines[-1]["rows"].update(tags=99), "not those that were written"),
    "a row less": (lambda lines: lines.remove(lines[-3]), "not those that were written"),
    "an unknown table": (lambda lines: lines[1].update(table="users"), "line 2: neither a row of a table"),
    "a table of the index": (lambda lines: lines[1].update(table="search_words"), "neither a row of a table"),
    "tables out of order": (
        lambda lines: lines.insert(-1, lines[1]),
        "a row of `base_models` after those of",
    ),
    "a column less": (
        lambda lines: of_table(lines, "tags").pop("tag"),
        "the columns of `tags` differ: `tag`",
    ),
    "a column more": (lambda lines: of_table(lines, "tags").update(x=1), "the columns of `tags` differ: `x`"),
    "null": (lambda lines: of_table(lines, "tags").update(tag=None), "`tags.tag` is null"),
    "a text for a number": (
        lambda lines: of_table(lines, "versions").update(id="1"),
        "`versions.id` cannot be `1`",
    ),
    "a number too large": (
        lambda lines: of_table(lines, "versions").update(id=2**31),
        "`versions.id` cannot be",
    ),
    "no digest": (
        lambda lines: of_table(lines, "adapter_files").update(sha256="x" * 64),
        "is not a SHA-256 digest",
    ),
    "no time zone": (
        lambda lines: of_table(lines, "entries").update(created_at="2026-01-01T00:00:00"),
        "`entries.created_at` cannot be `2026-01-01T00:00:00`",
    ),
    "no moment": (
        lambda lines: of_table(lines, "entries").update(created_at="now"),
        "Invalid isoformat string",
    ),
    "a list for an object": (
        lambda lines: of_table(lines, "events").update(details=[]),
        "found a JSON list, expected a dict",
    ),
    "an object for a list": (
        lambda lines: of_table(lines, "adapter_versions").update(findings={}),
        "found a JSON dict, expected a list",
    ),
    "a list for a table": (
        lambda lines: lines[1].update(table=["tags"]),
        "neither a row of a table nor the last line",
    ),
    "a moment before the calendar of UTC": (
        lambda lines: of_table(lines, "entries").update(created_at="0001-01-01T00:00:00+23:59"),
        "`entries.created_at` cannot be `0001-01-01T00:00:00+23:59`",
    ),
    "a number beyond all others": (
        lambda lines: of_table(lines, "bundle_versions").update(temperature=10**999),
        "`bundle_versions.temperature` cannot be `1000",
    ),
    "a number of too many digits": (
        lambda lines: of_table(lines, "bundle_versions").update(size_bytes=10**1000),
        "an integer has 1001 digits, expected at most 1000",
    ),
    "a text too long": (lambda lines: of_table(lines, "tags").update(tag="x" * 97), "`tags.tag` cannot be"),
    "half a character": (
        lambda lines: of_table(lines, "bundle_versions").update(path="\ud800"),
        "has half a character",
    ),
    "no tag": (lambda lines: of_table(lines, "tags").update(tag="no tag"), "`no tag` is not a valid tag"),
    "a file name that leads out of its folder": (
        lambda lines: of_table(lines, "adapter_files").update(name="../../x"),
        "'../../x' cannot name a file of an adapter",
    ),
    "a file name that is a path": (
        lambda lines: of_table(lines, "adapter_files").update(name="/tmp/x"),
        "'/tmp/x' cannot name a file of an adapter",
    ),
    "a hidden file name": (
        lambda lines: of_table(lines, "adapter_files").update(name=".bashrc"),
        "'.bashrc' cannot name a file of an adapter",
    ),
    "a bundle in a place without a root": (
        lambda lines: of_table(lines, "bundle_versions").update(path="bundles/team"),
        "'bundles/team' is not an absolute path",
    ),
    "a bundle in a place above": (
        lambda lines: of_table(lines, "bundle_versions").update(path="/bundles/../team"),
        "'/bundles/../team' is not an absolute path",
    ),
    "an origin of no kind": (
        lambda lines: of_table(lines, "adapter_versions").update(origin_kind="url"),
        "`origin` breaks its schema: kind: input should be 'hub' or 'folder'",
    ),
    "no weights among the files": (
        lambda lines: of_table(lines, "adapter_files", 1).update(name="LICENSE"),
        "a version has no file `adapter_model.safetensors` with the digest that it states",
    ),
    "another config among the files": (
        lambda lines: of_table(lines, "adapter_files").update(sha256="0" * 64),
        "a version has no file `adapter_config.json` with the digest that it states",
    ),
    "no finding": (lambda lines: of_table(lines, "adapter_versions").update(findings=[{}]), "finding"),
    "no record": (lambda lines: of_table(lines, "verifications").update(record="{}"), "verification record"),
    "a reference to nothing": (
        lambda lines: of_table(lines, "tags").update(version_id=99),
        "a row of `tags` up to here cannot be stored",
    ),
    "a version twice": (
        lambda lines: of_table(lines, "versions", 1).update(number=1, entry_id=1),
        "a row of `versions` up to here cannot be stored",
    ),
    "a verdict that is none": (
        lambda lines: of_table(lines, "verifications").update(level="deep"),
        "a row of `verifications` up to here cannot be stored",
    ),
}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The document of a catalog with rows in every table; read only."""
    folder = tmp_path_factory.mktemp("document")
    with Catalog.open(Home(folder / "home")) as catalog:
        fill(catalog)
        export_catalog(catalog, folder / "catalog.jsonl")
    return folder / "catalog.jsonl"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    """A catalog that every damaged document leaves empty."""
    with Catalog.open(Home(tmp_path_factory.mktemp("empty"))) as opened:
        yield opened


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_document_is_refused_and_leaves_the_catalog_empty(
    document: Path, empty: Catalog, tmp_path: Path, damage: str
) -> None:
    change, message = DAMAGES[damage]
    path = tmp_path / "catalog.jsonl"
    lines = [json.loads(line) for line in document.read_text().splitlines()]
    change(lines)
    write(path, lines, sealed=damage not in ("a wrong count", "a row less"))
    with pytest.raises(MeteoraError) as caught:
        import_catalog(empty, path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(
        "`catalog.jsonl, line " if "`catalog.jsonl," in str(caught.value) else "`catalog.jsonl`, line "
    )
    assert not any(rows_of(empty).values())


def write(path: Path, lines: Lines, *, sealed: bool) -> None:
    """Write a document, with a digest of what it has now if it is to be believed so far."""
    texts = [json.dumps(line, separators=(",", ":")) + "\n" for line in lines]
    if sealed and lines and lines[-1].keys() == {"rows", "sha256"}:
        lines[-1]["sha256"] = hashlib.sha256("".join(texts[:-1]).encode()).hexdigest()
        texts[-1] = json.dumps(lines[-1]) + "\n"
    path.write_text("".join(texts))


def test_a_document_with_versions_that_nothing_describes_is_refused(
    any_catalog: Catalog, other_catalog: Catalog, tmp_path: Path
) -> None:
    any_catalog.add_version(new_adapter(inventory=None, files=(), declared_base=None))
    path = tmp_path / "catalog.jsonl"
    export_catalog(any_catalog, path)
    for change, message in (
        (lambda lines: without_first(lines, "adapter_versions"), "a version of kind `adapter` has no row in"),
        (
            lambda lines: of_table(lines, "entries").update(latest_version=0),
            "a number above the `latest_version`",
        ),
    ):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        change(lines)  # type: ignore[no-untyped-call]
        write(tmp_path / "changed.jsonl", lines, sealed=True)
        with pytest.raises(InvalidDocument, match=message):
            import_catalog(other_catalog, tmp_path / "changed.jsonl")
        assert not any(rows_of(other_catalog).values())


@pytest.mark.parametrize(
    ("column", "problem"), [("peft_version", None), ("weights_bytes", "differ: `weights_bytes`")]
)
def test_import_of_an_older_schema_fills_only_columns_that_may_be_null(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str, problem: str | None
) -> None:
    fill(catalog)
    path = tmp_path / "catalog.jsonl"
    export_catalog(catalog, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line.get("table") == "adapter_versions":
            del line["row"][column]
    write(path, lines, sealed=True)
    monkeypatch.setattr("meteora_registry.registry.catalog.catalog.HEAD_REVISION", "9998")
    with Catalog.open(Home(tmp_path / "new")) as empty:
        if problem is not None:
            with pytest.raises(InvalidDocument, match=problem):
                import_catalog(empty, path)
            return
        import_catalog(empty, path)
        expected = rows_of(catalog)["adapter_versions"]
        assert rows_of(empty)["adapter_versions"] == [row | {column: None} for row in expected]


def test_nothing_that_is_there_is_written_over(catalog: Catalog, tmp_path: Path) -> None:
    for act in (export_catalog, backup_catalog):
        target = tmp_path / f"{act.__name__}.file"
        target.write_text("mine")
        with pytest.raises(UsageError) as caught:
            act(catalog, target)
        assert str(caught.value) == f"`{target}` exists already"
        assert target.read_text() == "mine"
    with pytest.raises(SourceUnreadable, match=r"cannot write .*: No such file or directory"):
        export_catalog(catalog, tmp_path / "nowhere" / "catalog.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "backup_catalog.file",
        "export_catalog.file",
        "home",
    ]


def test_an_export_that_fails_leaves_nothing(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(catalog)

    def interrupt(step: str, done: int, total: int) -> None:
        if done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_catalog(catalog, tmp_path / "catalog.jsonl", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_a_file_that_does_not_reach_the_disk_is_not_called_written(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_for_files(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail_for_files)
    before = sorted(tmp_path.iterdir())
    for act in (export_catalog, backup_catalog):
        with pytest.raises(SourceUnreadable, match=r"cannot write .*: Input/output error"):
            act(catalog, tmp_path / "copy")
        assert sorted(tmp_path.iterdir()) == before


def test_a_backup_that_sqlite_cannot_write_says_so(home: Home, catalog: Catalog, tmp_path: Path) -> None:
    copy = tmp_path / "nowhere" / "copy.db"
    with pytest.raises(CatalogUnusable) as caught:
        catalog.backup(copy)
    assert str(caught.value) == (
        f"the catalog `{home.catalog_file}` cannot be copied to `{copy}`: unable to open database file"
    )


def test_a_backup_taken_while_others_write_is_a_whole_catalog(
    home: Home, catalog: Catalog, tmp_path: Path
) -> None:
    ended, failures = threading.Event(), []

    def add(name: str) -> None:
        try:
            with Catalog.open(home) as mine:
                for index in range(1000):
                    mine.add_version(new_adapter(name, f"{name} {index}"), tags=["t"])
                    if ended.is_set():
                        return
        except MeteoraError as error:
            failures.append(error)

    writers = [threading.Thread(target=add, args=(name,)) for name in ("one", "two")]
    for writer in writers:
        writer.start()
    backups = []
    while len(backups) < 4:
        backups.append(tmp_path / f"backup{len(backups)}.db")
        backup_catalog(catalog, backups[-1])
    ended.set()
    for writer in writers:
        writer.join()
    assert failures == []
    sizes = []
    for path in backups:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        with Catalog.open(Home(tmp_path, f"sqlite:///{path}")) as copy:
            rows = rows_of(copy)
            # A version, its files, its tag and its events came in one transaction.
            assert len(rows["adapter_files"]) == 2 * len(rows["versions"]) == 2 * len(rows["tags"])
            assert sum(event["action"] == "add" for event in rows["events"]) == len(rows["versions"])
            assert len(rows["search_adapters"]) == len(rows["versions"])
            sizes.append(len(rows["versions"]))
            copy.add_version(new_adapter("after", "after"))
    assert sizes == sorted(sizes)
    assert not list(tmp_path.glob(".backup*"))


def test_a_catalog_on_postgresql_is_backed_up_by_its_own_tools(
    home: Home, postgres_catalog_url: str, tmp_path: Path
) -> None:
    with (
        Catalog.open(Home(home.folder, postgres_catalog_url)) as catalog,
        pytest.raises(UsageError) as caught,
    ):
        backup_catalog(catalog, tmp_path / "backup.db")
    assert str(caught.value) == "a catalog on PostgreSQL is backed up with the server's own `pg_dump`"
    assert not (tmp_path / "backup.db").exists()


def test_a_symbolic_link_is_not_imported(catalog: Catalog, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "catalog.jsonl")
    with pytest.raises(SourceUnreadable, match="is a symbolic link"):
        import_catalog(catalog, tmp_path / "link.jsonl")


def test_db_commands_move_and_copy_a_catalog(
    home: Home, catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(catalog)
    document, copy, other = tmp_path / "catalog.jsonl", tmp_path / "copy.db", tmp_path / "other"
    assert run(["db", "export", str(document)]) == 0
    rows = sum(map(len, rows_of(catalog).values())) - sum(
        len(rows) for name, rows in rows_of(catalog).items() if name.startswith("search_")
    )
    assert capsys.readouterr() == (f"exported: {rows} rows\n", "")
    assert run(["--home", str(other), "db", "import", str(document)]) == 0
    assert capsys.readouterr() == (f"imported: {rows} rows\n", "")
    assert run(["--home", str(other), "db", "check"]) == 0
    assert run(["db", "backup", str(copy)]) == 0
    assert capsys.readouterr().out.startswith("backed up: ")
    assert run(["db", "backup", str(copy)]) == 2
    assert run(["--catalog", f"sqlite:///{copy}", "show", "legal@champion"]) == 0
    assert run(["--home", str(other), "db", "import", str(document)]) == 1
