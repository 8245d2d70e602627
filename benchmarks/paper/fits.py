"""The bundles that are compared: one for each scope in closed form, and two whose gates are trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gates.bundles import fit_by_workflow
from benchmarks.gates.rows import digest_of
from meteora_registry.files.writing import whole_file
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.gate_fit import FitRequest, fit_options
from meteora_registry.runtime.training import TrainingOptions
from meteora_registry.schemas.gate_choices import DEFAULT_SAMPLES, Answers, PromptForm, Scope

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
        training: how the gates in closed form are then trained; None if they are not.
        answers: who decides for the numbered lines of an answer.
        samples: of a member that are read; None for the default of `gate fit`.
    """

    name: str
    scope: Scope
    top_k: int = 1
    training: TrainingOptions | None = None
    answers: Answers = "by-text"
    samples: int | None = None

    @property
    def settings(self) -> dict[str, Any] | None:
        """What determines trained gates, for digests and rows."""
        return None if self.training is None else self.training.settings.model_dump(mode="json")


# Of each task. A fit in closed form is solved on half of them and holds the others out, or on four fifths
# with `--samples` of this number; a training reads all.
FIT_ITEMS = 64
SGD_TOP_1, SGD_TOP_2 = "sgd-top-1", "sgd-top-2"
SEGMENT_IN_ORDER = "segment-in-order"
MORE_SAMPLES = "prompt-more-samples"
COMPOSITE_FITS = (
    Fit("prompt", "prompt"),
    Fit("token", "token"),
    Fit(SEGMENT_IN_ORDER, "segment", answers="in-order"),
)


def fits_for(members: int) -> tuple[Fit, ...]:
    """Return the fits of a bundle of so many members.

    A training reads one line of every member in each step, and every line once.
    """
    training = TrainingOptions(start="closed-form", steps=FIT_ITEMS, batch_size=members, checkpoint_steps=8)
    return (
        Fit("prompt", "prompt"),
        Fit(MORE_SAMPLES, "prompt", samples=FIT_ITEMS),
        Fit("prompt+token", "prompt+token"),
        Fit("segment", "segment"),
        Fit("token", "token"),
        Fit(SGD_TOP_1, "token", 1, training),
        Fit(SGD_TOP_2, "token", 2, training),
    )


def fit_folder(fit: Fit, lines: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> Path:
    """Return the folder of a fit's bundle; ``lines`` are the data of each member."""
    options = asdict(fit_options(fit.scope, FORM, ABSTAIN, fit.samples or DEFAULT_SAMPLES))
    made_from = [lines, options, fit.top_k, fit.settings]
    if fit.answers != "by-text":
        made_from.append(fit.answers)
    return folder / f"{fit.name}-{digest_of(made_from)[:12]}"


def cost_file(folder: Path) -> Path:
    """Return the file beside a bundle that has the cost of its fit; without it the fit is not done."""
    return folder.with_name(f"{folder.name}.json")


def make_fit(base: Path, data: Path, home: Home, fit: Fit, bundle: Path, folder: Path) -> None:
    """Fit a fused bundle's gates as a user does, into a new folder with its cost beside it.

    A training that was killed goes on from its checkpoint beside the folder; its cost is then that of the
    rest, and is marked as such.
    """
    checkpoint = folder.with_name(f"{folder.name}.safetensors")
    is_resumed = checkpoint.exists()
    if folder.exists():
        # The process was killed before the cost was written.
        shutil.rmtree(folder)
    training = None if fit.training is None else replace(fit.training, checkpoint=checkpoint)
    request = FitRequest(
        str(base),
        data,
        fit.scope,
        form=FORM,
        abstain=ABSTAIN,
        answers=fit.answers,
        samples=fit.samples,
        training=training,
    )
    cost = asdict(fit_by_workflow(bundle, request, home, folder)) | {"is_resumed": is_resumed}
    with whole_file(cost_file(folder)) as staging:
        staging.write_text(json.dumps(cost) + "\n", encoding="utf-8")
