"""transformers' ``Trainer`` for gates: the loss, the schedule of a resumed training, and its checkpoints.

The loop, the devices, the processes and FSDP are the Trainer's and accelerate's. Each sample counts the same
and has a loss of its own, so the mean over a batch does not depend on how it is divided among processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from ...files.progress import Step
from ...schemas.errors import DataRefused
from ..active_bundles import overridden
from ..processes import process_count
from .checkpoint import TrainingState
from .labelled_pass import LabelledPass
from .options import TrainingOptions
from .outcome import TrainingOutcome
from .routed_model import trained_parameters
from .samples import OrderedSamples, collate

# Of how many of the last steps the losses are reported.
_REPORTED_STEPS = 20
# Samples in one pass of a process. A step of more takes several passes, whose gradients are added: all of it
# at once would be padded to its longest sample, and its logits alone can be larger than the base.
MAX_PASS_SAMPLES = 4


class GateTrainer(Trainer):
    """The Trainer of a routed model's gates from one state on.

    Args:
        model: whose gates alone require gradients; they have the state's values.
        samples: what is left to be read, in order.
        options: of the training.
        state: that it goes on from.
        folder: a scratch folder.
        keep: called with each state that is to be kept, in every process; None to keep none.
        step: counts the steps.
    """

    def __init__(
        self,
        model: PeftModel,
        samples: OrderedSamples,
        options: TrainingOptions,
        state: TrainingState,
        *,
        folder: Path,
        keep: Callable[[TrainingState], None] | None,
        step: Step,
    ) -> None:
        self._routed = model
        self._options = options
        self._start = state
        self.losses: list[tuple[float, float, float]] = []
        self._measured: list[Tensor] = []
        super().__init__(
            model=model,
            args=_arguments(options, state.step, folder),
            train_dataset=samples,
            data_collator=collate,
            callbacks=[_Keeper(self, options, state, keep, step)],
        )
        self.remove_callback(PrinterCallback)
        # `compute_loss` is a mean over the batch already.
        self.model_accepts_loss_kwargs = False

    @property
    def outcome(self) -> TrainingOutcome:
        """The result so far."""
        last = self.losses[-_REPORTED_STEPS:]
        steps, begun = self._options.steps, self._start.step
        if not last:
            return TrainingOutcome(steps, begun, 0, None, None, None)
        means = [math.fsum(column) / len(last) for column in zip(*last, strict=True)]
        return TrainingOutcome(steps, begun, len(last), *means)

    @property
    def optimizer_state(self) -> Any:
        """Adam's state by parameter, that of accelerate's copies once the training has begun."""
        if self.optimizer is None:
            raise RuntimeError("the optimizer is made when the training begins")
        return self.optimizer.state

    @property
    def gates(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by path and tensor."""
        return trained_parameters(self._routed)

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LambdaLR:
        """Return a schedule that falls linearly over all steps, those of earlier runs included."""
        done, steps = self._start.step, self._options.steps
        of: Any = optimizer or self.optimizer
        schedule = LambdaLR(of, lambda step: max(0.0, 1 - (done + step) / steps))
        self.lr_scheduler = schedule
        return schedule

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the mean over the samples of a pass of the language model's loss plus c times the gates'.

        Raises:
            DataRefused: that of a step is not finite, in this process or another.
        """
        # The base's dropout would only blur what gates read, and a resumed training would need its random
        # numbers.
        model.eval()
        ids, mask, labels = inputs["input_ids"], inputs["attention_mask"], inputs["gate_labels"]
        passes: list[LabelledPass] = []

        def labelled(router: Any) -> LabelledPass:
            passes.append(LabelledPass(router.shared_routings(), labels))
            return passes[0]

        with overridden(self._routed, labelled):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        language = language_losses(logits, ids, mask, inputs["prompt_tokens"]).mean()
        gates = passes[0].loss.to(language.device).mean()
        right = passes[0].right.mean().to(language.device)
        self._measured.append(torch.stack([language.detach(), gates.detach(), right]))
        if len(self._measured) == self.args.gradient_accumulation_steps:
            self._note(torch.stack(self._measured).mean(dim=0))
            self._measured.clear()
        return language + self._options.gate_loss * gates

    def _note(self, measured: Tensor) -> None:
        """Note the losses and the share of a step: the means over all processes, whose passes are equal."""
        found = self.accelerator.gather(measured[None]).mean(dim=0).tolist()
        if not all(map(math.isfinite, found)):
            step = self._start.step + self.state.global_step + 1
            raise self._not_finite(
                step,
                f"the loss of step {step} is not finite: that of the language model is {found[0]:g}, that of "
                f"the gates {found[1]:g}",
            )
        self.losses.append((found[0], found[1], found[2]))
        del self.losses[:-_REPORTED_STEPS]

    def check_finite(self, state: TrainingState) -> None:
        """Check that the gates of a state are finite.

        Raises:
            DataRefused: they are not.
        """
        if not all(bool(gate.isfinite().all()) for gate in state.gates.values()):
            raise self._not_finite(state.step, f"the gates after step {state.step} are not finite")

    def _not_finite(self, step: int, message: str) -> DataRefused:
        """Return the refusal of numbers that are not finite in a step, with what the checkpoint has."""
        every = self._options.checkpoint_steps
        kept = max((step - 1) // every * every, self._start.step)
        rest = "nothing was written"
        if self._options.checkpoint is not None and kept:
            rest = f"`{self._options.checkpoint}` has the state after step {kept}"
        return DataRefused(
            f"{message}; {rest}",
            hint="train on a base in bfloat16 or float32, since one in float16 may overflow, or with a "
            "smaller learning rate",
        )


def language_losses(logits: Tensor, ids: Tensor, mask: Tensor, prompt_tokens: Tensor) -> Tensor:
    """Return the language model's loss of each row, float32 [B]: the mean over the tokens of its answer.

    Args:
        logits: [B, T, V].
        ids: int64 [B, T].
        mask: int64 [B, T], 0 for padding.
        prompt_tokens: int64 [B], how many tokens at the beginning are not to be predicted.
    """
    places = torch.arange(1, ids.shape[1], device=ids.device)
    counted = (mask[:, 1:] != 0) & (places >= prompt_tokens[:, None])
    losses = functional.cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
    # A row without such tokens, of which the prompt was cut off, has the loss 0.
    return torch.where(counted, losses, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


class _Keeper(TrainerCallback):
    """Restores Adam's moments before the first step, and keeps the state after some of them."""

    def __init__(
        self,
        trainer: GateTrainer,
        options: TrainingOptions,
        state: TrainingState,
        keep: Callable[[TrainingState], None] | None,
        step: Step,
    ) -> None:
        self._trainer = trainer
        self._options = options
        self._start = state
        self._keep = keep
        self._step = step
        step.advance(state.step)

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Restore the moments, after accelerate has divided the parameters among the processes."""
        if not self._start.step:
            return
        state = self._trainer.optimizer_state
        for name, gate in self._trainer.gates.items():
            state[gate] = {
                "step": torch.tensor(float(self._start.step)),
                "exp_avg": _like(self._start.first[name], gate),
                "exp_avg_sq": _like(self._start.second[name], gate),
            }

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Keep the state where it is time to."""
        self._step.advance()
        done = self._start.step + state.global_step
        is_due = done % self._options.checkpoint_steps == 0 or done == self._options.steps
        if self._keep is None or not is_due:
            return
        kept = state_of(self._trainer, done)
        self._trainer.check_finite(kept)
        self._keep(kept)


