"""The fit of every gate of a bundle: one pass of the plain base over the data, then one solve per input.

Only the base alone is observed. With the right adapter forced, its deltas would mark the inputs of later
modules with the very label that is to be learned, and a routed model has no such mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...files.progress import Progress, Step, silent
from ...schemas.answer_order import AnswerOrder
from ...schemas.bundle import BundleConfig, Fitting, FittingData, Gate
from ...schemas.digest import Digest
from ...schemas.errors import DataRefused, UsageError
from ...schemas.gate_choices import FittedKind, PromptForm, Scope
from ...schemas.statistics import (
    MAX_FEATURES,
    HeldOutPrompts,
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
from .member_data import Reading, encode_members, open_parts, read_samples
from .moments import Moments, collect_moments, scaling_of, split_inputs
from .request_gates import (
    FittedRequests,
    MemberPrompts,
    RequestReader,
    candidate_inputs,
    fit_request_gates,
)
from .sequences import Batch, LabelledTokens, concatenate, encode_samples, hold_out, make_batches
from .solve import solve_gate
from .statistics_file import (
    StatisticsFile,
    StatisticsFolder,
    StatisticsWriter,
    digest_of_base,
    held_out_prompts,
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
    known: Mapping[str, Digest] | None = None,
    bundle_bytes: int | None = None,
    progress: Progress = silent,
) -> FittedGates:
    """Fit the gates of every module of a bundle.

    Memory beside the base: twice ``max_memory_bytes``, or two second moments if one is larger, and for the
    solve two matrices of the widest input in float64. Request gates take the second moments of all their
    candidate inputs at once, of the members' prompts and of the general ones.

    Args:
        base: the plain base.
        tokenizer: the base's.
        config: of the bundle, for its members and modules.
        data: of the members; those that the statistics have may be missing.
        options: how; the defaults are those measured best.
        statistics: a folder of statistics. Members whose part is in it are taken from there, without reading
            their data again; the parts of the others are kept in it.
        known: the digests of the data of members that are missing in ``data``. A member that is in neither
            comes from its part, if the statistics have exactly one that was made on this base, with these
            settings, for these modules.
        bundle_bytes: of the bundle's factors, of which request gates may be a small part; None for no bound.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        UsageError: the model carries adapters, a module has more inputs than a gate can be fitted for, or
            statistics were asked for of samples behind those of other members.
        BundleRefused: the base does not fit the bundle's modules.
        DataRefused: a member has no data or several parts, the data are too short, or the statistics do not
            fit.
        SourceUnreadable: the statistics cannot be read or written.
    """
    check_plain(base)
    options = _cut_to_context(options or FitOptions(), base)
    folder = None if statistics is None else StatisticsFolder(statistics)
    if folder is not None and options.concatenated:
        raise UsageError(
            "there are no statistics of samples behind those of other members: no member's part is its own",
            hint="fit without statistics, or for another scope than `segment`",
        )
    # One process for all the prompts of the fit, each part of which opens the template.
    with ChatTemplate(tokenizer):
        with ExitStack() as stack:
            inputs = find_inputs(base, config.target_modules)
            _check_features(inputs)
            usable = partial(_is_usable, base, inputs, options)
            parts = open_parts(stack, folder, config.names, data, known or {}, usable)
            fit = _prepare(base, tokenizer, config, data, options, inputs, parts, progress)
            # The files are moved to their places when all of them are whole.
            writers = _writers(stack, folder, fit)
            values = _solve_gates(fit, writers)
            prompts = _read_prompts(fit, writers)
        requests = _request_gates(fit, prompts, bundle_bytes)
        evidence = _evidence(fit, values)
    has_threshold = requests is not None and requests.description.quantiles is not None
    return FittedGates(
        kind=fit.options.kind,
        eps=EPS,
        values=values,
        sources={path: each.source for each in fit.inputs for path in each.modules[1:]},
        fitting=_fitting(fit),
        tokens=fit.options.settings,
        requests=requests,
        abstain=fit.options.abstain if has_threshold else None,
        evidence=evidence,
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """A fit that was checked.

    Attributes:
        parts: of those members that are known from statistics, by name.
        readings: what the base reads of the others.
        reader: reads the prompts of request gates; None if none are fitted.
        held_out: by name and form, the prompts by which request gates are judged; none without a reader.
    """

    base: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    config: BundleConfig
    data: Mapping[str, TaskData]
    options: FitOptions
    progress: Progress
    inputs: Sequence[ModuleInput]
    parts: Mapping[str, StatisticsFile]
    readings: tuple[Reading, ...]
    reader: RequestReader | None
    held_out: MemberPrompts

    @property
    def described(self) -> dict[str, StatisticsMember]:
        """Every member's data, and how much of it was read, in order."""
        read = {part.member: part for reading in self.readings for part in reading.parts}
        read |= {name: each.description.part for name, each in self.parts.items()}
        return {name: read[name] for name in self.config.names}

    @property
    def sources(self) -> list[StatisticsFile | Reading]:
        """Where the members' moments come from, in the members' order."""
        own = {reading.parts[0].member: reading for reading in self.readings}
        found = (self.parts.get(name) or own.get(name) for name in self.config.names)
        # Members that are read together have the place of the first.
        return [each for each in found if each is not None]

    def held_out_samples(self) -> dict[str, tuple[Sample, ...]]:
        """Return the samples of each member that the moments do not contain, by name."""
        return {
            name: hold_out(self.data[name].samples, self.options.max_samples)[1] if name in self.data else ()
            for name in self.config.names
        }


