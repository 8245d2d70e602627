"""The fit of a bundle's gates in closed form, from one pass of the plain base over each member's own data."""

from __future__ import annotations

from ..base_model import OpenedBase, context_of, open_base
from .evidence import ChosenEvidence
from .fit import FittedGates, fit_gates, method_of
from .fit_options import FitOptions
from .forms import check_form, write_as, write_behind
from .inputs import check_shapes
from .line_tokens import answer_order
from .sequences import choose_samples
from .statistics_file import StatisticsFolder
from .task_data import Sample, TaskData, read_member_data, read_task_data, strangers_in

__all__ = [
    "ChosenEvidence",
    "FitOptions",
    "FittedGates",
    "OpenedBase",
    "Sample",
    "StatisticsFolder",
    "TaskData",
    "answer_order",
    "check_form",
    "check_shapes",
    "choose_samples",
    "context_of",
    "fit_gates",
    "method_of",
    "open_base",
    "read_member_data",
    "read_task_data",
    "strangers_in",
    "write_as",
    "write_behind",
]
