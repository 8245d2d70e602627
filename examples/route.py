"""The answers of a bundle and who gave them: its own routing, other scopes, and each member alone.

Run it with a bundle's folder, the base it was fused for, and prompts:
``python examples/route.py bundle org/base "First prompt" "Second prompt"``.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from meteora_registry.runtime import (
    LoadedBundle,
    RoutingRecord,
    force_adapter,
    generate,
    load_bundle,
    route_as,
    routing,
)

MAX_NEW_TOKENS = 32


def main(folder: Path, base: str, prompts: list[str]) -> None:
    """Answer the prompts in every way and print the answers."""
    loaded = load_bundle(folder, base)
    print(f"{len(loaded.config.members)} members, scope `{loaded.config.gate.scope}`")
    with routing(loaded.model) as record:
        show("as the bundle routes", loaded, prompts)
    print(f"  {describe(record, len(prompts))}")
    with route_as(loaded.model, scope="token", top_k=1), routing(loaded.model) as record:
        show("token by token, one member each", loaded, prompts)
    print(f"  {describe(record, len(prompts))}")
    for name in loaded.config.names:
        with force_adapter(loaded.model, name):
            show(f"`{name}` alone", loaded, prompts)
    with loaded.model.disable_adapter():
        show("the base alone", loaded, prompts)


def show(title: str, loaded: LoadedBundle, prompts: list[str]) -> None:
    """Print the answers under a title."""
    print(f"\n{title}")
    for prompt, answer in zip(prompts, generate(loaded, prompts, max_new_tokens=MAX_NEW_TOKENS), strict=True):
        print(f"  {prompt!r} -> {answer!r}")


def describe(record: RoutingRecord, requests: int) -> str:
    """Return a line on who served: the decisions where there are some, else the modules' choices counted."""
    if record.decisions:
        return "; ".join(
            f"request {decision.sequence}, tokens {decision.start} to {decision.end}: "
            f"{', '.join(decision.members) or 'the base'} (confidence {decision.confidence:.2f})"
            for decision in record.decisions
        )
    lines = []
    for request in range(requests):
        counts: Counter[int] = Counter()
        for found in record.modules.values():
            counts.update(found.selection[request, :, 0].tolist())
        shares = [
            f"{record.members[index]} {count / counts.total():.0%}" for index, count in counts.most_common()
        ]
        lines.append(f"request {request}: {', '.join(shares)}")
    return "; ".join(lines)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