def _writers(stack: ExitStack, folder: StatisticsFolder | None, fit: _Fit) -> dict[str, StatisticsWriter]:
    """Return a writer for each member whose part is new, by name; none if no folder was named."""
    if folder is None or not fit.readings:
        return {}
    folder.make()
    return {
        part.member: stack.enter_context(
            written_statistics(folder.place_of(part.member, part.sha256), _describe(fit, part))
        )
        for reading in fit.readings
        for part in reading.parts
    }


def _prepare(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: BundleConfig,
    data: Mapping[str, TaskData],
    options: FitOptions,
    inputs: Sequence[ModuleInput],
    parts: Mapping[str, StatisticsFile],
    progress: Progress,
) -> _Fit:
    """Check that base, data and statistics fit together, and encode the data."""
    options = replace(options, form=form_of_fit(tokenizer, options.form or _form_of(parts)))
    if parts:
        digest = digest_of_base(base)
        for part in parts.values():
            part.check_fits(digest, options.settings)
    reader = _request_reader(base, tokenizer, inputs, options) if options.requests else None
    template = None if reader is None else reader.template
    new = [data[name] for name in config.names if name not in parts]
    readings = encode_members(new, tokenizer, template, options) if new else ()
    held_out = {} if reader is None else _held_out(config, data, parts, reader, options)
    return _Fit(base, tokenizer, config, data, options, progress, inputs, parts, readings, reader, held_out)


def _held_out(
    config: BundleConfig,
    data: Mapping[str, TaskData],
    parts: Mapping[str, StatisticsFile],
    reader: RequestReader,
    options: FitOptions,
) -> MemberPrompts:
    vocabulary = int(cast(Tensor, reader.base.get_input_embeddings().weight).shape[0])
    return {
        name: {
            form: parts[name].held_out(form, vocabulary)
            if name in parts
            else reader.encode(hold_out(data[name].samples, options.max_samples)[1], form)
            for form in reader.forms
        }
        for name in config.names
    }


def _cut_to_context(options: FitOptions, base: PreTrainedModel) -> FitOptions:
    context = context_of(base.config)
    return options if context is None else replace(options, max_tokens=min(options.max_tokens, context))


def _form_of(parts: Mapping[str, StatisticsFile]) -> PromptForm | None:
    """Return the form of the prompts that the parts were made in; None without a part."""
    return next((part.description.settings.form for part in parts.values()), None)


def _is_usable(
    base: PreTrainedModel, inputs: Sequence[ModuleInput], options: FitOptions, part: StatisticsFile
) -> bool:
    """Return whether a part was made on this base, with these settings, for these inputs."""
    form = options.form or part.description.settings.form
    try:
        part.check_fits(digest_of_base(base), replace(options, form=form).settings)
        for each in inputs:
            part.input_of(each)
    except DataRefused:
        return False
    return True


def _request_reader(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Sequence[ModuleInput],
    options: FitOptions,
) -> RequestReader:
    own = [path for each in inputs for path in each.modules]
    readable = find_layer_inputs(base, own) or tuple(inputs)
    candidates = candidate_inputs(readable, base.config)
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


