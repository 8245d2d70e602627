"""The fit of request gates: they decide for whole requests, and read a few inputs of the base's early layers.

They have a class for each member and classes of foreign prompts: the background, general prompts that ship
with this package. How a score follows from them is in ``scopes/request_gate.py``. The confidence of a prompt
is the share of own prompts, held out from the fit, that score lower, so a threshold on it states how many
own prompts it costs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ...files.progress import Progress, Step, silent
from ...schemas.bundle import QUANTILES, HeldOut, RequestGates, TemplateTokens
from ...schemas.gate_choices import FittedKind, PromptForm, forms_of
from ...schemas.trace import ModulePlace
from ..scopes.prompt import mean_over
from ..scopes.request_gate import Gram, RequestEvidence, RequestGate, RequestRule, share_below
from .forms import write_as
from .inputs import ModuleInput, run, watched
from .moments import Moments, collect_moments, scaling_of
from .sequences import Batch, LabelledTokens, count_tokens, encode_samples, make_batches
from .solve import solve_request_gate
from .task_data import Sample

GENERAL_PROMPTS = Path(__file__).with_name("general_prompts.txt")
# The base's early and middle layers tell most, and a pass need not go beyond them (docs/gates.md).
MAX_INPUTS = 5
# The second moments of all of them are held at once.
MAX_CANDIDATES = 12
FIRST_DEPTH, LAST_DEPTH = 1 / 10, 1 / 2
# Of the bundle's bytes, that the request gates may have.
MAX_SHARE = 0.05
# On average 1 / (n + 1) of new prompts score below the lowest of n: 5 % with 19, more with fewer.
LEAST_HELD_OUT = 19
# How rarely more own prompts than the stated share may be lost, over draws of the held-out prompts.
_RISK = 0.05
# Every so many general prompts one is kept for the estimate.
_KEPT_OUT = 4

# Prompts that no fit reads, by member and form.
MemberPrompts = Mapping[str, Mapping[PromptForm, Sequence[LabelledTokens]]]


@dataclass(frozen=True, slots=True)
class FittedRequests:
    """The request gates of a fit: ``values`` has each one's tensors in the order of ``REQUEST_TENSORS``.

    ``confusions`` counts the held-out prompts of a member that the decision gave to another one.
    """

    description: RequestGates
    values: dict[str, tuple[Tensor, Tensor, Tensor]]
    confusions: tuple[tuple[str, str, int], ...]


def candidate_inputs(inputs: Sequence[ModuleInput], config: PretrainedConfig) -> tuple[ModuleInput, ...]:
    """Return the inputs that request gates may read: the first of each layer in the first half of the base.

    The very first layers are left out: they know the words but not their order. Where no module is in that
    part, the first layers that have modules.
    """
    first: dict[str, ModuleInput] = {}
    for each in inputs:
        first.setdefault(ModulePlace.of(each.source).layer, each)
    found, layers = list(first.values()), getattr(config, "num_hidden_layers", None)
    depths = [ModulePlace.of(each.source).order[1] / layers if layers else 0.0 for each in found]
    middle = [each for each, depth in zip(found, depths, strict=True) if FIRST_DEPTH <= depth < LAST_DEPTH]
    middle = middle or found[: max(1, len(found) // 2)]
    count = min(MAX_CANDIDATES, len(middle))
    return tuple(middle[(place + 1) * len(middle) // count - 1] for place in range(count))


def spreads(count: int, size: int) -> list[tuple[int, ...]]:
    """Return the choices of at most ``size`` of ``count`` inputs: spread evenly, each ending one later."""
    size = min(size, count)
    counts = range(size, count + 1)
    return [tuple((place + 1) * seen // size - 1 for place in range(size)) for seen in counts]


def most_inputs(candidates: Sequence[ModuleInput], classes: int, members: int, bundle_bytes: int) -> int:
    """Return how many inputs request gates may read, at least one, to stay a small part of a bundle.

    Args:
        candidates: the inputs.
        classes: members and background classes together.
        members: of the bundle.
        bundle_bytes: of its other tensors.
    """
    own = max(4 * (classes * (each.features + 1) + members**2) for each in candidates)
    return max(1, min(MAX_INPUTS, int(MAX_SHARE * bundle_bytes / own)))


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
        observed: the features of those that no member of the bundle reads, by source.
        kind: of the gates.
        eps: of the gates.
        form: of the prompts.
        template: the tokens of the chat template, which do not count.
        max_tokens: where a prompt is cut off.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    inputs: tuple[ModuleInput, ...]
    observed: Mapping[str, int]
    kind: FittedKind
    eps: float
    form: PromptForm
    template: TemplateTokens | None
    max_tokens: int

    @property
    def observed_inputs(self) -> tuple[ModuleInput, ...]:
        """The inputs that no member of the bundle reads."""
        return tuple(each for each in self.inputs if each.source in self.observed)

    @property
    def forms(self) -> tuple[PromptForm, ...]:
        """The forms in which prompts are judged."""
        return forms_of(self.form)

    def moments(self, classes: Sequence[Sequence[Sample]], progress: Progress) -> dict[str, Moments]:
        """Return the moments of classes of prompts, by input.

        Answers are not read, because no decision reads one: with them a class is not where its prompts are.
        """
        sequences = [
            sequence
            for place, samples in enumerate(classes)
            for sequence in self._encode(self._questions(samples, self.form), place)
        ]
        batches, tokens = make_batches(sequences), dict(count_tokens(sequences))
        step = Step("reading prompts", len(batches), progress)
        scaling = scaling_of(self.kind, self.eps)
        return collect_moments(self.base, self.inputs, batches, tokens, scale_input=scaling, step=step)

    def encode(self, samples: Sequence[Sample], form: PromptForm) -> tuple[LabelledTokens, ...]:
        """Return the prompts of samples in a form, those tokens that count labelled 0."""
        return tuple(self._encode(self._questions(samples, form), 0))

    def evidence(self, prompts: Sequence[LabelledTokens], gates: Mapping[str, RequestGate]) -> Tensor:
        """Return what each gate of G reads of prompts, float32 [G, N, L + C + 1].

        Their mean over G is the evidence that a routed model finds.
        """
        found = torch.zeros(len(gates), len(prompts), next(iter(gates.values())).classes + 1)
        # The label is the prompt's place: batches are sorted by length.
        sequences = [prompt.relabelled(place) for place, prompt in enumerate(prompts)]
        for batch in make_batches(sequences):
            found[:, batch.labels.amax(dim=1)] = self._evidence_of(batch, gates)
        return found

    def _questions(self, samples: Sequence[Sample], form: PromptForm) -> list[Sample]:
        return [replace(sample, response=None) for sample in write_as(samples, form, self.tokenizer)]

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
        return RequestGate(rows, bias, Gram.of(gram), kind=self.kind, eps=self.eps)

    def _evidence_of(self, batch: Batch, gates: Mapping[str, RequestGate]) -> Tensor:
        batches, tokens = batch.ids.shape
        found: dict[str, Tensor] = {}

        def read(path: str, x: Tensor) -> None:
            evidence = RequestEvidence(batches, tokens, {path: gates[path]})
            evidence.read(path, x)
            found[path] = mean_over(evidence.mean, batch.labels >= 0).cpu()

        with watched(self.base, gates, read):
            run(self.base, gates, batch.ids.to(self.base.device), batch.mask.to(self.base.device))
        return torch.stack([found[path] for path in gates])


def fit_request_gates(
    reader: RequestReader,
    prompts: Mapping[str, Moments],
    held_out: MemberPrompts,
    *,
    shrinkage: float,
    abstain: float | None,
    bundle_bytes: int | None = None,
    progress: Progress = silent,
) -> FittedRequests:
    """Fit the request gates of a bundle, and choose the inputs that they read by the held-out prompts.

    Args:
        reader: reads the prompts.
        prompts: the moments of the members' prompts at each input, by source.
        held_out: prompts of every member, in their order, that are not fitted on; they may be none.
        shrinkage: as for ``solve_gate``.
        abstain: the threshold that the estimate is for; None for no abstention.
        bundle_bytes: of the bundle's factors, of which the gates may be a small part; None for no bound.
        progress: called with a step's name, how much of it is done, and how much there is.
    """
    names = tuple(held_out)
    background = tuple(general_prompts())
    read, kept = _split_general()
    values = {
        source: solve_request_gate(
            moments,
            len(names),
            shrinkage=shrinkage,
            what=f"the input of `{source}` with general prompts",
        )
        for source, moments in _with_background(reader, prompts, read, progress)
    }
    size = MAX_INPUTS
    if bundle_bytes is not None:
        size = most_inputs(reader.inputs, len(names) + len(background), len(names), bundle_bytes)
    gates = {path: reader.gate(tensors) for path, tensors in values.items()}
    chosen, judged = _judge(reader, gates, held_out, kept, size)
    values = {path: values[path] for path in chosen}
    quantiles = quantiles_of(judged.own_scores)
    return FittedRequests(
        RequestGates(
            modules=tuple(values),
            observed={path: reader.observed[path] for path in values if path in reader.observed} or None,
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


def _with_background(
    reader: RequestReader,
    prompts: Mapping[str, Moments],
    general: Sequence[Sequence[Sample]],
    progress: Progress,
) -> Iterator[tuple[str, Moments]]:
    """Yield each input's source and the moments of members and background there."""
    for source, foreign in reader.moments(general, progress).items():
        yield source, Moments.join([prompts[source], foreign])


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
    held_out: MemberPrompts,
    general: Sequence[Sample],
    size: int,
) -> tuple[tuple[str, ...], _Judged]:
    """Choose at most ``size`` gates, and return their paths and their decisions."""
    count = len(held_out)
    own = [[prompt for forms in held_out.values() for prompt in forms[form]] for form in reader.forms]
    places = [
        place for form in reader.forms for place, forms in enumerate(held_out.values()) for _ in forms[form]
    ]
    members = torch.tensor(places, dtype=torch.int64)
    found = [reader.evidence(prompts, gates) for prompts in own]
    chosen = choose_inputs(torch.cat(found, dim=1)[..., :count], members, size)
    foreign = [reader.evidence(reader.encode(general, form), gates) for form in reader.forms]
    own_evidence, foreign_evidence = (
        [evidence[list(chosen)].mean(dim=0) for evidence in forms] for forms in (found, foreign)
    )
    paths = tuple(path for place, path in enumerate(gates) if place in chosen)
    rule = _rule_of(own_evidence, count, paths)
    return paths, _Judged(
        rule,
        tuple(rule.score(evidence) for evidence in own_evidence),
        tuple(rule.score(evidence) for evidence in foreign_evidence),
        members,
        torch.cat([evidence[:, :count].argmax(dim=1) for evidence in own_evidence]),
    )


