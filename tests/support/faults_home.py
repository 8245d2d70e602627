"""The content of a home, read with plain SQL and plain files: no code that is under test takes part.

``look_at`` also holds what was found against what may never be seen: a damaged database, a record without
its bytes, a blob whose bytes are not those of its name, half a bundle.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Differ from run to run, and say nothing of what was recorded.
_TIMES = ("at", "record", "digest")
_NUMBERED_BY_TURN = ("events", "verifications")
Rows = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Contents:
    """A home and the bundles beside it.

    ``tables`` has every row without its times, None where there is no catalog; ``blobs`` the digests in
    the store; ``bundles`` each folder's files and digests; ``strays`` every other file, by its path.
    """

    tables: Rows | None
    blobs: frozenset[str]
    bundles: Mapping[str, Mapping[str, str]]
    strays: tuple[str, ...]


def look_at(folder: Path) -> Contents:
    """Return everything below a folder with a ``home`` in it, after checking that it is whole.

    Raises:
        AssertionError: something is half there.
    """
    home = folder / "home"
    database = home / "catalog.db"
    tables = None
    referenced: set[tuple[str, int]] = set()
    if database.exists():
        with closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
            tables = _tables_of(connection, str(folder))
            referenced = set(connection.execute("SELECT sha256, size_bytes FROM adapter_files"))
            trashed = connection.execute("SELECT content FROM trash_rows WHERE sha256 IS NOT NULL")
            removed = [json.loads(content) for (content,) in trashed]
            referenced |= {(row["sha256"], row["size_bytes"]) for row in removed}
            catalogued = {row[0] for row in connection.execute("SELECT path FROM bundle_versions")}
        assert all(Path(path, "meteora_manifest.json").is_file() for path in catalogued)
    blobs = dict(_blobs_of(home))
    for digest, size_bytes in referenced:
        assert blobs.get(digest) == size_bytes, f"the catalog names `{digest}`, which is not there"
    bundles = {
        path.parent.name: check_bundle(path.parent) for path in folder.glob("[!.]*/meteora_manifest.json")
    }
    return Contents(tables, frozenset(blobs), bundles, tuple(sorted(_strays_of(folder, bundles))))


def check_bundle(folder: Path) -> dict[str, str]:
    """Return the digests of a bundle's files but the record of its verification, as its manifest has them."""
    manifest = json.loads((folder / "meteora_manifest.json").read_bytes())
    record = json.loads((folder / "verification.json").read_bytes())
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    expected = {name: file["sha256"] for name, file in manifest["files"].items()}
    assert set(found) == {*expected, "meteora_manifest.json", "verification.json"}
    digests = {name: _digest_of(path) for name, path in found.items() if name != "verification.json"}
    assert digests == expected | {"meteora_manifest.json": record["manifest_sha256"]}
    assert (record["level"], record["outcome"]) == ("source", "pass")
    return digests


def _tables_of(connection: sqlite3.Connection, folder: str) -> Rows:
    names = [
        row[0]
        for row in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        )
    ]
    return {name: tuple(sorted(_once(_rows_of(connection, name, folder)))) for name in names}


def _rows_of(connection: sqlite3.Connection, table: str, folder: str) -> Iterator[str]:
    cursor = connection.execute(f'SELECT * FROM "{table}"')
    columns = [description[0] for description in cursor.description]
    for row in cursor:
        kept: dict[str, Any] = {
            column: value
            for column, value in zip(columns, row, strict=True)
            if column not in _TIMES and not column.endswith("_at")
        }
        if table in _NUMBERED_BY_TURN:
            del kept["id"]
        if table == "trash_rows":
            content = json.loads(kept["content"])
            kept["content"] = {
                key: value for key, value in content.items() if key not in _TIMES and not key.endswith("_at")
            }
        if kept.get("action") in ("gc", "begin"):
            # What a collection finds depends on what a death left, and the event `begin` gives a catalog its
            # identity before its first change: neither is one of the command's own changes.
            continue
        yield json.dumps(kept, default=repr).replace(folder, "")


def _once(rows: Iterator[str]) -> Iterator[str]:
    """Yield the rows; repeated verifications of one bundle with the same outcome count once."""
    seen: set[str] = set()
    for row in rows:
        is_verification = '"action": "verify"' in row or '"outcome": ' in row
        if not is_verification or row not in seen:
            yield row
        seen.add(row)


def _blobs_of(home: Path) -> Iterator[tuple[str, int]]:
    for path in (home / "blobs" / "sha256").glob("*/*"):
        digest = path.parent.name + path.name
        assert _digest_of(path) == digest, f"the blob `{path}` is not whole"
        yield digest, path.stat().st_size


def _strays_of(folder: Path, bundles: Mapping[str, object]) -> Iterator[str]:
    catalog = ("home/catalog.db", "home/catalog.db-wal", "home/catalog.db-shm", "home/catalog.db.lock")
    usual = (
        "home/blobs/sha256/",
        "home/blobs/catalogs/",
        "home/blobs/lock",
        *(f"{bundle}/" for bundle in bundles),
    )
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in catalog and not name.startswith(usual):
            yield name


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
