"""``store gc``, ``store verify`` and ``store du``: real folders, real processes, real damage."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meteora_registry.files.digests import hash_file
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.database import upgrade
from meteora_registry.registry.catalog.engine import parse_catalog_url
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.store import Store, local
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.store_upkeep import (
    Condition,
    collect_garbage,
    measure_store,
    referenced_bytes,
    remove_versions,
    verify_store,
)
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import StoreUnavailable
from support import warm
from support.catalogued import new_adapter, new_bundle
from support.small_adapters import make_adapter
from support.store_processes import add_and_remove, collect
from support.users import as_ordinary_user
from support.warm import warm_context
from support.workspaces import workspace_of


def damage(path: Path) -> None:
    """Flip one bit in the middle of a blob."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def orphan(store: Store, folder: Path, content: bytes) -> Digest:
    """Return a blob that nothing refers to, as a process leaves it that dies before it records."""
    (folder / "orphan").write_bytes(content)
    with store.intake() as intake:
        blob = intake.copy(folder / "orphan")
        with intake.published():
            return blob.sha256


@contextmanager
def dead_intake(home: Home, source: Path) -> Iterator[None]:
    """Leave in ``incoming`` the copy of a process that is killed when the block ends."""
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from meteora_registry.registry.store import Store\n"
        "with Store(Path(sys.argv[1])).intake() as intake:\n"
        "    intake.copy(Path(sys.argv[2]))\n    print('copied', flush=True)\n    time.sleep(600)\n"
    )
    process = warm.Popen(
        [sys.executable, "-c", program, str(home.folder), str(source)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copied\n"
    try:
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_gc_frees_what_nothing_refers_to_and_says_how_much(
    home: Home, catalog: Catalog, adapter: Path, tmp_path: Path
) -> None:
    version = add_folder(workspace_of(catalog, home.store), adapter).version
    digest = orphan(home.store, tmp_path, b"nobody's" * 100)
    planned = collect_garbage(workspace_of(catalog, home.store), dry_run=True)
    assert (planned.blobs, planned.blob_bytes, planned.size_bytes) == (1, 800, 800)
    assert home.store.find(digest)
    assert collect_garbage(workspace_of(catalog, home.store)) == planned
    assert home.store.find(digest) is None
    assert {blob.sha256 for blob in home.store.list_blobs()} == {file.sha256 for file in version.files}
    assert collect_garbage(workspace_of(catalog, home.store)).size_bytes == 0
    (event,) = catalog.history("store").items
    assert (event.action, event.subject) == ("gc", "store")
    assert event.details == {"blobs": 1, "size_bytes": 800}


def test_gc_spares_what_is_younger_than_the_grace_period(
    home: Home, catalog: Catalog, tmp_path: Path
) -> None:
    home.store.mark(catalog.ensure_identity(), catalog.referenced)
    digest = orphan(home.store, tmp_path, b"nobody's")
    spared = collect_garbage(workspace_of(catalog, home.store), grace_seconds=3600)
    assert (spared.blobs, spared.young) == (0, 1)
    assert home.store.find(digest)


def test_gc_takes_the_copies_of_the_dead_and_spares_those_of_the_living(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    source = adapter / "adapter_model.safetensors"
    with dead_intake(home, source):
        assert collect_garbage(workspace_of(catalog, home.store)).leftovers == 0
        assert any(home.store.incoming.iterdir())
    found = collect_garbage(workspace_of(catalog, home.store))
    assert (found.leftovers, found.leftover_bytes) == (1, source.stat().st_size)
    assert not any(home.store.incoming.iterdir())


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_copy_that_its_own_process_deletes_meanwhile_is_not_a_leftover(
    home: Home, catalog: Catalog, monkeypatch: pytest.MonkeyPatch, *, is_folder: bool
) -> None:
    left = home.store.incoming / "left"

    def end_process(path: Path) -> bool:
        """Do what a process does that ends at the very moment at which it was taken for a dead one."""
        path.rmdir() if is_folder else path.unlink()
        return True

    monkeypatch.setattr(local, "is_abandoned", end_process)
    for look in (home.store.list_leftovers, home.store.clear_leftovers):
        left.parent.mkdir(parents=True, exist_ok=True)
        left.mkdir() if is_folder else left.touch()
        assert not look()
        assert not left.exists()


def test_gc_keeps_what_was_put_aside_until_its_blob_is_whole_again(
    home: Home, catalog: Catalog, adapter: Path
) -> None:
    version = add_folder(workspace_of(catalog, home.store), adapter).version
    damage(home.store.path_of(version.weights_sha256))
    aside = Path(home.store.set_aside(version.weights_sha256))
    collect_garbage(workspace_of(catalog, home.store))
    assert aside.exists()
    add_folder(workspace_of(catalog, home.store), adapter)
    assert collect_garbage(workspace_of(catalog, home.store)).blobs == 1
    assert not aside.exists()


@pytest.mark.parametrize("place", ["one home", "a home each and a shared folder"])
def test_gc_while_others_add_and_remove_loses_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "share").mkdir()
    if place == "one home":
        homes = [Home(tmp_path / "home")] * 3
        Catalog.open(homes[0]).close()
    else:
        url = f"sqlite:///{tmp_path}/catalog.db"
        upgrade(parse_catalog_url(url))
        homes = [Home(tmp_path / f"home-{n}", url, (tmp_path / "share").as_uri()) for n in range(3)]
    context = warm_context()
    stop = tmp_path / "stop"
    collector = context.Process(target=collect, args=(homes[0], stop), daemon=True)
    # Both add the same four contents among others, and remove some.
    adders = [
        context.Process(target=add_and_remove, args=(homes[1 + n], 4 * n), daemon=True) for n in range(2)
    ]
    for process in (collector, *adders):
        process.start()
    for process in adders:
        process.join()
    stop.touch()
    collector.join()
    assert [process.exitcode for process in (collector, *adders)] == [0, 0, 0]
    home = homes[0]
    with Catalog.open(home) as catalog:
        states = list(verify_store(workspace_of(catalog, home.store)))
        assert len(catalog.list_adapters()) == 11
        assert {state.condition for state in states} == {Condition.WHOLE}
        collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)
        assert {blob.sha256 for blob in home.store.list_blobs()} == {state.sha256 for state in states}


def test_verify_finds_every_blob_that_is_missing_or_changed(
    home: Home, catalog: Catalog, tmp_path: Path
) -> None:
    versions = [
        add_folder(
            workspace_of(catalog, home.store), make_adapter(tmp_path / str(n), seed=n), name=f"a-{n}"
        ).version
        for n in range(3)
    ]
    damage(home.store.path_of(versions[0].weights_sha256))
    home.store.path_of(versions[1].weights_sha256).unlink()
    read: list[tuple[str, int, int]] = []
    found = verify_store(workspace_of(catalog, home.store), jobs=2, progress=lambda *each: read.append(each))
    states = {each.sha256: each for each in found}
    assert {digest: state.condition for digest, state in states.items()} == {
        versions[0].config_sha256: Condition.WHOLE,
        versions[0].weights_sha256: Condition.DAMAGED,
        versions[1].weights_sha256: Condition.MISSING,
        versions[2].weights_sha256: Condition.WHOLE,
    }
    assert states[versions[0].config_sha256].used_by == tuple(version.source for version in versions)
    assert states[versions[0].weights_sha256].found == hash_file(
        home.store.path_of(versions[0].weights_sha256)
    )
    total = referenced_bytes(catalog)
    assert read[-1] == ("reading", total - versions[1].weights_bytes, total)


def test_references_are_read_over_many_pages(
    any_catalog: Catalog, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meteora_registry.registry.catalog.references._PAGE_ROWS", 2)
    assert any_catalog.identify() is None
    versions = [
        add_folder(
            workspace_of(any_catalog, home.store), make_adapter(tmp_path / str(n), seed=n), name=f"a-{n}"
        ).version
        for n in range(5)
    ]
    for number in range(3):
        any_catalog.register_bundle(new_bundle(*versions[:2], name=f"b-{number}"))
    found = [(each.sha256, str(each.version), each.file_name) for each in any_catalog.list_references()]
    expected = [(f.sha256, str(v.source), f.name) for v in versions for f in v.files]
    assert sorted(found) == sorted(expected)
    assert [digest for digest, *_ in found] == sorted(digest for digest, *_ in expected)
    assert [str(each.version) for each in any_catalog.list_bundle_places()] == ["b-0@1", "b-1@1", "b-2@1"]


def test_a_catalog_is_known_by_its_first_event_and_holds_its_references(
    any_catalog: Catalog, home: Home, adapter: Path, tmp_path: Path
) -> None:
    version = add_folder(workspace_of(any_catalog, home.store), adapter).version
    identity = any_catalog.identify()
    assert identity is not None
    absent = Digest.of_bytes(b"absent")
    with any_catalog.hold_references() as held:
        assert held.catalog == identity
        assert set(held.among([version.weights_sha256, absent])) == {version.weights_sha256}
    remove_versions(workspace_of(any_catalog, home.store), version.source, keep_days=None)
    assert any_catalog.identify() == identity
    with any_catalog.hold_references() as held:
        assert set(held.among([version.weights_sha256])) == set()


def test_a_record_that_cannot_be_confirmed_is_not_made(any_catalog: Catalog) -> None:
    def refuse(catalog: Digest) -> None:
        raise StoreUnavailable("gone")

    with pytest.raises(StoreUnavailable):
        any_catalog.add_version(new_adapter(), confirm=refuse)
    assert any_catalog.list_adapters() == ()
    assert any_catalog.identify() is None


def test_usage_counts_shared_bytes_once(home: Home, catalog: Catalog, tmp_path: Path) -> None:
    adapters = [make_adapter(tmp_path / f"a-{n}", seed=n) for n in range(2)]
    first, second = [add_folder(workspace_of(catalog, home.store), adapter).version for adapter in adapters]
    copy = add_folder(workspace_of(catalog, home.store), adapters[0], name="copy").version
    catalog.register_bundle(new_bundle(first, second, size_bytes=5000))
    orphan(home.store, tmp_path, b"nobody's")
    config_bytes, weights_bytes = (first.size_bytes - first.weights_bytes), first.weights_bytes
    usage = measure_store(workspace_of(catalog, home.store))
    assert (usage.blobs, usage.missing, usage.reclaimable_bytes) == (4, 0, 8)
    assert usage.referenced_bytes == config_bytes + 2 * weights_bytes
    assert usage.shared_bytes == config_bytes + weights_bytes
    assert usage.saved_bytes == 2 * config_bytes + weights_bytes
    shares = {each.name: (each.versions, each.size_bytes, each.own_bytes) for each in usage.adapters}
    assert shares == {
        "a-0": (1, first.size_bytes, 0),
        "a-1": (1, second.size_bytes, weights_bytes),
        "copy": (1, copy.size_bytes, 0),
    }
    [team] = usage.bundles
    assert (team.name, team.versions, team.folder_bytes) == ("team", 1, 5000)
    assert team.member_bytes == usage.referenced_bytes


def test_the_commands_say_what_they_found(
    home: Home, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["add", str(adapter)]) == 0
    digest = hash_file(adapter / "adapter_model.safetensors")
    orphan(home.store, tmp_path, b"nobody's")
    capsys.readouterr()
    assert run(["store", "du"]) == 0
    assert "reclaimable       8 bytes\n" in capsys.readouterr().out
    assert run(["store", "gc", "--dry-run", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["size_bytes"] == 8
    assert run(["store", "gc"]) == 0
    assert "set free            8 bytes\n" in capsys.readouterr().out
    assert run(["store", "verify"]) == 0
    assert capsys.readouterr() == ("", "2 blobs were read, 0 of them are not whole\n")
    damage(home.store.path_of(digest))
    assert run(["store", "verify"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == [
        *(digest.short, "damaged", "4.6", "kB", "adapter_model.safetensors", "summarise@1")
    ]
    assert "hint: `meteora-registry doctor --fix`" in err
    assert run(["store", "verify", "--format", "json"]) == 1
    [broken] = json.loads(capsys.readouterr().out)["broken"]
    assert (broken["sha256"], broken["condition"]) == (digest, "damaged")


def test_a_read_only_home_is_read_and_says_that_nothing_can_be_added(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Not below pytest's own folder, into which another user may not look.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        home, adapters = Path(name) / "home", Path(name) / "adapters"
        known, new = (make_adapter(adapters / each, seed=n) for n, each in enumerate(("known", "new")))
        (new / "adapter_model.safetensors").chmod(0o644)
        assert run(["--home", str(home), "add", str(known)]) == 0
        # Once as it should be, so that everything is imported.
        assert run(["--home", str(home), "show", "known"]) == 0
        shown = capsys.readouterr().out.partition("\n")[2]
        for folder in [home, *(path for path in home.rglob("*") if path.is_dir())]:
            folder.chmod(0o555)
        with as_ordinary_user():
            assert run(["--home", str(home), "show", "known"]) == 0
            assert capsys.readouterr().out == shown
            assert [run(["--home", str(home), *each]) for each in (["list"], ["store", "verify"])] == [0, 0]
            capsys.readouterr()
            assert run(["--home", str(home), "add", str(new)]) == 2
        for folder in [home, *(path for path in home.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
    assert capsys.readouterr() == (
        "",
        f"error: the content store `{home / 'blobs'}` cannot be written: Permission denied\n"
        "hint: check its permissions and the free space, or name another home with `--home`\n",
    )
