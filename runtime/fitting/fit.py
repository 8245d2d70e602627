"""The fit of every gate of a bundle: one pass of the plain base over the data, then one solve per input.

Only the base alone is observed. With the right adapter forced, its deltas would mark the inputs of later
modules with the very label that is to be learned, and a routed model has no such mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...files.progress import Progress, Step, silent
from ...schemas.answer_order import AnswerOrder
from ...schemas.bundle import BundleConfig, Fitting, FittingData, Gate, TemplateTokens
from ...schemas.errors import DataRefused, UsageError
from ...schemas.gate_choices import FittedKind, PromptForm, Scope
from ...schemas.statistics import (
    MAX_FEATURES,
    StatisticsDescription,
    StatisticsInput,
    StatisticsMember,
    TokenSettings,
)
from ..base_model import context_of
from .chat_template import ChatTemplate
from .evidence import ChosenEvidence, candidate_gates, choose_evidence
from .fit_options import EPS, FitOptions
from .forms import form_of_fit, template_tokens, write_as
from .inputs import ModuleInput, check_plain, find_inputs, find_layer_inputs
from .moments import Moments, collect_moments, scaling_of, split_inputs
from .request_gates import FittedRequests, RequestReader, candidate_inputs, fit_request_gates
from .sequences import (
    Batch,
    choose_samples,
    concatenate,
    count_tokens,
    encode_samples,
    hold_out,
    make_batches,
)
from .solve import solve_gate
from .statistics_file import (
    StatisticsFile,
    StatisticsWriter,
    digest_of_base,
    merge_moments,
    written_statistics,
)
from .task_data import Sample, TaskData


@dataclass(frozen=True, slots=True)
class FittedGates:
    """The gates of a bundle: ``values`` has rows ``[L, h]`` and bias ``[L]``, float32, by source module.

    ``sources`` takes every other module to the one whose input, and hence whose gate, it shares. ``requests``
    has the request gates, if they were asked for, and ``abstain`` the threshold of their confidence; None if
    none was asked for, or too few prompts were held out to know one. ``evidence`` has the gates that segments
    are decided by, if they were to be chosen. ``tokens`` states which tokens were counted.
    """

    kind: FittedKind
    eps: float
    values: dict[str, tuple[Tensor, Tensor]]
    sources: dict[str, str]
    fitting: Fitting
    tokens: TokenSettings
    requests: FittedRequests | None = None
    abstain: float | None = None
    evidence: ChosenEvidence | None = None

    def describe(self, scope: Scope, answers: AnswerOrder | None = None) -> Gate:
        """Return the part of a bundle's config for these gates, if one decision of them serves ``scope``."""
        return Gate(
            kind=self.kind,
            scope=scope,
            bias=True,
            eps=self.eps,
            sources=self.sources,
            abstain=self.abstain,
            request=None if self.requests is None else self.requests.description,
            evidence=None if self.evidence is None else self.evidence.modules,
            answers=answers,
            initialisation=None,
            fitted=self.fitting,
        )


def fit_gates(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BundleConfig,
    data: Mapping[str, TaskData],
    *,
    options: FitOptions | None = None,
    statistics: Path | None = None,
    bundle_bytes: int | None = None,
    progress: Progress = silent,
) -> FittedGates:
    """Fit the gates of every module of a bundle.

    Memory beside the base: ``max_memory_bytes``, or one second moment if that is larger, and for the solve
    two matrices of the widest input in float64. Request gates take the second moments of all their candidate
    inputs at once, of the members' prompts and of the general ones.

    Args:
        base: the plain base.
        tokenizer: the base's.
        config: of the bundle, for its members and modules.
        data: of the members. One that the statistics have already may be missing; if it is there, it must
            be the same.
        options: how; the defaults are those measured best.
        statistics: a file of statistics. If it exists the members in it are taken from there; the new
            sums are kept in it.
        bundle_bytes: of the bundle's factors, of which request gates may be a small part; None for no bound.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError: the model carries adapters, or a module has more inputs than a gate can be fitted for.
        BundleRefused: the base does not fit the bundle's modules.
        DataRefused: a member has no data, the data are too short, or the statistics do not fit.
        SourceUnreadable: the statistics cannot be read or written.
    """
    check_plain(base)
    # One process for all the prompts of the fit, each part of which opens the template.
    with ChatTemplate(tokenizer):
        with _opened(statistics) as old:
            fit = _prepare(base, tokenizer, config, data, options or FitOptions(), old, progress)
            with _kept(statistics, fit) as writer:
                values = _solve_gates(fit, writer)
                prompts = _read_prompts(fit, writer)
        requests = _request_gates(fit, prompts, bundle_bytes)
        evidence = _evidence(fit, values)
    has_threshold = requests is not None and requests.description.quantiles is not None
    return FittedGates(
        kind=fit.options.kind,
        eps=EPS,
        values=values,
        sources={path: each.source for each in fit.inputs for path in each.modules[1:]},
        fitting=_fitting(fit.description, fit.options),
        tokens=fit.description.settings,
        requests=requests,
        abstain=fit.options.abstain if has_threshold else None,
        evidence=evidence,
    )


