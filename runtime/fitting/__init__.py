"""Fitting a bundle's gates in closed form, from one pass of the plain base over each member's own data."""

from __future__ import annotations

from .fit import FitOptions, FittedGates, fit_gates
from .inputs import check_shapes
from .task_data import Sample, TaskData, context_of, read_task_data

__all__ = [
    "FitOptions",
    "FittedGates",
    "Sample",
    "TaskData",
    "check_shapes",
    "context_of",
    "fit_gates",
    "read_task_data",
]
