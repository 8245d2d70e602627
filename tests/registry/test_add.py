from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meteora_registry.files.digests import hash_file
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows import additions as workflow
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.store_upkeep import remove_versions
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import AdapterRefused, SourceUnreadable, StillInUse, UsageError
from meteora_registry.schemas.names import CatalogSource
from support import warm
from support.catalogued import new_bundle
from support.small_adapters import make_adapter
from support.workspaces import workspace_of

FILES = ("adapter_config.json", "adapter_model.safetensors")


def blobs_of(home: Home) -> set[str]:
    """Return the digests of every blob in the store."""
    folder = home.folder / "blobs" / "sha256"
    return {path.parent.name + path.name for path in folder.glob("*/*")}


def test_add_stores_the_bytes_and_records_what_they_are(home: Home, catalog: Catalog, tmp_path: Path) -> None:
    folder = make_adapter(
        tmp_path / "Legal Adapter",
        rank=4,
        alpha=8,
        targets=("q_proj", "up_proj"),
        rank_pattern={"up_proj": 16},
        card="---\nlicense: mit\n---\nA card.\n",
    )
    (folder / "LICENSE").write_text("The MIT License")
    addition = add_folder(workspace_of(catalog, home.store), folder, tags=["english"])
    version = addition.version
    assert (addition.created, addition.duplicates, addition.skipped) == (True, (), ())
    assert (str(version.source), version.tags, version.license) == ("legal-adapter@1", ("english",), "mit")
    assert (version.rank, version.max_rank, version.scaling, version.dtypes) == (4, 16, 2.0, ("F32",))
    assert [(t.kind, t.layers, t.in_features, t.out_features, t.max_rank) for t in version.targets] == [
        ("q_proj", 2, 32, 32, 4),
        ("up_proj", 2, 32, 48, 16),
    ]
    assert (version.origin.kind, version.origin.location) == ("folder", "Legal Adapter")
    assert [file.name for file in version.files] == ["LICENSE", "README.md", *FILES]
    for file in version.files:
        data = (folder / file.name).read_bytes()
        assert (file.sha256, file.size_bytes) == (Digest.of_bytes(data), len(data))
        assert home.store.read(file.sha256) == data
    assert blobs_of(home) == {file.sha256 for file in version.files}


def test_a_broken_adapter_is_refused_with_its_findings_and_leaves_nothing(
    home: Home, catalog: Catalog, tmp_path: Path
) -> None:
    folder = make_adapter(tmp_path / "broken", lora_alpha=0, r="four")
    with pytest.raises(AdapterRefused) as caught:
        add_folder(workspace_of(catalog, home.store), folder)
    assert str(caught.value) == f"`{folder}` is broken and was not added"
    assert {finding.place.field for finding in caught.value.findings} >= {"lora_alpha", "r"}
    assert catalog.list_adapters() == ()
    assert catalog.history().items == ()
    assert blobs_of(home) == set()


def test_a_sound_adapter_that_cannot_be_fused_is_catalogued_and_said_to_be_so(
    home: Home, catalog: Catalog, tmp_path: Path
) -> None:
    addition = add_folder(workspace_of(catalog, home.store), make_adapter(tmp_path / "dora", bias="all"))
    assert str(addition.version.verdict) == "sound, not fusable"
    assert [str(finding.effect) for finding in addition.version.findings] == ["not fusable"]


def test_the_same_content_again_is_recognised(home: Home, catalog: Catalog, adapter: Path) -> None:
    add_folder(workspace_of(catalog, home.store), adapter)
    again = add_folder(workspace_of(catalog, home.store), adapter, tags=["seen"])
    assert (again.created, str(again.version.source), again.version.tags) == (
        False,
        "summarise@1",
        ("seen",),
    )


def test_a_config_spelled_otherwise_is_the_same_content(home: Home, catalog: Catalog, adapter: Path) -> None:
    add_folder(workspace_of(catalog, home.store), adapter)
    config = adapter / FILES[0]
    config.write_text("\n" + config.read_text().replace(": ", ":   "))
    assert not add_folder(workspace_of(catalog, home.store), adapter).created


