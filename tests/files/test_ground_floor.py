"""Only ``files/`` opens what comes from outside, flushes and renames, locks, and hashes in a loop."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.source_tree import ROOT, python_files

# By the function that does it instead.
CALLS = {
    "os.open": "reading.open_regular",
    "os.fsync": "writing.flush_file",
    "os.fdatasync": "writing.flush_file",
    "os.replace": "writing.whole_file",
    "os.rename": "writing.whole_file",
    "os.link": "writing.whole_file",
    "hashlib.new": "digests.Hasher",
    "hashlib.sha1": "digests.Hasher",
    "hashlib.file_digest": "digests.hash_file",
}
MODULES = {"fcntl": "locks", "tempfile": "scratch", "tempfile.mkstemp": "scratch"}
# A method and how many arguments it is called with: `str.replace` has two, `Path.replace` one.
METHODS = {
    ("replace", 1): "writing.whole_file",
    ("rename", 1): "writing.whole_file",
    ("hardlink_to", 1): "writing.whole_file",
    ("resolve", 0): "reading.real_path",
    ("read_bytes", 0): "reading.read_bounded",
    ("read_text", 0): "reading.read_bounded",
}
EXCEPTIONS = {
    ("inspection/report/html.py", "read_text"): "reads the package's own style sheet",
    ("kernels/gpu_table.py", "read_text"): "reads the package's own table, and kernels import nothing",
    (
        "kernels/gpu_tune.py",
        "read_text",
    ): "goes on with the table of the tuning itself, and kernels import nothing",
    ("kernels/gpu_tune.py", "replace"): "the same table, whole after each bucket",
    ("registry/cli/streams.py", "os.open"): "opens the null device in place of a closed stream",
    ("registry/hub/listing.py", "hashlib.sha1"): "git's name of a file, taken beside the SHA-256 digest",
    ("registry/store/blob.py", "open rb"): "a missing blob has another error than one that may not be read",
    ("registry/store/local.py", "read_bytes"): "a small blob of the store, compared with its digest",
    ("registry/store/bucket.py", "open rb"): "flushes what fsspec wrote into a folder of the store",
    ("runtime/evaluation/generation.py", "read_text"): "the kernel's account of this process",
    ("runtime/fitting/chat_template_worker.py", "read_text"): "the kernel's account of this process",
    ("runtime/fitting/request_gates.py", "read_text"): "reads the general prompts of the package",
    ("runtime/tracing/page.py", "read_text"): "reads the package's own page",
}


def offence(node: ast.AST) -> tuple[str, str] | None:
    """Return what a node does that only ``files`` may do, and what does it there."""
    match node:
        case ast.Import(names=names):
            return next(((each.name, MODULES[each.name]) for each in names if each.name in MODULES), None)
        case ast.ImportFrom(module=str() as module, level=0) if module in {*MODULES, "hashlib"}:
            return module, MODULES.get(module, "digests")
        case ast.Call(func=ast.Attribute(value=ast.Name(id="hashlib"), attr="sha256"), args=[]):
            return "hashlib.sha256()", "digests.Hasher"
        case ast.Call(func=ast.Attribute(attr="open"), args=[ast.Constant(value="rb")]):
            return "open rb", "reading.open_regular"
        case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if f"{owner}.{name}" in CALLS:
            return f"{owner}.{name}", CALLS[f"{owner}.{name}"]
        case ast.Call(func=ast.Attribute(attr=name), args=arguments, keywords=keywords):
            count = len(arguments)
            # `dataclasses.replace(value, field=...)` has keywords; an encoding is the only one of the others.
            if (name, count) in METHODS and all(each.arg == "encoding" for each in keywords):
                return name, METHODS[name, count]
    return None


def offences(path: Path) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (found := offence(node)) is not None:
            yield getattr(node, "lineno", 0), *found


def test_no_other_folder_does_what_files_does() -> None:
    wrong, used = [], set()
    for path in python_files(without="files"):
        place = path.relative_to(ROOT).as_posix()
        for line, what, instead in offences(path):
            if (place, what) in EXCEPTIONS:
                used.add((place, what))
            else:
                wrong.append(f"{place}:{line}: {what}, use `files.{instead}`")
    assert wrong == []
    assert used == EXCEPTIONS.keys(), "an exception that is not needed any more"


@pytest.mark.parametrize(
    "line",
    [
        "os.fsync(file.fileno())",
        "os.replace(one, other)",
        "partial.replace(path)",
        "staging.rename(target)",
        "os.link(path, target)",
        "import fcntl",
        "import tempfile",
        "from tempfile import mkstemp",
        "from hashlib import sha256",
        "digest = hashlib.sha256()",
        "digest = hashlib.file_digest(file, 'sha256')",
        "descriptor = os.open(path, os.O_RDONLY)",
        "with path.open('rb') as file: pass",
        "data = path.read_bytes()",
        "text = path.read_text(encoding='utf-8')",
        "path = folder.resolve()",
    ],
)
def test_an_offence_elsewhere_would_be_seen(line: str) -> None:
    assert any(map(offence, ast.walk(ast.parse(line))))


@pytest.mark.parametrize(
    "line",
    [
        "text.replace('a', 'b')",
        "dataclasses.replace(value, name=1)",
        "hashlib.sha256(data).hexdigest()",
        "hub.resolve(repository)",
        "with path.open('xb') as file: pass",
    ],
)
def test_what_only_looks_like_an_offence_is_none(line: str) -> None:
    assert not any(map(offence, ast.walk(ast.parse(line))))
