"""Training from the closed form and from zero, and a training that is killed and goes on."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from meteora_registry.files.progress import Progress
from meteora_registry.kernels.reference import relative_error
from meteora_registry.runtime.training import TrainingOptions, trainer
from meteora_registry.runtime.training.samples import balanced_order
from meteora_registry.runtime.training.train import TrainedGates
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import DataRefused, SourceUnreadable, UsageError

from .conftest import NAMES, Workplace

SHORT = TrainingOptions(steps=12, batch_size=6, learning_rate=0.01, checkpoint_steps=5)
# Of three members, by chance.
CHANCE = 1 / 3


@pytest.fixture(scope="module")
def short(training_workplace: Workplace) -> TrainedGates:
    return training_workplace.train(SHORT)


def same_bits(first: TrainedGates, second: TrainedGates) -> bool:
    one, other = first.gates.values, second.gates.values
    return one.keys() == other.keys() and all(
        torch.equal(one[path][place], other[path][place]) for path in one for place in (0, 1)
    )


def share_right(workplace: Workplace, options: TrainingOptions) -> float:
    """Return the share of right choices of the first step's gates, on the samples that the steps read."""
    found = workplace.train(replace(options, steps=1, batch_size=36)).outcome.right
    assert found is not None
    return found


def test_training_from_the_closed_form_makes_no_fewer_choices_right(training_workplace: Workplace) -> None:
    options = TrainingOptions(steps=40, batch_size=6, learning_rate=0.01)
    before = share_right(training_workplace, options)
    trained = training_workplace.train(options)
    after = share_right(
        replace(training_workplace, fitted=replace(training_workplace.fitted, values=trained.gates.values)),
        options,
    )
    assert before > CHANCE
    assert after >= before


def test_training_from_zero_reaches_most_choices(training_workplace: Workplace) -> None:
    options = TrainingOptions(start="zero", steps=60, batch_size=6, learning_rate=0.2)
    outcome = training_workplace.train(options).outcome
    assert (outcome.steps, outcome.resumed_at, outcome.reported_steps) == (60, 0, 20)
    assert outcome.right is not None
    assert outcome.right > 0.8


def test_same_training_gives_the_same_bits(training_workplace: Workplace, short: TrainedGates) -> None:
    assert same_bits(training_workplace.train(SHORT), short)
    assert not same_bits(training_workplace.train(replace(SHORT, seed=1)), short)


@pytest.mark.parametrize("samples", [1, 6])
def test_samples_of_a_pass_do_not_show_in_the_gates(
    training_workplace: Workplace, short: TrainedGates, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "MAX_PASS_SAMPLES", samples)
    found = training_workplace.train(SHORT)
    for path, values in found.gates.values.items():
        for value, expected in zip(values, short.gates.values[path], strict=True):
            # Adam divides by the root of a mean of squares: a rounding of a tiny gradient shows in the gate.
            assert relative_error(value, expected) <= 1e-4
    first, second = found.outcome, short.outcome
    assert first.reported_steps == second.reported_steps == 12
    assert (first.language_loss, first.gate_loss, first.right) == pytest.approx(
        (second.language_loss, second.gate_loss, second.right), rel=1e-5
    )


def test_record_states_how_and_on_what(training_workplace: Workplace, short: TrainedGates) -> None:
    fitting = short.gates.fitting
    assert fitting.method == (
        "sgd (c 1, learning rate 0.01, 12 steps of 6, seed 0) from lda, shrinkage 0.1, on the plain base, "
        "without the first 4 tokens"
    )
    assert [(each.member, each.samples) for each in fitting.data] == [(name, 12) for name in NAMES]
    zero = training_workplace.train(replace(SHORT, start="zero", steps=1)).gates.fitting.method
    assert zero.endswith("seed 0) from zero, without the first 4 tokens")


def killed_at(step: int) -> Progress:
    """Return a progress that kills its process, as a machine that fails does, when so many steps are done."""

    def report(name: str, done: int, total: int) -> None:
        if (name, done) == ("training", step):
            os.kill(os.getpid(), signal.SIGKILL)

    return report


