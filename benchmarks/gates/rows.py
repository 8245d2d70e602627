"""Rows: one way on one set of texts, with the outcome of every item, so that all figures follow from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from .scoring import EncodedText, Outcome
from .tasks import TASK_NAMES
from .ways import Way

Row = dict[str, Any]
RESAMPLES = 2000


def digest_of(value: object) -> str:
    """Return the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_of_texts(texts: Sequence[EncodedText]) -> str:
    """Return the sha256 of all questions and answers in order."""
    return digest_of([[asdict(item) for item in text.items] for text in texts])


def score_row(
    stage: str, name: str, way: Way, texts: Sequence[EncodedText], outcomes: Sequence[Outcome], seconds: float
) -> Row:
    """Return the row of one way on one set: an entry for each text, a digit for each of its items."""
    decided = [outcome.decided for outcome in outcomes]
    served = [outcome.served for outcome in outcomes if outcome.served is not None]
    known = [each for each in decided if each is not None]
    return {
        "kind": "score",
        "stage": stage,
        "set": name,
        "way": way.name,
        "settings": asdict(way),
        "texts": len(texts),
        "tasks": ["+".join(item.task for item in text.items) for text in texts],
        "right": ["".join(str(int(right)) for right in outcome.right) for outcome in outcomes],
        "decided_rightly": [
            int(outcome.decided == text.items[0].task) for text, outcome in zip(texts, outcomes, strict=True)
        ]
        if known
        else None,
        "served_rightly": round(float(np.mean(served)), 4) if served else None,
        "processor_seconds": round(seconds, 1),
    }


def by_task(row: Row) -> dict[str, list[int]]:
    """Return the outcomes of every task's items in a row, in order."""
    found: dict[str, list[int]] = {name: [] for name in TASK_NAMES}
    for tasks, right in zip(row["tasks"], row["right"], strict=True):
        for task, digit in zip(tasks.split("+"), right, strict=True):
            found[task].append(int(digit))
    return found


def mean_of(row: Row) -> float:
    """Return the mean of the tasks' means."""
    return float(np.mean([np.mean(right) for right in by_task(row).values() if right]))


def whole_of(row: Row) -> float:
    """Return the part of the texts with every item right."""
    return float(np.mean(["0" not in right for right in row["right"]]))


def interval_of(row: Row, other: Row | None = None) -> tuple[float, float]:
    """Return the 95 % interval of the mean, or of its ratio to the mean of another row on the same items.

    Bootstrap over items within their tasks, the same items drawn for both rows; seeded.
    """
    numbers = np.random.default_rng(0)
    own, others = by_task(row), by_task(other) if other else None
    drawn, against = [], []
    for task, right in own.items():
        if not right:
            continue
        places = numbers.integers(len(right), size=(RESAMPLES, len(right)))
        drawn.append(np.asarray(right)[places].mean(1))
        if others is not None:
            against.append(np.asarray(others[task])[places].mean(1))
    means = np.mean(drawn, axis=0)
    if others is not None:
        means = means / np.maximum(np.mean(against, axis=0), 1e-9)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, none if it is not there."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def append_row(path: Path, row: Mapping[str, object]) -> None:
    """Add a row to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
