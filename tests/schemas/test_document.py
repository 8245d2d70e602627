from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.document import (
    _SCANNED_BYTES,
    MAX_INTEGER_DIGITS,
    MAX_JSON_DEPTH,
    canonical_json,
    load_json,
)
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
        pytest.param(b'{"a": 1, "a": 2}', "`x` is not JSON: the key `a` is in one object twice", id="twice"),
        pytest.param(b"[NaN]", "`x` is not JSON: `NaN` is not a JSON number", id="nan"),
        pytest.param(b"[-Infinity]", "`x` is not JSON: `-Infinity` is not a JSON number", id="infinity"),
        pytest.param(b"[1e999]", "`x` is not JSON: `1e999` is beyond the range of a number", id="overflow"),
        pytest.param(b"\xff{}", "`x` is not UTF-8 text: byte 0 cannot be decoded", id="not utf-8"),
        pytest.param(b"[" * 65, f"`x` nests deeper than {MAX_JSON_DEPTH} levels", id="too deep"),
        pytest.param(b" " * 101, "`x` has more than 100 bytes", id="too large"),
        pytest.param(
            b'["\\ud800"]',
            "`x` has half a character: an escape such as `\\ud800` without its other half",
            id="half a surrogate pair",
        ),
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


def test_load_json_refuses_more_values_than_it_was_allowed() -> None:
    load_json(b'{"a": [1, 2]}', what="x", max_values=4)
    with pytest.raises(InvalidDocument, match=r"^`x` has more than 4 values$"):
        load_json(b'{"a": [1, 2, 3]}', what="x", max_values=4)


@pytest.mark.parametrize("sign", ["", "-"], ids=["positive", "negative"])
def test_load_json_reads_integers_of_a_thousand_digits_and_refuses_longer_ones(sign: str) -> None:
    longest = sign + "9" * MAX_INTEGER_DIGITS
    assert str(load_json(longest.encode(), what="x")) == longest
    with pytest.raises(InvalidDocument) as caught:
        load_json(f"{longest}9".encode(), what="x")
    assert str(caught.value) == "`x` is not JSON: an integer has 1001 digits, expected at most 1000"


@given(JSON_VALUES, st.integers(0, 40))
def test_load_json_sees_the_same_structure_wherever_its_pieces_end(value: object, shift: int) -> None:
    # The text is scanned in pieces; a string, or an escape in it, may cross from one into the next.
    padding = " " * (_SCANNED_BYTES - shift)
    data = padding.encode() + json.dumps(value).encode()
    assert load_json(data, what="x", max_bytes=len(data)) == value


@pytest.mark.parametrize("text", ["\\" * 999, '"' * 999, '[{"\\"}]' * 99], ids=["slashes", "quotes", "json"])
@pytest.mark.parametrize("shift", range(5))
def test_load_json_reads_escapes_across_the_ends_of_pieces(text: str, shift: int) -> None:
    data = b" " * (_SCANNED_BYTES - 500 - shift) + json.dumps([text]).encode()
    assert load_json(data, what="x") == [text]
    with pytest.raises(InvalidDocument, match="nests deeper"):
        load_json(data.replace(b"[", b"[" * 65, 1), what="x")


def test_load_json_finds_the_depth_of_a_large_text_before_parsing_any_of_it() -> None:
    with pytest.raises(InvalidDocument, match=r"^`x` nests deeper than 64 levels$"):
        load_json(b"[" * (32 << 20), what="x", max_bytes=32 << 20)


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


def test_document_describes_large_values_briefly() -> None:
    data = json.dumps({"sha256": {str(key): 0 for key in range(1000)}, "size_bytes": "x" * 1000}).encode()
    with pytest.raises(InvalidDocument) as caught:
        FileRecord.from_bytes(data, what="record")
    assert max(map(len, caught.value.problems)) < 200


def test_document_refuses_a_size_that_no_database_holds() -> None:
    with pytest.raises(InvalidDocument, match="size_bytes: input should be less than 9223372036854775808"):
        FileRecord.from_value({"sha256": "a" * 64, "size_bytes": 1 << 63}, what="record")


def test_document_reads_back_what_it_wrote() -> None:
    record = FileRecord(sha256=Digest.of_bytes(b""), size_bytes=0)
    assert FileRecord.from_bytes(record.to_bytes(), what="record") == record


def test_digest_refuses_anything_but_64_hexadecimal_digits() -> None:
    with pytest.raises(ValueError, match="is not a SHA-256 digest"):
        Digest("A" * 64)
