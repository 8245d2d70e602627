"""``doctor``: every kind of damage is found, mended where that needs no judgement, and nothing else is."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from meteora_registry.files import scratch
from meteora_registry.files.scratch import Purpose, staged_path, unfinished_folder
from meteora_registry.files.staging import staged_folder
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.engine import connection_to
from meteora_registry.registry.catalog.records import AdapterVersion, BundleVersion
from meteora_registry.registry.catalog.search_index import rebuild_index
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import HOME_VARIABLE, Home
from meteora_registry.registry.store import RemoteStore, Store
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.examination import Examination, examine
from meteora_registry.registry.workflows.fuse_plan import prepare_fuse
from meteora_registry.registry.workflows.fusion import fuse
from meteora_registry.registry.workflows.problem import Code
from meteora_registry.registry.workflows.store_upkeep import Condition, verify_store
from meteora_registry.registry.workspace import Workspace
from meteora_registry.schemas.names import HubSource, parse_source
from meteora_registry.schemas.recipe import Recipe
from support import warm
from support.small_adapters import make_adapter
from support.workspaces import workspace_of

_A_DAY_AND_AN_HOUR = 25 * 3600


@dataclass(frozen=True, slots=True)
class Patient:
    """A sound home with one adapter in it, and one bundle made of it and another."""

    home: Home
    adapter: Path
    version: AdapterVersion
    bundle: BundleVersion

    @property
    def weights(self) -> Path:
        return self.home.store.place_of(self.version.weights_sha256)

    def sql(self, statement: str) -> None:
        """Change the catalog behind its back."""
        with closing(sqlite3.connect(self.home.catalog_file)) as connection, connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(statement)


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of this test alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Patient]:
    """A copy of a whole patient, and the patient, whose place is where each test finds it."""
    place = tmp_path_factory.mktemp("patient")
    home = Home(place / "home")
    adapters = [
        make_adapter(place / "adapters" / name, seed=n) for n, name in enumerate(("legal", "medical"))
    ]
    with Catalog.open(home) as catalog:
        version, _ = [add_folder(workspace_of(catalog, home.store), adapter).version for adapter in adapters]
        recipe = Recipe.from_value({"members": [{"adapter": "legal"}, {"adapter": "medical"}]}, what="recipe")
        (place / "bundles").mkdir()
        fusion = fuse(
            workspace_of(catalog, home.store),
            prepare_fuse(workspace_of(catalog, home.store), recipe),
            place / "bundles" / "team",
        )
    copy = place.with_name("template")
    shutil.copytree(place, copy)
    return copy, Patient(home, adapters[0], version, fusion.version)


@pytest.fixture
def patient(template: tuple[Path, Patient], monkeypatch: pytest.MonkeyPatch) -> Patient:
    """A sound patient."""
    copy, patient = template
    shutil.rmtree(patient.home.folder.parent)
    shutil.copytree(copy, patient.home.folder.parent)
    monkeypatch.setenv(HOME_VARIABLE, str(patient.home.folder))
    return patient


def codes_of(examination: Examination) -> list[Code]:
    return sorted(problem.code for problem in examination.problems)


def mend(examination: Examination) -> None:
    for problem in examination.problems:
        if problem.mending is not None:
            problem.mending.act()


def age(path: Path, seconds: float = _A_DAY_AND_AN_HOUR) -> None:
    """Make a file, or everything below a folder, look as old as this."""
    then = time.time() - seconds
    for each in (*path.rglob("*"), path):
        os.utime(each, (then, then))


def flip_a_bit(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    path.chmod(0o444)


def kill_while_adding(patient: Patient) -> None:
    """Kill a process that published a blob, copied another file, and recorded neither."""
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom meteora_registry.registry.store import Store\n"
        "folder, store = Path(sys.argv[1]), Store(Path(sys.argv[1]))\n"
        "for name in ('one', 'two'):\n    (folder / name).write_text(name)\n"
        "with store.intake() as first, store.intake() as second:\n"
        "    first.copy(folder / 'one')\n    second.copy(folder / 'two')\n"
        "    with first.published():\n        os.kill(os.getpid(), 9)\n"
    )
    done = warm.run([sys.executable, "-c", program, str(patient.home.folder)], check=False)
    assert done.returncode == -9


def test_a_sound_home_has_no_problem(patient: Patient) -> None:
    assert examine(Workspace(patient.home), jobs=2) == Examination((), ())


def test_a_home_that_is_not_there_is_not_made(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert capsys.readouterr() == ("", "nothing is wrong\n")
    assert not home.folder.exists()


def _remove_blob(patient: Patient) -> None:
    patient.weights.unlink()


def _change_blob(patient: Patient) -> None:
    flip_a_bit(patient.weights)


def _make_blob_writable(patient: Patient) -> None:
    patient.weights.chmod(0o644)


def _close_blob(patient: Patient) -> None:
    patient.weights.chmod(0)


def _close_folder(patient: Patient) -> None:
    patient.weights.parent.chmod(0o500)


def _put_stray(patient: Patient) -> None:
    (patient.weights.parent / "notes.txt").write_text("mine")
    (patient.weights.parents[1] / "link").symlink_to(patient.adapter)


def _drop_index(patient: Patient) -> None:
    patient.sql("DROP INDEX ix_adapter_files_sha256")


def _drop_table(patient: Patient) -> None:
    patient.sql("DROP TABLE verifications")


def _go_back_a_revision(patient: Patient) -> None:
    patient.sql("UPDATE alembic_version SET version_num = '0001'")


def _orphan_rows(patient: Patient) -> None:
    patient.sql("DELETE FROM entries WHERE name = 'medical'")


def _overwrite_catalog(patient: Patient) -> None:
    patient.home.catalog_file.write_bytes(b"no database" * 1000)


def _remove_catalog(patient: Patient) -> None:
    for path in patient.home.folder.glob("catalog.db*"):
        path.unlink()


def _leave_half_a_catalog(patient: Patient) -> None:
    (patient.home.folder / "catalog.db.new").write_bytes(b"half of one")
    (patient.home.folder / "catalog.db.new-journal").write_bytes(b"half of one")


def _remove_bundle(patient: Patient) -> None:
    shutil.rmtree(patient.bundle.path)


def _change_manifest(patient: Patient) -> None:
    path = patient.bundle.path / "meteora_manifest.json"
    path.write_bytes(path.read_bytes() + b"\n")


def _cut_weights(patient: Patient) -> None:
    os.truncate(patient.bundle.path / "adapter_model.safetensors", 100)


def _leave_staging(patient: Patient) -> None:
    folder = patient.bundle.path.with_name(".next.partial")
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"half")


def _leave_temporary_folder(patient: Patient) -> None:
    folder = Path(tempfile.gettempdir(), "meteora-pull-abcdefgh")
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"half")
    age(folder)


def _leave_scratch_of_a_fit(patient: Patient) -> None:
    with scratch.temporary_folder(Purpose.FIT) as name:
        prefix = name.name.rpartition("-")[0]
    member = Path(tempfile.gettempdir(), f"{prefix}-killed", "legal")
    member.mkdir(parents=True)
    (member / "adapter_model.safetensors").write_bytes(b"a whole adapter")
    age(member.parent)


def _leave_unfinished_files(patient: Patient) -> None:
    record = patient.bundle.path / "verification.json"
    for target in (patient.bundle.path.with_name("statistics.safetensors"), record):
        with unfinished_folder(target) as folder:
            name = folder.name
        left = target.with_name(name)
        left.mkdir()
        (left / "file").write_bytes(b"half")
        age(left)
    for path in (staged_path(record), patient.bundle.path.with_name(".old.meteora-partial")):
        path.write_bytes(b"an earlier version's")
        age(path)


DAMAGES: list[tuple[Callable[[Patient], None], list[Code], list[Code]]] = [
    (kill_while_adding, [Code.STORE_LEFTOVER, Code.STORE_UNREFERENCED], []),
    (_remove_blob, [Code.STORE_MISSING], [Code.STORE_MISSING]),
    # Put aside, they are no longer taken for the blob, which then is missing.
    (_change_blob, [Code.STORE_DAMAGED], [Code.STORE_MISSING]),
    (_make_blob_writable, [Code.STORE_PERMISSIONS], []),
    # Root may read it all the same, and still gets the message.
    (_close_blob, [Code.STORE_PERMISSIONS], []),
    (_close_folder, [Code.STORE_PERMISSIONS], []),
    (_put_stray, [Code.STORE_STRAY], [Code.STORE_STRAY]),
    (_drop_index, [Code.CATALOG_SCHEMA], [Code.CATALOG_SCHEMA]),
    (_drop_table, [Code.CATALOG_SCHEMA], [Code.CATALOG_SCHEMA]),
    (_go_back_a_revision, [Code.CATALOG_SCHEMA], [Code.CATALOG_SCHEMA]),
    (_orphan_rows, [Code.CATALOG_DAMAGED], [Code.CATALOG_DAMAGED]),
    (_overwrite_catalog, [Code.CATALOG_UNUSABLE], [Code.CATALOG_UNUSABLE]),
    (_remove_catalog, [Code.CATALOG_MISSING], [Code.CATALOG_MISSING]),
    (_leave_half_a_catalog, [Code.CATALOG_LEFTOVER], []),
    (_remove_bundle, [Code.BUNDLE_GONE], [Code.BUNDLE_GONE]),
    (_change_manifest, [Code.BUNDLE_CHANGED], [Code.BUNDLE_CHANGED]),
    (_cut_weights, [Code.BUNDLE_CHANGED], [Code.BUNDLE_CHANGED]),
    (_leave_staging, [Code.BUNDLE_LEFTOVER], []),
    (_leave_temporary_folder, [Code.TEMPORARY_LEFTOVER], []),
    (_leave_scratch_of_a_fit, [Code.TEMPORARY_LEFTOVER], []),
    (_leave_unfinished_files, [Code.FILE_LEFTOVER], []),
]


@pytest.mark.parametrize(("hurt", "found", "left"), DAMAGES, ids=lambda value: getattr(value, "__name__", ""))
def test_damage_is_found_and_mended_where_that_needs_no_judgement(
    patient: Patient, hurt: Callable[[Patient], None], found: list[Code], left: list[Code]
) -> None:
    referenced = {path: path.read_bytes() for path in patient.home.store.list_files()}
    hurt(patient)
    hurt_state = snapshot(patient.home.folder)
    examination = examine(Workspace(patient.home))
    assert codes_of(examination) == found
    assert all(problem.way_out for problem in examination.problems)
    assert snapshot(patient.home.folder) == hurt_state
    mend(examination)
    assert codes_of(examine(Workspace(patient.home))) == left
    # What is referred to is where it was, or, where it was damaged, aside.
    assert sum(path.exists() for path in referenced) >= len(referenced) - 1


def snapshot(folder: Path) -> dict[str, bytes]:
    """Return every file, but those that a database makes while it is open, and locks."""
    return {
        str(path): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(("lock", "-shm", "-wal"))
    }


def test_what_was_damaged_is_added_again_and_is_whole(patient: Patient) -> None:
    flip_a_bit(patient.weights)
    [problem] = examine(Workspace(patient.home)).problems
    assert problem.mending is not None
    assert not problem.mending.heals
    assert problem.way_out == (
        "`meteora-registry add FOLDER --name legal` with the folder it came from; "
        "`meteora-registry extract team@1 legal --out FOLDER` gives the folder back"
    )
    problem.mending.act()
    with Catalog.open(patient.home) as catalog:
        add_folder(workspace_of(catalog, patient.home.store), patient.adapter)
        assert {each.condition for each in verify_store(workspace_of(catalog, patient.home.store))} == {
            Condition.WHOLE
        }


def test_an_adapter_from_the_hub_is_added_again_from_its_commit(patient: Patient) -> None:
    commit = "0" * 40
    location = f"hf://org/many@{commit}/legal"
    patient.sql(f"UPDATE adapter_versions SET origin_location = '{location}' WHERE id = {patient.version.id}")
    patient.sql("DELETE FROM bundle_members")
    with Catalog.open(patient.home) as catalog, connection_to(catalog._engine, writes=True) as connection:
        rebuild_index(connection)
    patient.weights.unlink()
    [problem] = examine(Workspace(patient.home)).problems
    command = f"meteora-registry add hf://org/many@{commit} --subfolder legal --name legal"
    assert problem.way_out == f"`{command}`"
    assert parse_source(command.split()[2]) == HubSource("org/many", commit, None)


def test_a_fuse_that_still_runs_and_a_strangers_folder_are_left_alone(patient: Patient) -> None:
    stranger = patient.bundle.path.with_name(".notes.partial")
    stranger.mkdir()
    (stranger / "diary.txt").write_text("mine")
    with staged_folder(patient.bundle.path.with_name("next")) as staging:
        assert examine(Workspace(patient.home)).problems == ()
        assert staging.exists()
    patient.bundle.path.with_name(".download.partial").write_bytes(b"a browser's")
    young = Path(tempfile.gettempdir(), "meteora-pull-young")
    young.mkdir()
    with unfinished_folder(patient.bundle.path.with_name("young")):
        assert examine(Workspace(patient.home)).problems == ()


def test_what_a_first_fuse_left_is_found_from_its_folder(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Catalog.open(home).close()
    left = tmp_path / "bundles" / ".team.partial"
    left.mkdir(parents=True)
    (left / "adapter_model.safetensors").write_bytes(b"half")
    assert run(["doctor"]) == 0
    monkeypatch.chdir(left.parent)
    assert run(["doctor"]) == 1
    assert capsys.readouterr().out.startswith(
        f"bundle-leftover: `{left}`: left by a process that died, 4 bytes"
    )
    assert run(["doctor", "--fix", "--yes"]) == 0
    assert list(left.parent.iterdir()) == []


def test_a_missing_blob_is_put_back_from_wherever_this_machine_has_it(patient: Patient) -> None:
    flip_a_bit(patient.weights)
    good = patient.home.folder / "cache" / "0123456789ab"
    cached = Store(good).place_of(patient.version.weights_sha256)
    cached.parent.mkdir(parents=True)
    shutil.copy(patient.adapter / "adapter_model.safetensors", cached)
    [problem] = examine(Workspace(patient.home)).problems
    assert problem.mending is not None
    assert problem.mending.deed == f"put it back from `{cached}`"
    problem.mending.act()
    assert examine(Workspace(patient.home)) == Examination((), ())


@pytest.fixture
def elsewhere(patient: Patient, tmp_path: Path) -> Home:
    """The patient, whose blobs have moved to a shared folder."""
    (tmp_path / "share").mkdir()
    home = Home(patient.home.folder, store_url=(tmp_path / "share").as_uri())
    examination = examine(Workspace(home))
    assert set(codes_of(examination)) == {Code.STORE_MISSING}
    mend(examination)
    shutil.rmtree(patient.home.folder / "blobs")
    assert examine(Workspace(home)) == Examination((), ())
    return home


def test_a_store_elsewhere_is_mended_from_the_cache_and_the_cache_from_the_store(
    patient: Patient, elsewhere: Home, tmp_path: Path
) -> None:
    weights, config = patient.version.weights_sha256, patient.version.config_sha256
    store = elsewhere.store
    assert isinstance(store, RemoteStore)
    flip_a_bit(tmp_path / "share" / "sha256" / weights[:2] / weights[2:])
    flip_a_bit(store.place_of(config))
    examination = examine(Workspace(elsewhere))
    assert codes_of(examination) == [Code.CACHE_DAMAGED, Code.STORE_DAMAGED]
    mend(examination)
    assert examine(Workspace(elsewhere)) == Examination((), ())
    assert store.check(config) == store.place_of(config)


def test_what_cannot_be_judged_is_said(elsewhere: Home, tmp_path: Path) -> None:
    share = tmp_path / "share"
    (share / "catalogs" / ("0" * 64)).write_bytes(b"")
    [reason] = examine(Workspace(elsewhere)).not_examined
    assert reason.startswith("what of the store may be deleted: the store ")
    share.rename(tmp_path / "away")
    examination = examine(Workspace(elsewhere))
    assert codes_of(examination) == [Code.STORE_UNAVAILABLE]
    assert examination.problems[0].found == f"the store `{share.as_uri()}` is not there"
    assert examination.not_examined == ("the rest of the store: it cannot be reached",)


def _point_at_a_folder_that_is_not_there(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, (tmp_path / "nowhere").as_uri())


def _point_at_a_file(home: Home, tmp_path: Path) -> Home:
    (tmp_path / "file").write_bytes(b"")
    return Home(home.folder, home.catalog_url, (tmp_path / "file").as_uri())


def _point_at_an_unknown_scheme(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, "nowhere://bucket/adapters")


def _point_at_a_package_that_is_missing(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, "oci://bucket/adapters")


def _point_at_what_is_not_a_url(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, "nonsense")


def _point_at_more_than_a_place(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, "s3://bucket/adapters?region=here")


def _point_at_a_home_of_no_user(home: Home, tmp_path: Path) -> Home:
    return Home(home.folder, home.catalog_url, "~no.such.user/adapters")


def _put_a_file_in_its_place(home: Home, tmp_path: Path) -> Home:
    home.folder.mkdir(exist_ok=True)
    (home.folder / "blobs").write_bytes(b"")
    return home


def _link_it_to_nothing(home: Home, tmp_path: Path) -> Home:
    home.folder.mkdir(exist_ok=True)
    (home.folder / "blobs").symlink_to(tmp_path / "nowhere")
    return home


@pytest.mark.parametrize("with_catalog", [True, False], ids=["an empty catalog", "no catalog"])
@pytest.mark.parametrize(
    ("lose", "found"),
    [
        (_point_at_a_folder_that_is_not_there, "is not there"),
        (_point_at_a_file, "is not there"),
        (_point_at_an_unknown_scheme, "a store cannot be kept at `nowhere://bucket/adapters`"),
        (_point_at_a_package_that_is_missing, "needs a package that is not installed"),
        (_point_at_what_is_not_a_url, "the store `nonsense` is not a URL"),
        (_point_at_more_than_a_place, "the store `s3://bucket/adapters?region=***` is more than a place"),
        (_point_at_a_home_of_no_user, "cannot be found: there is no home of that name"),
        (_put_a_file_in_its_place, "cannot be read: Not a directory"),
        (_link_it_to_nothing, "is a link to a folder that is not there"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_store_that_is_not_there_is_a_problem_even_if_nothing_is_in_it(
    home: Home, tmp_path: Path, lose: Callable[[Home, Path], Home], found: str, *, with_catalog: bool
) -> None:
    if with_catalog:
        Catalog.open(home).close()
    examination = examine(Workspace(lose(home, tmp_path)))
    assert codes_of(examination) == [Code.STORE_UNAVAILABLE]
    assert found in examination.problems[0].found
    assert examination.not_examined == ("the rest of the store: it cannot be reached",)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_command_reports_then_asks_then_mends(
    patient: Patient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_blob_writable(patient)
    report = (
        f"store-permissions: `{patient.weights}`: may be written or not be read, "
        "and a blob is read and never changes\n"
        "    way out: `chmod u+r,a-w` on it\n    --fix: make it readable and read-only\n"
    )
    assert run(["doctor"]) == 1
    assert capsys.readouterr() == (report, "")
    assert run(["doctor", "--fix"]) == 2
    out, err = capsys.readouterr()
    assert out == report
    assert err == (
        f"will: `{patient.weights}`: make it readable and read-only\n"
        "error: this needs a confirmation, and stdin is not a terminal\n"
        "hint: add `--yes`; nothing was changed\n"
    )
    monkeypatch.setattr(sys, "stdin", _Terminal("n\n"))
    assert run(["doctor", "--fix"]) == 1
    assert "nothing was changed\n" in capsys.readouterr().err
    assert patient.weights.stat().st_mode & 0o222
    assert run(["doctor", "--fix", "--yes"]) == 0
    assert capsys.readouterr().out == f"{report}mended: store-permissions: `{patient.weights}`\n"
    assert run(["doctor"]) == 0


def test_the_command_says_what_is_left_to_do(patient: Patient, capsys: pytest.CaptureFixture[str]) -> None:
    flip_a_bit(patient.weights)
    _remove_bundle(patient)
    assert run(["doctor", "--fix", "--yes", "--format", "json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [(each["code"], each["outcome"]) for each in problems] == [
        ("store-damaged", "half mended"),
        ("bundle-gone", None),
    ]
    assert all(each.keys() == {"code", "subject", "found", "way_out", "fix", "outcome"} for each in problems)