@pytest.fixture(scope="module")
def killed(training_workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The checkpoint of a training that was killed at its eighth step."""
    options = replace(SHORT, checkpoint=tmp_path_factory.mktemp("killed") / "state")
    # A process of its own that has everything imported already.
    process = multiprocessing.get_context("fork").Process(
        target=training_workplace.train, args=(options,), kwargs={"progress": killed_at(8)}
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert options.checkpoint is not None
    return options.checkpoint.read_bytes()


@pytest.fixture
def checkpoint(killed: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.write_bytes(killed)
    return path


def test_killed_training_goes_on_from_its_last_checkpoint_to_the_same_bits(
    training_workplace: Workplace, short: TrainedGates, checkpoint: Path
) -> None:
    resumed = training_workplace.train(replace(SHORT, checkpoint=checkpoint))
    assert (resumed.outcome.resumed_at, resumed.outcome.reported_steps) == (5, 7)
    assert same_bits(resumed, short)
    assert [path.name for path in checkpoint.parent.iterdir()] == ["state"]
    # Of a training that is done nothing is left to do.
    again = training_workplace.train(replace(SHORT, checkpoint=checkpoint))
    assert (again.outcome.resumed_at, again.outcome.right) == (12, None)
    assert same_bits(again, short)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"seed": 1}, "its seed is `0`, this one's `1`"),
        ({"steps": 13}, "its steps is `12`, this one's `13`"),
        ({"start": "zero"}, "its start is `closed-form`, this one's `zero`"),
    ],
    ids=["seed", "steps", "start"],
)
def test_checkpoint_of_another_training_is_refused(
    training_workplace: Workplace, checkpoint: Path, changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(DataRefused) as caught:
        training_workplace.train(replace(SHORT, checkpoint=checkpoint, **changes))  # type: ignore[arg-type]
    assert str(caught.value) == f"the checkpoint `{checkpoint}` is of another training: {reason}"
    assert caught.value.hint == "name another file with `--checkpoint`, or delete this one to begin anew"


def test_checkpoint_of_other_data_is_refused(training_workplace: Workplace, checkpoint: Path) -> None:
    data = dict(training_workplace.data)
    old = data["legal"].sha256
    # The whole digest counts, of which a message has twelve digits.
    data["legal"] = replace(data["legal"], sha256=Digest(old[:12] + data["medical"].sha256[12:]))
    with pytest.raises(DataRefused, match=f"is of another training: its data of `legal` is `{old.short}`, "):
        replace(training_workplace, data=data).train(replace(SHORT, checkpoint=checkpoint))


def gate_names(tensors: dict[str, torch.Tensor]) -> list[str]:
    return [name for name in tensors if name.endswith("meteora_gate")]


def cut_a_row(tensors: dict[str, torch.Tensor]) -> None:
    tensors[gate_names(tensors)[0]] = tensors[gate_names(tensors)[0]][1:].clone()


def lose_a_moment(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{gate_names(tensors)[0]}.first_moment"]


def add_a_tensor(tensors: dict[str, torch.Tensor]) -> None:
    tensors["other"] = torch.zeros(1)


def negate_a_square(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{gate_names(tensors)[0]}.second_moment"][0, 0] = -1.0


def break_a_number(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{gate_names(tensors)[0]}.second_moment"][0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cut_a_row, "is F32 [2, 32], expected F32 [3, 32]"),
        (lose_a_moment, "first_moment` is missing, expected"),
        (add_a_tensor, "`other` is F32 [1], expected nothing of that name"),
        (break_a_number, "is not finite"),
        (negate_a_square, "the second moment of `"),
    ],
    ids=["shape", "missing", "unexpected", "not-finite", "negative"],
)
def test_damaged_checkpoint_is_refused(
    training_workplace: Workplace, checkpoint: Path, change: object, reason: str
) -> None:
    with safe_open(checkpoint, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(checkpoint)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, checkpoint, metadata=metadata)
    with pytest.raises(DataRefused) as caught:
        training_workplace.train(replace(SHORT, checkpoint=checkpoint))
    assert f"the checkpoint `{checkpoint}` is damaged: " in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04.", "is not a checkpoint, or a damaged one: "),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "is not a checkpoint: it has no `meteora_training`"),
    ],
    ids=["pickle", "other-file"],
)
def test_file_that_is_not_a_checkpoint_is_refused(
    training_workplace: Workplace, tmp_path: Path, data: bytes, reason: str
) -> None:
    (tmp_path / "state").write_bytes(data)
    with pytest.raises(DataRefused, match=reason) as caught:
        training_workplace.train(replace(SHORT, checkpoint=tmp_path / "state"))
    assert (tmp_path / "state").read_bytes() == data
    # A file of something else is not one to delete.
    assert "delete" not in str(caught.value.hint)


def base_that_fails_at(workplace: Workplace, step: int, options: TrainingOptions) -> PreTrainedModel:
    """Return a base that has no number for a word which no sample before that of a step has."""
    order = balanced_order([12, 12, 12], options.steps, options.seed)
    words = [
        set(workplace.tokenizer(sample.prompt)["input_ids"])
        for sample in (workplace.data[NAMES[member]].samples[place] for member, place in order[:step])
    ]
    base = workplace.base()
    with torch.no_grad():
        base.get_input_embeddings().weight[min(words[-1].difference(*words[:-1]))] = float("nan")
    return base


def test_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(
    training_workplace: Workplace, tmp_path: Path
) -> None:
    options = replace(SHORT, batch_size=1, checkpoint=tmp_path / "state", checkpoint_steps=2)
    base = base_that_fails_at(training_workplace, 4, options)
    with pytest.raises(DataRefused) as caught:
        training_workplace.train(options, base=base)
    assert str(caught.value) == (
        "the loss of step 4 is not finite: that of the language model is nan, that of the gates nan; "
        f"`{tmp_path / 'state'}` has the state after step 2"
    )
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(tmp_path / "state").values())
    base = base_that_fails_at(training_workplace, 4, options)
    with pytest.raises(DataRefused, match=r"; nothing was written$"):
        training_workplace.train(replace(options, checkpoint=None), base=base)


def test_checkpoint_that_cannot_be_written_is_refused(training_workplace: Workplace, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot write"):
        training_workplace.train(replace(SHORT, checkpoint=tmp_path / "none" / "state"))


def test_member_without_tokens_that_count_is_refused(training_workplace: Workplace) -> None:
    data = dict(training_workplace.data)
    sample = replace(data["legal"].samples[0], prompt="w1", response=None)
    data["legal"] = replace(data["legal"], samples=(sample,))
    with pytest.raises(DataRefused) as caught:
        replace(training_workplace, data=data).train(SHORT)
    assert str(caught.value) == "no token of `legal.jsonl` counts, so no gate can be trained on it"


def test_batch_that_cannot_be_divided_is_refused(
    training_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UsageError) as caught:
        training_workplace.train(SHORT)
    assert str(caught.value) == "a batch of 6 samples cannot be divided among 4 processes"


def test_number_of_processes_that_no_launcher_set_is_refused(
    training_workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError) as caught:
        training_workplace.train(SHORT)
    assert str(caught.value) == ("`WORLD_SIZE` is 2, but `RANK` is not set: no launcher started this process")
    monkeypatch.setenv("WORLD_SIZE", "0")
    assert training_workplace.train(replace(SHORT, steps=1)).outcome.steps == 1


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "gates are not trained with DeepSpeed"),
        (
            {"ACCELERATE_MIXED_PRECISION": "fp16"},
            "gates are trained with mixed precision `no` or `bf16`, found `fp16`",
        ),
        (FSDP | {"FSDP_VERSION": "1"}, "gates are trained with FSDP of version 2, found version 1"),
        ({"ACCELERATE_USE_FSDP": "true"}, "gates are trained with FSDP of version 2, found version 1"),
        (
            FSDP | {"ACCELERATE_MIXED_PRECISION": "bf16"},
            "gates are trained in float32, found FSDP with mixed precision `bf16`",
        ),
    ],
    ids=["deepspeed", "fp16", "fsdp-version", "fsdp-default", "fsdp-precision"],
)
def test_launch_in_which_gates_cannot_be_trained_is_refused(
    training_workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError) as caught:
        training_workplace.train(SHORT)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "there"}, "`start` is `there`, expected one of `closed-form`, `zero`"),
        ({"gate_loss": -1.0}, "`gate_loss` is -1.0, expected 0 to 1e+06"),
        ({"gate_loss": float("nan")}, "`gate_loss` is nan, expected 0 to 1e+06"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0, expected above 0 and at most 1000"),
        ({"learning_rate": float("inf")}, "`learning_rate` is inf, expected above 0 and at most 1000"),
        ({"steps": 0}, "`steps` is 0, expected at least 1"),
        ({"batch_size": 0}, "`batch_size` is 0, expected at least 1"),
        ({"checkpoint_steps": 0}, "`checkpoint_steps` is 0, expected at least 1"),
        ({"seed": -1}, "`seed` is -1, expected 0 to 4294967295"),
        ({"seed": 1 << 32}, "`seed` is 4294967296, expected 0 to 4294967295"),
        ({"steps": 10_000_000}, "10000000 steps of 8 samples are more than 10000000 samples"),
    ],
)
def test_option_out_of_range_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainingOptions(**options)  # type: ignore[arg-type]
    assert str(caught.value) == message
