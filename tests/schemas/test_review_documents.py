"""The formats of a lock and a baseline, as their pages describe them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from meteora_registry.schemas.baseline import Baseline
from meteora_registry.schemas.document import Document
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.lock import AdapterLock, is_commit

FORMATS = Path(__file__).parents[2] / "docs" / "formats"
DOCUMENTS = pytest.mark.parametrize(
    ("name", "kind"), [("lock", AdapterLock), ("baseline", Baseline)], ids=["lock", "baseline"]
)


@DOCUMENTS
def test_published_schema_is_current(name: str, kind: type[Document]) -> None:
    published = json.loads((FORMATS / f"{name}.schema.json").read_text())
    assert published == {"$schema": "https://json-schema.org/draft/2020-12/schema"} | kind.model_json_schema()


@DOCUMENTS
def test_example_in_the_docs_is_one(name: str, kind: type[Document]) -> None:
    example = (FORMATS / f"{name}.md").read_text().split("```json\n")[1].split("```")[0]
    read = kind.from_bytes(example.encode(), what="the example")
    assert json.loads(read.to_bytes()) == json.loads(example)


@DOCUMENTS
@pytest.mark.parametrize("path", ["", "/etc", "..", "a/../b", "a//b", "a/./b", "a\\u0000b"])
def test_path_out_of_the_folder_is_refused(name: str, kind: type[Document], path: str) -> None:
    entries = {
        "lock": '{"files": {}, "verdict": {"sound": true, "fusable": true}, '
        '"base": null, "base_commit": null}',
        "baseline": "[]",
    }
    text = f'{{"meteora_{name}": 1, "adapters": {{"PATH": {entries[name]}}}}}'
    assert kind.from_bytes(text.replace("PATH", "a/b").encode(), what="it")
    with pytest.raises(InvalidDocument):
        kind.from_bytes(text.replace("PATH", path).encode(), what="it")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0" * 40, True), ("a" * 64, True), ("main", False), ("0" * 41, False), ("A" * 40, False)],
)
def test_commit_is_an_id_and_not_a_branch(text: str, expected: bool) -> None:
    assert is_commit(text) is expected
