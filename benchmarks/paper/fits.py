"""The bundles that are compared: one for each scope in closed form, and two whose gates are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gates.bundles import FitCost, fit_by_workflow
from benchmarks.gates.rows import digest_of
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.gate_fit import FitRequest, fit_options
from meteora_registry.runtime.training import TrainingOptions
from meteora_registry.schemas.gate_choices import PromptForm, Scope

# The data have both forms of a prompt already. No prompt is left to the base: all belong to a member.
FORM: PromptForm = "given"
ABSTAIN = None


@dataclass(frozen=True, slots=True)
class Fit:
    """One bundle and how `gate fit` finds its gates.

    Attributes:
        name: of the bundle.
        scope: what one decision of its gates serves.
        top_k: of the bundle.
        training: how the gates are trained; None for those in closed form.
    """

    name: str
    scope: Scope
    top_k: int = 1
    training: TrainingOptions | None = None


# Every member's samples are read once, so many of each in a step.
TRAINING = TrainingOptions(start="closed-form", steps=64, batch_size=16, checkpoint_steps=8)
SGD_TOP_1, SGD_TOP_2 = "sgd-top-1", "sgd-top-2"
FITS = (
    Fit("prompt", "prompt"),
    Fit("prompt+token", "prompt+token"),
    Fit("segment", "segment"),
    Fit("token", "token"),
    Fit(SGD_TOP_1, "token", 1, TRAINING),
    Fit(SGD_TOP_2, "token", 2, TRAINING),
)


def fit_folder(fit: Fit, lines: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> Path:
    """Return where the bundle that a fit gives on these lines of data of each member is kept."""
    options = asdict(fit_options(fit.scope, FORM, ABSTAIN))
    return folder / f"{fit.name}-{digest_of([lines, options, fit.top_k, training_of(fit)])[:12]}"


def training_of(fit: Fit) -> dict[str, Any] | None:
    """Return the settings that determine trained gates."""
    return None if fit.training is None else fit.training.settings.model_dump(mode="json")


def make_fit(base: Path, data: Path, home: Home, fit: Fit, bundle: Path, folder: Path) -> FitCost:
    """Fit a fused bundle's gates as a user does, into a new folder.

    A training that was killed goes on from its checkpoint beside the folder.
    """
    training = fit.training
    if training is not None:
        training = replace(training, checkpoint=folder.with_name(f"{folder.name}.safetensors"))
    request = FitRequest(str(base), data, fit.scope, form=FORM, abstain=ABSTAIN, training=training)
    return fit_by_workflow(bundle, request, home, folder)
