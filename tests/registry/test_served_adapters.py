"""Catalogued adapters for a vLLM engine: found by a reference alone, checked, and placed once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.files.scratch import staged_path
from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.registry.face import Registry
from meteora_registry.registry.vllm_resolver import CatalogResolver, engine_name
from meteora_registry.registry.workflows.examination import examine
from meteora_registry.registry.workflows.problem import Code
from meteora_registry.registry.workflows.served_adapters import ServedAdapter, serve_adapter
from meteora_registry.schemas.errors import AdapterRefused, NotInCatalog, SourceUnreadable, StoreDamaged
from meteora_registry.schemas.names import parse_catalog_source
from support import warm
from support.small_adapters import make_adapter

BASE = "org/base"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "home") as opened:
        yield opened


def served(registry: Registry, name: str, base: str = BASE) -> ServedAdapter:
    return serve_adapter(registry, parse_catalog_source(name), base)


def add(registry: Registry, folder: Path, name: str = "legal", **options: object) -> None:
    make_adapter(folder, **options)  # type: ignore[arg-type]
    registry.add(folder, name=name)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_adapter_is_placed_byte_for_byte(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    found = served(registry, "legal")
    assert str(found.version) == "legal@1"
    assert files_in(found.folder) == files_in(tmp_path / "legal")
    assert inspect_adapter(found.folder).verdict.sound


def test_versions_have_folders_of_their_own_and_labels_none(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "one")
    add(registry, tmp_path / "two", seed=1)
    registry.catalog.set_alias(parse_catalog_source("legal@1"), "champion")
    before = served(registry, "legal@champion")
    assert before == served(registry, "legal@1")
    registry.catalog.set_alias(parse_catalog_source("legal@2"), "champion")
    after = served(registry, "legal@champion")
    assert after == served(registry, "legal@2") == served(registry, "legal")
    assert before.folder != after.folder
    assert before.folder.is_dir()


def test_folder_that_is_whole_is_left_as_it_is(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    first = served(registry, "legal").folder
    inode = (first / "adapter_model.safetensors").stat().st_ino
    assert (served(registry, "legal").folder / "adapter_model.safetensors").stat().st_ino == inode


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_folder_is_written_again(name: str, damage: str, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    folder = served(registry, "legal").folder
    if damage == "missing":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b" ")
    assert files_in(served(registry, "legal").folder) == files_in(tmp_path / "legal")


def test_changed_blob_is_never_served(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    file = registry.catalog.find(parse_catalog_source("legal")).file("adapter_model.safetensors")
    blob = registry.store.path_of(file.sha256)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1] + b"\1")
    with pytest.raises(StoreDamaged, match=file.sha256[2:]):
        served(registry, "legal")
    left = [path.name for path in (tmp_path / "home" / "vllm").iterdir() if path.is_dir()]
    assert left == []


@pytest.mark.parametrize("name", ["absent", "legal@2", "legal@champion"])
def test_unknown_reference_is_not_in_the_catalog(name: str, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    with pytest.raises(NotInCatalog):
        served(registry, name)


@pytest.mark.parametrize(
    "base",
    ["org/base", "ORG/Base", "https://huggingface.co/org/base", "/c/models--org--base/snapshots/" + 40 * "a"],
)
def test_base_is_known_by_any_of_its_names(base: str, registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    assert served(registry, "legal", base).folder.is_dir()


@pytest.mark.parametrize(
    ("own", "base", "message", "hint"),
    [
        (BASE, "org/other", "`legal@1` is of the base `org/base`, and the engine serves `org/other`", None),
        (
            BASE,
            "/models/base",
            "`legal@1` is of the base `org/base`, and the engine serves `/models/base`",
            "state in METEORA_BASE which base the engine serves",
        ),
        (None, BASE, "`legal@1` names no base, and the engine serves `org/base`", None),
    ],
)
def test_adapter_of_another_base_is_refused(
    own: str | None, base: str, message: str, hint: str | None, registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path / "legal", base=own)
    with pytest.raises(AdapterRefused) as refused:
        served(registry, "legal", base)
    assert (refused.value.message, refused.value.hint) == (message, hint)
    assert not (tmp_path / "home" / "vllm").exists()


def test_adapter_that_the_engine_refuses_is_refused_with_the_reason(
    registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path / "legal", bias="all")
    with pytest.raises(AdapterRefused, match=r"uses an option of PEFT that vLLM does not have .*MR801"):
        served(registry, "legal")


def test_rank_is_left_to_the_engine(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal", rank=512, layers=1, targets=("q_proj",))
    assert served(registry, "legal").folder.is_dir()


def test_link_in_the_place_of_the_folder_is_reported_and_what_it_leads_to_is_left(
    registry: Registry, tmp_path: Path
) -> None:
    add(registry, tmp_path / "legal")
    folder = served(registry, "legal").folder
    elsewhere = folder.rename(tmp_path / "elsewhere")
    (elsewhere / "adapter_config.json").write_text("{}")
    folder.symlink_to(elsewhere)
    with pytest.raises(SourceUnreadable, match=r"the damaged folder .* cannot be deleted: .*symbolic link"):
        served(registry, "legal")
    assert (elsewhere / "adapter_config.json").read_text() == "{}"


def test_doctor_finds_what_a_killed_engine_left(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    left = staged_path(served(registry, "legal").folder)
    make_adapter(left)
    (problem,) = examine(registry).problems
    assert problem.code is Code.BUNDLE_LEFTOVER
    assert str(left) in problem.subject


def test_processes_that_place_one_adapter_share_the_folder(registry: Registry, tmp_path: Path) -> None:
    add(registry, tmp_path / "legal")
    program = (
        "import sys\n"
        "from meteora_registry.registry.face import Registry\n"
        "from meteora_registry.registry.workflows.served_adapters import serve_adapter\n"
        "from meteora_registry.schemas.names import parse_catalog_source\n"
        "sys.stdin.readline()\n"
        "with Registry(sys.argv[1]) as registry:\n"
        "    print(serve_adapter(registry, parse_catalog_source('legal'), 'org/base').folder)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "home")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = [warm.Popen(command, **pipes) for _ in range(3)]
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    found = {process.communicate()[0] for process in running}
    assert found == {f"{served(registry, 'legal').folder}\n"}
    assert {process.returncode for process in running} == {0}


@pytest.mark.parametrize(
    ("asked", "name"),
    [("legal@3", "legal@3"), ("legal", "legal=3"), ("legal@champion", "legal@champion=3"), ("a:b", "a:b=3")],
)
def test_name_in_the_engine_has_the_version_and_is_one_for_each_name_asked(asked: str, name: str) -> None:
    assert engine_name(parse_catalog_source(asked), parse_catalog_source("legal@3")) == name


@pytest.mark.parametrize(
    "name",
    [
        "absent",
        "legal@9",
        "",
        "org/legal",
        "hf://org/legal",
        "https://example.org/legal",
        "/etc",
        "../home",
        "./legal",
        "~",
        "legal@../x",
        "LEGAL",
        "legal\n",
        "x" * 100_000,
        "legal@champion=1",
    ],
)
def test_resolver_knows_references_of_the_catalog_alone(
    name: str, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry, tmp_path / "legal")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METEORA_HOME", str(tmp_path / "home"))
    assert asyncio.run(CatalogResolver().resolve_lora(BASE, name)) is None
    assert not (tmp_path / "home" / "vllm").exists()


def test_resolver_makes_no_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METEORA_HOME", str(tmp_path / "home"))
    assert asyncio.run(CatalogResolver().resolve_lora(BASE, "legal")) is None
    assert not (tmp_path / "home").exists()
