"""Evaluations written by hand: scores that can be compared in the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from meteora_registry.schemas.evaluation import Evaluation

# By mode and member, an item's score each.
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def make_evaluation(scores: Scores, *, bundle: str = "before", **changes: Any) -> Evaluation:
    """Return an evaluation with these scores; means are worked out, intervals left out.

    ``changes`` go into every task's description.
    """
    tasks = next(iter(scores.values()))
    value = {
        "meteora_evaluation": 1,
        "bundle": bundle,
        "manifest_sha256": None,
        "base": "org/base",
        "members": list(tasks),
        "scope": "token",
        "gate_fitted": True,
        "tasks": [_describe(member, items) | changes for member, items in tasks.items()],
        "modes": [_mode(mode, own) for mode, own in scores.items()],
        "batch_size": 1,
        "device": "cpu",
        "dtype": "float32",
        "versions": {},
    }
    return Evaluation.from_value(value, what="evaluation")


def _describe(member: str, items: Sequence[float]) -> dict[str, Any]:
    return {
        "member": member,
        "data_sha256": "a" * 64,
        "samples": len(items),
        "lines": list(range(1, len(items) + 1)),
        "metric": "exact",
        "max_new_tokens": 8,
        "stop": None,
    }


def _mode(mode: str, tasks: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    means = [sum(items) / len(items) for items in tasks.values()]
    return {
        "mode": mode,
        "score": sum(means) / len(means),
        "interval": None,
        "tasks": [
            {
                "member": member,
                "score": mean,
                "interval": None,
                "items": list(items),
                "answers": ["answer"] * len(items),
            }
            for (member, items), mean in zip(tasks.items(), means, strict=True)
        ],
        "routing": None,
        "cost": {
            "seconds": 1.0,
            "prompt_tokens": 10,
            "new_tokens": 10,
            "new_tokens_per_second": 10.0,
            "peak_memory_bytes": None,
        },
    }
