"""``extract ADAPTER``: a catalogued adapter as a folder again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support.catalogued import new_adapter, new_bundle
from support.small_adapters import make_adapter


def extract(*arguments: object) -> int:
    return run(["extract", *map(str, arguments)])


def test_extracted_adapter_has_the_files_that_were_added(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_adapter(tmp_path / "legal", card="# Legal\n")
    assert run(["add", str(folder)]) == 0
    capsys.readouterr()
    assert extract("legal", "--out", tmp_path / "again", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "name": "legal@1",
        "folder": str(tmp_path / "again"),
        "identical": True,
    }
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_changed_blob_is_refused_and_nothing_is_left(
    tmp_path: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["add", str(make_adapter(tmp_path / "legal"))]) == 0
    (weights,) = (
        blob
        for blob in (tmp_path / "home" / "blobs").rglob("*")
        if blob.is_file() and blob.stat().st_size > 1000
    )
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    capsys.readouterr()
    assert extract("legal", "--out", tmp_path / "again") == 2
    assert "changed" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_folder_of_the_same_name_is_not_meant(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["add", str(make_adapter(tmp_path / "legal"))]) == 0
    monkeypatch.chdir(tmp_path)
    assert extract("legal", "--out", "again") == 0
    assert (tmp_path / "again" / "adapter_config.json").is_file()


def test_bundle_without_a_member_and_unknown_names_are_refused(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.register_bundle(new_bundle(catalog.add_version(new_adapter()).version))
    assert extract("team", "--out", "again") == 2
    assert "`team` is not a catalogued adapter" in capsys.readouterr().err
    assert extract("./team", "--out", "again") == 2
    assert capsys.readouterr().err.startswith("error: `./team` ")
    assert extract("unknown", "--out", "again") == 1
    assert "the catalog has no adapter or bundle `unknown`" in capsys.readouterr().err
