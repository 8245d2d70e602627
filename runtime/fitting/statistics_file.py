"""The file of statistics: what a later fit needs from the members' data, without the data.

The file is not trusted: the description is checked against the tensors, sizes are bounded before anything is
read, and one input is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...files.writing import whole_file, write_errors
from ...fuser.tensor_files import TensorFile, WeightsWriter
from ...inspection.header import Header, read_header
from ...schemas.bundle import TensorSpec
from ...schemas.digest import Digest
from ...schemas.document import canonical_json
from ...schemas.errors import AdapterRefused, DataRefused, InvalidDocument, UsageError
from ...schemas.inventory import Dtype
from ...schemas.statistics import (
    STATISTICS_KEY,
    TENSOR_MEANS,
    TENSOR_PROMPT_MEANS,
    TENSOR_PROMPT_SECOND_MOMENT,
    TENSOR_SECOND_MOMENT,
    StatisticsDescription,
    StatisticsInput,
    TokenSettings,
    statistics_tensor,
)
from .inputs import ModuleInput
from .moments import Moments

_SHOWN_VALUES = 32
_ANEW = "fit without these statistics, with the data of every member"


class StatisticsFile:
    """An open file of statistics whose description and header were checked."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            SourceUnreadable: it is missing or cannot be read.
            DataRefused: it is not a file of statistics, or a damaged one.
        """
        self.path = path
        header = _header_of(path)
        self.description = _description_of(header, path)
        _check_tensors(self.description, header, path)
        self._file = TensorFile(path, header)
        self._inputs = {module: each for each in self.description.inputs for module in each.modules}
        self._prompts = {
            module: each
            for each in (*self.description.inputs, *self.description.observed)
            if each.source in self.description.prompts
            for module in each.modules
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def check_fits(self, base_sha256: Digest, settings: TokenSettings) -> None:
        """Check that they were made with this base and these settings.

        Raises:
            DataRefused: they were not.
        """
        if self.description.base_sha256 != base_sha256:
            raise DataRefused(
                f"the statistics in `{self.path}` were made with another base: its digest is "
                f"`{self.description.base_sha256.short}`, this one's `{base_sha256.short}`",
                hint=_ANEW,
            )
        ours, theirs = settings.model_dump(), self.description.settings.model_dump()
        if differing := [key for key in ours if ours[key] != theirs[key]]:
            key = differing[0]
            raise DataRefused(
                f"the statistics in `{self.path}` were made with {key} `{theirs[key]}`, "
                f"this fit asks for `{ours[key]}`",
                hint=_ANEW,
            )

    def input_of(self, wanted: ModuleInput) -> StatisticsInput:
        """Return the input that one of these modules reads.

        Raises:
            DataRefused: the file has none, or of another size.
        """
        found = next((self._inputs[path] for path in wanted.modules if path in self._inputs), None)
        if found is None or found.features != wanted.features:
            raise DataRefused(
                f"the statistics in `{self.path}` have no input of `{wanted.source}` with "
                f"{wanted.features} features",
                hint=_ANEW,
            )
        return found

    def read(self, wanted: ModuleInput) -> Moments:
        """Read the moments of an input, the means in the order of the description's members."""
        source = self.input_of(wanted).source
        return Moments(
            self._file.read(statistics_tensor(source, TENSOR_MEANS)),
            self._file.read(statistics_tensor(source, TENSOR_SECOND_MOMENT)),
        )

    def read_prompts(self, wanted: ModuleInput) -> Moments:
        """Read the moments of the prompts alone at an input of request gates, in the same order.

        Raises:
            DataRefused: the file has none there.
        """
        found = self._prompts_of(wanted)
        if found is None:
            raise DataRefused(
                f"the statistics in `{self.path}` have no sums of prompts alone at `{wanted.source}`, which "
                "request gates need",
                hint=_ANEW,
            )
        return Moments(
            self._file.read(statistics_tensor(found.source, TENSOR_PROMPT_MEANS)),
            self._file.read(statistics_tensor(found.source, TENSOR_PROMPT_SECOND_MOMENT)),
        )

    def has_prompts(self, wanted: ModuleInput) -> bool:
        """Return whether the file has the moments of the prompts alone at an input."""
        return self._prompts_of(wanted) is not None

    def _prompts_of(self, wanted: ModuleInput) -> StatisticsInput | None:
        found = next((self._prompts[path] for path in wanted.modules if path in self._prompts), None)
        return found if found is not None and found.features == wanted.features else None


