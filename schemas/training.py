"""The description inside a checkpoint of gates in training: how far it is, and of which training.

The file is a safetensors file; this document is stored as JSON in its metadata. Every gate's rows and bias
have their names in a bundle without PEFT's prefix, ``PATH.meteora_gate`` and ``PATH.meteora_gate_bias``, and
beside each are Adam's two moments, of the same shape. All tensors are F32.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from .bundle import MAX_MEMBERS, FittingData
from .digest import Digest
from .document import Count, Document, PositiveCount
from .statistics import TokenSettings

TRAINING_KEY = "meteora_training"
FIRST_MOMENT = "first_moment"
SECOND_MOMENT = "second_moment"

# Where training starts: at the gates in closed form, or at gates that are zero.
Start = Literal["closed-form", "zero"]


class TrainingSettings(Document):
    """The settings that, with the data, determine the trained gates."""

    start: Start
    gate_loss: FiniteFloat = Field(ge=0)
    learning_rate: FiniteFloat = Field(gt=0)
    steps: PositiveCount
    batch_size: PositiveCount
    seed: Count


class TrainingDescription(Document):
    """The description of a checkpoint.

    Attributes:
        meteora_training: the format of the file.
        step: how many steps were done.
        bundle_sha256: of the manifest of the bundle whose gates are trained.
        base_sha256: of the base, as in a file of statistics.
        settings: of the training.
        tokens: the tokens whose gates are trained.
        data: the data set of each member, in order.
    """

    meteora_training: Literal[1]
    step: Count
    bundle_sha256: Digest
    base_sha256: Digest
    settings: TrainingSettings
    tokens: TokenSettings
    data: tuple[FittingData, ...] = Field(min_length=1, max_length=MAX_MEMBERS)


def moment_name(gate: str, moment: str) -> str:
    """Return the name in a checkpoint of one of a gate's moments."""
    return f"{gate}.{moment}"
