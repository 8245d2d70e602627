"""The training of a bundle's gates by gradient descent, through transformers' Trainer and accelerate."""

from __future__ import annotations

from .options import TrainingOptions
from .train import TrainedGates, train_gates
from .trainer import TrainingOutcome

__all__ = ["TrainedGates", "TrainingOptions", "TrainingOutcome", "train_gates"]
