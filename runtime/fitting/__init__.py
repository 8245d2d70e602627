"""Fitting a bundle's gates in closed form, from one pass of the plain base over each member's own data."""

from __future__ import annotations

from .task_data import Sample, TaskData, context_of, read_task_data

__all__ = ["Sample", "TaskData", "context_of", "read_task_data"]
