"""The options of a training of gates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ...schemas.errors import UsageError
from ...schemas.training import Start, TrainingSettings

# The order of all samples is drawn ahead, 8 bytes for each.
MAX_SAMPLES_READ = 10_000_000
# Far above those in use, and far from where gradients in float32 overflow.
MAX_GATE_LOSS, MAX_LEARNING_RATE = 1e6, 1e3
MAX_SEED = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """The options of a training of gates by gradient descent, as the paper does it.

    Attributes:
        start: the gates in closed form, or gates that are zero.
        gate_loss: c, the weight of the gates' cross-entropy beside the loss of the language model.
        learning_rate: of Adam, at the first step; it falls linearly to zero. Gates read inputs of length 1,
            so their weights are large, and a rate as for a model's own weights hardly changes them.
        steps: how many there are.
        batch_size: samples in each step, of all processes together; every member has the same share.
        seed: of the order of the samples.
        checkpoint: a file that keeps the state; if it exists, the training goes on from it. None for none.
        checkpoint_steps: the state is kept after so many steps, and at the end.
    """

    start: Start = "closed-form"
    gate_loss: float = 1.0
    learning_rate: float = 0.1
    steps: int = 500
    batch_size: int = 8
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_steps: int = 50

    def __post_init__(self) -> None:
        if self.start not in get_args(Start):
            listed = ", ".join(f"`{each}`" for each in get_args(Start))
            raise UsageError(f"`start` is `{self.start}`, expected one of {listed}")
        # Neither is true of NaN.
        if not 0 <= self.gate_loss <= MAX_GATE_LOSS:
            raise UsageError(f"`gate_loss` is {self.gate_loss}, expected 0 to {MAX_GATE_LOSS:g}")
        if not 0 < self.learning_rate <= MAX_LEARNING_RATE:
            raise UsageError(
                f"`learning_rate` is {self.learning_rate}, expected above 0 and at most {MAX_LEARNING_RATE:g}"
            )
        for name in ("steps", "batch_size", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.seed <= MAX_SEED:
            raise UsageError(f"`seed` is {self.seed}, expected 0 to {MAX_SEED}")
        if self.steps * self.batch_size > MAX_SAMPLES_READ:
            raise UsageError(
                f"{self.steps} steps of {self.batch_size} samples are more than {MAX_SAMPLES_READ} samples"
            )

    @property
    def settings(self) -> TrainingSettings:
        """The options that determine the trained gates."""
        return TrainingSettings(
            start=self.start,
            gate_loss=self.gate_loss,
            learning_rate=self.learning_rate,
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )
