"""Arbitrary bytes and documents: always findings, never an exception, each of them fit to be shown."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from transformers import PreTrainedModel

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.comparison import (
    apply_policy,
    compare_companions,
    compare_with_base,
    module_paths,
)
from meteora_registry.inspection.config import KNOWN_FIELDS
from meteora_registry.inspection.header import parse_header
from meteora_registry.inspection.inspection import Inspection
from meteora_registry.inspection.safetensors_file import DTYPE_BITS
from meteora_registry.registry.workflows.base_facts import facts_of
from meteora_registry.schemas.errors import AdapterRefused
from meteora_registry.schemas.finding import Finding
from meteora_registry.schemas.policy import Policy
from support.adapters import entry, safetensors_bytes
from support.examples import examples
from support.models import tiny_llama

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20), st.just("LORA")
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)
CONFIGS = st.fixed_dictionaries(
    {"peft_type": st.just("LORA") | VALUES},
    optional=dict.fromkeys(sorted(KNOWN_FIELDS - {"peft_type"}), VALUES),
) | st.dictionaries(st.text(max_size=12), VALUES, max_size=6)
NAMES = st.text(max_size=30) | st.builds(
    "{}{}.lora_{}{}".format,
    st.sampled_from(["base_model.model.", "module.", "", "_orig_mod.", "base_model."]),
    st.sampled_from(
        ["model.layers.0.self_attn.q_proj", "layers.0.q", "layers.1.q", "lm_head", "a b", "experts.0.w"]
    ),
    st.sampled_from("ABC"),
    st.sampled_from([".weight", ".default.weight", ".bias", ""]),
)
ENTRIES = st.builds(
    entry,
    st.sampled_from(sorted(DTYPE_BITS)),
    st.lists(st.integers(-1, 5), max_size=4),
    st.integers(-1, 64),
    st.integers(-1, 64),
)
HEADERS = st.dictionaries(NAMES, ENTRIES | VALUES, max_size=4)
LENIENT = examples(20)


def consistent(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """Return a well-formed file with these tensors, of zeros."""
    header: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape) in tensors.items():
        bits = DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        header[name] = entry(dtype, shape, position, position + bits // 8)
        position += bits // 8
    return safetensors_bytes(header, bytes(position))


@cache
def base_model() -> PreTrainedModel:
    """Return a base without weights that some of the names have a module in."""
    with torch.device("meta"):
        return tiny_llama()


def compare(inspection: Inspection) -> tuple[Finding, ...]:
    """Return all that is found with a base, a policy, and the same adapter once more to be fused with."""
    model = base_model()
    facts = facts_of(model, "org/base", module_paths(inspection))
    policy = Policy(meteora_policy=1, allowed_bases=("org/*",), max_rank=2, allowed_targets=("q_proj",))
    findings = apply_policy(inspection, compare_with_base(inspection, inspection.findings, facts), policy)
    both = {"one": inspection, "other": inspection}
    bases = dict.fromkeys(both, inspection.declared_base)
    return findings + compare_companions(both, bases=bases)


def inspect(config: bytes, weights: bytes) -> None:
    """Inspect and compare an adapter of these bytes; every finding must be writable and printable."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "adapter_config.json").write_bytes(config)
        (Path(folder) / "adapter_model.safetensors").write_bytes(weights)
        inspection = inspect_adapter(Path(folder))
    for finding in compare(inspection):
        assert json.loads(finding.to_bytes())["code"] == finding.code
        assert finding.describe().isprintable()
    facts = dataclasses.asdict(inspection.facts) if inspection.facts else {}
    for text in (inspection.declared_base, *facts.values()):
        assert not isinstance(text, str) or text.isprintable()


@LENIENT
@given(config=CONFIGS)
def test_any_config_gives_findings(config: dict[str, Any]) -> None:
    factors = {f"base_model.model.l.0.q.lora_{factor}.weight": ("F32", [4, 4]) for factor in "AB"}
    inspect(json.dumps(config).encode(), consistent(factors))


@LENIENT
@given(config=st.binary(max_size=64), weights=st.binary(max_size=64))
def test_any_bytes_give_findings(config: bytes, weights: bytes) -> None:
    inspect(config, weights)


@LENIENT
@given(header=HEADERS, data=st.binary(max_size=64))
def test_any_header_is_read_or_refused(header: dict[str, Any], data: bytes) -> None:
    content = safetensors_bytes(header, data)
    try:
        parsed = parse_header(content, len(content))
    except AdapterRefused as error:
        assert error.findings
    else:
        assert sum(tensor.size_bytes for tensor in parsed.tensors) == len(data)
    inspect(b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8}', content)


@LENIENT
@given(
    tensors=st.dictionaries(
        NAMES,
        st.tuples(
            st.sampled_from(["F32", "F16", "BF16", "F64", "I8", "U8"]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    ),
    config=CONFIGS,
)
def test_any_tensors_give_findings(tensors: dict[str, tuple[str, list[int]]], config: dict[str, Any]) -> None:
    tensors.pop("__metadata__", None)
    inspect(json.dumps({"r": 4, "lora_alpha": 8} | config).encode(), consistent(tensors))


@LENIENT
@given(header=HEADERS, data=st.binary(max_size=64))
def test_header_is_accepted_by_us_only_if_safetensors_accepts_it(header: dict[str, Any], data: bytes) -> None:
    content = safetensors_bytes(header, data)
    try:
        parse_header(content, len(content))
    except AdapterRefused:
        return
    deserialize(content)


@LENIENT
@given(
    tensors=st.dictionaries(
        NAMES,
        st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), st.lists(st.integers(0, 5), max_size=4)),
        max_size=5,
    )
)
def test_whatever_is_well_formed_is_read(tensors: dict[str, tuple[str, list[int]]]) -> None:
    tensors.pop("__metadata__", None)
    content = consistent(tensors)
    assert len(parse_header(content, len(content)).tensors) == len(tensors) == len(deserialize(content))
