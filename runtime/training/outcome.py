"""The result of a training of gates."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """The result of a training, as its last steps show it.

    Attributes:
        steps: how many there were in all.
        resumed_at: the step after which this run began; 0 at the start.
        reported_steps: how many of the last steps the means below are of; 0 if a checkpoint had all of them.
        language_loss: of the language model, in nats per token; None without steps.
        gate_loss: the gates' cross-entropy, in nats; None without steps.
        right: the share of gates and tokens whose own member has the highest logit; None without steps.
    """

    steps: int
    resumed_at: int
    reported_steps: int
    language_loss: float | None
    gate_loss: float | None
    right: float | None