class StatisticsWriter:
    """A writer of the inputs of a file of statistics, one after another; ``written_statistics`` makes it."""

    def __init__(self, writer: WeightsWriter) -> None:
        self._writer = writer

    def write(self, source: str, moments: Moments) -> None:
        """Append an input's moments, in the order of the description."""
        self._writer.write(statistics_tensor(source, TENSOR_MEANS), moments.means.cpu())
        self._writer.write(statistics_tensor(source, TENSOR_SECOND_MOMENT), moments.second.cpu())

    def write_prompts(self, source: str, moments: Moments) -> None:
        """Append the moments of the prompts alone at an input, behind all of the others."""
        self._writer.write(statistics_tensor(source, TENSOR_PROMPT_MEANS), moments.means.cpu())
        self._writer.write(statistics_tensor(source, TENSOR_PROMPT_SECOND_MOMENT), moments.second.cpu())


@contextmanager
def written_statistics(
    path: Path, description: StatisticsDescription, *, overwrite: bool = True
) -> Iterator[StatisticsWriter]:
    """Yield the writer of a file of statistics, which is in its place after a clean end, or not at all.

    Raises:
        UsageError: something is there, and is not to be replaced.
        SourceUnreadable: it cannot be written.
    """
    specs = _specs(description)
    metadata = {STATISTICS_KEY: canonical_json(description.model_dump(mode="json")).decode("ascii")}
    with (
        whole_file(path, overwrite=overwrite) as place,
        write_errors(path),
        WeightsWriter(place, specs, metadata=metadata) as writer,
    ):
        yield StatisticsWriter(writer)


def merge_statistics(paths: Sequence[Path], out: Path) -> StatisticsDescription:
    """Write one file of statistics with the members of several, each of which was made from its data alone.

    The means are listed and the second moments added, so a fit on it is that on all data at once, up to the
    rounding of sums in float32. One input of each file is in memory at a time.

    Args:
        paths: at least two files, made on one base with the same settings for the same modules.
        out: the new file.

    Raises:
        SourceUnreadable: a file cannot be read, or the new one not written.
        DataRefused: a file is damaged, or they do not fit together.
        UsageError: there are fewer than two files, or something is at ``out``.
    """
    if len(paths) < 2:
        raise UsageError(f"there are {len(paths)} files of statistics to merge, expected at least two")
    with ExitStack() as stack:
        files = [stack.enter_context(StatisticsFile(path)) for path in paths]
        description = _merged(files)
        with written_statistics(out, description, overwrite=False) as writer:
            for each in description.inputs:
                writer.write(each.source, _sum_of(files, [file.read(_module_input(each)) for file in files]))
            found = {each.source: each for each in (*description.inputs, *description.observed)}
            for source in description.prompts:
                wanted = _module_input(found[source])
                writer.write_prompts(source, _sum_of(files, [file.read_prompts(wanted) for file in files]))
    return description


def _merged(files: Sequence[StatisticsFile]) -> StatisticsDescription:
    """Return the description of several files together, which must fit."""
    first = files[0].description
    owners: dict[str, StatisticsFile] = {}
    for file in files:
        file.check_fits(first.base_sha256, first.settings)
        if file.description.settings.concatenated:
            raise DataRefused(
                f"the statistics in `{file.path}` were made for the scope `segment`, with samples behind "
                "those of other members, and cannot be merged",
                hint="fit that scope with the data of every member",
            )
        for what in ("inputs", "prompts", "observed"):
            if getattr(file.description, what) != getattr(first, what):
                raise DataRefused(
                    f"the statistics in `{file.path}` are of other modules than those in `{files[0].path}`",
                    hint="make each from a bundle that has the same modules, such as the whole one",
                )
        for name in file.description.names:
            if name in owners:
                raise DataRefused(f"`{owners[name].path}` and `{file.path}` both have data of `{name}`")
            owners[name] = file
    members = tuple(member for file in files for member in file.description.members)
    return first.model_copy(update={"members": members})


