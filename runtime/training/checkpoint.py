"""The checkpoint of a training of gates: one safetensors file, replaced as a whole.

transformers' own checkpoints hold pickles (optimizer, schedule, random numbers) and all of the model. What
changes here is the gates and Adam's moments; the order of the samples and the learning rate follow from
the options and the step. So one file, three times the gates' size, suffices to go on with the same bits, and
no pickle is read or written.

The file is not trusted: the description is checked against this training and the tensors before any is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...files.writing import whole_file, write_errors
from ...fuser.tensor_files import TensorFile, WeightsWriter, first_difference
from ...inspection.header import Header, read_header
from ...schemas.bundle import TensorSpec
from ...schemas.digest import Digest
from ...schemas.document import canonical_json
from ...schemas.errors import AdapterRefused, DataRefused, InvalidDocument
from ...schemas.inventory import Dtype
from ...schemas.training import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    TRAINING_KEY,
    TrainingDescription,
    moment_name,
)

_ANOTHER = "name another file with `--checkpoint`"
_ANEW = f"{_ANOTHER}, or delete this one to begin anew"


@dataclass(frozen=True, slots=True)
class TrainingState:
    """The state after ``step`` steps: the gates' tensors and Adam's two moments of each, float32, by name."""

    step: int
    gates: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]

    @classmethod
    def at_start(cls, gates: Mapping[str, Tensor]) -> TrainingState:
        """Return the state before the first step."""
        zeros = {name: torch.zeros_like(gate) for name, gate in gates.items()}
        return cls(0, gates, zeros, zeros)


def write_state(path: Path, description: TrainingDescription, state: TrainingState) -> None:
    """Write a checkpoint, in place of an earlier one, in one step.

    Raises:
        SourceUnreadable: it cannot be written.
    """
    value = description.model_copy(update={"step": state.step}).model_dump(mode="json")
    specs = _specs(state.gates)
    metadata = {TRAINING_KEY: canonical_json(value).decode("ascii")}
    with (
        whole_file(path) as place,
        write_errors(path),
        WeightsWriter(place, specs, metadata=metadata) as writer,
    ):
        for name, gate in state.gates.items():
            writer.write(name, gate)
            writer.write(moment_name(name, FIRST_MOMENT), state.first[name])
            writer.write(moment_name(name, SECOND_MOMENT), state.second[name])


def read_state(path: Path, expected: TrainingDescription, gates: Mapping[str, Tensor]) -> TrainingState:
    """Read a checkpoint of this training.

    Args:
        path: the file.
        expected: the description of this training; its step is not compared.
        gates: of the start, for their names and shapes.

    Raises:
        SourceUnreadable: it cannot be read.
        DataRefused: it is damaged, not a checkpoint, or one of another training.
    """
    try:
        header = read_header(path)
    except AdapterRefused as error:
        # A file of the user's own may have been named, so nothing is advised to be deleted.
        raise DataRefused(
            f"`{path}` is not a checkpoint, or a damaged one: {error}", hint=_ANOTHER
        ) from error
    found = _description_of(header, path)
    _check_same_training(found, expected, path)
    _check_tensors(header, gates, path)
    with TensorFile(path, header) as file:
        state = TrainingState(
            found.step,
            {name: file.read(name) for name in gates},
            {name: file.read(moment_name(name, FIRST_MOMENT)) for name in gates},
            {name: file.read(moment_name(name, SECOND_MOMENT)) for name in gates},
        )
    for tensors in (state.gates, state.first, state.second):
        for name, tensor in tensors.items():
            if not bool(torch.isfinite(tensor).all()):
                raise DataRefused(f"the checkpoint `{path}` is damaged: `{name}` is not finite", hint=_ANEW)
    for name, squares in state.second.items():
        # Adam takes their root.
        if bool((squares < 0).any()):
            raise DataRefused(
                f"the checkpoint `{path}` is damaged: the second moment of `{name}` is negative", hint=_ANEW
            )
    return state


def _description_of(header: Header, path: Path) -> TrainingDescription:
    text = header.metadata.get(TRAINING_KEY)
    if text is None:
        raise DataRefused(
            f"`{path}` is not a checkpoint: it has no `{TRAINING_KEY}` in its metadata", hint=_ANOTHER
        )
    try:
        return TrainingDescription.from_bytes(
            text.encode("utf-8"), what=path.name, max_bytes=len(header.text)
        )
    except InvalidDocument as error:
        raise DataRefused(f"the checkpoint `{path}` is damaged: {error}", hint=_ANEW) from error


def _check_same_training(found: TrainingDescription, expected: TrainingDescription, path: Path) -> None:
    theirs, ours = _facts(found), _facts(expected)
    differing = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if differing:
        key = differing[0]
        raise DataRefused(
            f"the checkpoint `{path}` is of another training: its {key} is `{_shown(theirs.get(key))}`, "
            f"this one's `{_shown(ours.get(key))}`",
            hint=_ANEW,
        )
    if found.step > expected.settings.steps:
        raise DataRefused(
            f"the checkpoint `{path}` is damaged: it is at step {found.step} of {expected.settings.steps}",
            hint=_ANEW,
        )


def _facts(description: TrainingDescription) -> dict[str, object]:
    value = description.model_dump(mode="json")
    # A bound of the fit in closed form, not of the training, of which the numbers of samples are compared.
    value["tokens"].pop("max_samples", None)
    data = {f"data of `{each.member}`": each.sha256 for each in description.data}
    samples = {f"number of samples of `{each.member}`": each.samples for each in description.data}
    digests = {"bundle": description.bundle_sha256, "base": description.base_sha256}
    return {**value["settings"], **value["tokens"], **data, **samples, **digests}


def _shown(fact: object) -> object:
    return fact.short if isinstance(fact, Digest) else fact


def _check_tensors(header: Header, gates: Mapping[str, Tensor], path: Path) -> None:
    if wrong := first_difference(header, _specs(gates)):
        raise DataRefused(f"the checkpoint `{path}` is damaged: {wrong}", hint=_ANEW)


def _specs(gates: Mapping[str, Tensor]) -> list[TensorSpec]:
    return [
        TensorSpec(each, Dtype.F32, tuple(gate.shape))
        for name, gate in gates.items()
        for each in (name, moment_name(name, FIRST_MOMENT), moment_name(name, SECOND_MOMENT))
    ]
