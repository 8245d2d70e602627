"""A store at a URL: in memory, in a shared folder, and at services like S3 and GCS over real HTTP."""

from __future__ import annotations

import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import fsspec
import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.database import upgrade
from meteora_registry.registry.catalog.engine import parse_catalog_url
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from meteora_registry.registry.settings import Settings
from meteora_registry.registry.store import Intake, References, RemoteStore
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.examination import examine
from meteora_registry.registry.workflows.problem import Code
from meteora_registry.registry.workflows.store_upkeep import Condition, collect_garbage, verify_store
from meteora_registry.registry.workspace import Workspace
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import (
    StillInUse,
    StoreDamaged,
    StoreUnavailable,
)
from support.gs_server import gs_environment, gs_server
from support.s3_server import BUCKET, s3_environment, s3_server
from support.small_adapters import make_adapter
from support.store_processes import add_same
from support.warm import warm_context
from support.workspaces import workspace_of

CONTENT = b"the bytes" * 300_000
DIGEST = Digest.of_bytes(CONTENT)
CATALOG = Digest.of_bytes(b"this catalog")
OTHER_CATALOG = Digest.of_bytes(b"another catalog")


@pytest.fixture(scope="module")
def s3_address() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def gs_address() -> Iterator[str]:
    with gs_server() as address:
        yield address