def _rule_of(own: Sequence[Tensor], members: int, paths: tuple[str, ...]) -> RequestRule:
    familiarity = torch.cat([evidence[:, -1] for evidence in own]).double()
    known = len(familiarity) > 1 and bool(familiarity.std() > 0)
    return RequestRule(
        members,
        paths,
        centre=familiarity.mean().item() if known else 0.0,
        spread=familiarity.std().item() if known else 1.0,
        quantiles=None,
    )


def choose_inputs(evidence: Tensor, members: Tensor, size: int) -> tuple[int, ...]:
    """Return the places of at most ``size`` inputs whose decisions are most often right.

    Of equal choices the one that ends first, so that a pass can stop there. Without any prompt, the one that
    ends last.

    Args:
        evidence: [G, N, L], of each input and prompt, in the order of the base.
        members: int64 [N], the prompts' own.
        size: at least 1.
    """
    choices = spreads(evidence.shape[0], size)
    right = [int((evidence[list(each)].mean(dim=0).argmax(dim=1) == members).sum()) for each in choices]
    return choices[right.index(max(right))] if len(members) else choices[-1]


def quantiles_of(forms: Sequence[Tensor]) -> tuple[float, ...] | None:
    """Return the scores below which at most 0, 1, 2 and so on hundredths of own prompts are, in any form.

    At most: in 19 of 20 draws of the n held-out prompts. New prompts fall below the k-th lowest of n scores
    with a probability that is distributed as Beta(k, n + 1 - k) over the draws (a tolerance limit, Wilks
    1941). Where n is too small for that even with k = 1, on average over the draws, k / (n + 1) (split
    conformal prediction). Of several forms each has to keep it. None if there are too few scores for a
    threshold of 5 % either way.
    """
    if min(map(len, forms)) < LEAST_HELD_OUT:
        return None
    rising = [scores.sort().values for scores in forms]
    return tuple(
        min(_quantile(each, place / (QUANTILES - 1)) for each in rising) for place in range(QUANTILES)
    )


