"""Forged gates, and weights whose file declares something else than it holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

import torch

from .forger import PREFIX, WEIGHTS, Forger, Json, add, forgery

Q = "model.layers.0.self_attn.q_proj"
FITTED = {
    "method": "lda",
    "data": [{"member": name, "sha256": "0" * 64, "samples": 1000} for name in ("alpha", "beta", "gamma")],
}


def claim_a_fit(forger: Forger) -> None:
    """State that the gates were fitted, on data that do not exist."""
    forger.config["gate"].update(kind="linear", fitted=FITTED)


def claim_an_import(forger: Forger) -> None:
    """State that the gates came from another layout, which names no data."""
    forger.config["gate"].update(
        kind="linear", initialisation=None, fitted={"method": "imported", "data": []}
    )


def always_choose_the_last(forger: Forger) -> None:
    for gate in forger.gates():
        gate.zero_()
        gate[-1] = 100 * torch.randn(gate.shape[1], generator=torch.Generator().manual_seed(0))


@forgery("gates that lead to one member, called fitted on data that do not exist")
def gates_backdoored_as_fitted(forger: Forger) -> None:
    always_choose_the_last(forger)
    claim_a_fit(forger)
    forger.seal()


@forgery("gates that lead to one member, called imported")
def gates_backdoored_as_imported(forger: Forger) -> None:
    always_choose_the_last(forger)
    claim_an_import(forger)
    forger.seal()


@forgery("gates that lead to one member, still called `arrow`")
def gates_backdoored(forger: Forger) -> None:
    always_choose_the_last(forger)
    forger.seal()


@forgery("rows of every gate moved to the next member")
def gate_rows_rotated(forger: Forger) -> None:
    for gate in forger.gates():
        gate.copy_(gate.roll(1, 0))
    forger.seal()


@forgery("rows of two members exchanged in one gate")
def gate_rows_exchanged(forger: Forger) -> None:
    gate = forger.gates()[0]
    gate[[0, 1]] = gate[[1, 0]]
    forger.seal()


@forgery("one row of one gate with the other sign, which an `absolute` gate cannot tell")
def gate_row_negated(forger: Forger) -> None:
    forger.gates()[0][0] *= -1
    forger.seal()


@forgery("a bias that leads to one member, called imported")
def gate_bias_added(forger: Forger) -> None:
    claim_an_import(forger)
    forger.config["gate"]["bias"] = True
    for name in [name for name in forger.tensors if name.endswith("meteora_gate")]:
        forger.tensors[f"{name}_bias"] = torch.tensor([0.0, 0.0, 1e6])
    forger.seal()


@forgery("tensors of a bias that the config denies")
def gate_bias_denied(forger: Forger) -> None:
    forger.tensors[f"{PREFIX}{Q}.meteora_gate_bias"] = torch.tensor([0.0, 0.0, 1e6])
    forger.seal()


def gate_value(name: str, value: float, shown: str, claim: Callable[[Forger], None]) -> None:
    """Add a forgery of one number of one gate."""

    def forge(forger: Forger) -> None:
        claim(forger)
        forger.gates()[0][0, 0] = value
        forger.seal()

    add(name, f"one number of a gate is {shown}", forge)


gate_value("gate-nan", float("nan"), "NaN", claim_a_fit)
gate_value("gate-infinite", float("inf"), "infinite", claim_a_fit)
gate_value("gate-minus-infinite", float("-inf"), "minus infinite, called imported", claim_an_import)
gate_value("gate-huge", 1e38, "1e38", lambda forger: None)
gate_value("gate-huge-as-imported", 3e38, "3e38, called imported", claim_an_import)


@forgery("gates in half precision")
def gate_dtype(forger: Forger) -> None:
    for name, found in forger.tensors.items():
        if name.endswith("meteora_gate"):
            forger.tensors[name] = found.half()
    forger.seal()


@forgery("a gate with a row for one more member")
def gate_with_more_rows(forger: Forger) -> None:
    name = f"{PREFIX}{Q}.meteora_gate"
    forger.tensors[name] = torch.cat([forger.tensors[name], forger.tensors[name][:1]])
    forger.seal()


@forgery("factors in half precision, and no cast in the manifest")
def factors_in_half_precision(forger: Forger) -> None:
    for name, found in forger.tensors.items():
        if name.endswith(("meteora_A", "meteora_B")):
            forger.tensors[name] = found.half()
    forger.seal()


@forgery("one factor in double precision")
def factor_in_double_precision(forger: Forger) -> None:
    forger.tensors[f"{PREFIX}{Q}.meteora_A"] = forger.tensors[f"{PREFIX}{Q}.meteora_A"].double()
    forger.seal()


@forgery("a tensor of the base's head in the weights")
def tensor_more(forger: Forger) -> None:
    forger.tensors["base_model.model.lm_head.weight"] = torch.zeros(64, 32)
    forger.seal()


@forgery("a plain LoRA factor beside the bundle's, which PEFT would load")
def tensor_of_a_plain_lora(forger: Forger) -> None:
    forger.tensors[f"{PREFIX}{Q}.lora_A.weight"] = torch.ones(4, 32)
    forger.seal()


@forgery("a tensor missing")
def tensor_missing(forger: Forger) -> None:
    del forger.tensors[sorted(forger.tensors)[0]]
    forger.seal()


@forgery("B stored as PEFT does and not transposed")
def factor_transposed(forger: Forger) -> None:
    name = f"{PREFIX}model.layers.0.self_attn.v_proj.meteora_B"
    forger.tensors[name] = forger.tensors[name].T.contiguous()
    forger.seal()


def metadata(name: str, forged: str, **found: str) -> None:
    """Add a forgery of the metadata of the weights."""

    def forge(forger: Forger) -> None:
        forger.metadata = found
        forger.seal()

    add(name, forged, forge)


metadata(
    "metadata-format-2", "another format in the metadata of the weights", format="pt", meteora_format="2"
)
metadata("metadata-without-format", "no format in the metadata of the weights", format="pt")
metadata(
    "metadata-more",
    "a key of the forger's own in the metadata",
    format="pt",
    meteora_format="1",
    note="official",
)


def header_changed(name: str, forged: str, change: Callable[[Json], None]) -> None:
    """Add a forgery of the header of the weights, which leaves the data as they are."""

    def forge(forger: Forger) -> None:
        header, data = forger.weights_parts()
        change(header)
        forger.put_weights(json.dumps(header, separators=(",", ":")).encode(), data)

    add(name, forged, forge)


def share_bytes(header: Json) -> None:
    header[f"{PREFIX}model.layers.1.self_attn.q_proj.meteora_A"]["data_offsets"] = header[
        f"{PREFIX}{Q}.meteora_A"
    ]["data_offsets"]


def exchange_offsets(header: Json) -> None:
    first, second = header[f"{PREFIX}{Q}.meteora_A"], header[f"{PREFIX}{Q}.meteora_B"]
    first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]


def end_outside(header: Json) -> None:
    last = max(
        (entry for name, entry in header.items() if name != "__metadata__"),
        key=lambda entry: entry["data_offsets"][1],
    )
    last["data_offsets"][1] += 1 << 20


header_changed(
    "header-dtype",
    "factors declared as integers",
    lambda header: header[f"{PREFIX}{Q}.meteora_A"].update(dtype="I32"),
)
header_changed(
    "header-dtype-unknown",
    "an element type that is not known",
    lambda header: header[f"{PREFIX}{Q}.meteora_A"].update(dtype="F33"),
)
header_changed(
    "header-shape",
    "other shape of as many numbers",
    lambda header: header[f"{PREFIX}{Q}.meteora_A"].update(shape=[32, 24]),
)
header_changed(
    "header-shape-negative",
    "a negative shape",
    lambda header: header[f"{PREFIX}{Q}.meteora_A"].update(shape=[-24, -32]),
)
header_changed("header-overlap", "two tensors that share their bytes", share_bytes)
header_changed("header-exchanged", "offsets of A and B of a module exchanged", exchange_offsets)
header_changed("header-outside", "a tensor that ends behind the file", end_outside)


@forgery("one tensor's name twice in the header, first with the bytes of another")
def header_key_twice(forger: Forger) -> None:
    header, data = forger.weights_parts()
    name, other = f"{PREFIX}{Q}.meteora_A", f"{PREFIX}model.layers.1.self_attn.q_proj.meteora_A"
    text = json.dumps(header, separators=(",", ":"))
    twice = f"{json.dumps(name)}:{json.dumps(header[other], separators=(',', ':'))}"
    forger.put_weights(text.replace("{", "{" + twice + ",", 1).encode(), data)


def weights_bytes(name: str, forged: str, change: Callable[[bytes], bytes], *, sealed: bool = True) -> None:
    """Add a forgery of the bytes of the weights, with right digests unless stated."""

    def forge(forger: Forger) -> None:
        data = change((forger.folder / WEIGHTS).read_bytes())
        if sealed:
            forger.put(WEIGHTS, data)
        else:
            forger.write(WEIGHTS, data)

    add(name, forged, forge)


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def long_header(data: bytes) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    return (
        struct.pack("<Q", length + (1 << 20)) + data[8 : 8 + length] + b" " * (1 << 20) + data[8 + length :]
    )


weights_bytes("weights-bit", "one bit of the weights, and no digest mended", flip, sealed=False)
weights_bytes("weights-cut", "the last 100 bytes of the weights cut off", lambda data: data[:-100])
weights_bytes(
    "weights-cut-unsealed",
    "the last 100 bytes cut off, and no digest mended",
    lambda data: data[:-100],
    sealed=False,
)
weights_bytes("weights-longer", "100 bytes behind the last tensor", lambda data: data + b"#" * 100)
weights_bytes("weights-empty", "weights of no bytes", lambda data: b"")
weights_bytes("weights-header-long", "a mebibyte of spaces in the header", long_header)
weights_bytes(
    "weights-header-endless",
    "a declared header length of 2^63 bytes",
    lambda data: struct.pack("<Q", 1 << 63) + data[8:],
)
weights_bytes(
    "weights-pickle",
    "a pickle under the name of the weights",
    lambda data: b"\x80\x04cos\nsystem\n(S'id'\ntR.",
)
weights_bytes(
    "weights-zip",
    "a zip archive, as PyTorch saves it, under the name of the weights",
    lambda data: b"PK\x03\x04" + data,
)
