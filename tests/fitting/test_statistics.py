"""The file of statistics: nothing in it is believed, and it appears whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from meteora_registry.runtime.fitting.inputs import ModuleInput
from meteora_registry.runtime.fitting.moments import Moments
from meteora_registry.runtime.fitting.sequences import LabelledTokens
from meteora_registry.runtime.fitting.statistics_file import (
    StatisticsFile,
    held_out_prompts,
    pack,
    unpack,
    written_statistics,
)
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import DataRefused, SourceUnreadable
from meteora_registry.schemas.statistics import StatisticsDescription
from support.tampering import flip_byte

INPUT = ModuleInput(("layer.q", "layer.k"), 4)
VALUE: dict[str, Any] = {
    "meteora_statistics": 2,
    "base_sha256": "a" * 64,
    "settings": {"kind": "normalised", "eps": 1e-6, "max_tokens": 8, "skip_tokens": 0, "concatenated": False},
    "part": {"member": "legal", "sha256": Digest.of_bytes(b"legal"), "samples": 3, "tokens": 9},
    "inputs": [{"source": "layer.q", "modules": ["layer.q", "layer.k"], "features": 4}],
}


OBSERVED: dict[str, Any] = {"source": "early.q", "modules": ["early.q", "early.v"], "features": 4}


@pytest.fixture
def moments() -> Moments:
    product = torch.arange(16.0).reshape(4, 4)
    return Moments(torch.randn(1, 4, dtype=torch.float64), product + product.T)


@pytest.fixture
def file(tmp_path: Path, moments: Moments) -> Path:
    path = tmp_path / "legal.safetensors"
    with written_statistics(path, describe()) as writer:
        writer.write("layer.q", moments)
    return path


def describe(**changes: Any) -> StatisticsDescription:
    return StatisticsDescription.from_value(VALUE | changes, what="the description")


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> None:
    """Change tensors and description, as the author of such a file could."""
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        value = json.loads(opened.metadata()["meteora_statistics"])
    change(tensors, value)
    save_file(tensors, file, metadata={"meteora_statistics": json.dumps(value)})


@pytest.mark.parametrize("size", [1, 2, 511, 512, 513, 1100])
def test_symmetric_matrix_comes_back_from_its_triangle(size: int) -> None:
    drawn = torch.randn(size, size)
    matrix = drawn + drawn.T
    upper = pack(matrix)
    assert upper.shape == (size * (size + 1) // 2,)
    assert torch.equal(unpack(upper, size), matrix)


def test_statistics_come_back_by_any_module_of_an_input(file: Path, moments: Moments) -> None:
    with StatisticsFile(file) as opened:
        for modules in (INPUT.modules, ("layer.k",), ("layer.v", "layer.k")):
            found = opened.read(ModuleInput(modules, 4))
            assert torch.equal(found.means, moments.means)
            assert torch.equal(found.second, moments.second)
        assert opened.description == describe()


def test_a_file_of_statistics_is_a_safetensors_file(file: Path) -> None:
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in load_file(file).items()} == {
        "layer.q.mean": (torch.float64, (4,)),
        "layer.q.second_moment": (torch.float32, (10,)),
    }


def test_an_observed_input_has_the_sums_of_prompts_alone(tmp_path: Path, moments: Moments) -> None:
    path = tmp_path / "observed.statistics"
    with written_statistics(path, describe(observed=[OBSERVED], prompts=["early.q"])) as writer:
        writer.write("layer.q", moments)
        writer.write_prompts("early.q", moments)
    wanted = ModuleInput(("early.k", "early.v"), 4)
    with StatisticsFile(path) as opened:
        assert torch.equal(opened.read_prompts(wanted).means, moments.means)
        for other in (INPUT, ModuleInput(("early.q",), 5)):
            with pytest.raises(DataRefused, match="have no sums of prompts alone at"):
                opened.read_prompts(other)
        with pytest.raises(DataRefused, match=r"have no input of `early\.k`"):
            opened.read(wanted)


@pytest.mark.parametrize(
    "prompt",
    [LabelledTokens((5, 6, 7, 8), (-1, 0, 0, -1)), LabelledTokens((5,), (-1,)), LabelledTokens((), ())],
    ids=["template-around", "nothing-counts", "empty"],
)
def test_held_out_prompts_come_back_with_the_tokens_that_count(
    tmp_path: Path, moments: Moments, prompt: LabelledTokens
) -> None:
    path = tmp_path / "legal.safetensors"
    held_out = held_out_prompts("chat", [prompt]).model_dump(mode="json")
    with written_statistics(path, describe(held_out=[held_out])) as writer:
        writer.write("layer.q", moments)
    with StatisticsFile(path) as opened:
        assert opened.held_out("chat", 9) == (prompt,)
        with pytest.raises(DataRefused, match="have no held-out prompts in the form `plain`"):
            opened.held_out("plain", 9)


def test_a_held_out_prompt_of_tokens_that_the_base_lacks_is_refused(tmp_path: Path, moments: Moments) -> None:
    path = tmp_path / "legal.safetensors"
    held_out = {"form": "given", "prompts": [{"ids": [3, 9], "start": 0, "end": 2}]}
    with written_statistics(path, describe(held_out=[held_out])) as writer:
        writer.write("layer.q", moments)
    with (
        StatisticsFile(path) as opened,
        pytest.raises(DataRefused, match="a token that the base lacks, which knows 9"),
    ):
        opened.held_out("given", 9)


@pytest.mark.parametrize(
    "wanted", [ModuleInput(("layer.o",), 4), ModuleInput(("layer.q",), 5)], ids=["module", "features"]
)
def test_an_input_that_is_not_in_it_is_refused(file: Path, wanted: ModuleInput) -> None:
    with StatisticsFile(file) as opened, pytest.raises(DataRefused, match=r"have no input of `layer\."):
        opened.read(wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, value: tensors.pop("layer.q.mean"), "`layer.q.mean` is missing"),
        (
            lambda tensors, value: tensors.update({"layer.q.mean": torch.zeros(3, dtype=torch.float64)}),
            r"`layer.q.mean` is F64 \[3\], expected F64 \[4\]",
        ),
        (lambda tensors, value: tensors.update({"x": torch.zeros(1)}), "expected nothing of that name"),
        (
            lambda tensors, value: value.update(
                held_out=[{"form": "given", "prompts": [{"ids": [1], "start": 0, "end": 2}]}]
            ),
            "tokens 0 to 2 of a prompt of 1 cannot count",
        ),
        (lambda tensors, value: value["inputs"][0].update(features=1 << 20), "less than or equal to 32768"),
        (
            lambda tensors, value: value["inputs"][0].update(source="layer.o"),
            "is none of the input's modules",
        ),
        (lambda tensors, value: value.update(meteora_statistics=1), "breaks its schema: meteora_statistics"),
        (
            lambda tensors, value: value.update(observed=[OBSERVED]),
            "the observed input `early.q` is none of the prompts' inputs",
        ),
        (
            lambda tensors, value: value.update(observed=[OBSERVED], prompts=["early.q"]),
            "`early.q.prompt_mean` is missing",
        ),
        (
            lambda tensors, value: value.update(observed=VALUE["inputs"], prompts=["layer.q"]),
            "a module is in it twice",
        ),
    ],
    ids=[
        "missing",
        "shape",
        "stranger",
        "prompt-too-short",
        "too-wide",
        "no-source",
        "other-version",
        "observed-without-sums",
        "observed-missing",
        "observed-twice",
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused(
    file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None], message: str
) -> None:
    rewrite(file, change)
    with pytest.raises(DataRefused, match=message):
        StatisticsFile(file)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    with pytest.raises(DataRefused, match="does not hold statistics: it has no `meteora_statistics`"):
        StatisticsFile(tmp_path / "x")


def test_a_damaged_header_is_refused(file: Path) -> None:
    flip_byte(file, 0)
    with pytest.raises(DataRefused, match="are damaged"):
        StatisticsFile(file)


def test_an_interrupted_write_leaves_what_was_there(file: Path, moments: Moments) -> None:
    before = file.read_bytes()
    with pytest.raises(KeyboardInterrupt), written_statistics(file, describe()) as writer:
        writer.write("layer.q", moments)
        raise KeyboardInterrupt
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


def test_two_fits_that_write_the_same_statistics_do_not_disturb_each_other(
    file: Path, moments: Moments
) -> None:
    with written_statistics(file, describe()) as first:
        first.write("layer.q", moments)
        with written_statistics(file, describe()) as second:
            second.write("layer.q", moments)
    with StatisticsFile(file) as opened:
        assert opened.description == describe()
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_reported_with_the_place_of_the_statistics(
    tmp_path: Path, moments: Moments, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle.statistics"
    with (
        pytest.raises(SourceUnreadable, match=f"cannot write `{place}`: No space left on device"),
        written_statistics(place, describe()) as writer,
    ):
        writer._writer._file.close()
        full = Path("/dev/full").open("wb")  # noqa: SIM115 (closed by the writer)
        monkeypatch.setattr(writer._writer, "_file", full)
        writer.write("layer.q", moments)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot write"):
        written_statistics(tmp_path / "no" / "folder", describe()).__enter__()
