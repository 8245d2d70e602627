"""The fit of request gates: they decide for whole requests, and read a few inputs of the base's middle.

They have a class for each member and classes of foreign prompts: the background, general prompts that ship
with this package. What they tell of a prompt is in ``scopes/request_gate.py``. The confidence of a prompt
is the share of own prompts, held out from the fit, that score lower, so a threshold on it states how many
own prompts it costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...files.progress import Progress, Step, silent
from ...schemas.bundle import QUANTILES, HeldOut, RequestGates, TemplateTokens
from ...schemas.gate_choices import FittedKind, PromptForm
from ...schemas.trace import ModulePlace
from ..scopes.prompt import mean_over
from ..scopes.request_gate import RequestEvidence, RequestGate, RequestRule, share_below
from .forms import write_as
from .inputs import ModuleInput, run, watched
from .moments import Moments, collect_moments
from .sequences import Batch, LabelledTokens, count_tokens, encode_samples, make_batches
from .solve import solve_request_gate
from .statistics_file import merge_moments
from .task_data import Sample

GENERAL_PROMPTS = Path(__file__).with_name("general_prompts.txt")
# The base's early and middle layers tell most, and a pass need not go beyond them (docs/gates.md).
MAX_INPUTS = 5
FIRST_DEPTH, LAST_DEPTH = 1 / 6, 1 / 2
# With fewer, the lowest score is above the threshold of 5 %: (19 + 1) / 20 = 1.
LEAST_HELD_OUT = 19
# Every so many general prompts one is kept for the estimate.
_KEPT_OUT = 4
_FORMS: Mapping[PromptForm, tuple[PromptForm, ...]] = {"both": ("plain", "chat")}


@dataclass(frozen=True, slots=True)
class FittedRequests:
    """The request gates of a fit: ``values`` has each one's tensors in the order of ``REQUEST_TENSORS``.

    ``confusions`` counts the held-out prompts of a member that the decision gave to another one.
    """

    description: RequestGates
    values: dict[str, tuple[Tensor, Tensor, Tensor]]
    confusions: tuple[tuple[str, str, int], ...]


def choose_inputs(inputs: Sequence[ModuleInput], config: PretrainedConfig) -> tuple[ModuleInput, ...]:
    """Choose the inputs that request gates read: the first of some layers, spread over the base's middle.

    Where no module is there, those of the first layers that have modules.
    """
    first: dict[str, ModuleInput] = {}
    for each in inputs:
        first.setdefault(ModulePlace.of(each.source).layer, each)
    found, layers = list(first.values()), getattr(config, "num_hidden_layers", None)
    depths = [ModulePlace.of(each.source).order[1] / layers if layers else 0.0 for each in found]
    middle = [
        each for each, depth in zip(found, depths, strict=True) if FIRST_DEPTH <= depth < LAST_DEPTH
    ] or found[: max(1, len(found) // 2)]
    count = min(MAX_INPUTS, len(middle))
    return tuple(middle[place * len(middle) // count] for place in range(count))


@cache
def general_prompts() -> dict[str, tuple[Sample, ...]]:
    """Return the general prompts that ship with this package, by class."""
    classes: dict[str, list[Sample]] = {}
    name = ""
    for number, line in enumerate(GENERAL_PROMPTS.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# "):
            name = line.removeprefix("# ")
            classes[name] = []
        elif line:
            classes[name].append(Sample(line, None, number, question=line))
    return {name: tuple(samples) for name, samples in classes.items()}


@dataclass(frozen=True, slots=True)
class RequestReader:
    """The base as request gates read it, and how: a fit's options for them.

    Attributes:
        base: the plain base.
        tokenizer: the base's.
        inputs: those that the gates read.
        kind: of the gates.
        eps: of the gates.
        scale_input: as for ``collect_moments``.
        form: of the prompts.
        template: the tokens of the chat template, which do not count.
        max_tokens: where a prompt is cut off.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    inputs: tuple[ModuleInput, ...]
    kind: FittedKind
    eps: float
    scale_input: Callable[[Tensor], Tensor]
    form: PromptForm
    template: TemplateTokens | None
    max_tokens: int

    @property
    def forms(self) -> tuple[PromptForm, ...]:
        """The forms in which prompts are judged."""
        return _FORMS.get(self.form, (self.form,))

    def moments(self, classes: Sequence[Sequence[Sample]], progress: Progress) -> dict[str, Moments]:
        """Return the moments of classes of prompts, by input."""
        sequences = [
            sequence
            for place, samples in enumerate(classes)
            for sequence in self._encode(write_as(samples, self.form, self.tokenizer), place)
        ]
        batches, tokens = make_batches(sequences), dict(count_tokens(sequences))
        step = Step("reading general prompts", len(batches), progress)
        return collect_moments(
            self.base, self.inputs, batches, tokens, scale_input=self.scale_input, step=step
        )

    def evidence(
        self, samples: Sequence[Sample], form: PromptForm, gates: Mapping[str, RequestGate]
    ) -> Tensor:
        """Return the mean evidence [N, L + C + 1] of prompts in a form, as a routed model finds it."""
        found = torch.zeros(len(samples), next(iter(gates.values())).classes + 1)
        questions = [replace(sample, response=None) for sample in write_as(samples, form, self.tokenizer)]
        # The label is the prompt's place: batches are sorted by length.
        sequences = [
            sequence for place, each in enumerate(questions) for sequence in self._encode([each], place)
        ]
        for batch in make_batches(sequences):
            found[batch.labels.amax(dim=1)] = self._evidence_of(batch, gates)
        return found

    def _encode(self, samples: Sequence[Sample], label: int) -> list[LabelledTokens]:
        return encode_samples(
            samples,
            self.tokenizer,
            label,
            max_tokens=self.max_tokens,
            skip_tokens=0,
            template=self.template,
        )

    def gate(self, tensors: tuple[Tensor, Tensor, Tensor]) -> RequestGate:
        """Return the request gate of these tensors."""
        rows, bias, gram = (tensor.to(self.base.device) for tensor in tensors)
        return RequestGate(rows, bias, gram, kind=self.kind, eps=self.eps)

    def _evidence_of(self, batch: Batch, gates: Mapping[str, RequestGate]) -> Tensor:
        batches, tokens = batch.ids.shape
        evidence = RequestEvidence(batches, tokens, gates)
        with watched(self.base, gates, evidence.read):
            run(self.base, gates, batch.ids.to(self.base.device), batch.mask.to(self.base.device))
        return mean_over(evidence.mean, batch.labels >= 0).cpu()


