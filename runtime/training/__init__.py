"""The training of a bundle's gates by gradient descent, through transformers' Trainer and accelerate.

``train`` is imported where gates are trained: the Trainer takes as long to import as all the rest.
"""

from __future__ import annotations

from .launch import check_launch
from .options import TrainingOptions
from .outcome import TrainingOutcome

__all__ = ["TrainingOptions", "TrainingOutcome", "check_launch"]
