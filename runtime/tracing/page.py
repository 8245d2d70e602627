"""A trace as one HTML page that needs nothing else: no network, no other file.

Everything that comes from a bundle or a model (names, tokens) is data: JSON in a block that no browser runs,
without any ``<``, and the script puts it into the page as text only. The page's policy
allows the one script and the one style sheet that this module wrote, by their digests, and nothing else,
so even a defect of the script could load nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from itertools import chain
from typing import Any

from ...schemas.trace import NO_MEMBER, ModulePlace, Trace, TraceRouting
from .display import colour_of, letter_of

# What would end the block, or a line of the script's language.
_ESCAPES = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"})
_WEIGHT_STEPS = 1000


def render_page(trace: Trace) -> str:
    """Return the page's HTML."""
    style, script, page = (_read_part(name) for name in ("page.css", "page.js", "page.html"))
    policy = (
        f"default-src 'none'; style-src '{_digest_of(style)}'; script-src '{_digest_of(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # The data comes last, so that nothing in it is taken for a place to fill.
    parts = {"policy": policy, "style": style, "script": script, "data": _dump(_payload(trace))}
    for name, content in parts.items():
        page = page.replace(f"{{{{ {name} }}}}", content)
    return page


def _read_part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest_of(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)


def _payload(trace: Trace) -> dict[str, Any]:
    places = [ModulePlace.of(module.path) for module in trace.modules]
    layers = sorted({place.layer for place in places}, key=lambda layer: ModulePlace(layer, "").order)
    kinds = sorted({place.kind for place in places})
    return {
        "bundle": trace.bundle,
        "base": trace.base,
        "scope": trace.scope,
        "topK": trace.top_k,
        "temperature": trace.temperature,
        "gateFitted": trace.gate_fitted,
        "members": [
            {"name": name, "letter": letter_of(index), "colour": colour_of(index)}
            for index, name in enumerate(trace.members)
        ],
        "tokens": [
            {"id": token.id, "text": token.text, "generated": token.generated} for token in trace.tokens
        ],
        "layers": layers,
        "kinds": kinds,
        "modules": [
            {
                "path": module.path,
                "layer": layers.index(place.layer),
                "kind": kinds.index(place.kind),
                "routing": module.routing,
            }
            for module, place in zip(trace.modules, places, strict=True)
        ],
        "routings": [_flatten(routing) for routing in trace.routings],
    }


def _flatten(routing: TraceRouting) -> dict[str, Any]:
    slots = max(map(len, routing.selection))
    selection = (row + (NO_MEMBER,) * (slots - len(row)) for row in routing.selection)
    weights = (row + (0.0,) * (slots - len(row)) for row in routing.weights)
    return {
        "slots": slots,
        "selection": list(chain.from_iterable(selection)),
        "weights": [round(weight * _WEIGHT_STEPS) for weight in chain.from_iterable(weights)],
    }
