"""A routed model that was trained and saved by PEFT, adopted as a version of its bundle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import meteora_registry
from meteora_registry.runtime import route_as
from meteora_registry.schemas.errors import BundleRefused
from support.models import LOADS_WITH_PEFT, logits_of, some_tokens, tiny_llama
from support.program import Run, make_fitted
from support.task_data import make_fit_workplace

pytestmark = [LOADS_WITH_PEFT]
NAMES = ("rank4", "rank8", "rslora16")
BASE_AND_DATA = ("--base", "./base", "--data", "./data")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fit_workplace(tmp_path_factory.mktemp("workplace"), NAMES)


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace; the first use makes a fitted bundle, version 2, and trains its gates."""
    if not (workplace / "trained").exists():
        make_fitted(run, NAMES)
        train(workplace / "fitted", workplace / "trained")
    return run


def train(bundle: Path, folder: Path) -> None:
    """Train the gates of a bundle for a step, and save the model as PEFT does."""
    model = PeftModel.from_pretrained(tiny_llama(), bundle, is_trainable=True).train()
    tokens = some_tokens()
    with route_as(model, scope="token", top_k=2):
        model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(folder, save_embedding_layers=False)


@pytest.fixture
def adopted(run: Run, workplace: Path) -> Path:
    """The adopted bundle; made once, read only."""
    folder = workplace / "adopted"
    if not folder.exists():
        result = run("gate", "adopt", "trained", "--out", "adopted")
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("adopted: bundle@3 in adopted: gates trained from bundle@2, ")
        assert "verified: level source" in result.stdout
    return folder


def config_in(folder: Path) -> Any:
    return json.loads((folder / CONFIG).read_bytes())


def manifest_digest(bundle: Path) -> str:
    return str(json.loads((bundle / "verification.json").read_bytes())["manifest_sha256"])


def test_adopted_model_is_a_verified_version_of_its_bundle(run: Run, adopted: Path) -> None:
    assert adopted.is_dir()
    shown = json.loads(run("show", "bundle", "--format", "json").stdout)
    assert (shown["version"], shown["gate_fitted"]) == (3, "trained from bundle@2")
    assert [(each["level"], each["outcome"]) for each in shown["verifications"]] == [("source", "pass")]
    assert [member["adapter"]["name"] for member in shown["members"]] == list(NAMES)
    for level in ("integrity", "source"):
        assert run("verify", "./adopted", "--level", level).returncode == 0


def test_adopted_bundle_states_where_its_gates_come_from(adopted: Path, workplace: Path) -> None:
    config = config_in(adopted)
    assert config["gate"]["fitted"] == {
        "method": "trained",
        "data": [],
        "trained_from": {"bundle": "bundle@2", "manifest_sha256": manifest_digest(workplace / "fitted")},
    }
    assert "gate-trained" in config["required_features"]
    card = (adopted / "README.md").read_text()
    assert "The gate was trained from bundle@2 by a training loop" in card
    assert "Its gates are then trained, which no command repeats." in card


def token_logits(folder: Path) -> Tensor:
    """Return what a stock load of a folder computes where every token is routed by its own gates."""
    model = PeftModel.from_pretrained(tiny_llama(), folder)
    with route_as(model, scope="token"):
        return logits_of(model)


def test_adopted_bundle_computes_what_the_saved_model_did(adopted: Path, workplace: Path) -> None:
    folders = (workplace / "trained", adopted, workplace / "fitted")
    saved, same, _ = (load_file(folder / WEIGHTS) for folder in folders)
    assert saved.keys() == same.keys()
    assert all(torch.equal(saved[name], same[name]) for name in saved)
    trained, again, before = map(token_logits, folders)
    assert torch.equal(again, trained)
    assert not torch.equal(again, before)


def test_adopted_bundle_is_fitted_and_trained_again(run: Run, adopted: Path, tmp_path: Path) -> None:
    options = ("--scope", "token", "--name", "again", "--out", tmp_path / "fitted")
    fitted = run("gate", "fit", "./adopted", *BASE_AND_DATA, *options)
    assert fitted.returncode == 0, fitted.stderr
    assert "gate-trained" not in config_in(tmp_path / "fitted")["required_features"]
    train(adopted, tmp_path / "trained")
    result = run("gate", "adopt", tmp_path / "trained", "--out", tmp_path / "adopted", "--name", "further")
    assert result.returncode == 0, result.stderr
    assert "further@1" in result.stdout
    assert "gates trained from bundle@3" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify", "./trained"],
        ["verify", "./trained", "--digests-only"],
        ["push", "./trained", "org/bundle"],
        ["adopt", "./trained"],
        ["eval", "./trained", *BASE_AND_DATA],
        ["trace", "./trained", "--base", "./base", "--prompt", "w1"],
        ["extract", "./trained", "rank4", "--out", "member"],
        ["gate", "fit", "./trained", *BASE_AND_DATA, "--out", "new"],
    ],
    ids=" ".join,
)
def test_command_names_the_way_from_a_saved_model_to_a_bundle(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "error: `trained` is a routed model that PEFT saved, and not a bundle yet: it has no "
        "`meteora_manifest.json` and was never verified\n"
        "hint: `meteora-registry gate adopt trained --out NEW` makes it a version of the bundle that it came "
        "from\n"
    )