def fit_request_gates(
    reader: RequestReader,
    members: Mapping[str, Moments],
    held_out: Mapping[str, Sequence[Sample]],
    *,
    shrinkage: float,
    abstain: float | None,
    progress: Progress = silent,
) -> FittedRequests:
    """Fit the request gates of a bundle.

    Args:
        reader: reads the general prompts and those that were held out.
        members: the moments of the members at each input, by source, in the order of ``held_out``.
        held_out: prompts of every member that the moments do not contain; they may be none.
        shrinkage: as for ``solve_gate``.
        abstain: the threshold that the estimate is for; None for no abstention.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    names = tuple(held_out)
    background = tuple(general_prompts())
    read, kept = _split_general()
    # A member may have a background's name.
    classes = tuple(f"background {name}" for name in background)
    foreign = reader.moments(read, progress)
    values = {
        source: solve_request_gate(
            merge_moments(moments, names, foreign[source], classes, (*names, *classes)),
            len(names),
            shrinkage=shrinkage,
            what=f"the input of `{source}` with general prompts",
        )
        for source, moments in members.items()
    }
    judged = _judge(reader, {path: reader.gate(tensors) for path, tensors in values.items()}, held_out, kept)
    quantiles = quantiles_of(judged.own_scores)
    return FittedRequests(
        RequestGates(
            modules=tuple(values),
            background=background,
            forms=reader.forms,
            template=reader.template,
            centre=judged.rule.centre,
            spread=judged.rule.spread,
            quantiles=quantiles,
            held_out=judged.summary(quantiles, abstain),
        ),
        values,
        judged.confusions(names),
    )


def _split_general() -> tuple[list[list[Sample]], list[Sample]]:
    """Return the general prompts that a fit reads, by class, and those kept for the estimate."""
    classes = general_prompts().values()
    read = [[each for place, each in enumerate(own) if place % _KEPT_OUT] for own in classes]
    return read, [each for own in classes for each in own[::_KEPT_OUT]]


@dataclass(frozen=True, slots=True)
class _Judged:
    """Decisions about prompts that a fit did not read, each in every form, in the same order.

    ``rule`` gave the scores. ``own_scores`` and ``general_scores`` have a tensor for each form; ``members``
    are the prompts' own, and ``decided`` those that were chosen, over all forms.
    """

    rule: RequestRule
    own_scores: tuple[Tensor, ...]
    general_scores: tuple[Tensor, ...]
    members: Tensor
    decided: Tensor

    def summary(self, quantiles: tuple[float, ...] | None, abstain: float | None) -> HeldOut | None:
        """Return how many decisions were right, and how many prompts are left to the base."""
        if not len(self.members):
            return None
        threshold = None if quantiles is None else abstain
        return HeldOut(
            prompts=len(self.members),
            right=int((self.members == self.decided).sum()),
            abstain=threshold,
            own_left=_count_left(self.own_scores, quantiles, threshold),
            general_prompts=sum(map(len, self.general_scores)),
            general_left=_count_left(self.general_scores, quantiles, threshold),
        )

    def confusions(self, names: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
        """Return the wrong decisions as own member, chosen member and how often, the most frequent first."""
        pairs = zip(self.members.tolist(), self.decided.tolist(), strict=True)
        wrong = Counter((own, chosen) for own, chosen in pairs if own != chosen)
        return tuple((names[own], names[chosen], count) for (own, chosen), count in wrong.most_common())


def _judge(
    reader: RequestReader,
    gates: Mapping[str, RequestGate],
    held_out: Mapping[str, Sequence[Sample]],
    general: Sequence[Sample],
) -> _Judged:
    count = len(held_out)
    own = [sample for samples in held_out.values() for sample in samples]
    places = [place for place, samples in enumerate(held_out.values()) for _ in samples]
    found = [reader.evidence(own, form, gates) for form in reader.forms]
    foreign = [reader.evidence(general, form, gates) for form in reader.forms]
    familiarity = torch.cat([evidence[:, -1] for evidence in found]).double()
    known = len(familiarity) > 1 and bool(familiarity.std() > 0)
    rule = RequestRule(
        count,
        centre=familiarity.mean().item() if known else 0.0,
        spread=familiarity.std().item() if known else 1.0,
        quantiles=None,
    )
    return _Judged(
        rule,
        tuple(rule.score(evidence) for evidence in found),
        tuple(rule.score(evidence) for evidence in foreign),
        torch.tensor(places * len(reader.forms), dtype=torch.int64),
        torch.cat([evidence[:, :count].argmax(dim=1) for evidence in found]),
    )


def quantiles_of(forms: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Return the scores below which at most 0, 1, 2 and so on hundredths of own prompts are, in any form.

    The k-th lowest of n scores has at most the share k / (n + 1) of new prompts below it, on average over all
    draws of the n (the bound of split conformal prediction). Of several forms each has to keep it. None if
    there are too few scores for a threshold of 5 %.
    """
    if min(map(len, forms)) < LEAST_HELD_OUT:
        return None
    return tuple(
        min(_quantile(scores.sort().values, place) for scores in forms) for place in range(QUANTILES)
    )


def _quantile(rising: Tensor, place: int) -> float:
    count = len(rising)
    k = math.floor(place * (count + 1) / (QUANTILES - 1) + 1e-9)
    if k == 0:
        # As far below the lowest as that is below the highest: nothing is known of so rare prompts.
        return 2 * float(rising[0]) - float(rising[-1])
    return float(rising[min(k, count) - 1])


def _count_left(
    forms: Sequence[Tensor], quantiles: tuple[float, ...] | None, threshold: float | None
) -> int | None:
    if quantiles is None or threshold is None:
        return None
    known = torch.tensor(quantiles, dtype=torch.float64)
    return sum(int((share_below(scores, known) < threshold).sum()) for scores in forms)
