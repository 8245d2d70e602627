from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.document import MAX_JSON_DEPTH, canonical_json, load_json
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.manifest import FileRecord

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON_VALUES)
def test_canonical_json_reads_back_as_the_same_value(value: object) -> None:
    assert load_json(canonical_json(value), what="value") == value


@given(st.dictionaries(st.text(), st.integers()))
def test_canonical_json_does_not_depend_on_the_order_of_keys(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            b'{"a": 1, "a": 2}', "`x` is not JSON: the key `a` stands twice in one object", id="twice"
        ),
        pytest.param(b"[NaN]", "`x` is not JSON: `NaN` is not a JSON number", id="nan"),
        pytest.param(b"[-Infinity]", "`x` is not JSON: `-Infinity` is not a JSON number", id="infinity"),
        pytest.param(b"[1e999]", "`x` is not JSON: `1e999` is beyond the range of a number", id="overflow"),
        pytest.param(b"\xff{}", "`x` is not UTF-8 text: byte 0 cannot be decoded", id="not utf-8"),
        pytest.param(b"[" * 65, f"`x` nests deeper than {MAX_JSON_DEPTH} levels", id="too deep"),
        pytest.param(b" " * 101, "`x` has 101 bytes, expected at most 100", id="too large"),
        pytest.param(
            b"{",
            "`x` is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
            id="cut",
        ),
    ],
)
def test_load_json_refuses_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        load_json(data, what="x", max_bytes=100)
    assert str(caught.value) == message


def test_load_json_skips_a_byte_order_mark_and_accepts_crlf() -> None:
    assert load_json(b'\xef\xbb\xbf{\r\n"a": 1\r\n}\r\n', what="x") == {"a": 1}


def test_load_json_does_not_count_brackets_inside_strings_as_depth() -> None:
    text = json.dumps({"a": "[" * 1000 + '\\"' + "{" * 1000})
    assert load_json(text.encode(), what="x") == json.loads(text)


def test_load_json_answers_hostile_nesting_in_strings_in_linear_time() -> None:
    with pytest.raises(InvalidDocument):
        load_json(b'"' + b'\\"' * 1_000_000, what="x")


def test_document_lists_every_problem_with_its_place() -> None:
    with pytest.raises(InvalidDocument) as caught:
        FileRecord.from_bytes(b'{"sha256": "abc", "size_bytes": -1, "more": 0}', what="record")
    assert caught.value.problems == (
        "sha256: `abc` is not a SHA-256 digest of 64 lower-case hexadecimal digits",
        "size_bytes: input should be greater than or equal to 0, found `-1`",
        "more: extra inputs are not permitted, found `0`",
    )


def test_document_reads_back_what_it_wrote() -> None:
    record = FileRecord(sha256=Digest.of_bytes(b""), size_bytes=0)
    assert FileRecord.from_bytes(record.to_bytes(), what="record") == record


def test_digest_refuses_anything_but_64_hexadecimal_digits() -> None:
    with pytest.raises(ValueError, match="is not a SHA-256 digest"):
        Digest("A" * 64)