@pytest.mark.usefixtures("run")
def test_load_names_the_way_from_a_saved_model_to_a_bundle(workplace: Path) -> None:
    with pytest.raises(BundleRefused, match="is a routed model that PEFT saved, and not a bundle yet"):
        meteora_registry.load(workplace / "trained", workplace / "base")


def change_tensor(folder: Path, kind: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(folder / WEIGHTS)
    name = next(name for name in tensors if name.endswith(f".{kind}"))
    tensors[name] = change(tensors[name])
    save_file(tensors, folder / WEIGHTS)


def change_config(folder: Path, change: Callable[[Any], object]) -> None:
    config = config_in(folder)
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def train_a_member(folder: Path) -> None:
    change_tensor(folder, "meteora_B", lambda tensor: tensor + 1)


def change_a_request_gate(folder: Path) -> None:
    change_tensor(folder, "meteora_request_gate_bias", lambda tensor: tensor + 1)


def widen_a_gate(folder: Path) -> None:
    change_tensor(folder, "meteora_gate", Tensor.double)


def spoil_a_gate(folder: Path) -> None:
    change_tensor(folder, "meteora_gate", lambda tensor: tensor / 0)


def scale_a_member(folder: Path) -> None:
    change_config(folder, lambda config: config["members"][0].update(scaling=9.0))


def change_eps(folder: Path) -> None:
    change_config(folder, lambda config: config["gate"].update(eps=0.5))


def remove_request_gates(folder: Path) -> None:
    change_config(folder, lambda config: config["gate"].pop("request"))


def add_a_threshold(folder: Path) -> None:
    def change(config: Any) -> None:
        config["gate"]["abstain"] = 0.05
        config["gate"]["request"]["quantiles"] = list(range(101))
        config["required_features"].append("gate-abstain")

    change_config(folder, change)


def forget_the_bundle(folder: Path) -> None:
    change_config(folder, lambda config: config["gate"]["fitted"].pop("trained_from"))


def state_another_bundle(folder: Path) -> None:
    other = {"bundle": None, "manifest_sha256": "0" * 64}
    change_config(folder, lambda config: config["gate"]["fitted"].update(trained_from=other))


def undo_training(folder: Path) -> None:
    save_file(load_file(folder.parent / "fitted" / WEIGHTS), folder / WEIGHTS)


def remove_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (train_a_member, 1, ".meteora_B` differs from that of `bundle@2`: members were trained"),
        (change_a_request_gate, 1, "differs from that of `bundle@2`: request gates get no gradient"),
        (widen_a_gate, 1, ".meteora_gate` is F64 [3, 48], expected F32 [3, 48]"),
        (spoil_a_gate, 1, "gate has values that are not finite"),
        (scale_a_member, 1, "was not trained from `bundle@2`: its config has another `members`"),
        (change_eps, 1, "was not trained from `bundle@2`: its config has another `gate.eps`"),
        (remove_request_gates, 1, "its config has another `gate.request`"),
        (add_a_threshold, 1, "its config has another `gate.abstain`"),
        (forget_the_bundle, 2, "does not state from which bundle it was trained"),
        (state_another_bundle, 1, "the catalog has no bundle with the manifest `000000000000`"),
        (undo_training, 1, "are those of `bundle@2`: nothing was trained"),
        (remove_weights, 2, "expected a config of the type `METEORA` and weights as PEFT writes them"),
    ],
)
def test_model_that_is_not_its_bundle_with_other_gates_is_refused(
    run: Run, workplace: Path, change: Callable[[Path], None], code: int, message: str
) -> None:
    folder = workplace / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(workplace / "trained", folder)
    change(folder)
    result = run("gate", "adopt", "changed", "--out", "refused")
    assert message in result.stderr
    assert result.returncode == code
    assert not (workplace / "refused").exists()


def test_bundle_that_is_named_need_not_be_catalogued(run: Run, workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace / "trained", tmp_path / "saved")
    forget_the_bundle(tmp_path / "saved")
    arguments = (tmp_path / "saved", "--out", tmp_path / "adopted", "--from", "./fitted")
    result = run("--home", tmp_path / "home", "gate", "adopt", *arguments)
    assert result.returncode == 0, result.stderr
    assert "adopted: adopted@1" in result.stdout
    assert f"gates trained from {manifest_digest(workplace / 'fitted')[:12]}" in result.stdout


def test_bundle_itself_is_not_adopted(run: Run) -> None:
    result = run("gate", "adopt", "fitted", "--out", "refused")
    assert result.returncode == 2
    assert "`fitted` is a bundle already, expected a config of the type" in result.stderr
