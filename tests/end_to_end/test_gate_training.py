"""Training gates through the command line and the Python interface."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import meteora_registry as meteora
from meteora_registry.bundle import Bundle
from meteora_registry.registry.cli.gate_training import _OPTIONS
from support.program import Run
from support.task_data import make_fit_workplace

NAMES = ("rank4", "rank8")
FIT = ("gate", "fit", "bundle", "--base", "./base", "--data", "./data")
TRAIN = (*FIT, "--method", "sgd", "--steps", "4", "--batch-size", "2", "--checkpoint-steps", "3")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fit_workplace(tmp_path_factory.mktemp("workplace"), NAMES)


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace; the first use makes the catalog and the bundle, and trains its gates."""
    if not (workplace / "bundle").exists():
        assert run("add", *(f"adapters/{name}" for name in NAMES)).returncode == 0
        assert run("fuse", *NAMES, "--out", "bundle").returncode == 0
        result = run(*TRAIN, "--out", "trained", "--checkpoint", "state", "--statistics", "sums")
        assert result.returncode == 0, result.stderr
        (workplace / "printed").write_text(result.stdout)
    return run


def test_training_registers_a_verified_version_that_states_it(run: Run, workplace: Path) -> None:
    printed = (workplace / "printed").read_text()
    assert "fitted: bundle@2 in trained: " in printed
    assert "one decision per token" in printed
    assert re.search(
        r"trained: 4 steps; the last 4: loss of the language model \d\.\d{3}, of the gates \d+\.\d{3}, "
        r"\d+\.\d% of the choices right",
        printed,
    )
    shown = json.loads(run("show", "bundle@2", "--format", "json").stdout)
    assert shown["gate_fitted"].startswith("sgd (c 1, learning rate 0.1, 4 steps of 2, seed 0) from lda, ")
    assert [(each["level"], each["outcome"]) for each in shown["verifications"]] == [("source", "pass")]
    config = json.loads((workplace / "trained" / "adapter_config.json").read_bytes())
    assert config["gate"]["scope"] == "token"
    # Every line is read, and earlier readers read the bundle.
    assert [each["samples"] for each in config["gate"]["fitted"]["data"]] == [12, 12]
    assert config["required_features"] == ["gate-sources"]


def test_training_leaves_the_factors_bit_for_bit(run: Run, workplace: Path) -> None:
    old, new = (load_file(workplace / each / "adapter_model.safetensors") for each in ("bundle", "trained"))
    factors = [name for name in old if not name.endswith("gate")]
    assert factors
    assert all(torch.equal(old[name], new[name]) for name in factors)


def test_training_that_is_done_is_written_again_from_its_checkpoint(run: Run, workplace: Path) -> None:
    result = run(*TRAIN, "--out", "again", "--checkpoint", "state", "--format", "json")
    assert result.returncode == 0, result.stderr
    training = json.loads(result.stdout)["training"]
    assert (training["resumed_at"], training["reported_steps"], training["right"]) == (4, 0, None)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (workplace / "again" / name).read_bytes() == (workplace / "trained" / name).read_bytes()


def test_statistics_of_a_training_serve_a_fit_without_data(run: Run, workplace: Path) -> None:
    (workplace / "empty").mkdir(exist_ok=True)
    fit = (*FIT[:-1], "./empty", "--scope", "token", "--statistics", "sums")
    result = run(*fit, "--out", "from-sums")
    assert result.returncode == 0, result.stderr
    # Training reads the data itself.
    refused = run(*fit, "--out", "none", "--method", "sgd")
    assert refused.returncode == 1
    assert "`rank4.jsonl` is missing: there is no data for the member `rank4`" in refused.stderr
    assert not (workplace / "none").exists()


def test_samples_bound_what_a_training_reads(run: Run, workplace: Path) -> None:
    result = run(*TRAIN, "--samples", "5", "--out", "few", "--format", "json")
    assert result.returncode == 0, result.stderr
    fitted = json.loads((workplace / "few" / "adapter_config.json").read_bytes())["gate"]["fitted"]
    assert [each["samples"] for each in fitted["data"]] == [5, 5]
    # A state of all samples is another training's.
    refused = run(*TRAIN, "--samples", "5", "--out", "none", "--checkpoint", "state")
    assert refused.returncode == 1
    assert "its number of samples of `rank4` is `12`, this one's `5`" in refused.stderr


