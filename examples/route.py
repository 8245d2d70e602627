"""The answers of a bundle and who gave them: its own routing, other scopes, and each member alone.

Run it with a bundle's folder, the base it was fused for, and prompts:
``python examples/route.py bundle org/base "First prompt" "Second prompt"``.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from meteora_registry.runtime import Answer, RoutingRecord, load_bundle, route_as, routing

MAX_NEW_TOKENS = 32


def main(folder: Path, base: str, prompts: list[str]) -> None:
    """Answer the prompts in every way and print the answers."""
    loaded = load_bundle(folder, base)
    print(f"{len(loaded.config.members)} members, scope `{loaded.config.gate.scope}`")
    answers = loaded.answer(prompts, max_new_tokens=MAX_NEW_TOKENS)
    show("as the bundle routes", prompts, [f"{answer.text!r}{served_by(answer)}" for answer in answers])
    with route_as(loaded.model, scope="token", top_k=1), routing(loaded.model) as record:
        texts = loaded.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
    show("token by token, one member each", prompts, [repr(text) for text in texts])
    print(f"  {describe(record, len(prompts))}")
    for name in loaded.config.names:
        texts = loaded.generate(prompts, max_new_tokens=MAX_NEW_TOKENS, member=name)
        show(f"`{name}` alone", prompts, [repr(text) for text in texts])
    with loaded.model.disable_adapter():
        texts = loaded.generate(prompts, max_new_tokens=MAX_NEW_TOKENS)
    show("the base alone", prompts, [repr(text) for text in texts])


def show(title: str, prompts: list[str], answers: list[str]) -> None:
    """Print the answers under a title."""
    print(f"\n{title}")
    for prompt, answer in zip(prompts, answers, strict=True):
        print(f"  {prompt!r} -> {answer}")


def served_by(answer: Answer) -> str:
    """Return who answered and how sure the bundle was; nothing where every module decides for each token."""
    return "".join(
        f"\n    tokens {decision.start} to {decision.end}: {', '.join(decision.members) or 'the base'} "
        f"(confidence {decision.confidence:.2f})"
        for decision in answer.decisions
    )


def describe(record: RoutingRecord, requests: int) -> str:
    """Return a line on who served: the modules' choices counted."""
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
