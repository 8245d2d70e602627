"""Whatever bytes a document has, reading it gives a value or a refusal in words, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meteora_registry.inspection.card import parse_license
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.document import canonical_json, load_json
from meteora_registry.schemas.errors import MeteoraError
from meteora_registry.schemas.evaluation import Evaluation
from meteora_registry.schemas.manifest import Manifest
from meteora_registry.schemas.policy import Policy
from meteora_registry.schemas.recipe import Recipe
from meteora_registry.schemas.settings import UserSettings
from meteora_registry.schemas.statistics import StatisticsDescription
from meteora_registry.schemas.verification import VerificationRecord
from support.evaluations import make_evaluation
from support.examples import examples

LENIENT = settings(examples(20), suppress_health_check=list(HealthCheck))
DIGEST = str(Digest.of_bytes(b"{}"))
CONFIG: dict[str, Any] = {
    "peft_type": "METEORA",
    "meteora_format": 1,
    "required_features": ["gate-scope", "gate-abstain", "gate-sources"],
    "task_type": None,
    "base_model_name_or_path": "org/base",
    "revision": None,
    "inference_mode": True,
    "target_modules": ["a.q", "a.v"],
    "members": [
        {"name": "one", "rank": 4, "scaling": 2.0, "overrides": {"a.q": {"rank": 2, "scaling": 1.0}}}
    ],
    "rank_alignment": 8,
    "top_k": 1,
    "temperature": 1.0,
    "gate": {
        "kind": "normalised",
        "scope": "prompt",
        "bias": True,
        "eps": 1e-6,
        "sources": {"a.v": "a.q"},
        "abstain": 0.5,
        "initialisation": None,
        "fitted": {"method": "x", "data": [{"member": "one", "sha256": DIGEST, "samples": 3}]},
    },
}
MANIFEST: dict[str, Any] = {
    "meteora_manifest": 1,
    "files": {"README.md": {"sha256": DIGEST, "size_bytes": 2}},
    "members": [
        {
            "name": "one",
            "origin": {"kind": "hub", "location": "hf://org/one", "commit": None},
            "license": None,
            "base": "org/base",
            "weights_sha256": DIGEST,
            "weights_bytes": 100,
            "config_sha256": DIGEST,
            "config_text": "{}",
            "weights_header": "{}",
            "renamed_modules": {"a.q": "b.q"},
            "cast": {"source": ["F32"], "target": "BF16", "max_relative_error": 0.1},
        }
    ],
}
STATISTICS: dict[str, Any] = {
    "meteora_statistics": 2,
    "base_sha256": DIGEST,
    "settings": {
        "kind": "normalised",
        "eps": 1e-6,
        "max_tokens": 5,
        "skip_tokens": 0,
        "concatenated": True,
    },
    "part": {"member": "one", "sha256": DIGEST, "samples": 1, "tokens": 2},
    "held_out": [{"form": "given", "prompts": [{"ids": [1, 2], "start": 0, "end": 2}]}],
    "inputs": [{"source": "a.q", "modules": ["a.q"], "features": 8}],
}
RECORD: dict[str, Any] = {
    "meteora_verification": 1,
    "manifest_sha256": DIGEST,
    "level": "source",
    "outcome": "pass",
    "problems": [],
    "unchecked": ["x"],
    "notes": ["x"],
    "backends_run": [
        {
            "backend": "cpu",
            "device": "x",
            "compute_dtype": "float32",
            "modules": 1,
            "max_error": None,
            "tolerance": 1e-5,
        }
    ],
    "backends_not_run": [{"backend": "cuda", "reason": "x"}],
    "modules": {"a.q": {"routed": 0.1, "forced": None}},
    "versions": {"python": "3"},
    "created_at": "2026-01-01T00:00:00+00:00",
}


def read_record(data: bytes) -> VerificationRecord:
    value = load_json(data, what="x")
    if isinstance(value, dict):
        # Sealed again, or nothing beyond the seal would ever be read.
        value["record_sha256"] = str(
            Digest.of_bytes(canonical_json({k: v for k, v in value.items() if k != "record_sha256"}))
        )
    return VerificationRecord.unseal(value, canonical_json(value), what="x")


DOCUMENTS: dict[str, tuple[Callable[[bytes], object], dict[str, Any]]] = {
    "bundle config": (BundleConfig.read, CONFIG),
    "manifest": (Manifest.read, MANIFEST),
    "verification record": (read_record, RECORD),
    "evaluation": (
        lambda data: Evaluation.from_bytes(data, what="x"),
        json.loads(make_evaluation({"base": {"one": [0.0, 1.0]}, "routed": {"one": [1.0, 1.0]}}).to_bytes()),
    ),
    "statistics": (lambda data: StatisticsDescription.from_bytes(data, what="x"), STATISTICS),
}
TEXTS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "recipe": (
        lambda data: Recipe.from_toml(data, what="x"),
        b'base = "org/base"\ntop_k = 2\ntemperature = 0.5\n[[members]]\nadapter = "a@3"\nname = "b"\n',
    ),
    "policy": (
        lambda data: Policy.from_toml(data, what="x"),
        b'meteora_policy = 1\nallowed_bases = ["org/*"]\nmax_rank = 64\n[severity]\nMR301 = "off"\n',
    ),
    "settings": (
        lambda data: UserSettings.from_toml(data, what="x"),
        b'home = "~/a"\ncatalog = "sqlite:////a"\nstore = "s3://a"\n[base_aliases]\nllama = "org/llama"\n',
    ),
    "model card": (parse_license, b"---\nlicense: [mit, other]\ndate: 2024-01-01\nx: {a: 1.5, b: no}\n---\n"),
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**300, -(10**900), 10**1200, 1 << 63, 1e308, 5e-324, -0.0]),
    st.floats(allow_nan=True),
    st.text(max_size=20),
    st.sampled_from(["\ud800", "\0", "../x", "METEORA", "a.q", "9" * 5000, "x" * 600]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


def places(value: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Return the path to every value within a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*((*place, key) for key, _ in inner), *(p for key, v in inner for p in places(v, (*place, key)))]


def read_or_refuse(read: Callable[[bytes], object], data: bytes) -> None:
    with suppress(MeteoraError):
        read(data)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_unchanged_documents_are_read(document: str) -> None:
    read, value = DOCUMENTS[document]
    assert read(canonical_json(value))


@pytest.mark.parametrize("document", DOCUMENTS)
@LENIENT
@given(data=st.data())
def test_documents_with_other_values_are_read_or_refused(document: str, data: st.DataObject) -> None:
    read, whole = DOCUMENTS[document]
    value = json.loads(json.dumps(whole))
    for _ in range(data.draw(st.integers(1, 2))):
        *path, last = data.draw(st.sampled_from(places(whole)))
        # The first change may have taken the second one's place away.
        with suppress(LookupError, TypeError):
            reduce(getitem, path, value)[last] = data.draw(VALUES)
    # Numbers that JSON does not have, and half characters, as a hostile writer would put them there.
    read_or_refuse(read, json.dumps(value).encode())


@pytest.mark.parametrize("document", [*DOCUMENTS, *TEXTS])
@LENIENT
@given(data=st.data())
def test_documents_with_changed_bytes_are_read_or_refused(document: str, data: st.DataObject) -> None:
    if document in TEXTS:
        read, text = TEXTS[document]
    else:
        read, text = DOCUMENTS[document][0], canonical_json(DOCUMENTS[document][1])
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 12)))
    inserted = data.draw(
        st.binary(max_size=8)
        | st.sampled_from(
            [b"[" * 70, b"{" * 70, b"a." * 70, b"9" * 5000, b"\\ud800", b"!!bool x", b"'''", b'"']
        )
    )
    read_or_refuse(read, text[:start] + inserted + text[end:])


@pytest.mark.parametrize("document", [*DOCUMENTS, *TEXTS])
@LENIENT
@given(text=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(document: str, text: bytes) -> None:
    read_or_refuse((DOCUMENTS | TEXTS)[document][0], text)