def _describe(fit: _Fit, part: StatisticsMember) -> StatisticsDescription:
    return StatisticsDescription(
        meteora_statistics=2,
        base_sha256=digest_of_base(fit.base),
        settings=fit.options.settings,
        part=part,
        inputs=tuple(map(_describe_input, fit.inputs)),
        prompts=() if fit.reader is None else tuple(each.source for each in fit.reader.inputs),
        observed=() if fit.reader is None else tuple(map(_describe_input, fit.reader.observed_inputs)),
        held_out=_describe_held_out(fit.held_out.get(part.member, {})),
    )


def _describe_input(each: ModuleInput) -> StatisticsInput:
    return StatisticsInput(source=each.source, modules=each.modules, features=each.features)


def _describe_held_out(
    prompts: Mapping[PromptForm, Sequence[LabelledTokens]],
) -> tuple[HeldOutPrompts, ...]:
    return tuple(held_out_prompts(form, own) for form, own in prompts.items())


def _solve_gates(fit: _Fit, writers: Mapping[str, StatisticsWriter]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the rows and bias of every input's gate by source, after the base read the new data."""
    values: dict[str, tuple[Tensor, Tensor]] = {}
    options = fit.options
    groups = list(split_inputs(fit.inputs, options.max_memory_bytes))
    solving = Step("solving", len(fit.inputs), fit.progress)
    batches = sum(len(reading.batches) for reading in fit.readings)
    for turn, group in enumerate(groups, start=1):
        name = "reading" if len(groups) == 1 else f"reading, pass {turn} of {len(groups)}"
        moments = _join_members(fit, group, writers, Step(name, batches, fit.progress))
        for each in group:
            values[each.source] = solve_gate(
                moments.pop(each.source),
                options.method,
                shrinkage=options.shrinkage,
                what=f"the input of `{each.source}`",
            )
            solving.advance()
    return values


def _join_members(
    fit: _Fit, group: Sequence[ModuleInput], writers: Mapping[str, StatisticsWriter], step: Step
) -> dict[str, Moments]:
    """Return the moments of all members at each input, summed up in the members' order."""
    joined: dict[str, Moments] = {}
    for source in fit.sources:
        read = {} if isinstance(source, StatisticsFile) else _collect(fit, group, source, step)
        for each in group:
            own = source.read(each) if isinstance(source, StatisticsFile) else read.pop(each.source)
            if isinstance(source, Reading) and (writer := writers.get(source.parts[0].member)):
                writer.write(each.source, own)
            joined[each.source] = Moments.join([*filter(None, [joined.get(each.source)]), own])
    return joined


def _collect(fit: _Fit, group: Sequence[ModuleInput], reading: Reading, step: Step) -> dict[str, Moments]:
    return collect_moments(
        fit.base,
        group,
        reading.batches,
        reading.tokens,
        scale_input=scaling_of(fit.options.kind, EPS),
        step=step,
    )


def _read_prompts(fit: _Fit, writers: Mapping[str, StatisticsWriter]) -> dict[str, Moments]:
    """Return the moments of all members' prompts, without answers, at each input of request gates, by source.

    Raises:
        DataRefused: the statistics have none of them.
    """
    if fit.reader is None:
        return {}
    joined: dict[str, Moments] = {}
    for name in fit.config.names:
        part = fit.parts.get(name)
        read = {} if part else _collect_prompts(fit, fit.reader, name)
        for each in fit.reader.inputs:
            own = part.read_prompts(each) if part else read[each.source]
            if name in writers:
                writers[name].write_prompts(each.source, own)
            joined[each.source] = Moments.join([*filter(None, [joined.get(each.source)]), own])
    return joined


def _collect_prompts(fit: _Fit, reader: RequestReader, name: str) -> dict[str, Moments]:
    samples = read_samples(fit.data[name].samples, fit.options)
    return reader.moments([samples], fit.progress)


def _request_gates(
    fit: _Fit, prompts: Mapping[str, Moments], bundle_bytes: int | None
) -> FittedRequests | None:
    if fit.reader is None:
        return None
    return fit_request_gates(
        fit.reader,
        prompts,
        fit.held_out,
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
        for place, samples in enumerate(fit.held_out_samples().values())
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


def method_of(options: FitOptions) -> str:
    """Return how gates of these options are fitted, as a bundle's config has it; ``form`` is settled."""
    how = f"{options.method}, shrinkage {options.shrinkage:g}, on the plain base"
    return how + describe_tokens(options.settings)


def _fitting(fit: _Fit) -> Fitting:
    return Fitting(
        method=method_of(fit.options),
        data=tuple(
            FittingData(member=part.member, sha256=part.sha256, samples=part.samples)
            for part in fit.described.values()
        ),
        max_samples=fit.options.max_samples,
    )