def test_launch_that_is_refused_costs_no_closed_form(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    refused = run(*TRAIN, "--out", "none", "--statistics", "no-sums")
    assert (refused.returncode, (workplace / "no-sums").exists()) == (2, False)
    assert "gates are trained with FSDP of version 2, found version 1" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--steps", "4"), 2, "`--steps` goes with `--method sgd`"),
        (("--checkpoint", "other"), 2, "`--checkpoint` goes with `--method sgd`"),
        (("--method", "sgd", "--learning-rate", "nan"), 2, "`learning_rate` is nan, expected above 0"),
        (("--method", "sgd", "--scope", "prompt"), 2, "trained for the scope `token`, found `prompt`"),
        (("--method", "sgd", "--checkpoint", "no/such"), 2, "there is no folder `no`"),
        (("--method", "sgd", "--checkpoint", "trained/state"), 2, "is inside the bundle `"),
        (("--method", "sgd", "--checkpoint", "empty/state", "--out", "empty"), 2, "is inside `empty`"),
        (("--statistics", "empty/sums", "--out", "empty"), 2, "is inside `empty`"),
        (
            ("--method", "sgd", "--checkpoint", "new", "--statistics", "./new"),
            2,
            "`new` is named for the checkpoint and for the statistics",
        ),
        (("--method", "sgd", "--checkpoint", "base/config.json"), 1, "is not a checkpoint"),
    ],
    ids=[
        "no-method",
        "checkpoint",
        "rate",
        "scope",
        "no-folder",
        "in-a-bundle",
        "in-the-new-bundle",
        "statistics-in-the-new-bundle",
        "statistics",
        "other-file",
    ],
)
def test_training_that_cannot_be_is_refused(
    run: Run, workplace: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    (workplace / "empty").mkdir(exist_ok=True)
    result = run(*FIT, "--out", "refused", *arguments)
    assert (result.returncode, result.stdout) == (code, "")
    assert message in result.stderr
    assert not (workplace / "refused").exists()
    assert not list((workplace / "empty").iterdir())


def test_registry_trains_gates(run: Run, workplace: Path) -> None:
    options = meteora.TrainingOptions(start="zero", steps=2, batch_size=2)
    with meteora.Registry(home=workplace / "other-home") as registry:
        found = registry.fit(
            workplace / "bundle",
            base=workplace / "base",
            data=workplace / "data",
            out=workplace / "from-python",
            training=options,
        )
    assert found.training is not None
    assert (found.training.steps, found.version.gate_scope) == (2, "token")
    assert found.fitting.method.startswith("sgd (c 1, learning rate 0.1, 2 steps of 2, seed 0) from zero")
    with meteora.FusedBundle.open(workplace / "bundle", base=workplace / "base") as fused:
        trained = fused.fit(workplace / "data", training=options)
    assert trained.bundle.config.gate == Bundle.open(workplace / "from-python").config.gate


@pytest.mark.usefixtures("run")
def test_handle_takes_the_choices_of_a_catalogued_fit(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with meteora.FusedBundle.open(workplace / "bundle", base=workplace / "base") as fused:
        assert fused.fit(workplace / "data", abstain=None).bundle.config.gate.abstain is None
        # What is refused has arrived: this base has no lines, and no template.
        with pytest.raises(meteora.UsageError, match="no token with a line break"):
            fused.fit(workplace / "data", scope="segment", answers="in-order")
        with pytest.raises(meteora.UsageError, match="template"):
            fused.fit(workplace / "data", form="chat")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(meteora.UsageError, match="in one process, found 2"):
            fused.fit(workplace / "data")


def test_help_states_the_defaults() -> None:
    fields = {each.name: each.default for each in dataclasses.fields(meteora.TrainingOptions)}
    assert list(_OPTIONS) == list(fields)

    def command() -> None: ...

    for name, add in _OPTIONS.items():
        (option,) = add(command).__click_params__[-1:]
        stated = re.search(r"Default: (.+)\.$", option.help)
        assert stated is None if fields[name] is None else stated is not None, name
        if stated is not None:
            assert type(fields[name])(stated[1]) == fields[name], name
