"""A base's name and place: what `--base` and `--base-folder` mean together, and what the cache has."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from meteora_registry.registry.workflows.base_place import BasePlace, find_cached, place_base
from meteora_registry.schemas.errors import SourceUnreadable, UsageError

COMMIT = "3f1c9ab0" * 5


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty Hub cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached_base(cache: Path, repository: str) -> Path:
    """Return a snapshot in a cache that has a base's config."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text("{}")
    return snapshot


def test_name_is_the_present_one_and_has_no_folder() -> None:
    assert place_base("gpt2") == BasePlace("openai-community/gpt2")
    assert place_base(None) == BasePlace()


def test_folder_is_the_place_and_not_the_name(tmp_path: Path) -> None:
    place = place_base(tmp_path)
    assert (place.name, place.folder) == (None, tmp_path)
    assert place.name_for(["org/model", None, "/somewhere"]) == "org/model"
    assert place.name_for(["org/model", "org/other"]) is None
    assert place.name_for(["/somewhere", None]) == str(tmp_path)


def test_folder_that_reads_like_a_name_is_marked_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert place_base("models/base").name_for([None]) == "./models/base"
    assert place_base("./models/base").name_for([None]) == "./models/base"
    assert place_base("models/base").name_for(["org/model"]) == "org/model"


def test_folder_beside_a_name_is_only_read(tmp_path: Path) -> None:
    assert place_base("org/model", tmp_path) == BasePlace("org/model", tmp_path)
    place = place_base(None, tmp_path)
    assert place.name_for(["org/model"]) == "org/model"
    assert place.name_for(["/somewhere", None]) is None


def test_path_as_a_name_beside_its_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected a name: its folder is given too"):
        place_base("./base", tmp_path)
    with pytest.raises(SourceUnreadable, match="does not exist"):
        place_base("org/model", tmp_path / "nothing")


def test_snapshot_in_a_cache_is_called_by_its_repository(cache: Path) -> None:
    snapshot = cached_base(cache, "org/model")
    assert place_base(snapshot).name == "org/model"
    assert place_base(None, snapshot).name == "org/model"


@pytest.mark.parametrize("cached", ["openai-community/gpt2", "gpt2", "OpenAI-Community/GPT2"])
def test_base_is_found_in_the_cache_under_any_spelling(cache: Path, cached: str) -> None:
    snapshot = cached_base(cache, cached)
    assert find_cached("gpt2") == find_cached("openai-community/gpt2") == snapshot
    assert find_cached("gpt2", COMMIT) == snapshot
    assert find_cached("gpt2", "0" * 40) is None
    assert find_cached("gpt2-medium") is None
    assert find_cached(str(snapshot.parent)) is None