@pytest.fixture(params=["memory", "file", "s3", "gs"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty place of each kind."""
    name = tmp_path.name
    if request.param == "memory":
        return f"memory://{name}"
    if request.param == "file":
        (tmp_path / "share").mkdir()
        return (tmp_path / "share").as_uri()
    find = {"s3": s3_environment, "gs": gs_environment}[request.param]
    for variable, value in find(request.getfixturevalue(f"{request.param}_address")).items():
        monkeypatch.setenv(variable, value)
    return f"{request.param}://{BUCKET}/{name}"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(CONTENT)
    return path


def keep(store: RemoteStore, source: Path, catalog: Digest = CATALOG) -> Digest:
    """Store one file, as one that this catalog recorded."""
    with store.intake() as intake:
        blob = intake.copy(source)
        with intake.published():
            intake.confirm(catalog)
            return blob.sha256


def references(*digests: Digest, catalog: Digest = CATALOG) -> nullcontext[References]:
    return nullcontext(References(catalog, lambda _: digests))


def overwrite(url: str, digest: Digest, content: bytes) -> None:
    """Change a blob behind the store's back."""
    files, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
    path = f"{root}/sha256/{digest[:2]}/{digest[2:]}"
    if url.startswith("file:"):
        Path(path).chmod(0o644)
    files.pipe_file(path, content)


def test_what_one_machine_puts_another_reads(url: str, source: Path, tmp_path: Path) -> None:
    here, there = RemoteStore(url, tmp_path / "here"), RemoteStore(url, tmp_path / "there")
    assert there.find(DIGEST) is None
    assert keep(here, source) == DIGEST
    path = there.path_of(DIGEST)
    assert path.is_relative_to(tmp_path / "there")
    assert path.read_bytes() == CONTENT
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    assert there.read(DIGEST) == CONTENT
    assert there.check(DIGEST) == path
    assert there.rehash(DIGEST) == DIGEST
    assert [(blob.sha256, blob.size_bytes) for blob in there.list_blobs()] == [(DIGEST, len(CONTENT))]
    assert 0 <= there.age_seconds(DIGEST) < 300
    assert here.list_leftovers() == there.list_leftovers() == []


def test_what_is_in_the_cache_is_not_asked_for_again(source: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    store = RemoteStore(share.as_uri(), tmp_path / "cache")
    keep(store, source)
    share.rename(tmp_path / "away")
    assert store.path_of(DIGEST).read_bytes() == CONTENT
    with pytest.raises(StoreUnavailable) as caught:
        store.check(DIGEST)
    assert str(caught.value) == f"the store `{share.as_uri()}` is not there"


def test_changed_bytes_never_enter_the_cache_and_are_mended_by_storing_again(
    url: str, source: Path, tmp_path: Path
) -> None:
    here, there = RemoteStore(url, tmp_path / "here"), RemoteStore(url, tmp_path / "there")
    keep(here, source)
    changed = CONTENT[:-1] + b"X"
    overwrite(url, DIGEST, changed)
    place = f"{url}/sha256/{DIGEST[:2]}/{DIGEST[2:]}"
    for read in (there.find, there.path_of, there.check, there.read):
        with pytest.raises(StoreDamaged) as caught:
            read(DIGEST)
        assert str(caught.value) == (
            f"the blob `{place}` was changed: its bytes have the digest `{Digest.of_bytes(changed)}`; "
            "nothing was kept"
        )
    assert list(there.list_cached()) == []
    assert here.rehash(DIGEST) == Digest.of_bytes(changed)
    keep(there, source)
    assert here.rehash(DIGEST) == DIGEST


def test_a_check_compares_the_copy_and_the_blob(url: str, source: Path, tmp_path: Path) -> None:
    store = RemoteStore(url, tmp_path / "cache")
    keep(store, source)
    copy = store.place_of(DIGEST)
    copy.chmod(0o644)
    copy.write_bytes(CONTENT[:-1] + b"X")
    assert store.check(DIGEST).read_bytes() == CONTENT
    overwrite(url, DIGEST, CONTENT[:-1])
    with pytest.raises(StoreDamaged, match=f"has {len(CONTENT) - 1} bytes, expected {len(CONTENT)}"):
        store.check(DIGEST)
    store.drop([DIGEST], references=references)
    with pytest.raises(StoreDamaged, match="the content store has no blob"):
        store.check(DIGEST)


def test_a_blob_deleted_between_upload_and_record_is_put_again(
    url: str, source: Path, tmp_path: Path
) -> None:
    here, there = RemoteStore(url, tmp_path / "here"), RemoteStore(url, tmp_path / "there")
    keep(there, source)
    with here.intake() as intake:
        intake.copy(source)
        with intake.published():
            # The other machine's catalog refers to it no more, and ours does not yet.
            assert there.drop([DIGEST], references=references) == len(CONTENT)
            assert here.size_of(DIGEST) is None
            intake.confirm(CATALOG)
    assert there.rehash(DIGEST) == DIGEST


def test_nothing_is_deleted_that_is_referred_to_or_that_another_catalog_may_refer_to(
    url: str, source: Path, tmp_path: Path
) -> None:
    store = RemoteStore(url, tmp_path / "cache")
    keep(store, source)
    assert store.drop([DIGEST], references=lambda: references(DIGEST)) == 0
    with pytest.raises(StillInUse) as caught:
        store.drop([DIGEST], references=lambda: references(catalog=OTHER_CATALOG))
    assert str(caught.value) == (
        f"the store `{url}` holds nothing of this catalog, so what may be deleted is not known"
    )
    keep(store, source, OTHER_CATALOG)
    with pytest.raises(StillInUse) as caught:
        store.drop([DIGEST], references=references)
    assert str(caught.value) == (
        f"the store `{url}` is also used by 1 other catalog, so what may be deleted is not known"
    )
    assert store.rehash(DIGEST) == DIGEST


def test_damaged_bytes_are_put_aside(url: str, source: Path, tmp_path: Path) -> None:
    store = RemoteStore(url, tmp_path / "cache")
    keep(store, source)
    assert store.set_aside(DIGEST) == f"{url}/quarantine/{DIGEST}"
    assert store.size_of(DIGEST) is None
    assert [blob.sha256 for blob in store.list_set_aside()] == [DIGEST]
    store.drop_aside(DIGEST)
    assert list(store.list_set_aside()) == []


def test_a_blob_in_a_shared_folder_is_read_only_and_leaves_nothing_beside_it(
    source: Path, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    keep(RemoteStore(share.as_uri(), tmp_path / "cache"), source)
    files = {str(path.relative_to(share)): path for path in share.rglob("*") if path.is_file()}
    assert set(files) == {f"catalogs/{CATALOG}", f"sha256/{DIGEST[:2]}/{DIGEST[2:]}"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.values()} == {0o444}


def test_a_half_upload_is_no_blob(url: str, source: Path, tmp_path: Path) -> None:
    store = RemoteStore(url, tmp_path / "cache")
    if url.startswith("s3:"):
        files, root = fsspec.core.url_to_fs(url)
        # As long as an upload in parts was not completed, there is no object.
        file = files.open(f"{root}/sha256/{DIGEST[:2]}/{DIGEST[2:]}", "wb", block_size=5 << 20)
        file.write(b"x" * (6 << 20))
        assert file.mpu is not None
        file.discard()
        file.closed = True
    else:
        store.remote.put(source, "incoming/half")
    assert store.find(DIGEST) is None
    assert list(store.list_blobs()) == []


def test_an_upload_that_stood_still_for_an_hour_is_a_leftover(source: Path, tmp_path: Path) -> None:
    share = tmp_path / "share"
    (share / "incoming").mkdir(parents=True)
    store = RemoteStore(share.as_uri(), tmp_path / "cache")
    half = share / "incoming" / "half"
    half.write_bytes(b"half")
    assert store.list_leftovers() == []
    os.utime(half, (0, half.stat().st_mtime - 3700))
    assert [each.place for each in store.list_leftovers()] == [f"{share.as_uri()}/incoming/half"]
    store.clear_leftovers()
    assert not half.exists()


def test_gc_waits_a_day_for_what_is_not_recorded_yet_and_drops_copies(
    url: str, source: Path, tmp_path: Path
) -> None:
    catalog_url = f"sqlite:///{tmp_path}/catalog.db"
    upgrade(parse_catalog_url(catalog_url))
    home = Home(tmp_path / "home", catalog_url, url)
    store = home.store
    assert isinstance(store, RemoteStore)
    with Catalog.open(home) as catalog:
        version = add_folder(workspace_of(catalog, store), make_adapter(tmp_path / "legal")).version
        with store.intake() as intake:
            intake.copy(source)
            with intake.published():
                pass
        assert collect_garbage(workspace_of(catalog, store)).young == 1
        assert store.size_of(DIGEST) == len(CONTENT)
        planned = collect_garbage(workspace_of(catalog, store), grace_seconds=0, dry_run=True)
        assert (planned.blobs, planned.blob_bytes) == (1, len(CONTENT))
        assert collect_garbage(workspace_of(catalog, store), grace_seconds=0).blobs == 1
        assert [event.details["blobs"] for event in catalog.history("store").items] == [1]
        assert {blob.sha256 for blob in store.list_blobs()} == {file.sha256 for file in version.files}
        assert {each.condition for each in verify_store(workspace_of(catalog, store))} == {Condition.WHOLE}
    with Catalog.open(Home(tmp_path / "new")) as empty, pytest.raises(StillInUse):
        collect_garbage(workspace_of(empty, store), grace_seconds=0)


@pytest.mark.parametrize("url", ["file", "s3", "gs"], indirect=True)
def test_processes_that_add_the_same_content_at_once_leave_one_whole_blob(url: str, tmp_path: Path) -> None:
    catalog_url = f"sqlite:///{tmp_path}/catalog.db"
    upgrade(parse_catalog_url(catalog_url))
    homes = [Home(tmp_path / name, catalog_url, url) for name in ("one", "two")]
    context = warm_context()
    barrier = context.Barrier(2)
    processes = [
        context.Process(
            target=add_same, args=(home, home.folder.name, barrier, dict(os.environ)), daemon=True
        )
        for home in homes
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    reader = Home(tmp_path / "three", catalog_url, url)
    with Catalog.open(reader) as catalog:
        states = list(verify_store(workspace_of(catalog, reader.store), jobs=2))
        assert {state.condition for state in states} == {Condition.WHOLE}
        # Five weights and one config, each used by both.
        assert len(states) == 6
        assert {len(state.used_by) for state in states} == {2, 10}
        assert len(list(reader.store.list_blobs())) == 6
        assert reader.store.list_leftovers() == []


def test_a_process_killed_while_it_adds_to_a_shared_folder_leaves_no_half_blob(tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    home = Home(tmp_path / "home", store_url=share.as_uri())
    Catalog.open(home).close()
    context = warm_context()
    for moment in (0.0, 0.05, 0.2):
        barrier = context.Barrier(2)
        process = context.Process(target=add_same, args=(home, f"a-{moment}", barrier), daemon=True)
        process.start()
        # The first adapter is whole; the second is being added when it ends.
        for _ in range(2):
            barrier.wait()
        time.sleep(moment)
        process.kill()
        process.join()
    for path in (share / "incoming").iterdir():
        os.utime(path, (0, path.stat().st_mtime - 3700))
    with Catalog.open(home) as catalog:
        states = list(verify_store(workspace_of(catalog, home.store)))
        assert {state.condition for state in states} == {Condition.WHOLE}
        for blob in home.store.list_blobs():
            assert home.store.rehash(blob.sha256) == blob.sha256
        collect_garbage(workspace_of(catalog, home.store), grace_seconds=0)
        assert {blob.sha256 for blob in home.store.list_blobs()} == {state.sha256 for state in states}
        assert home.store.list_leftovers() == []
    assert examine(Workspace(home)).problems == ()


def test_removing_while_the_store_is_away_removes_the_record_and_says_that_the_bytes_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    options = ["--home", str(tmp_path / "home"), "--store", str(share)]
    assert run([*options, "add", str(make_adapter(tmp_path / "legal"))]) == 0
    share.rename(tmp_path / "away")
    capsys.readouterr()
    assert run([*options, "remove", "legal", "--for-good", "--yes"]) == 0
    assert capsys.readouterr() == (
        "removed: legal@1\n",
        f"note: the bytes stay where they are: the store `{share.as_uri()}` is not there\n",
    )
    (tmp_path / "away").rename(share)
    assert run([*options, "store", "gc", "--grace", "0"]) == 0
    assert "unreferenced blobs  2, " in capsys.readouterr().out


def test_the_store_is_the_argument_then_the_variable_then_the_home(tmp_path: Path) -> None:
    variables = {"METEORA_STORE": "memory://variable"}
    named = Settings.read(tmp_path, None, "memory://argument", environment=variables).place.store
    assert str(named) == "memory://argument"
    assert str(Settings.read(tmp_path, environment=variables).place.store) == "memory://variable"
    assert str(Settings.read(tmp_path, environment={"METEORA_STORE": ""}).place.store) == str(
        tmp_path / "blobs"
    )


@pytest.mark.parametrize("service", ["s3", "gs"])
@pytest.mark.parametrize("bucket", [BUCKET, "no-such-bucket"])
def test_the_doctor_tells_an_empty_store_from_a_bucket_that_does_not_exist(
    service: str, bucket: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = {"s3": s3_environment, "gs": gs_environment}[service]
    for variable, value in find(request.getfixturevalue(f"{service}_address")).items():
        monkeypatch.setenv(variable, value)
    home = Home(tmp_path / "home", store_url=f"{service}://{bucket}/{tmp_path.name}")
    Catalog.open(home).close()
    found = [problem.code for problem in examine(Workspace(home)).problems]
    assert found == ([] if bucket == BUCKET else [Code.STORE_UNAVAILABLE])


def test_the_doctor_says_that_credentials_are_missing(
    s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_environment(s3_address).items():
        monkeypatch.setenv(variable, value)
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    home = Home(tmp_path / "home", store_url=f"s3://{BUCKET}/{tmp_path.name}")
    files = fsspec.get_filesystem_class("s3")
    # fsspec keeps connections by their options, and these find other credentials.
    files.clear_instance_cache()
    try:
        [problem] = examine(Workspace(home)).problems
    finally:
        files.clear_instance_cache()
    assert problem.code == Code.STORE_UNAVAILABLE
    assert "credentials" in problem.found + problem.way_out


def test_another_machine_fuses_what_is_only_at_the_url(
    s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in s3_environment(s3_address).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("METEORA_CATALOG", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("METEORA_STORE", f"s3://{BUCKET}/fused")
    here, there = (["--home", str(tmp_path / name)] for name in ("here", "there"))
    adapters = [make_adapter(tmp_path / name, seed=n) for n, name in enumerate(("legal", "medical"))]
    assert run([*here, "db", "upgrade"]) == 0
    assert run([*here, "add", *map(str, adapters)]) == 0
    bundle = str(tmp_path / "bundle")
    assert run([*there, "fuse", "legal", "medical", "--out", bundle]) == 0
    shutil.rmtree(tmp_path / "there")
    assert run([*there, "verify", bundle, "--level", "source"]) == 0


def test_the_commands_work_on_an_s3_service(
    s3_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in s3_environment(s3_address).items():
        monkeypatch.setenv(variable, value)
    catalog = f"sqlite:///{tmp_path}/catalog.db"
    monkeypatch.setenv("METEORA_CATALOG", catalog)
    monkeypatch.setenv("METEORA_STORE", f"s3://{BUCKET}/commands")
    here, there = (["--home", str(tmp_path / name)] for name in ("here", "there"))
    assert run([*here, "db", "upgrade"]) == 0
    assert run([*here, "add", str(make_adapter(tmp_path / "legal"))]) == 0
    assert run([*there, "store", "verify"]) == 0
    capsys.readouterr()
    assert run([*there, "store", "du", "--format", "json"]) == 0
    usage = json.loads(capsys.readouterr().out)
    assert (usage["store"], usage["blobs"], usage["missing"]) == (f"s3://{BUCKET}/commands", 2, 0)
    # Reads the bytes, which are only there.
    assert run([*there, "validate", str(make_adapter(tmp_path / "new", seed=1)), "--with", "legal"]) == 0
    assert run([*there, "doctor"]) == 0
    assert run([*there, "remove", "legal", "--for-good", "--yes"]) == 0
    assert "4.9 kB set free\n" in capsys.readouterr().err
    assert run([*here, "store", "du", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["blobs"] == 0


def test_intakes_of_a_store_elsewhere_publish_what_the_cache_then_has(
    url: str, source: Path, tmp_path: Path
) -> None:
    store = RemoteStore(url, tmp_path / "cache")
    with store.intake() as intake:
        assert isinstance(intake, Intake)
        intake.copy(source)
        assert store.size_of(DIGEST) is None
        with intake.published():
            assert store.find_cached(DIGEST) == store.place_of(DIGEST)
            assert store.size_of(DIGEST) == len(CONTENT)