def _quantile(rising: Tensor, share: float) -> float:
    k = safe_rank(len(rising), share)
    if k == 0:
        # As far below the lowest as that is below the highest: nothing is known of so rare prompts.
        return 2 * float(rising[0]) - float(rising[-1])
    return float(rising[k - 1])


def safe_rank(count: int, share: float) -> int:
    """Return the rank of the lowest score, from 1, that keeps all but ``share`` of new prompts; 0 for none.

    That is the largest k with P(Binomial(count, share) >= k) of at least 95 %.
    """
    if share >= 1:
        return count
    if share <= 0:
        return 0
    hits = torch.arange(count + 1, dtype=torch.float64)
    log_choices = math.lgamma(count + 1) - torch.lgamma(hits + 1) - torch.lgamma(count - hits + 1)
    below = (log_choices + hits * math.log(share) + (count - hits) * math.log1p(-share)).exp().cumsum(dim=0)
    on_average = int(share * (count + 1) + 1e-9)
    return int((below <= _RISK).sum()) or min(on_average, 1)


def _count_left(
    forms: Sequence[Tensor], quantiles: tuple[float, ...] | None, threshold: float | None
) -> int | None:
    if quantiles is None or threshold is None:
        return None
    known = torch.tensor(quantiles, dtype=torch.float64)
    return sum(int((share_below(scores, known) < threshold).sum()) for scores in forms)