def state_of(trainer: GateTrainer, step: int) -> TrainingState:
    """Return a trainer's state after some steps, whole, in every process."""
    parameters, state = trainer.gates, trainer.optimizer_state
    return TrainingState(
        step,
        {name: _whole(gate) for name, gate in parameters.items()},
        {name: _whole(state[gate]["exp_avg"]) for name, gate in parameters.items()},
        {name: _whole(state[gate]["exp_avg_sq"]) for name, gate in parameters.items()},
    )


def _whole(tensor: Tensor) -> Tensor:
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach().cpu().clone()


def _like(values: Tensor, gate: Tensor) -> Tensor:
    if isinstance(gate, DTensor):
        return distribute_tensor(values.to(gate.device), gate.device_mesh, gate.placements)
    return values.to(gate.device).clone()


def _arguments(options: TrainingOptions, done: int, folder: Path) -> TrainingArguments:
    samples = options.batch_size // process_count()
    of_a_pass = max(size for size in range(1, MAX_PASS_SAMPLES + 1) if samples % size == 0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=of_a_pass,
        gradient_accumulation_steps=samples // of_a_pass,
        max_steps=options.steps - done,
        learning_rate=options.learning_rate,
        optim="adamw_torch",
        weight_decay=0.0,
        # Adam's steps do not grow with the gradient.
        max_grad_norm=0.0,
        seed=options.seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # Every gate takes part in every step.
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        use_cpu=not torch.accelerator.is_available(),
    )
    # One process with several GPUs would divide the batch among threads, in which no pass is known.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
