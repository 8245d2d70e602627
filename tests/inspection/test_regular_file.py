"""Files are opened where they were listed, and no link is followed that came in between."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from meteora_registry.inspection import adapter
from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.collector import collector_held
from meteora_registry.inspection.folder import Folder
from meteora_registry.schemas.errors import SourceUnreadable
from support.small_adapters import make_adapter

NAMES = ("adapter_config.json", "adapter_model.safetensors")


class ListedThenChanged(Folder):
    """A folder in which something happens right after it was listed."""

    change = staticmethod(lambda: None)

    @classmethod
    def read(cls, folder: int, path: Path, *, follow_links: bool = False) -> Folder:
        listing = Folder.read(folder, path, follow_links=follow_links)
        cls.change()
        return listing


@pytest.mark.parametrize("name", NAMES)
def test_link_that_comes_after_the_listing_is_not_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, secret = make_adapter(tmp_path / "a"), make_adapter(tmp_path / "secret")

    def swap() -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(secret / name)

    monkeypatch.setattr(ListedThenChanged, "change", staticmethod(swap))
    monkeypatch.setattr(adapter, "Folder", ListedThenChanged)
    with pytest.raises(SourceUnreadable, match=f"`{name}` is a symbolic link, which is never followed"):
        inspect_adapter(folder)


def test_folder_that_is_exchanged_after_the_listing_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other = make_adapter(tmp_path / "a"), make_adapter(tmp_path / "other", lora_alpha="8")
    expected = inspect_adapter(folder)

    def swap() -> None:
        folder.rename(tmp_path / "moved")
        folder.symlink_to(other)

    monkeypatch.setattr(ListedThenChanged, "change", staticmethod(swap))
    monkeypatch.setattr(adapter, "Folder", ListedThenChanged)
    assert inspect_adapter(folder) == expected


def test_descriptors_are_closed(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "a")
    inspect_adapter(folder)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        inspect_adapter(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_collector_works_again_after_the_last_inspection() -> None:
    assert gc.isenabled()
    with collector_held():
        with collector_held():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_held():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
