"""The statistics of a fit: a folder with a file for each member, which stands for the member's data.

A fit needs sums over its members, so a member is added by its own data and left out without any. A file is
named by its member and the digest of its data, so it never has to change, and the versions of a bundle share
the folder. The files are not trusted: the description is checked against the tensors, sizes are bounded
before anything is read, and one input is in memory at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...files.reading import read_errors
from ...files.writing import whole_file, write_errors
from ...fuser.tensor_files import TensorFile, WeightsWriter, first_difference
from ...inspection.header import Header, read_header
from ...schemas.bundle import TensorSpec
from ...schemas.digest import Digest
from ...schemas.document import canonical_json
from ...schemas.errors import AdapterRefused, DataRefused, InvalidDocument, UsageError
from ...schemas.gate_choices import PromptForm
from ...schemas.inventory import Dtype
from ...schemas.names import Name, below
from ...schemas.statistics import (
    STATISTICS_KEY,
    TENSOR_MEAN,
    TENSOR_PROMPT_MEAN,
    TENSOR_PROMPT_SECOND_MOMENT,
    TENSOR_SECOND_MOMENT,
    HeldOutPrompt,
    HeldOutPrompts,
    StatisticsDescription,
    StatisticsInput,
    TokenSettings,
    statistics_tensor,
)
from .inputs import ModuleInput
from .moments import Moments
from .sequences import NO_MEMBER, LabelledTokens

_SHOWN_VALUES = 32
# Rows of a symmetric matrix whose other half is written at once.
_MIRRORED_ROWS = 512
ANEW = "fit with the data of every member, and keep the statistics in a new folder"


@dataclass(frozen=True, slots=True)
class StatisticsFolder:
    """The folder in which the parts of members are kept; it need not exist yet."""

    path: Path

    def place_of(self, member: Name, data_sha256: Digest) -> Path:
        """Return where the part of a member with this data is, or would be."""
        return below(self.path, f"{member}-{data_sha256.short}.safetensors")

    def find(self, member: Name, data_sha256: Digest) -> Path | None:
        """Return the part of a member with this data; None if there is none."""
        place = self.place_of(member, data_sha256)
        return place if place.is_file() else None

    def parts_of(self, member: Name) -> list[Path]:
        """Return every part of a member, one for each of its data, sorted; none if there is no folder.

        Raises:
            SourceUnreadable: the folder cannot be read.
        """
        if not self.path.is_dir():
            return []
        # Without the digits, a part of the member `legal-more` would be one of `legal` too.
        name = re.compile(re.escape(member) + r"-[0-9a-f]{12}\.safetensors")
        with read_errors(self.path):
            return sorted(place for place in self.path.iterdir() if name.fullmatch(place.name))

    def make(self) -> None:
        """Make the folder where it is missing.

        Raises:
            UsageError: a file is there.
            SourceUnreadable: it cannot be made.
        """
        if self.path.is_file():
            raise UsageError(
                f"`{self.path}` is a file, expected a folder with a file for each member",
                hint="name another path with `--statistics`",
            )
        with write_errors(self.path):
            self.path.mkdir(exist_ok=True)


class StatisticsFile:
    """An open part of a member whose description and header were checked."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            SourceUnreadable: it is missing or cannot be read.
            DataRefused: it is not a file of statistics, or a damaged one.
        """
        self._path = path
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
                f"the statistics in `{self._path}` were made with another base: its digest is "
                f"`{self.description.base_sha256.short}`, this one's `{base_sha256.short}`",
                hint=ANEW,
            )
        ours, theirs = dict(settings), dict(self.description.settings)
        if differing := [key for key in ours if ours[key] != theirs[key]]:
            key = differing[0]
            raise DataRefused(
                f"the statistics in `{self._path}` were made with {key} `{theirs[key]}`, "
                f"this fit asks for `{ours[key]}`",
                hint=ANEW,
            )

    def input_of(self, wanted: ModuleInput) -> StatisticsInput:
        """Return the input that one of these modules reads.

        Raises:
            DataRefused: the file has none, or of another size.
        """
        found = next((self._inputs[path] for path in wanted.modules if path in self._inputs), None)
        if found is None or found.features != wanted.features:
            raise DataRefused(
                f"the statistics in `{self._path}` have no input of `{wanted.source}` with "
                f"{wanted.features} features",
                hint=ANEW,
            )
        return found

    def read(self, wanted: ModuleInput) -> Moments:
        """Read the member's moments of an input, means ``[1, h]``."""
        found = self.input_of(wanted)
        return self._read(found, TENSOR_MEAN, TENSOR_SECOND_MOMENT)

    def read_prompts(self, wanted: ModuleInput) -> Moments:
        """Read the member's moments of the prompts alone at an input of request gates.

        Raises:
            DataRefused: the file has none there.
        """
        found = self._prompts_of(wanted)
        if found is None:
            raise DataRefused(
                f"the statistics in `{self._path}` have no sums of prompts alone at `{wanted.source}`, which "
                "request gates need",
                hint=ANEW,
            )
        return self._read(found, TENSOR_PROMPT_MEAN, TENSOR_PROMPT_SECOND_MOMENT)

    def held_out(self, form: PromptForm, vocabulary: int) -> tuple[LabelledTokens, ...]:
        """Return the member's held-out prompts in a form, those tokens that count labelled 0.

        Raises:
            DataRefused: the file has none of this form, or tokens that a base of ``vocabulary`` lacks.
        """
        found = next((each for each in self.description.held_out if each.form == form), None)
        if found is None:
            raise DataRefused(
                f"the statistics in `{self._path}` have no held-out prompts in the form `{form}`", hint=ANEW
            )
        if any(token >= vocabulary for prompt in found.prompts for token in prompt.ids):
            raise DataRefused(
                f"the statistics in `{self._path}` are damaged: a held-out prompt has a token that the base "
                f"lacks, which knows {vocabulary}",
                hint=ANEW,
            )
        return tuple(map(_labelled, found.prompts))

    def _read(self, found: StatisticsInput, mean: str, second: str) -> Moments:
        return Moments(
            self._file.read(statistics_tensor(found.source, mean))[None],
            unpack(self._file.read(statistics_tensor(found.source, second)), found.features),
        )

    def _prompts_of(self, wanted: ModuleInput) -> StatisticsInput | None:
        found = next((self._prompts[path] for path in wanted.modules if path in self._prompts), None)
        return found if found is not None and found.features == wanted.features else None


