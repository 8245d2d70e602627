"""The limits of the MeteoRA authors' released code, for an export into their layout.

It has constants where the layout has none, so a file of the right layout may still not load there.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ..bundle import Bundle

_MEMBERS = 28
_ROWS = 224
_TOP_K = 2
_TEMPERATURE = 1.0
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_LLAMA_PATH = re.compile(r"model\.layers\.(?P<layer>\d+)\.(self_attn|mlp)\.(?P<projection>\w+_proj)")


def limits_of(bundle: Bundle, rank: int, *, has_checkpoint: bool) -> Iterator[str]:
    """Yield what their code expects and an export of a bundle, padded to ``rank``, does not satisfy."""
    config = bundle.config
    count = len(config.members)
    if count != _MEMBERS:
        yield f"their code has a constant of {_MEMBERS} members, this has {count}: change it there"
    if count * rank != _ROWS:
        yield (
            f"their code has a constant of {_ROWS} rows of all members together, this has {count * rank}: "
            "change it there"
        )
    if (config.top_k, config.temperature) != (_TOP_K, _TEMPERATURE):
        yield (
            f"their code has the constants top_k {_TOP_K} and temperature {_TEMPERATURE:g}, "
            f"this has {config.top_k} and {config.temperature:g}: change them there"
        )
    yield from _projections(bundle)
    if not has_checkpoint:
        yield (
            "their evaluation loads a full `model.safetensors` strictly, the base's tensors among it: "
            "export with `--base-folder FOLDER` to write one"
        )


def _projections(bundle: Bundle) -> Iterator[str]:
    found: dict[int, set[str]] = defaultdict(set)
    for path in bundle.config.layouts:
        match = _LLAMA_PATH.fullmatch(path)
        if match is None or match["projection"] not in _PROJECTIONS:
            yield f"their code has Llama models with adapters on seven projections, `{path}` is none of these"
            return
        found[int(match["layer"])].add(match["projection"])
    lacking = {layer: [each for each in _PROJECTIONS if each not in own] for layer, own in found.items()}
    incomplete = {layer: projections for layer, projections in sorted(lacking.items()) if projections}
    if incomplete:
        layer, projections = next(iter(incomplete.items()))
        yield (
            f"their code adapts all seven projections of every layer, this lacks some in {len(incomplete)} "
            f"layers, such as `{projections[0]}` in layer {layer}: name the adapted ones there"
        )
