"""The evaluation of a bundle on its members' tasks: routed, each member alone, and plain baselines."""

from __future__ import annotations

from .abstention import read_foreign
from .evaluator import evaluate
from .tasks import EvaluationOptions, Task, make_tasks, read_task_settings

__all__ = ["EvaluationOptions", "Task", "evaluate", "make_tasks", "read_foreign", "read_task_settings"]
