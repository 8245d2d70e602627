"""The training of a bundle's gates by gradient descent, as the paper does it; base and members are frozen."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...bundle import Bundle
from ...files.progress import Progress, Step, silent
from ...files.scratch import Purpose, temporary_folder
from ...fuser.refit import NewGates
from ...schemas.bundle import TENSOR_GATE, TENSOR_GATE_BIAS, Fitting, FittingData
from ...schemas.errors import DataRefused
from ...schemas.training import TrainingDescription
from ..fitting import FittedGates, TaskData, write_as
from ..fitting.chat_template import ChatTemplate
from ..fitting.fit import describe_tokens
from ..fitting.forms import template_tokens
from ..fitting.sequences import LabelledTokens, count_tokens, encode_samples
from ..fitting.statistics_file import digest_of_base
from ..processes import from_first, is_first
from .checkpoint import TrainingState, read_state, write_state
from .launch import check_launch
from .options import TrainingOptions
from .outcome import TrainingOutcome
from .routed_model import routed_model
from .samples import OrderedSamples, balanced_order, longest_first
from .trainer import GateTrainer, state_of


@dataclass(frozen=True, slots=True)
class TrainedGates:
    """Gates that were trained, and what the last steps show of them."""

    gates: FittedGates
    outcome: TrainingOutcome


def train_gates(
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    bundle: Bundle,
    fitted: FittedGates,
    data: Mapping[str, TaskData],
    *,
    options: TrainingOptions,
    progress: Progress = silent,
) -> TrainedGates:
    """Train the gates of every module of a bundle, from the closed form or from zero.

    The loss is the mean over the samples of a batch of the language model's loss, on the tokens of the
    answer, plus c times the cross-entropy of the gates' logits and the sample's member, the mean over gates
    and tokens (MeteoRA, arXiv 2405.13053).

    Where ``top_k`` is 1 the gradient of the first part is zero: the softmax over one logit is 1.

    Under a launcher of several processes each calls this with the same arguments, and gets the same result.

    Args:
        base: the plain base; it carries the bundle's layers afterwards.
        tokenizer: the base's.
        bundle: whose gates are trained; it is read and not changed.
        fitted: the gates in closed form, of scope `token`; which modules share a gate is theirs.
        data: of every member.
        options: how.
        progress: called with a step's name, how much of it is done, and how much there is.

    Raises:
        DataRefused: no token of a member counts, the checkpoint is another training's, or the loss is not
            finite.
        UsageError: the batch cannot be divided among the processes, or they were launched in a way that gates
            cannot be trained in.
        SourceUnreadable: the checkpoint cannot be read or written.
    """
    check_launch(options)
    names = bundle.config.names
    with ChatTemplate(tokenizer):
        samples = [_encode(data[name], place, fitted, tokenizer) for place, name in enumerate(names)]
    drawn = balanced_order([len(own) for own in samples], options.steps * options.batch_size, options.seed)
    order = longest_first(drawn, samples, options.batch_size)
    start = _start(fitted, options)
    description = _describe(base, bundle, fitted, data, options)
    state = from_first(lambda: _open_state(description, start, options))
    model = routed_model(base, bundle, _new_gates(bundle, fitted, state.gates))
    with temporary_folder(Purpose.FIT) if is_first() else nullcontext(Path()) as folder:
        trainer = GateTrainer(
            model,
            OrderedSamples(samples, order[state.step * options.batch_size :]),
            options,
            state,
            folder=folder,
            keep=None if options.checkpoint is None else lambda each: _keep(description, each, options),
            step=Step("training", options.steps, progress),
        )
        if state.step < options.steps:
            trainer.train()
            state = state_of(trainer, options.steps)
            trainer.check_finite(state)
    values = _values_of(state.gates)
    fitting = _fitting(fitted, data, names, options)
    return TrainedGates(replace(fitted, values=values, fitting=fitting), trainer.outcome)


def _encode(
    data: TaskData, place: int, fitted: FittedGates, tokenizer: PreTrainedTokenizerBase
) -> list[LabelledTokens]:
    """Return the tokens of a member's samples that have any that count."""
    tokens = fitted.tokens
    encoded = encode_samples(
        write_as(data.samples, tokens.form, tokenizer),
        tokenizer,
        place,
        max_tokens=tokens.max_tokens,
        skip_tokens=tokens.skip_tokens,
        template=template_tokens(tokenizer),
    )
    found = [each for each in encoded if count_tokens([each])]
    if not found:
        raise DataRefused(f"no token of `{data.path.name}` counts, so no gate can be trained on it")
    return found


def _start(fitted: FittedGates, options: TrainingOptions) -> dict[str, Tensor]:
    """Return the gates' tensors before the first step, by path and tensor."""
    found = {}
    for path, (rows, bias) in fitted.values.items():
        found[f"{path}.{TENSOR_GATE}"] = rows
        found[f"{path}.{TENSOR_GATE_BIAS}"] = bias
    if options.start == "zero":
        return {name: torch.zeros_like(tensor) for name, tensor in found.items()}
    return found


def _open_state(
    description: TrainingDescription, start: Mapping[str, Tensor], options: TrainingOptions
) -> TrainingState:
    if options.checkpoint is not None and options.checkpoint.exists():
        return read_state(options.checkpoint, description, start)
    return TrainingState.at_start(start)


def _keep(description: TrainingDescription, state: TrainingState, options: TrainingOptions) -> None:
    if options.checkpoint is not None and is_first():
        write_state(options.checkpoint, description, state)


def _new_gates(bundle: Bundle, fitted: FittedGates, gates: Mapping[str, Tensor]) -> NewGates:
    config = bundle.config
    return NewGates(fitted.describe("token"), config.top_k, config.temperature, _values_of(gates))


def _values_of(gates: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    paths = [name.removesuffix(f".{TENSOR_GATE}") for name in gates if name.endswith(f".{TENSOR_GATE}")]
    return {path: (gates[f"{path}.{TENSOR_GATE}"], gates[f"{path}.{TENSOR_GATE_BIAS}"]) for path in paths}


def _describe(
    base: PreTrainedModel,
    bundle: Bundle,
    fitted: FittedGates,
    data: Mapping[str, TaskData],
    options: TrainingOptions,
) -> TrainingDescription:
    return TrainingDescription(
        meteora_training=1,
        step=0,
        bundle_sha256=bundle.manifest_sha256,
        base_sha256=from_first(lambda: digest_of_base(base)),
        settings=options.settings,
        tokens=fitted.tokens,
        data=tuple(_data_of(data[name]) for name in bundle.config.names),
    )


def _data_of(data: TaskData) -> FittingData:
    return FittingData(member=data.member, sha256=data.sha256, samples=len(data.samples))


def _fitting(
    fitted: FittedGates, data: Mapping[str, TaskData], names: tuple[str, ...], options: TrainingOptions
) -> Fitting:
    how = (
        f"sgd (c {options.gate_loss:g}, learning rate {options.learning_rate:g}, {options.steps} steps of "
        f"{options.batch_size}, seed {options.seed}) from "
    )
    is_zero = options.start == "zero"
    how += f"zero{describe_tokens(fitted.tokens)}" if is_zero else fitted.fitting.method
    return Fitting(method=how, data=tuple(_data_of(data[name]) for name in names))
