"""The evaluation of a bundle on its members' tasks: routed, each member alone, and plain baselines."""

from __future__ import annotations

from .abstention import read_foreign
from .answering import Answerer, ModelAnswerer
from .evaluator import evaluate, evaluate_tasks, known_settings
from .processes import answering_processes
from .run_file import opened_run
from .tasks import EvaluationOptions, Task, make_tasks, read_task_settings

__all__ = [
    "Answerer",
    "EvaluationOptions",
    "ModelAnswerer",
    "Task",
    "answering_processes",
    "evaluate",
    "evaluate_tasks",
    "known_settings",
    "make_tasks",
    "opened_run",
    "read_foreign",
    "read_task_settings",
]