@dataclass(frozen=True, slots=True)
class _NewData:
    """The data that the base reads: the new members' tokens in batches, labelled by index in ``names``."""

    names: tuple[str, ...]
    parts: dict[str, StatisticsMember]
    batches: list[Batch]
    tokens: dict[int, int]


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fit that was checked: what is read, with which options, and what is known from statistics (``old``).

    ``reader`` reads the prompts of request gates; None if none are fitted.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: BundleConfig
    data: Mapping[str, TaskData]
    options: FitOptions
    progress: Progress
    inputs: Sequence[ModuleInput]
    old: StatisticsFile | None
    new: _NewData
    reader: RequestReader | None
    description: StatisticsDescription

    def merged(self, old: Moments | None, new: Moments | None) -> Moments:
        """Return the moments of all members, from those of the statistics and those of the new data."""
        old_names = self.old.description.names if self.old else ()
        return merge_moments(old, old_names, new, self.new.names, self.description.names)

    def held_out(self) -> dict[str, tuple[Sample, ...]]:
        """Return the samples of each member that the moments do not contain, by name.

        Those of statistics do not contain them either: their settings have ``holds_out`` too.
        """
        return {
            name: hold_out(self.data[name].samples, self.options.max_samples)[1] if name in self.data else ()
            for name in self.config.names
        }


def _opened(statistics: Path | None) -> AbstractContextManager[StatisticsFile | None]:
    return nullcontext() if statistics is None or not statistics.exists() else StatisticsFile(statistics)


def _kept(statistics: Path | None, fit: _Fit) -> AbstractContextManager[StatisticsWriter | None]:
    """Return the writer of the sums; None if no file was named, or nothing is new."""
    if statistics is None or not fit.new.names:
        return nullcontext()
    return written_statistics(statistics, fit.description)


def _prepare(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BundleConfig,
    data: Mapping[str, TaskData],
    options: FitOptions,
    old: StatisticsFile | None,
    progress: Progress,
) -> _Fit:
    """Check that base, data and statistics fit together, and encode the data."""
    options = _settle(options, base, tokenizer, old)
    inputs = find_inputs(base, config.target_modules)
    _check_features(inputs)
    if old is not None:
        old.check_fits(digest_of_base(base), options.settings)
    known = _known_members(old, config, data)
    reader = _request_reader(base, tokenizer, inputs, options, old) if options.requests else None
    template = None if reader is None else reader.template
    new = _read_new(config, data, known, tokenizer, template, options)
    description = _describe(base, config, inputs, reader, {**known, **new.parts}, options)
    return _Fit(base, tokenizer, config, data, options, progress, inputs, old, new, reader, description)


def _settle(
    options: FitOptions, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, old: StatisticsFile | None
) -> FitOptions:
    """Return the options cut to the base's context, with the form that the fit reads."""
    form = options.form
    if form is None and old is not None:
        form = old.description.settings.form
    context = context_of(base.config)
    max_tokens = options.max_tokens if context is None else min(options.max_tokens, context)
    return replace(options, max_tokens=max_tokens, form=form_of_fit(tokenizer, form))


