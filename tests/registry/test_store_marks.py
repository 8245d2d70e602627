"""The marks that catalogs leave in a store, on this machine and at a URL alike."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.database import upgrade
from meteora_registry.registry.catalog.engine import parse_catalog_url
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.store import RemoteStore
from meteora_registry.registry.store.marks import UNKNOWN
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.catalog_files import export_catalog, import_catalog
from meteora_registry.registry.workflows.examination import examine
from meteora_registry.registry.workflows.store_upkeep import adopt_store, collect_garbage, remove_versions
from meteora_registry.registry.workspace import Workspace
from meteora_registry.schemas.errors import StillInUse, StoreUnavailable
from meteora_registry.schemas.names import CatalogSource
from support import warm
from support.small_adapters import make_adapter
from support.store_processes import add_same
from support.users import as_ordinary_user
from support.warm import warm_context
from support.workspaces import workspace_of

LEGAL = CatalogSource("legal")


@pytest.fixture(params=["local", "file"])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> list[Home]:
    """Three homes with a catalog each and one store, in a folder of this machine or at a URL."""
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("first", "second", "third")]
    for url in urls:
        upgrade(parse_catalog_url(url))
    if request.param == "local":
        return [Home(tmp_path / "home", url) for url in urls]
    (tmp_path / "share").mkdir()
    return [Home(tmp_path / f"home-{n}", url, (tmp_path / "share").as_uri()) for n, url in enumerate(urls)]


@pytest.fixture
def catalogs(homes: list[Home]) -> Iterator[list[Catalog]]:
    opened = [Catalog.open(home) for home in homes]
    yield opened
    for catalog in opened:
        catalog.close()


def forget_marks(home: Home) -> None:
    """Make the store one from before there were marks."""
    for name in home.store.list_marks():
        home.store.drop_mark(name)


def blobs_of(home: Home) -> set[str]:
    return {blob.sha256 for blob in home.store.list_blobs()}


def test_of_two_catalogs_neither_deletes_the_others_bytes(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    for number, (home, catalog) in enumerate(zip(homes[:2], catalogs, strict=False)):
        add_folder(
            workspace_of(catalog, home.store),
            make_adapter(tmp_path / f"a-{number}", seed=number),
            name="legal",
        )
    before = blobs_of(homes[0])
    for home, catalog in zip(homes, catalogs, strict=True):
        with pytest.raises(StillInUse):
            collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)
    for home, catalog in zip(homes[:2], catalogs, strict=False):
        removed = remove_versions(workspace_of(catalog, home.store), LEGAL, keep_days=None)
        assert (removed.freed_bytes, type(removed.kept)) == (0, StillInUse)
    assert blobs_of(homes[0]) == before
    assert homes[0].store.list_marks() == {catalog.identify() for catalog in catalogs[:2]}


def test_an_empty_catalog_empties_no_store(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    add_folder(workspace_of(catalogs[0], homes[0].store), make_adapter(tmp_path / "legal"))
    before = blobs_of(homes[0])
    for _ in range(2):
        with pytest.raises(StillInUse):
            collect_garbage(workspace_of(catalogs[2], homes[2].store), grace_seconds=0)
        # The second time, as a store from before there were marks.
        forget_marks(homes[0])
    assert blobs_of(homes[0]) == before
    assert homes[0].store.list_marks() == set()


def test_an_empty_catalog_with_an_empty_store_has_nothing_to_collect(
    homes: list[Home], catalogs: list[Catalog]
) -> None:
    assert collect_garbage(workspace_of(catalogs[0], homes[0].store), grace_seconds=0).size_bytes == 0
    assert homes[0].store.list_marks() == set()


@pytest.mark.parametrize("action", ["gc", "remove", "add"])
def test_an_unmarked_store_is_taken_over_by_the_catalog_that_refers_to_all_of_it(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path, action: str
) -> None:
    home, catalog = homes[0], catalogs[0]
    add_folder(workspace_of(catalog, home.store), make_adapter(tmp_path / "legal"))
    forget_marks(home)
    collect_garbage(workspace_of(catalog, home.store), grace_seconds=0, dry_run=True)
    assert home.store.list_marks() == set()
    if action == "gc":
        collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)
    elif action == "remove":
        assert remove_versions(workspace_of(catalog, home.store), LEGAL, keep_days=None).freed_bytes > 0
    else:
        add_folder(workspace_of(catalog, home.store), make_adapter(tmp_path / "medical", seed=1))
    assert home.store.list_marks() == {catalog.identify()}


@pytest.mark.parametrize("action", ["gc", "remove"])
def test_an_unmarked_store_with_other_blobs_is_left_as_it_is(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path, action: str
) -> None:
    add_folder(workspace_of(catalogs[0], homes[0].store), make_adapter(tmp_path / "legal"))
    add_folder(
        workspace_of(catalogs[1], homes[1].store), make_adapter(tmp_path / "medical", seed=1), name="legal"
    )
    forget_marks(homes[0])
    before = blobs_of(homes[0])
    if action == "gc":
        with pytest.raises(StillInUse) as caught:
            collect_garbage(workspace_of(catalogs[0], homes[0].store), grace_seconds=0)
        refusal = caught.value
    else:
        kept = remove_versions(workspace_of(catalogs[0], homes[0].store), LEGAL, keep_days=None).kept
        assert isinstance(kept, StillInUse)
        refusal = kept
    assert str(refusal) == (
        f"the store `{homes[0].store}` has blobs that this catalog does not refer to, and no catalog's mark, "
        "so what may be deleted is not known"
    )
    assert refusal.hint == (
        "if no other catalog uses the store, `meteora-registry store adopt` makes it this catalog's alone; "
        "otherwise name the catalog that does with `--catalog`"
    )
    assert blobs_of(homes[0]) == before
    assert homes[0].store.list_marks() == set()


def test_a_catalog_that_adds_to_an_unmarked_store_does_not_own_what_was_there(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "legal")
    add_folder(workspace_of(catalogs[0], homes[0].store), adapter)
    forget_marks(homes[0])
    add_folder(workspace_of(catalogs[1], homes[1].store), make_adapter(tmp_path / "medical", seed=1))
    assert homes[1].store.list_marks() == {UNKNOWN, catalogs[1].identify()}
    with pytest.raises(StillInUse, match="blobs from before catalogs left marks"):
        collect_garbage(workspace_of(catalogs[1], homes[1].store), grace_seconds=0)
    # Once it refers to everything, nothing there can be another's alone.
    add_folder(workspace_of(catalogs[1], homes[1].store), adapter)
    collect_garbage(workspace_of(catalogs[1], homes[1].store), grace_seconds=0)
    assert homes[1].store.list_marks() == {catalogs[1].identify()}


def test_adopting_a_store_lets_its_catalog_collect_and_the_other_not(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    for number, (home, catalog) in enumerate(zip(homes[:2], catalogs, strict=False)):
        add_folder(
            workspace_of(catalog, home.store),
            make_adapter(tmp_path / f"a-{number}", seed=number),
            name="legal",
        )
    adopt_store(workspace_of(catalogs[0], homes[0].store))
    with pytest.raises(StillInUse, match="holds nothing of this catalog"):
        collect_garbage(workspace_of(catalogs[1], homes[1].store), grace_seconds=0)
    assert collect_garbage(workspace_of(catalogs[0], homes[0].store), grace_seconds=0).blobs == 1
    [event] = [each for each in catalogs[0].history("store").items if each.action == "adopt"]
    assert event.details == {"others": [catalogs[1].identify()]}
    # The other leaves its mark again as soon as it is used.
    add_folder(workspace_of(catalogs[1], homes[1].store), make_adapter(tmp_path / "new", seed=5))
    with pytest.raises(StillInUse, match="also used by 1 other catalog"):
        collect_garbage(workspace_of(catalogs[0], homes[0].store), grace_seconds=0)


def test_an_imported_catalog_and_the_exported_one_delete_nothing_of_each_other(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    add_folder(workspace_of(catalogs[0], homes[0].store), make_adapter(tmp_path / "legal"))
    export_catalog(catalogs[0], tmp_path / "catalog.jsonl")
    import_catalog(catalogs[1], tmp_path / "catalog.jsonl", store=homes[1].store)
    assert catalogs[0].identify() != catalogs[1].identify()
    for home, catalog in zip(homes[:2], catalogs, strict=False):
        kept = remove_versions(workspace_of(catalog, home.store), LEGAL, keep_days=None).kept
        assert isinstance(kept, StillInUse)
    adopt_store(workspace_of(catalogs[1], homes[1].store))
    assert collect_garbage(workspace_of(catalogs[1], homes[1].store), grace_seconds=0).blobs == 2


def test_two_catalogs_that_leave_their_first_marks_at_once_are_both_known(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    context = warm_context()
    barrier = context.Barrier(2)
    # Folders of their own for what the two add.
    processes = [
        context.Process(target=add_same, args=(home, f"a-{number}", barrier), daemon=True)
        for number, home in enumerate(homes[:2])
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    marks = homes[0].store.list_marks()
    assert {catalog.identify() for catalog in catalogs[:2]} <= marks
    for home, catalog in zip(homes[:2], catalogs, strict=False):
        with pytest.raises(StillInUse):
            collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)


def test_the_way_out_that_a_command_names_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def give(catalog: str, *words: str) -> int:
        url = f"sqlite:///{tmp_path}/{catalog}.db"
        return run(["--home", str(tmp_path / "home"), "--catalog", url, *words])

    for number, name in enumerate(("first", "second")):
        assert give(name, "db", "upgrade") == 0
        assert give(name, "add", str(make_adapter(tmp_path / name, seed=number)), "--name", "legal") == 0
    capsys.readouterr()
    assert give("first", "remove", "legal", "--for-good", "--yes") == 0
    out, err = capsys.readouterr()
    store = f"{tmp_path}/home/blobs"
    assert out == "removed: legal@1\n"
    assert err.startswith(
        f"note: the bytes stay where they are: the store `{store}` is also used by 1 other catalog, "
        "so what may be deleted is not known\n"
        "hint: give each catalog a store of its own; if no other catalog uses the store, "
        "`meteora-registry store adopt` makes it this catalog's alone (marks of others: "
        f"`{store}/catalogs/"
    )
    assert give("first", "store", "gc") == 1
    assert give("first", "store", "adopt") == 2
    capsys.readouterr()
    assert give("second", "remove", "legal", "--for-good", "--yes") == 0
    assert give("second", "store", "adopt", "--yes") == 0
    assert capsys.readouterr().out == f"removed: legal@1\nadopted: {store}\n"
    assert give("second", "store", "gc", "--dry-run", "--format", "json") == 0
    # Two weights and the config that both have.
    assert json.loads(capsys.readouterr().out)["garbage"]["blobs"] == 3
    assert give("second", "store", "gc") == 0
    assert give("second", "doctor") == 0


def test_what_a_killed_first_add_left_is_collected_by_its_catalog(homes: list[Home], tmp_path: Path) -> None:
    program = (
        "import os, sys\nfrom pathlib import Path\n"
        "from meteora_registry.registry.home import Home\n"
        "from meteora_registry.registry.workflows.additions import add_folder\n"
        "from meteora_registry.registry.workspace import Workspace\n"
        "home = Home(Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None)\n"
        "with Workspace(home) as workspace:\n"
        "    workspace.catalog.add_version = lambda *_, **__: os.kill(os.getpid(), 9)\n"
        "    add_folder(workspace, Path(sys.argv[4]))\n"
    )
    home, adapter = homes[0], make_adapter(tmp_path / "legal")
    arguments = [str(home.folder), home.catalog_url or "", home.store_url or "", str(adapter)]
    done = warm.run([sys.executable, "-c", program, *arguments], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(blobs_of(home)) == 2
    with Catalog.open(home) as catalog:
        add_folder(workspace_of(catalog, home.store), make_adapter(tmp_path / "medical", seed=1))
        assert home.store.list_marks() == {catalog.identify()}
        # The config is the same in both.
        assert collect_garbage(workspace_of(catalog, home.store), grace_seconds=0).blobs == 1
        assert examine(Workspace(home)).problems == ()


def test_an_import_whose_store_is_away_leaves_the_catalog_empty(
    homes: list[Home], catalogs: list[Catalog], tmp_path: Path
) -> None:
    add_folder(workspace_of(catalogs[0], homes[0].store), make_adapter(tmp_path / "legal"))
    export_catalog(catalogs[0], tmp_path / "catalog.jsonl")
    away = RemoteStore((tmp_path / "away").as_uri(), tmp_path / "cache")
    with pytest.raises(StoreUnavailable, match="is not there"):
        import_catalog(catalogs[1], tmp_path / "catalog.jsonl", store=away)
    assert (catalogs[1].list_adapters(), catalogs[1].identify()) == ((), None)


def test_mending_from_another_place_makes_no_catalog_the_owner_of_what_was_there(
    home: Home, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "legal")
    (tmp_path / "share").mkdir()
    others = Home(tmp_path / "others", store_url=(tmp_path / "share").as_uri())
    with Catalog.open(others) as catalog:
        add_folder(workspace_of(catalog, others.store), make_adapter(tmp_path / "medical", seed=1))
    forget_marks(others)
    before = blobs_of(others)
    with Catalog.open(home) as catalog:
        add_folder(workspace_of(catalog, home.store), adapter)
        moved = Home(home.folder, store_url=others.store_url)
        for problem in examine(Workspace(moved)).problems:
            assert problem.mending is not None
            problem.mending.act()
        assert moved.store.list_marks() == {UNKNOWN, catalog.identify()}
        with pytest.raises(StillInUse):
            collect_garbage(workspace_of(catalog, moved.store), grace_seconds=0)
    assert before < blobs_of(moved)


def test_a_store_that_takes_no_mark_says_why_nothing_was_deleted(catalog: Catalog) -> None:
    # A catalog was opened before, so that everything is imported; this one is not
    # below pytest's own folder, into which another user may not look.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o777)
        home = Home(Path(name) / "home")
        with as_ordinary_user():
            with Catalog.open(home) as catalog:
                add_folder(workspace_of(catalog, home.store), make_adapter(Path(name) / "legal"))
                forget_marks(home)
                (home.folder / "blobs" / "catalogs").chmod(0o555)
                with pytest.raises(StoreUnavailable, match="cannot be written: Permission denied"):
                    collect_garbage(workspace_of(catalog, home.store))
                kept = remove_versions(workspace_of(catalog, home.store), LEGAL, keep_days=None).kept
                assert isinstance(kept, StoreUnavailable)
            (home.folder / "blobs" / "catalogs").chmod(0o755)
