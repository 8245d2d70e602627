"""The cost of verification and of the arrow initialisation, as ratios within one run.

``verification``: one module of L members, each forced alone and all routed, by the code that ``verify`` runs.
Were each member's reference worked out from all members, the cost of one member would grow with L.
``arrow``: the directions of a module's members by Gram matrices, beside two QRs and an SVD for each.

Times are of the process's processor, one thread, the least of several calls: a neighbour on the machine adds
to a call and never takes away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import description
from benchmarks.pages import Row, read_rows, with_section
from meteora_registry.fuser.arithmetic import Backend, compare_module, stored_factors
from meteora_registry.fuser.bundle_reader import ModuleTensors
from meteora_registry.fuser.gates import arrow_directions
from meteora_registry.schemas.bundle import BundleConfig, BundleMember, Gate, GateInitialisation, ModuleLayout

ROWS = Path(__file__).parent / "results" / "verification.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "verification.md"
START, END = "<!-- rows: written by benchmarks.verification -->", "<!-- end of rows -->"
MEMBERS = (8, 16, 32, 64, 128)
RANK, FEATURES = 8, 4096
# Llama-3-8B: attention, up and down projection; then SmolLM2-135M's up projection, and a large rank.
ARROW_SHAPES = (
    (4096, 4096, 8, 28),
    (4096, 14336, 8, 28),
    (14336, 4096, 8, 28),
    (576, 1536, 8, 8),
    (4096, 4096, 64, 8),
)
CALLS = 7
PATH = "model.layers.0.self_attn.q_proj"


def main(arguments: list[str]) -> None:
    """Measure and print rows, or write the page from the committed rows with ``--page``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run verification", description=__doc__)
    parser.add_argument("--page", action="store_true", help="write docs/verification.md's table and stop")
    parser.add_argument("--members", type=int, nargs="+", default=MEMBERS, help="numbers of members")
    parser.add_argument("--features", type=int, default=FEATURES, help="of the module, in and out")
    options = parser.parse_args(arguments)
    if options.page:
        PAGE.write_text(page_of(read_rows(ROWS)), encoding="utf-8")
        return
    torch.set_num_threads(1)
    machine = description("cpu")
    for row in measure(options.members, options.features):
        print(json.dumps(row | machine), flush=True)
        print(json.dumps(row), file=sys.stderr)


def measure(members: tuple[int, ...], features: int) -> Iterator[Row]:
    """Yield the rows of both subjects."""
    for count in members:
        yield {
            "subject": "verification",
            "members": count,
            "features": features,
            "rank": RANK,
        } | _verification(count, features)
    for shape in ARROW_SHAPES if features == FEATURES else ((features, features, RANK, 4),):
        yield (
            {"subject": "arrow"}
            | dict(zip(("in", "out", "rank", "members"), shape, strict=True))
            | _arrow(*shape)
        )


def _verification(count: int, features: int) -> Row:
    config, layout, tensors = module_of(count, features)
    backend = Backend("cpu", torch.device("cpu"), torch.float32)
    witnesses = stored_factors(layout, tensors)
    milliseconds = least(lambda: compare_module(config, layout, tensors, [backend], witnesses))
    return {"ms": round(milliseconds, 3), "ms_per_member": round(milliseconds / count, 4)}


def _arrow(in_features: int, out_features: int, rank: int, members: int) -> Row:
    random = torch.Generator().manual_seed(0)
    pairs = [
        (
            0.02 * torch.randn(rank, in_features, generator=random),
            0.02 * torch.randn(out_features, rank, generator=random),
        )
        for _ in range(members)
    ]
    found, expected = arrow_directions(pairs), torch.stack([by_svd(A, B) for A, B in pairs])
    qr, gram = (
        least(lambda: [by_svd(A, B) for A, B in pairs]),
        least(lambda: arrow_directions(pairs)),
    )
    return {
        "qr_svd_ms": round(qr, 3),
        "gram_ms": round(gram, 3),
        "ratio": round(qr / gram, 2),
        "largest_difference": float((found - expected).abs().max()),
    }


def by_svd(A: Tensor, B: Tensor) -> Tensor:
    """Return the top right singular vector of B A by two thin QRs and an SVD, float64 ``[in]``."""
    q_a, r_a = torch.linalg.qr(A.double().T)
    r_b = torch.linalg.qr(B.double())[1]
    vector: Tensor = q_a @ torch.linalg.svd(r_b @ r_a.T)[2][0]
    return vector * torch.sign(vector[vector.abs().argmax()])


def module_of(members: int, features: int) -> tuple[BundleConfig, ModuleLayout, ModuleTensors]:
    """Return one module of random factors and gate, with the config that describes it."""
    config = BundleConfig(
        peft_type="METEORA",
        meteora_format=1,
        required_features=(),
        task_type="CAUSAL_LM",
        base_model_name_or_path="org/base",
        revision=None,
        inference_mode=True,
        target_modules=(PATH,),
        members=tuple(
            BundleMember(name=f"member-{index}", rank=RANK, scaling=2.0, overrides={})
            for index in range(members)
        ),
        rank_alignment=8,
        top_k=2,
        temperature=1.0,
        gate=Gate(
            kind="linear",
            scope="token",
            bias=False,
            eps=1e-6,
            sources={},
            initialisation=GateInitialisation(method="normal", seed=0),
            fitted="not fitted",
        ),
    )
    layout = config.layouts[PATH]
    random = torch.Generator().manual_seed(0)
    A, Bt = (torch.randn(layout.rows, features, generator=random) for _ in range(2))
    return config, layout, ModuleTensors(A, Bt, torch.randn(members, features, generator=random), None)


def least(call: Callable[[], object]) -> float:
    """Return the least milliseconds of processor time of several calls, after one to warm up."""
    call()
    times = []
    for _ in range(CALLS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * min(times)


def page_of(rows: list[Row]) -> str:
    """Return the page with its tables made from these rows."""
    return with_section(PAGE.read_text(encoding="utf-8"), START, END, tables(rows))


def tables(rows: list[Row]) -> str:
    """Return both tables in markdown."""
    checks = [row for row in rows if row["subject"] == "verification"]
    lines = ["| members | ms | ms a member | against the fewest |", "|---|---|---|---|"]
    lines += [
        f"| {row['members']} | {row['ms']} | {row['ms_per_member']} "
        f"| {row['ms_per_member'] / checks[0]['ms_per_member']:.2f} |"
        for row in checks
    ]
    lines += ["", "| in -> out, rank, members | QR and SVD, ms | Gram, ms | ratio | largest difference |"]
    lines += ["|---|---|---|---|---|"]
    lines += [
        f"| {row['in']} -> {row['out']}, {row['rank']}, {row['members']} | {row['qr_svd_ms']} "
        f"| {row['gram_ms']} | {row['ratio']} | {row['largest_difference']:.1e} |"
        for row in rows
        if row["subject"] == "arrow"
    ]
    device = rows[0]
    lines += ["", f"{device['device']}, torch {device['torch']}, one thread."]
    return "\n".join(lines) + "\n"