def _sum_of(files: Sequence[StatisticsFile], moments: Sequence[Moments]) -> Moments:
    names: tuple[str, ...] = files[0].description.names
    total = moments[0]
    for file, found in zip(files[1:], moments[1:], strict=True):
        together = (*names, *file.description.names)
        total = merge_moments(total, names, found, file.description.names, together)
        names = together
    return total


def _module_input(each: StatisticsInput) -> ModuleInput:
    return ModuleInput(each.modules, each.features)


def names_in(path: Path) -> tuple[str, ...]:
    """Return the members whose part a file of statistics has; empty if the file is missing.

    Raises:
        SourceUnreadable: it cannot be read.
        DataRefused: it is not a file of statistics, or a damaged one.
    """
    if not path.exists():
        return ()
    with StatisticsFile(path) as file:
        return file.description.names


def digest_of_base(base: PreTrainedModel) -> Digest:
    """Return a digest that tells apart bases of one architecture.

    Of every parameter's name, shape and element type, and its first values: an edited copy that differs
    elsewhere alone has the same digest, but no weights are read for it.
    """
    lines = []
    for name, parameter in base.named_parameters():
        first = parameter.detach().reshape(-1)[:_SHOWN_VALUES].cpu().contiguous()
        values = first.view(torch.uint8).numpy().tobytes().hex()
        lines.append(f"{name} {list(parameter.shape)} {parameter.dtype} {values}\n")
    return Digest.of_bytes("".join(lines).encode())


def merge_moments(
    old: Moments | None,
    old_names: Sequence[str],
    new: Moments | None,
    new_names: Sequence[str],
    members: Sequence[str],
) -> Moments:
    """Merge the moments of two disjoint sets of members, in the order of ``members``."""
    rows: dict[str, Tensor] = {}
    for moments, names in ((old, old_names), (new, new_names)):
        if moments is not None:
            rows |= dict(zip(names, moments.means.cpu(), strict=True))
    seconds = [moments.second.cpu() for moments in (old, new) if moments is not None]
    return Moments(torch.stack([rows[name] for name in members]), sum(seconds[1:], start=seconds[0]))


def _specs(description: StatisticsDescription) -> list[TensorSpec]:
    found = []
    for each in description.inputs:
        found += _pair(description, each, TENSOR_MEANS, TENSOR_SECOND_MOMENT)
    by_source = {each.source: each for each in (*description.inputs, *description.observed)}
    for source in description.prompts:
        found += _pair(description, by_source[source], TENSOR_PROMPT_MEANS, TENSOR_PROMPT_SECOND_MOMENT)
    return found


def _pair(
    description: StatisticsDescription, each: StatisticsInput, means: str, second: str
) -> list[TensorSpec]:
    size, members = each.features, len(description.members)
    return [
        TensorSpec(statistics_tensor(each.source, means), Dtype.F64, (members, size)),
        TensorSpec(statistics_tensor(each.source, second), Dtype.F32, (size, size)),
    ]


def _header_of(path: Path) -> Header:
    try:
        return read_header(path)
    except AdapterRefused as error:
        raise DataRefused(f"the statistics in `{path}` are damaged: {error}", hint=_ANEW) from error


def _description_of(header: Header, path: Path) -> StatisticsDescription:
    text = header.metadata.get(STATISTICS_KEY)
    if text is None:
        raise DataRefused(f"`{path}` does not hold statistics: it has no `{STATISTICS_KEY}` in its metadata")
    try:
        return StatisticsDescription.from_bytes(
            text.encode("utf-8"), what=path.name, max_bytes=len(header.text)
        )
    except InvalidDocument as error:
        raise DataRefused(f"the statistics in `{path}` are damaged: {error}", hint=_ANEW) from error


def _check_tensors(description: StatisticsDescription, header: Header, path: Path) -> None:
    expected = {spec.name: (spec.dtype.value, spec.shape) for spec in _specs(description)}
    found = {entry.name: (entry.dtype, entry.shape) for entry in header.tensors}
    if wrong := sorted(name for name in expected | found if expected.get(name) != found.get(name)):
        raise DataRefused(
            f"the statistics in `{path}` are damaged: `{wrong[0]}` is {found.get(wrong[0], 'missing')}, "
            f"expected {expected.get(wrong[0], 'nothing of that name')}",
            hint=_ANEW,
        )
