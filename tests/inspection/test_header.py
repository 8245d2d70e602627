from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from meteora_registry.inspection.header import parse_header, read_header
from meteora_registry.inspection.safetensors_file import MAX_HEADER_BYTES
from meteora_registry.schemas.errors import AdapterRefused, SourceUnreadable
from support.adapters import entry, safetensors_bytes

GOOD = {"a": entry("F32", [2, 2], 0, 16), "b": entry("BF16", [3], 16, 22)}


def test_header_of_real_file_gives_offsets_into_file(tmp_path: Path) -> None:
    tensors = {"x.lora_A.weight": torch.arange(6.0).reshape(2, 3), "y": torch.zeros(0, 4)}
    save_file(tensors, tmp_path / "w.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    found = header["x.lora_A.weight"]
    assert (found.dtype, found.shape, header.metadata) == ("F32", (2, 3), {"format": "pt"})
    assert torch.frombuffer(bytearray(data[found.begin : found.end]), dtype=torch.float32).tolist() == [
        0, 1, 2, 3, 4, 5,
    ]  # fmt: skip
    assert data[8 : header.data_start].decode() == header.text
    assert "y" in header
    assert "z" not in header


def test_tensors_are_in_order_of_their_bytes() -> None:
    data = safetensors_bytes({"a": entry("U8", [4], 4, 8), "b": entry("U8", [4], 0, 4)}, bytes(8))
    assert [tensor.name for tensor in parse_header(data, len(data)).tensors] == ["b", "a"]


@pytest.mark.parametrize(
    ("header", "data", "code", "found"),
    [
        pytest.param({"a": entry("F32", [2], 0, 4)}, bytes(4), "MR208", "4 bytes for F32 [2]", id="size"),
        pytest.param({"a": entry("F4", [3], 0, 2)}, bytes(2), "MR208", "2 bytes for F4 [3]", id="half-byte"),
        pytest.param(
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)},
            bytes(6),
            "MR209",
            "an overlap: the tensor begins at 2",
            id="overlap",
        ),
        pytest.param(
            {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 6, 10)},
            bytes(10),
            "MR209",
            "a hole: the tensor begins at 6",
            id="hole",
        ),
        pytest.param(
            {"a": entry("U8", [4], 0, 4)},
            bytes(3),
            "MR210",
            "3 bytes of data, 1 too few: truncated",
            id="truncated",
        ),
        pytest.param(
            {"a": entry("U8", [4], 0, 4)}, bytes(6), "MR210", "6 bytes of data, 2 trailing", id="longer"
        ),
        pytest.param({"a": entry("U8", [4], 4, 0)}, bytes(4), "MR208", "-4 bytes for U8 [4]", id="backwards"),
        pytest.param({"a": entry("X9", [4], 0, 4)}, bytes(4), "MR207", "an unknown dtype", id="dtype"),
        pytest.param(
            {"a": entry("U8", [-4], 0, 4)}, bytes(4), "MR207", "a shape that is no list of sizes", id="shape"
        ),
        pytest.param(
            {"a": entry("U8", [True], 0, 1)}, b"x", "MR207", "a shape that is no list of sizes", id="bool"
        ),
        pytest.param(
            {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0]}},
            b"x",
            "MR207",
            "offsets that are no pair of positions",
            id="one-offset",
        ),
        pytest.param(
            {"a": 5},
            b"",
            "MR207",
            "an entry without exactly `dtype`, `shape` and `data_offsets`",
            id="no-entry",
        ),
        pytest.param(
            {"__metadata__": {"a": 1}}, b"", "MR207", "metadata that is no map of strings", id="metadata"
        ),
        pytest.param([], b"", "MR206", "a JSON list", id="list"),
        pytest.param(b'{"a":1,"a":2}', b"", "MR206", None, id="name-twice"),
        pytest.param(b" {}", b"", "MR206", "other bytes before the opening brace", id="space-first"),
        pytest.param(
            b"{" + b"[" * 90 + b"}", b"", "MR206", "'header' nests deeper than 64 levels", id="deep"
        ),
        pytest.param(b'{"\xff":1}', b"", "MR206", None, id="not-utf8"),
    ],
)
def test_damaged_header_is_refused(header: object, data: bytes, code: str, found: str | None) -> None:
    content = safetensors_bytes(header, data)
    with pytest.raises(AdapterRefused) as caught:
        parse_header(content, len(content))
    assert code in [finding.code for finding in caught.value.findings]
    if found is not None:
        assert caught.value.findings[0].found == found


@pytest.mark.parametrize(
    ("content", "code"),
    [
        pytest.param(b"", "MR204", id="empty"),
        pytest.param(b"1234567", "MR205", id="seven-bytes"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "MR201", id="lfs"),
        pytest.param(b"\n<!DOCTYPE html><html>", "MR202", id="html"),
        pytest.param(b"PK\x03\x04" + bytes(40), "MR203", id="zip"),
        pytest.param(b"\x80\x02}q\x00." + bytes(9), "MR203", id="pickle"),
        pytest.param(b"\xff" * 64, "MR205", id="absurd-length"),
        pytest.param(safetensors_bytes({}, length=MAX_HEADER_BYTES + 1), "MR205", id="too-long"),
        pytest.param(safetensors_bytes({}, length=3), "MR205", id="past-the-end"),
        pytest.param(safetensors_bytes(b"", b"{}"), "MR205", id="no-header"),
        pytest.param(b"just a text file, nothing else", "MR205", id="text"),
    ],
)
def test_first_bytes_say_what_the_file_is(content: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (
        lambda: read_header(tmp_path / "w.safetensors"),
        lambda: parse_header(content, len(content)),
    ):
        with pytest.raises(AdapterRefused) as caught:
            read()
        assert [finding.code for finding in caught.value.findings] == [code]


def test_lfs_pointer_names_the_way_out(tmp_path: Path) -> None:
    pointer = tmp_path / "adapter_model.safetensors"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    with pytest.raises(AdapterRefused) as caught:
        read_header(pointer)
    assert caught.value.message == (
        "`adapter_model.safetensors` is refused: A git-lfs pointer lies in place of the weights: "
        "found a git-lfs pointer of 63 bytes, expected a safetensors file"
    )
    assert caught.value.hint is not None
    assert "git lfs pull" in caught.value.hint


@pytest.mark.parametrize("header_bytes", [0x280, 0x380, 0x480, 0x580])
def test_header_whose_length_looks_like_a_pickle_is_read(header_bytes: int) -> None:
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'.ljust(header_bytes)
    content = safetensors_bytes(text, b"x")
    assert content[:2] == bytes((0x80, header_bytes >> 8))
    assert parse_header(content, len(content)).data_start == header_bytes + 8


def test_name_that_stands_twice_is_shown_escaped() -> None:
    content = safetensors_bytes(b'{"\\u001b[31m":1,"\\u001b[31m":1}')
    with pytest.raises(AdapterRefused) as caught:
        parse_header(content, len(content))
    (found,) = caught.value.findings
    assert found.found == "'header' is not JSON: the key '\\x1b[31m' stands twice in one object"


def test_only_beginning_of_file_is_needed() -> None:
    content = safetensors_bytes(GOOD, bytes(22))
    assert parse_header(content[:-22], len(content)) == parse_header(content, len(content))
    with pytest.raises(AdapterRefused, match="the header has"):
        parse_header(content[:20], len(content))


def test_unreadable_weights_are_no_finding(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="No such file"):
        read_header(tmp_path / "absent")
    with pytest.raises(SourceUnreadable, match="is not a regular file"):
        read_header(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceUnreadable, match="is not a regular file"):
        read_header(tmp_path / "pipe")
