"""Temporary names come from one module, so that the doctor knows them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from meteora_registry.files import scratch
from meteora_registry.files.scratch import Purpose
from support.source_tree import ROOT, python_files

OWNER = ROOT / "files" / "scratch.py"
MAKERS = {"tempfile", "uuid", "secrets"}
# What they make is a request's id, a seed and a key, none of them a name of a file.
OTHER_USES = {"serving/requests.py", "serving/steps.py", "serving/vllm_process.py"}
# Endings of names that something only has until it is whole, and the beginning of scratch folders.
ENDINGS = (".partial", "-partial", ".new", ".tmp", ".temp")
SCRATCH = re.compile(r"meteora-.+-")


def makes_a_temporary_name(node: ast.AST) -> bool:
    match node:
        case ast.Import(names=names):
            return any(name.name.partition(".")[0] in MAKERS for name in names)
        case ast.ImportFrom(module=str() as module, level=0):
            return module.partition(".")[0] in MAKERS
        case ast.Constant(value=str() as text):
            return text.endswith(ENDINGS) or SCRATCH.fullmatch(text) is not None
    return False


def offences(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if makes_a_temporary_name(node):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def _makes_other_things(path: Path) -> bool:
    return path.relative_to(ROOT).as_posix() in OTHER_USES


def test_no_other_module_makes_temporary_names() -> None:
    paths = [path for path in python_files() if path != OWNER and not _makes_other_things(path)]
    assert [offence for path in paths for offence in offences(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        "import tempfile",
        "from tempfile import mkdtemp",
        "import uuid",
        'name = f".{target}.partial"',
        'name = path + ".new"',
        'prefix = "meteora-other-"',
    ],
)
def test_a_temporary_name_made_elsewhere_would_be_seen(line: str) -> None:
    assert any(map(makes_a_temporary_name, ast.walk(ast.parse(line))))


@pytest.mark.parametrize("purpose", Purpose)
def test_a_scratch_folder_is_known_by_its_name(purpose: Purpose) -> None:
    with scratch.temporary_folder(purpose) as folder:
        assert scratch.is_scratch(folder)
        assert folder.parent == scratch.scratch_root()
    assert not folder.exists()


@pytest.mark.parametrize("name", ["meteora-", "meteora-x-abc", "meteora-fit-", "other-fit-abc"])
def test_another_folder_is_not_taken_for_a_scratch_folder(name: str) -> None:
    assert not scratch.is_scratch(Path("/tmp", name))


@pytest.mark.parametrize(
    "name", ["result.json", "x" * 255, "\N{SNOWMAN}" * 85], ids=["short", "long", "wide"]
)
def test_what_is_made_beside_a_target_is_known_by_its_name(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    with scratch.unfinished_folder(target) as first, scratch.unfinished_folder(target) as second:
        assert first != second
        assert {first.parent, second.parent} == {tmp_path}
        assert scratch.is_unfinished(first)
        assert scratch.is_unfinished(first, of=name)
        assert not scratch.is_unfinished(first, of="other.json")
    assert list(tmp_path.iterdir()) == []
    assert not scratch.is_unfinished(target)


def test_a_staged_folder_is_known_by_its_name(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    assert scratch.is_staged(scratch.staged_path(target))
    assert not scratch.is_staged(target)
