"""Intervals by the bootstrap (Efron, 1979): items are drawn again with replacement, within each task.

The percentile method of ``scipy.stats.bootstrap`` with a fixed seed, so the same scores give the same
interval. It shows how much the result depends on the items that happened to be asked, and not what else
it depends on: one training of each adapter, one fit of the gate. Where all items score the same it
sees no doubt and gives an interval of width zero.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..schemas.errors import MissingDependency
from ..schemas.evaluation import Interval

CONFIDENCE = 0.95
RESAMPLES = 9999
_SEED = 0
# Resamples that are held in memory at once.
_BATCH = 256

Scores = npt.NDArray[np.float64]


def mean_of_tasks(tasks: Sequence[Sequence[float]]) -> float:
    """Return the mean of the tasks' means: a task of few items weighs as much as one of many."""
    return float(np.mean([np.mean(scores) for scores in tasks]))


def can_estimate() -> bool:
    """Return whether intervals can be computed here: whether scipy is installed."""
    return importlib.util.find_spec("scipy") is not None


def check_can_estimate() -> None:
    """Pass if intervals can be worked out.

    Raises:
        MissingDependency: scipy is not installed.
    """
    _load_bootstrap()


def interval_of(tasks: Sequence[Sequence[float]]) -> Interval | None:
    """Return the 95 % interval of ``mean_of_tasks``; None where a task has a single item.

    Raises:
        MissingDependency: scipy is not installed.
    """
    if min(map(len, tasks)) < 2:
        return None
    found = _load_bootstrap()(
        [np.asarray(scores, dtype=np.float64) for scores in tasks],
        _mean_of_means,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(low=float(found.low), high=float(found.high))


def _load_bootstrap() -> Any:
    try:
        from scipy.stats import bootstrap  # type: ignore[import-untyped]  # scipy ships no types
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise MissingDependency("an interval needs `scipy`, which is not installed", extra="eval") from error
    return bootstrap


def _mean_of_means(*tasks: Scores, axis: int = -1) -> Scores:
    means: Scores = np.mean([np.mean(scores, axis=axis) for scores in tasks], axis=0)
    return means