def _request_reader(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[ModuleInput],
    options: FitOptions,
    old: StatisticsFile | None,
) -> RequestReader:
    own = [path for each in inputs for path in each.modules]
    readable = find_layer_inputs(base, own) or tuple(inputs)
    known = tuple(each for each in readable if old is not None and old.has_prompts(each))
    # Sums of other inputs cannot be made without the data of the members that the statistics have.
    candidates = known or candidate_inputs(readable, base.config)
    _check_features(candidates)
    return RequestReader(
        base,
        tokenizer,
        candidates,
        observed={each.source: each.features for each in candidates if each.source not in own},
        kind=options.kind,
        eps=EPS,
        form=options.form or "given",
        template=template_tokens(tokenizer),
        max_tokens=options.max_tokens,
    )


def _check_features(inputs: Sequence[ModuleInput]) -> None:
    for each in inputs:
        if each.features > MAX_FEATURES:
            raise UsageError(
                f"`{each.source}` has {each.features} input features, "
                f"a gate can be fitted for at most {MAX_FEATURES}"
            )


def _known_members(
    old: StatisticsFile | None, config: BundleConfig, data: Mapping[str, TaskData]
) -> dict[str, StatisticsMember]:
    """Return the members whose part the statistics have, by name."""
    if old is None:
        return {}
    known = {part.member: part for part in old.description.members}
    if strangers := sorted(known.keys() - set(config.names)):
        raise DataRefused(
            f"the statistics have data of `{strangers[0]}`, which is not a member of the bundle",
            hint="their sums cannot be taken apart: fit without them, with the data of every member",
        )
    for name, part in known.items():
        if name in data and data[name].sha256 != part.sha256:
            raise DataRefused(
                f"`{data[name].path.name}` has the digest `{data[name].sha256.short}`, the statistics were "
                f"made of one with `{part.sha256.short}`",
                hint="fit without these statistics, with the data of every member",
            )
    return known


def _read_new(
    config: BundleConfig,
    data: Mapping[str, TaskData],
    known: Mapping[str, StatisticsMember],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateTokens | None,
    options: FitOptions,
) -> _NewData:
    names = tuple(name for name in config.names if name not in known)
    if missing := [name for name in names if name not in data]:
        raise DataRefused(f"there is no data for the member `{missing[0]}`")
    if options.concatenated and known and names:
        raise DataRefused(
            "samples behind those of other members cannot be added to statistics: they need all the data",
            hint="fit without these statistics, with the data of every member",
        )
    chosen = {
        name: write_as(_read_samples(data[name].samples, options), options.form or "given", tokenizer)
        for name in names
    }
    sequences = [
        encode_samples(
            chosen[name],
            tokenizer,
            place,
            max_tokens=options.max_tokens,
            skip_tokens=options.skip_tokens,
            template=template,
        )
        for place, name in enumerate(names)
    ]
    alone = [sequence for own in sequences for sequence in own]
    joined = concatenate(sequences, max_tokens=options.max_tokens) if options.concatenated else []
    tokens = count_tokens(alone + joined)
    parts = {name: _part_of(data[name], len(chosen[name]), tokens.get(i, 0)) for i, name in enumerate(names)}
    return _NewData(names, parts, make_batches(alone + joined), dict(tokens))


def _read_samples(samples: Sequence[Sample], options: FitOptions) -> tuple[Sample, ...]:
    if options.holds_out:
        samples = hold_out(samples, options.max_samples)[0]
    return choose_samples(samples, options.max_samples)


def _part_of(data: TaskData, samples: int, tokens: int) -> StatisticsMember:
    if tokens == 0:
        raise DataRefused(
            f"no token of `{data.path.name}` counts: all are among the first of their sample, "
            "which are left out"
        )
    return StatisticsMember(member=data.member, sha256=data.sha256, samples=samples, tokens=tokens)


def _describe(
    base: PreTrainedModel,
    config: BundleConfig,
    inputs: Sequence[ModuleInput],
    reader: RequestReader | None,
    parts: Mapping[str, StatisticsMember],
    options: FitOptions,
) -> StatisticsDescription:
    return StatisticsDescription(
        meteora_statistics=1,
        base_sha256=digest_of_base(base),
        settings=options.settings,
        members=tuple(parts[name] for name in config.names),
        inputs=tuple(map(_describe_input, inputs)),
        prompts=() if reader is None else tuple(each.source for each in reader.inputs),
        observed=() if reader is None else tuple(map(_describe_input, reader.observed_inputs)),
    )


def _describe_input(each: ModuleInput) -> StatisticsInput:
    return StatisticsInput(source=each.source, modules=each.modules, features=each.features)


