"""Traces written by hand, small enough to work their shares out in the head."""

from __future__ import annotations

from collections.abc import Sequence

from meteora_registry.schemas.trace import Trace, TraceModule, TraceRouting, TraceToken

# One slot's member and weight, in the order of the slots.
Slots = Sequence[tuple[int, float]]


def make_trace(
    tables: Sequence[Sequence[Slots]],
    modules: Sequence[tuple[str, int]],
    *,
    texts: Sequence[str],
    prompt: int,
    members: Sequence[str] = ("sql", "chat"),
    gate_fitted: bool = True,
    bundle: str = "two-tasks",
) -> Trace:
    """Return a trace of these tables, modules and texts; the first ``prompt`` tokens are the prompt's."""
    return Trace(
        meteora_trace=1,
        bundle=bundle,
        base="org/base",
        scope="token",
        top_k=2,
        temperature=1.0,
        gate_fitted=gate_fitted,
        members=tuple(members),
        tokens=tuple(
            TraceToken(id=place, text=text, generated=place >= prompt) for place, text in enumerate(texts)
        ),
        modules=tuple(TraceModule(path=path, routing=routing) for path, routing in modules),
        routings=tuple(
            TraceRouting(
                selection=tuple(tuple(member for member, _ in slots) for slots in table),
                weights=tuple(tuple(weight for _, weight in slots) for slots in table),
            )
            for table in tables
        ),
    )


def two_layer_trace(texts: Sequence[str] = ("SELECT", " hello", "!", " bye")) -> Trace:
    """Return four tokens, the last two of the answer and the last never read.

    Layer 0 has q_proj and v_proj with tables of their own, layer 1 a q_proj that takes layer 0's.
    """
    return make_trace(
        [
            [[(0, 1.0), (1, 0.0)], [(1, 0.75), (0, 0.25)], [(0, 0.5), (1, 0.5)], [(-1, 0.0), (-1, 0.0)]],
            [[(0, 1.0), (1, 0.0)], [(1, 1.0), (0, 0.0)], [(1, 1.0), (0, 0.0)], [(-1, 0.0), (-1, 0.0)]],
        ],
        [
            ("model.layers.0.self_attn.q_proj", 0),
            ("model.layers.0.self_attn.v_proj", 1),
            ("model.layers.1.self_attn.q_proj", 0),
        ],
        texts=texts,
        prompt=2,
    )