def test_the_same_weights_with_another_scaling_are_new_content(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    first = add_folder(workspace_of(catalog, home.store), adapter)
    config = json.loads((adapter / FILES[0]).read_text())
    config["lora_alpha"] *= 2
    (adapter / FILES[0]).write_text(json.dumps(config))
    second = add_folder(workspace_of(catalog, home.store), adapter)
    assert (second.created, str(second.version.source)) == (True, "summarise@2")
    assert second.version.scaling == 2 * first.version.scaling
    copy = add_folder(workspace_of(catalog, home.store), adapter, name="copy")
    assert [str(source) for source in copy.duplicates] == ["summarise@2"]


def test_the_same_config_with_other_weights_is_new_content(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    add_folder(workspace_of(catalog, home.store), adapter)
    config = (adapter / FILES[0]).read_bytes()
    make_adapter(adapter, seed=1)
    (adapter / FILES[0]).write_bytes(config)
    assert add_folder(workspace_of(catalog, home.store), adapter).created


def test_the_same_content_under_another_name_is_a_noted_duplicate(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    add_folder(workspace_of(catalog, home.store), adapter)
    before = blobs_of(home)
    addition = add_folder(workspace_of(catalog, home.store), adapter, name="copy")
    assert addition.created
    assert [str(source) for source in addition.duplicates] == ["summarise@1"]
    assert blobs_of(home) == before


def test_new_content_of_a_name_is_its_next_version(home: Home, catalog: Catalog, adapter: Path) -> None:
    add_folder(workspace_of(catalog, home.store), adapter)
    make_adapter(adapter, seed=1)
    assert str(add_folder(workspace_of(catalog, home.store), adapter).version.source) == "summarise@2"


def test_files_that_change_while_they_are_read_are_refused(
    home: Home, catalog: Catalog, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def inspect_then_change(folder: Path, **options: bool) -> object:
        inspection = inspect(folder)
        tensors = load_file(folder / FILES[1])
        save_file({name: np.ones_like(tensor) for name, tensor in tensors.items()}, folder / FILES[1])
        return inspection

    inspect = workflow.inspect_adapter
    monkeypatch.setattr(workflow, "inspect_adapter", inspect_then_change)
    with pytest.raises(SourceUnreadable) as caught:
        add_folder(workspace_of(catalog, home.store), adapter)
    assert str(caught.value) == f"`{adapter / FILES[1]}` changed while it was being read"
    assert catalog.list_adapters() == ()
    assert blobs_of(home) == set()
    assert list((home.folder / "blobs" / "incoming").iterdir()) == []


COMMIT = "3f1c9ab0" * 5


@pytest.mark.parametrize("file", FILES)
def test_a_link_in_the_folder_is_followed_only_if_asked_for(
    home: Home, catalog: Catalog, adapter: Path, tmp_path: Path, file: str
) -> None:
    (adapter / file).rename(tmp_path / file)
    (adapter / file).symlink_to(tmp_path / file)
    workspace = workspace_of(catalog, home.store)
    with pytest.raises(SourceUnreadable, match="is a symbolic link, which is not followed"):
        add_folder(workspace, adapter)
    addition = add_folder(workspace, adapter, follow_links=True)
    assert [each.name for each in addition.version.files] == list(FILES)


def cached_adapter(adapter: Path, cache: Path, inside: str = "") -> Path:
    """Return a snapshot in a Hub cache with the files of an adapter."""
    repository = cache / "models--org--legal"
    snapshot = repository / "snapshots" / COMMIT / inside
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    up = Path("../../blobs") if not inside else Path("../../../blobs")
    for name in FILES:
        (adapter / name).rename(repository / "blobs" / name)
        (snapshot / name).symlink_to(up / name)
    return snapshot


@pytest.mark.parametrize(("inside", "name"), [("", "legal"), ("sub", "legal-sub")], ids=["root", "subfolder"])
def test_snapshot_in_a_hub_cache_is_read_like_its_repository(
    home: Home, catalog: Catalog, adapter: Path, tmp_path: Path, inside: str, name: str
) -> None:
    version = add_folder(
        workspace_of(catalog, home.store), cached_adapter(adapter, tmp_path / "hub", inside)
    ).version
    place = f"hf://org/legal@{COMMIT}" + (f"/{inside}" if inside else "")
    assert version.name == name
    assert (version.origin.kind, version.origin.location, version.origin.commit) == ("folder", place, COMMIT)
    assert version.origin.is_claimed


@pytest.mark.parametrize("place", ["other repository", "elsewhere", "blobs elsewhere"])
def test_link_that_leaves_its_cached_repository_is_not_followed(
    home: Home, catalog: Catalog, adapter: Path, tmp_path: Path, place: str
) -> None:
    snapshot = cached_adapter(adapter, tmp_path / "hub")
    weights, blobs = snapshot / FILES[1], snapshot.parents[1] / "blobs"
    if place == "blobs elsewhere":
        blobs.rename(tmp_path / "blobs")
        blobs.symlink_to(tmp_path / "blobs")
    else:
        target = tmp_path / ("hub/models--org--other/blobs" if place == "other repository" else "files")
        target.mkdir(parents=True)
        (blobs / FILES[1]).rename(target / FILES[1])
        weights.unlink()
        weights.symlink_to(target / FILES[1])
    with pytest.raises(SourceUnreadable, match="is a symbolic link, which is not followed"):
        add_folder(workspace_of(catalog, home.store), snapshot)


def test_text_files_that_are_links_or_too_large_are_left_out(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    (adapter / "LICENSE").symlink_to("/etc/passwd")
    (adapter / "README.md").write_bytes(b"x" * (workflow.MAX_TEXT_BYTES + 1))
    addition = add_folder(workspace_of(catalog, home.store), adapter)
    assert [file.name for file in addition.version.files] == list(FILES)
    assert addition.skipped == (
        f"`{adapter / 'README.md'}` is larger than {workflow.MAX_TEXT_BYTES} bytes, and was not kept",
        f"`{adapter / 'LICENSE'}` is a symbolic link, which is never followed, and was not kept",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "A B"}, "`A B` is not a valid name"),
        ({"tags": ["A B"]}, "`A B` is not a valid tag"),
        ({"base": ""}, "'' names no base model"),
        ({"base": "a\x1b[2Jb"}, "names no base model, expected 1 to 512 printable characters"),
        ({"base": "x" * 513}, "names no base model"),
    ],
    ids=["name", "tag", "no base", "base with a control character", "long base"],
)
def test_a_malformed_option_is_refused_before_anything_is_done(
    home: Home, catalog: Catalog, adapter: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        add_folder(workspace_of(catalog, home.store), adapter, **options)  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert blobs_of(home) == set()


def test_remove_frees_the_bytes_that_nothing_else_uses(home: Home, catalog: Catalog, tmp_path: Path) -> None:
    # The same config, so one blob is shared.
    first, second = (make_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b")))
    kept = add_folder(workspace_of(catalog, home.store), first).version
    gone = add_folder(workspace_of(catalog, home.store), second).version
    removed = remove_versions(workspace_of(catalog, home.store), gone.source, keep_days=None)
    assert removed.freed_bytes == gone.weights_bytes
    assert blobs_of(home) == {file.sha256 for file in kept.files}
    remove_versions(workspace_of(catalog, home.store), kept.source, keep_days=None)
    assert blobs_of(home) == set()


def test_remove_of_a_member_leaves_everything(home: Home, catalog: Catalog, adapter: Path) -> None:
    version = add_folder(workspace_of(catalog, home.store), adapter).version
    catalog.register_bundle(new_bundle(version))
    with pytest.raises(StillInUse):
        remove_versions(workspace_of(catalog, home.store), CatalogSource("summarise"), keep_days=None)
    assert blobs_of(home) == {file.sha256 for file in version.files}


KILLED_BEFORE_THE_RECORD = """
import os, signal, sys
from pathlib import Path
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workspace import Workspace

Catalog.add_version = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
home = Home(Path(sys.argv[1]))
with Workspace(home) as workspace:
    add_folder(workspace, Path(sys.argv[2]))
"""


def test_the_bytes_come_first_and_the_record_last(home: Home, adapter: Path) -> None:
    killed = warm.run([sys.executable, "-c", KILLED_BEFORE_THE_RECORD, str(home.folder), str(adapter)])
    assert killed.returncode == -signal.SIGKILL
    assert blobs_of(home) == {hash_file(adapter / file) for file in FILES}
    with Catalog.open(home) as catalog:
        assert catalog.list_adapters() == ()
        assert add_folder(workspace_of(catalog, home.store), adapter).created


ADD = """
import sys
from pathlib import Path
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workspace import Workspace

home = Home(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
with Workspace(home) as workspace:
    for folder in sys.argv[2:]:
        add_folder(workspace, Path(folder), name="shared")
"""


def start_adding(home: Home, folders: list[Path]) -> subprocess.Popen[str]:
    """Return a process that adds the folders when it is given a line."""
    process = warm.Popen(
        [sys.executable, "-c", ADD, str(home.folder), *map(str, folders)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_processes_that_begin_a_catalog_together_number_their_versions_without_gaps(
    home: Home, tmp_path: Path
) -> None:
    folders = [make_adapter(tmp_path / str(number), seed=number) for number in range(12)]
    # The last one is added by all three.
    shares = [[*folders[number:-1:3], folders[-1]] for number in range(3)]
    processes = [start_adding(home, share) for share in shares]
    failures = [process.communicate("go\n")[1] for process in processes]
    assert failures == ["", "", ""]
    with Catalog.open(home) as catalog:
        assert catalog.versions_of("shared") == tuple(range(1, 13))
        for number in range(1, 13):
            for file in catalog.find(CatalogSource("shared", number)).files:
                home.store.check(file.sha256)


def test_a_process_killed_at_any_moment_leaves_no_record_without_its_bytes(
    home: Home, tmp_path: Path
) -> None:
    folders = [make_adapter(tmp_path / str(number), seed=number, layers=8) for number in range(25)]
    moments = random.Random(0)
    killed = 0
    for _ in range(4):
        process = start_adding(home, folders)
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        time.sleep(moments.uniform(0.0, 0.5))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        with Catalog.open(home) as catalog:
            numbers = catalog.versions_of("shared")
            assert numbers == tuple(range(1, len(numbers) + 1))
            for number in numbers:
                for file in catalog.find(CatalogSource("shared", number)).files:
                    home.store.check(file.sha256)
    assert killed
    finished = start_adding(home, folders)
    assert finished.communicate("go\n")[1] == ""
    with Catalog.open(home) as catalog:
        assert catalog.versions_of("shared") == tuple(range(1, 26))
