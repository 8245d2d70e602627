"""The places where a bundle may be put, and the files beside its own that do not count as its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from meteora_registry.bundle.files import bundle_around, check_files, staged_target
from meteora_registry.files.scratch import unfinished_folder
from meteora_registry.schemas.errors import UsageError
from meteora_registry.schemas.manifest import Manifest

MANIFEST = "meteora_manifest.json"


def test_a_target_inside_a_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    with (
        pytest.raises(UsageError, match="is inside the bundle"),
        staged_target(tmp_path / "sub" / "target"),
    ):
        pass
    assert not (tmp_path / "sub").exists()


def test_a_target_around_which_a_bundle_appears_meanwhile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is inside the bundle"), staged_target(tmp_path / "target"):
        (tmp_path / MANIFEST).write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_a_bundle_is_found_around_a_path_through_links(tmp_path: Path) -> None:
    (tmp_path / "bundle" / "sub").mkdir(parents=True)
    (tmp_path / "bundle" / MANIFEST).write_text("{}")
    (tmp_path / "link").symlink_to(tmp_path / "bundle" / "sub")
    assert bundle_around(tmp_path / "link" / "statistics") == tmp_path / "bundle"
    assert bundle_around(tmp_path / "bundle") is None


def test_only_a_record_on_its_way_is_not_counted_among_a_bundles_files(tmp_path: Path) -> None:
    manifest = Manifest.model_construct(meteora_manifest=1, files={}, members=())
    with (
        unfinished_folder(tmp_path / "verification.json") as record,
        unfinished_folder(tmp_path / "other.json") as other,
    ):
        (record / "file").write_bytes(b"half")
        (other / "file").write_bytes(b"half")
        (tmp_path / ".verification.json.partial").write_bytes(b"an earlier version's")
        problems = [problem for problem in check_files(tmp_path, manifest) if "does not list" not in problem]
    assert problems == [f"`{other.name}/file` is not in the manifest"]
