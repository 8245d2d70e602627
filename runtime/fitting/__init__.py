"""The fit of a bundle's gates in closed form, from one pass of the plain base over each member's own data."""

from __future__ import annotations

from ..base_model import OpenedBase, context_of, open_base
from .evidence import ChosenEvidence
from .fit import FittedGates, fit_gates
from .fit_options import FitOptions
from .forms import check_form, write_as, write_behind
from .inputs import check_shapes
from .statistics_file import names_in
from .task_data import Sample, TaskData, read_task_data, strangers_in

__all__ = [
    "ChosenEvidence",
    "FitOptions",
    "FittedGates",
    "OpenedBase",
    "Sample",
    "TaskData",
    "check_form",
    "check_shapes",
    "context_of",
    "fit_gates",
    "names_in",
    "open_base",
    "read_task_data",
    "strangers_in",
    "write_as",
    "write_behind",
]
