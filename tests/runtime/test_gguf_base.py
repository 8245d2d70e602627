"""A base that is one GGUF file in a folder: the same model as its safetensors, and what is refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf", reason="needs gguf")

from meteora_registry.runtime import load_bundle
from meteora_registry.runtime.base_model import open_base
from meteora_registry.runtime.base_modules import read_base
from meteora_registry.schemas.errors import SourceUnreadable
from support.gguf_bases import save_gguf_base
from support.members import fuse, read_members
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, make_adapter, some_tokens, tiny_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_gguf_base(tmp_path_factory.mktemp("gguf") / "base")


def test_base_of_a_gguf_file_is_that_of_its_weights(folder: Path) -> None:
    opened = open_base(str(folder))
    base = opened.load()
    expected = tiny_llama()
    for name, parameter in expected.named_parameters():
        assert torch.allclose(base.get_parameter(name), parameter), name
    with torch.no_grad():
        assert torch.allclose(base(some_tokens()).logits, expected(some_tokens()).logits, atol=1e-5)
    assert opened.tokenizer("b c")["input_ids"]
    assert opened.config.max_position_embeddings == 64


@LOADS_WITH_PEFT
@LOADS_UNFITTED
def test_bundle_loads_on_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    member = make_adapter(tiny_llama, tmp_path / "one", seed=1, r=4, target_modules=["q_proj"])
    bundle = fuse(read_members({"one": member}), tmp_path / "bundle", gate="normal")
    loaded = load_bundle(bundle, folder)
    assert isinstance(loaded.generate("b c", max_new_tokens=2), str)
    assert set(dict(read_base(folder).named_modules())) == set(dict(tiny_llama().named_modules()))


def test_several_gguf_files_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes((folder / "model.gguf").read_bytes())
    with pytest.raises(SourceUnreadable, match=r"has 2 GGUF files: `a\.gguf`, `b\.gguf`"):
        open_base(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GGUF", "is not a GGUF file: it does not begin with `GGUF`"),
        (b"PK\x03\x04" + bytes(40), "is not a GGUF file: it does not begin with `GGUF`"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 1, 1), "has version 9 of GGUF, expected 2 or 3"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 1), "tensors, expected at most 200000"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1 << 60), "entries, expected at most 10000"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 1, 1), "is not a GGUF file that can be read"),
    ],
    ids=["short", "zip", "version", "tensors", "entries", "cut-off"],
)
def test_malformed_gguf_file_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(SourceUnreadable) as caught:
        open_base(str(tmp_path))
    assert message in str(caught.value)


def entries(*values: bytes) -> bytes:
    """Return a file of metadata alone, whose entries have these kinds and values."""
    header = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values))
    return header + b"".join(
        struct.pack("<Q", 1) + b"%d" % number + each for number, each in enumerate(values)
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (entries(struct.pack("<IIQ", 9, 0, 1 << 62)), "its lists have more than 4000000 elements"),
        (entries(*[struct.pack("<IIQ", 9, 0, 2_500_000) + bytes(2_500_000)] * 2), "its lists have more than"),
        (entries(struct.pack("<IIQ", 9, 8, 3_000_000)), "its metadata end within an entry"),
        (entries(struct.pack("<IQ", 8, 1 << 63), b""), "its metadata end within an entry"),
        (entries(struct.pack("<IIQ", 9, 0, 9)), "its metadata end within an entry"),
        (entries(struct.pack("<IIQ", 9, 9, 1)), "an entry has values of the kind 9"),
    ],
    ids=["endless", "together", "strings", "string", "last", "nested"],
)
def test_lists_longer_than_the_file_or_any_model_are_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "model.gguf").write_bytes(data)
    with pytest.raises(SourceUnreadable) as caught:
        open_base(str(tmp_path))
    assert message in str(caught.value)


def test_gguf_file_that_asks_for_more_than_any_model_is_refused(tmp_path: Path) -> None:
    folder = save_gguf_base(tmp_path / "base", layers=2_000_000_000)
    with pytest.raises(SourceUnreadable, match=r"its `llama.block_count` is 2e\+09, expected at most 10000"):
        open_base(str(folder))