def _solve_gates(fit: _Fit, writer: StatisticsWriter | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the rows and bias of every input's gate by source, after the base read the new data."""
    values: dict[str, tuple[Tensor, Tensor]] = {}
    options, batches = fit.options, fit.new.batches
    groups = list(split_inputs(fit.inputs, options.max_memory_bytes))
    solving = Step("solving", len(fit.inputs), fit.progress)
    for turn, group in enumerate(groups, start=1):
        name = "reading" if len(groups) == 1 else f"reading, pass {turn} of {len(groups)}"
        collected = _collect(fit, group, Step(name, len(batches), fit.progress))
        for each in group:
            moments = fit.merged(fit.old.read(each) if fit.old else None, collected.pop(each.source, None))
            if writer:
                writer.write(each.source, moments)
            values[each.source] = solve_gate(
                moments, options.method, shrinkage=options.shrinkage, what=f"the input of `{each.source}`"
            )
            solving.advance()
    return values


def _collect(fit: _Fit, group: Sequence[ModuleInput], step: Step) -> dict[str, Moments]:
    if not fit.new.names:
        return {}
    return collect_moments(
        fit.base,
        group,
        fit.new.batches,
        fit.new.tokens,
        scale_input=scaling_of(fit.options.kind, EPS),
        step=step,
    )


def _read_prompts(fit: _Fit, writer: StatisticsWriter | None) -> dict[str, Moments]:
    """Return the moments of all members' prompts, without answers, at each input of request gates, by source.

    Raises:
        DataRefused: the statistics have none of them.
    """
    if fit.reader is None:
        return {}
    samples = [_read_samples(fit.data[name].samples, fit.options) for name in fit.new.names]
    found = fit.reader.moments(samples, fit.progress) if samples else {}
    prompts = {
        each.source: fit.merged(fit.old.read_prompts(each) if fit.old else None, found.get(each.source))
        for each in fit.reader.inputs
    }
    if writer:
        for source, moments in prompts.items():
            writer.write_prompts(source, moments)
    return prompts


def _request_gates(
    fit: _Fit, prompts: Mapping[str, Moments], bundle_bytes: int | None
) -> FittedRequests | None:
    if fit.reader is None:
        return None
    return fit_request_gates(
        fit.reader,
        prompts,
        fit.held_out(),
        shrinkage=fit.options.shrinkage,
        abstain=fit.options.abstain,
        bundle_bytes=bundle_bytes,
        progress=fit.progress,
    )


def _evidence(fit: _Fit, values: Mapping[str, tuple[Tensor, Tensor]]) -> ChosenEvidence | None:
    if not fit.options.segments:
        return None
    candidates = candidate_gates(fit.inputs, fit.base.config)
    return choose_evidence(fit.base, values, candidates, _held_out_texts(fit), kind=fit.options.kind, eps=EPS)


def _held_out_texts(fit: _Fit) -> list[Batch]:
    """Return texts of held-out samples, one of each member behind another; none if a member has none."""
    template, max_tokens = template_tokens(fit.tokenizer), fit.options.max_tokens
    sequences = [
        encode_samples(
            write_as(samples, fit.options.form or "given", fit.tokenizer),
            fit.tokenizer,
            place,
            max_tokens=max_tokens,
            skip_tokens=0,
            template=template,
        )
        for place, samples in enumerate(fit.held_out().values())
    ]
    return make_batches(concatenate(sequences, max_tokens=max_tokens))


_FORMS: dict[PromptForm, str] = {
    "given": "",
    "plain": ", on plain prompts",
    "chat": ", on prompts in the chat template",
    "both": ", on prompts both plain and in the chat template",
}


def describe_tokens(settings: TokenSettings) -> str:
    """Return how the tokens were read, to be added to the description of a method."""
    skipped = f", without the first {settings.skip_tokens} tokens" if settings.skip_tokens else ""
    joined = ", also behind other members' samples" if settings.concatenated else ""
    return skipped + joined + _FORMS[settings.form]


def _fitting(description: StatisticsDescription, options: FitOptions) -> Fitting:
    how = f"{options.method}, shrinkage {options.shrinkage:g}, on the plain base"
    return Fitting(
        method=how + describe_tokens(description.settings),
        data=tuple(
            FittingData(member=part.member, sha256=part.sha256, samples=part.samples)
            for part in description.members
        ),
    )
