"""The members' sides of a fit: data that the base reads, or parts of earlier statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ...schemas.bundle import TemplateTokens
from ...schemas.digest import Digest
from ...schemas.errors import DataRefused
from ...schemas.statistics import StatisticsMember
from .fit_options import FitOptions
from .forms import write_as
from .sequences import (
    Batch,
    LabelledTokens,
    choose_samples,
    concatenate,
    count_tokens,
    encode_samples,
    hold_out,
    make_batches,
)
from .statistics_file import ANEW, StatisticsFile, StatisticsFolder
from .task_data import Sample, TaskData


@dataclass(frozen=True, slots=True)
class Reading:
    """The tokens that the base reads together: those of one member, or all, where samples follow others'.

    Attributes:
        parts: the members' data, and how much of it is read, in the order of the labels.
        batches: their labels are places in ``parts``.
        tokens: how many tokens of each member count, by place.
    """

    parts: tuple[StatisticsMember, ...]
    batches: tuple[Batch, ...]
    tokens: Mapping[int, int]


def open_parts(
    stack: ExitStack,
    statistics: StatisticsFolder | None,
    names: Sequence[str],
    data: Mapping[str, TaskData],
    known: Mapping[str, Digest],
    is_usable: Callable[[StatisticsFile], bool],
) -> dict[str, StatisticsFile]:
    """Open the parts of those members that the statistics have, by name, until ``stack`` ends.

    Args:
        stack: closes the files.
        statistics: the folder; None if none is used.
        names: of the members.
        data: of the members whose data are at hand.
        known: the digests of others' data. A member that is in neither comes from its only usable part.
        is_usable: whether this fit can use a part.

    Raises:
        DataRefused: a member's data are neither at hand nor in the statistics, several parts of it could be
            used, or a part is damaged.
        SourceUnreadable: a part cannot be read.
    """
    found = {}
    for name in names:
        digest = data[name].sha256 if name in data else known.get(name)
        if digest is None:
            found[name] = _only_part(stack, statistics, name, is_usable)
            continue
        place = None if statistics is None else statistics.find(name, digest)
        if place is not None:
            found[name] = _open_part(stack, place, name, digest)
        elif name not in data:
            raise _lacks(name, digest, statistics)
    return found


def _only_part(
    stack: ExitStack,
    statistics: StatisticsFolder | None,
    name: str,
    is_usable: Callable[[StatisticsFile], bool],
) -> StatisticsFile:
    """Open the part of a member of whose data nothing is known; one that cannot be used if all are such."""
    places = [] if statistics is None else statistics.parts_of(name)
    if not places:
        raise _lacks(name, None, statistics)
    parts = [_open_part(stack, place, name, None) for place in places]
    usable = [place for place, part in zip(places, parts, strict=True) if is_usable(part)]
    if len(usable) > 1:
        raise DataRefused(
            f"there are {len(usable)} parts of the member `{name}`, each of other data: "
            + ", ".join(f"`{place}`" for place in usable),
            hint="keep one of them in the folder, or name the data with `--data`",
        )
    return parts[places.index(usable[0])] if usable else parts[0]


def _open_part(stack: ExitStack, place: Path, name: str, digest: Digest | None) -> StatisticsFile:
    part = stack.enter_context(StatisticsFile(place))
    stated = part.description.part
    if stated.member != name or digest not in (stated.sha256, None):
        raise DataRefused(
            f"the statistics in `{place}` are of `{stated.member}` on data with the digest "
            f"`{stated.sha256.short}`, expected `{name}`"
            + ("" if digest is None else f" on `{digest.short}`"),
            hint=ANEW,
        )
    return part


def _lacks(name: str, digest: Digest | None, statistics: StatisticsFolder | None) -> DataRefused:
    if statistics is None or digest is None:
        return DataRefused(
            f"there is no data for the member `{name}`",
            hint="name its data with `--data`, or a folder with its part with `--statistics`",
        )
    return DataRefused(
        f"the statistics in `{statistics.path}` have nothing of the member `{name}` on its data with the "
        f"digest `{digest.short}`",
        hint="name the folder that `gate fit --statistics` wrote for this bundle, or fit anew",
    )


def encode_members(
    data: Sequence[TaskData],
    tokenizer: PreTrainedTokenizerBase,
    template: TemplateTokens | None,
    options: FitOptions,
) -> tuple[Reading, ...]:
    """Return what the base reads of these members, each by itself, or all together if ``concatenated``.

    Raises:
        DataRefused: no token of a member counts.
    """
    chosen = [
        write_as(read_samples(each.samples, options), options.form or "given", tokenizer) for each in data
    ]

    def encode(samples: Sequence[Sample], label: int) -> list[LabelledTokens]:
        return encode_samples(
            samples,
            tokenizer,
            label,
            max_tokens=options.max_tokens,
            skip_tokens=options.skip_tokens,
            template=template,
        )

    if not options.concatenated:
        return tuple(
            _reading([each], [len(samples)], encode(samples, 0))
            for each, samples in zip(data, chosen, strict=True)
        )
    sequences = [encode(samples, place) for place, samples in enumerate(chosen)]
    joined = concatenate(sequences, max_tokens=options.max_tokens) if sequences else []
    alone = [sequence for own in sequences for sequence in own]
    return (_reading(data, list(map(len, chosen)), alone + joined),)


def _reading(
    data: Sequence[TaskData], samples: Sequence[int], sequences: Sequence[LabelledTokens]
) -> Reading:
    tokens = dict(count_tokens(sequences))
    parts = tuple(
        _part_of(own, count, tokens.get(place, 0))
        for place, (own, count) in enumerate(zip(data, samples, strict=True))
    )
    return Reading(parts, tuple(make_batches(sequences)), tokens)


def _part_of(data: TaskData, samples: int, tokens: int) -> StatisticsMember:
    if tokens == 0:
        raise DataRefused(
            f"no token of `{data.path.name}` counts: all are among the first of their sample, "
            "which are left out"
        )
    return StatisticsMember(member=data.member, sha256=data.sha256, samples=samples, tokens=tokens)


def read_samples(samples: Sequence[Sample], options: FitOptions) -> tuple[Sample, ...]:
    """Return those of a member's samples that a fit reads."""
    if options.holds_out:
        samples = hold_out(samples, options.max_samples)[0]
    return choose_samples(samples, options.max_samples)