class StatisticsWriter:
    """A writer of the inputs of a file of statistics, one after another; ``written_statistics`` makes it."""

    def __init__(self, writer: WeightsWriter) -> None:
        self._writer = writer

    def write(self, source: str, moments: Moments) -> None:
        """Append an input's moments, in the order of the description."""
        self._write(source, moments, TENSOR_MEAN, TENSOR_SECOND_MOMENT)

    def write_prompts(self, source: str, moments: Moments) -> None:
        """Append the moments of the prompts alone at an input, behind all of the others."""
        self._write(source, moments, TENSOR_PROMPT_MEAN, TENSOR_PROMPT_SECOND_MOMENT)

    def _write(self, source: str, moments: Moments, mean: str, second: str) -> None:
        self._writer.write(statistics_tensor(source, mean), moments.means[0].cpu())
        self._writer.write(statistics_tensor(source, second), pack(moments.second.cpu()))


@contextmanager
def written_statistics(path: Path, description: StatisticsDescription) -> Iterator[StatisticsWriter]:
    """Yield the writer of a file of statistics, which is in its place after a clean end, or not at all.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    specs = _specs(description)
    metadata = {STATISTICS_KEY: canonical_json(description.model_dump(mode="json")).decode("ascii")}
    with (
        whole_file(path) as place,
        write_errors(path),
        WeightsWriter(place, specs, metadata=metadata) as writer,
    ):
        yield StatisticsWriter(writer)


def pack(second: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix ``[h, h]``, row by row: ``[h (h + 1) / 2]``."""
    # Row by row, because the places of all entries would take four times the matrix.
    return torch.cat([row[place:] for place, row in enumerate(second)])


def unpack(upper: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix ``[size, size]`` of which ``pack`` returned the upper triangle."""
    second = torch.zeros(size, size, dtype=upper.dtype)
    second.masked_scatter_(torch.ones(size, size, dtype=torch.bool).triu_(), upper)
    # A block at a time: a whole transposed copy would take as much memory as the matrix.
    for start in range(0, size, _MIRRORED_ROWS):
        end = start + _MIRRORED_ROWS
        corner = second[start:end, start:end]
        corner += corner.triu(1).T
        second[end:, start:end] = second[start:end, end:].T
    return second


def held_out_prompts(form: PromptForm, prompts: Sequence[LabelledTokens]) -> HeldOutPrompts:
    """Return held-out prompts as a description has them."""
    return HeldOutPrompts(form=form, prompts=tuple(map(_described, prompts)))


def _described(prompt: LabelledTokens) -> HeldOutPrompt:
    counted = [place for place, label in enumerate(prompt.labels) if label != NO_MEMBER]
    start, end = (counted[0], counted[-1] + 1) if counted else (0, 0)
    return HeldOutPrompt(ids=prompt.ids, start=start, end=end)


def _labelled(prompt: HeldOutPrompt) -> LabelledTokens:
    labels = (0 if prompt.start <= place < prompt.end else NO_MEMBER for place in range(len(prompt.ids)))
    return LabelledTokens(prompt.ids, tuple(labels))


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


def _specs(description: StatisticsDescription) -> list[TensorSpec]:
    found = []
    for each in description.inputs:
        found += _pair(each, TENSOR_MEAN, TENSOR_SECOND_MOMENT)
    by_source = {each.source: each for each in (*description.inputs, *description.observed)}
    for source in description.prompts:
        found += _pair(by_source[source], TENSOR_PROMPT_MEAN, TENSOR_PROMPT_SECOND_MOMENT)
    return found


def _pair(each: StatisticsInput, mean: str, second: str) -> list[TensorSpec]:
    size = each.features
    return [
        TensorSpec(statistics_tensor(each.source, mean), Dtype.F64, (size,)),
        TensorSpec(statistics_tensor(each.source, second), Dtype.F32, (size * (size + 1) // 2,)),
    ]


def _header_of(path: Path) -> Header:
    try:
        return read_header(path)
    except AdapterRefused as error:
        raise DataRefused(f"the statistics in `{path}` are damaged: {error}", hint=ANEW) from error


def _description_of(header: Header, path: Path) -> StatisticsDescription:
    text = header.metadata.get(STATISTICS_KEY)
    if text is None:
        raise DataRefused(f"`{path}` does not hold statistics: it has no `{STATISTICS_KEY}` in its metadata")
    try:
        return StatisticsDescription.from_bytes(
            text.encode("utf-8"), what=path.name, max_bytes=len(header.text)
        )
    except InvalidDocument as error:
        raise DataRefused(f"the statistics in `{path}` are damaged: {error}", hint=ANEW) from error


def _check_tensors(description: StatisticsDescription, header: Header, path: Path) -> None:
    if wrong := first_difference(header, _specs(description)):
        raise DataRefused(f"the statistics in `{path}` are damaged: {wrong}", hint=ANEW)
