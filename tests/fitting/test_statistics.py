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
from meteora_registry.runtime.fitting.statistics_file import StatisticsFile, names_in, written_statistics
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import DataRefused, SourceUnreadable
from meteora_registry.schemas.statistics import StatisticsDescription
from support.tampering import flip_byte

INPUT = ModuleInput(("layer.q", "layer.k"), 4)
VALUE: dict[str, Any] = {
    "meteora_statistics": 1,
    "base_sha256": "a" * 64,
    "settings": {"kind": "normalised", "eps": 1e-6, "max_tokens": 8, "skip_tokens": 0, "concatenated": False},
    "members": [
        {"member": name, "sha256": Digest.of_bytes(name.encode()), "samples": 3, "tokens": 9}
        for name in ("legal", "medical")
    ],
    "inputs": [{"source": "layer.q", "modules": ["layer.q", "layer.k"], "features": 4}],
}


OBSERVED: dict[str, Any] = {"source": "early.q", "modules": ["early.q", "early.v"], "features": 4}


@pytest.fixture
def moments() -> Moments:
    return Moments(torch.randn(2, 4, dtype=torch.float64), torch.eye(4))


@pytest.fixture
def file(tmp_path: Path, moments: Moments) -> Path:
    path = tmp_path / "bundle.statistics"
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


def test_statistics_come_back_by_any_module_of_an_input(file: Path, moments: Moments) -> None:
    with StatisticsFile(file) as opened:
        for modules in (INPUT.modules, ("layer.k",), ("layer.v", "layer.k")):
            found = opened.read(ModuleInput(modules, 4))
            assert torch.equal(found.means, moments.means)
            assert torch.equal(found.second, moments.second)
        assert opened.description == describe()
    assert names_in(file) == ("legal", "medical")


def test_a_file_of_statistics_is_a_safetensors_file(file: Path) -> None:
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in load_file(file).items()} == {
        "layer.q.means": (torch.float64, (2, 4)),
        "layer.q.second_moment": (torch.float32, (4, 4)),
    }


def test_an_observed_input_has_the_sums_of_prompts_alone(tmp_path: Path, moments: Moments) -> None:
    path = tmp_path / "observed.statistics"
    with written_statistics(path, describe(observed=[OBSERVED], prompts=["early.q"])) as writer:
        writer.write("layer.q", moments)
        writer.write_prompts("early.q", moments)
    wanted = ModuleInput(("early.k", "early.v"), 4)
    with StatisticsFile(path) as opened:
        assert opened.has_prompts(wanted)
        assert torch.equal(opened.read_prompts(wanted).means, moments.means)
        assert not any(map(opened.has_prompts, (INPUT, ModuleInput(("early.q",), 5))))
        with pytest.raises(DataRefused, match=r"have no input of `early\.k`"):
            opened.read(wanted)


def test_statistics_without_observed_inputs_keep_their_description(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        assert "observed" not in opened.metadata()["meteora_statistics"]


@pytest.mark.parametrize(
    "wanted", [ModuleInput(("layer.o",), 4), ModuleInput(("layer.q",), 5)], ids=["module", "features"]
)
def test_an_input_that_is_not_in_it_is_refused(file: Path, wanted: ModuleInput) -> None:
    with StatisticsFile(file) as opened, pytest.raises(DataRefused, match=r"have no input of `layer\."):
        opened.read(wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, value: tensors.pop("layer.q.means"), "`layer.q.means` is missing"),
        (
            lambda tensors, value: tensors.update({"layer.q.means": torch.zeros(3, 4, dtype=torch.float64)}),
            r"`layer.q.means` is \('F64', \(3, 4\)\), expected \('F64', \(2, 4\)\)",
        ),
        (lambda tensors, value: tensors.update({"x": torch.zeros(1)}), "expected nothing of that name"),
        (lambda tensors, value: value["members"].append(value["members"][0]), "a member is in it twice"),
        (lambda tensors, value: value["inputs"][0].update(features=1 << 20), "less than or equal to 32768"),
        (
            lambda tensors, value: value["inputs"][0].update(source="layer.o"),
            "is none of the input's modules",
        ),
        (lambda tensors, value: value.update(meteora_statistics=2), "breaks its schema: meteora_statistics"),
        (
            lambda tensors, value: value.update(observed=[OBSERVED]),
            "the observed input `early.q` is none of the prompts' inputs",
        ),
        (
            lambda tensors, value: value.update(observed=[OBSERVED], prompts=["early.q"]),
            "`early.q.prompt_means` is missing",
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
        "member-twice",
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


def test_a_missing_file_has_no_members(tmp_path: Path) -> None:
    assert names_in(tmp_path / "nothing") == ()


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
    assert names_in(file) == ("legal", "medical")
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
