"""A record is judged by all it states: by whom it was written, it does not show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from meteora_registry.bundle import Bundle
from meteora_registry.bundle.documents import check_documents
from meteora_registry.bundle.files import judge_record, write_record
from meteora_registry.schemas.verification import VerificationRecord

GOLDEN = Path(__file__).parents[1] / "golden" / "1" / "bundles"
FIRST = "model.layers.0.self_attn.q_proj"
Record = dict[str, Any]


def changed(bundle: Bundle, change: Callable[[Record], object]) -> VerificationRecord:
    assert bundle.record is not None
    value = bundle.record.model_dump(mode="json")
    change(value)
    return VerificationRecord.from_value(value, what="record")


@pytest.mark.parametrize("folder", sorted(GOLDEN.iterdir()), ids=lambda folder: folder.name)
def test_record_that_a_verification_wrote_is_accepted(folder: Path) -> None:
    bundle = Bundle(folder)
    assert bundle.record is not None
    assert judge_record(bundle, bundle.record) == []


CONTRADICTIONS: dict[str, tuple[Callable[[Record], object], str]] = {
    "a pass with problems": (
        lambda record: record.update(problems=["all factors are wrong"]),
        "it states the outcome `pass` with 1 problems and 0 unchecked parts",
    ),
    "a pass with unchecked parts": (
        lambda record: record.update(unchecked=["everything"]),
        "it states the outcome `pass` with 0 problems and 1 unchecked parts",
    ),
    "a failure without problems": (
        lambda record: record.update(outcome="fail"),
        "it states the outcome `fail` with 0 problems and 0 unchecked parts",
    ),
    "no backend": (
        lambda record: record.update(backends_run=[]),
        "it passes without a backend that ran in bfloat16",
    ),
    "no backend in float32": (
        lambda record: record["backends_run"].pop(0),
        "it passes without a backend that ran in float32",
    ),
    "no backend in the bundle's own type": (
        lambda record: record["backends_run"].pop(1),
        "it passes without a backend that ran in bfloat16",
    ),
    "the backend of a sample alone": (
        lambda record: [run.update(backend="triton", modules=1) for run in record["backends_run"]],
        "it passes without a backend that ran in bfloat16",
    ),
    "an error above the tolerance": (
        lambda record: record["backends_run"][0].update(max_error=9e9),
        "it passes `cpu` in `float32` with the error 9000000000.0, tolerance 1e-05",
    ),
    "an error below zero": (
        lambda record: record["backends_run"][0].update(max_error=-1.0),
        "it passes `cpu` in `float32` with the error -1.0, tolerance 1e-05",
    ),
    "an output that is not finite": (
        lambda record: record["backends_run"][0].update(max_error=None),
        "it passes `cpu` in `float32` with the error None, tolerance 1e-05",
    ),
    "a tolerance of its own": (
        lambda record: record["backends_run"][0].update(tolerance=1e9, max_error=1e8),
        "it holds `cpu` in `float32` to 1e+09, expected 1e-05",
    ),
    "an unknown element type": (
        lambda record: record["backends_run"].append(record["backends_run"][0] | {"compute_dtype": "int1"}),
        "it holds `cpu` in `int1` to 1e-05, expected None",
    ),
    "fewer modules than it lists": (
        lambda record: record["backends_run"][0].update(modules=1),
        "it states that `cpu` in `float32` ran 1 modules, expected 5",
    ),
    "no modules": (
        lambda record: record.update(modules={}),
        "it covers 0 modules, and they are not the 5 of the config",
    ),
    "a module less": (
        lambda record: record["modules"].pop(FIRST),
        "it covers 4 modules, and they are not the 5 of the config",
    ),
    "another module": (
        lambda record: record["modules"].update(x=record["modules"].pop(FIRST)),
        "it covers 5 modules, and they are not the 5 of the config",
    ),
    "a module above every tolerance": (
        lambda record: record["modules"].update({FIRST: {"routed": 0.5, "forced": 0.0}}),
        f"it passes `{FIRST}` with the errors 0.5 and 0.0",
    ),
    "a module whose member alone is not finite": (
        lambda record: record["modules"].update({FIRST: {"routed": 0.0, "forced": None}}),
        f"it passes `{FIRST}` with the errors 0.0 and None",
    ),
    "a time that is none": (
        lambda record: record.update(created_at="tomorrow"),
        "it was made at `tomorrow`, expected a date and time with its offset",
    ),
    "a time without its offset": (
        lambda record: record.update(created_at="2026-01-01T00:00:00"),
        "it was made at `2026-01-01T00:00:00`, expected a date and time with its offset",
    ),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_record_that_contradicts_itself_or_the_config_is_named(what: str) -> None:
    change, reason = CONTRADICTIONS[what]
    bundle = Bundle(GOLDEN / "bfloat16")
    problem = f"`verification.json` is not what a verification writes: {reason}"
    assert problem in judge_record(bundle, changed(bundle, change))


def test_bundle_with_a_record_that_contradicts_itself_does_not_agree(tmp_path: Path) -> None:
    folder = shutil.copytree(GOLDEN / "bfloat16", tmp_path / "bundle")
    write_record(folder, changed(Bundle(folder), lambda record: record.update(unchecked=["all of it"])))
    (problem,) = check_documents(Bundle(folder))
    assert problem.endswith("it states the outcome `pass` with 0 problems and 1 unchecked parts")
