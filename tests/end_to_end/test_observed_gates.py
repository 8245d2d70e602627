"""Request gates at an early module of the base that no member touches: nothing is there but the gate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

import meteora_registry
from meteora_registry.bundle import Bundle
from meteora_registry.fuser.fuse_member import MemberFiles
from meteora_registry.fuser.verifier import verify_bundle
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.home import Home
from meteora_registry.runtime import (
    Decision,
    LoadedBundle,
    force_adapter,
    load_bundle,
    route_as,
    routing,
    uniform,
)
from meteora_registry.runtime.attachment import attach
from meteora_registry.runtime.evaluation.modes import arrow
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.errors import BundleRefused
from meteora_registry.schemas.verification import Level, Outcome
from support.hub_commands import machine
from support.hub_commands import workplace as hub_workplace
from support.hub_server import serve
from support.models import (
    LOADS_WITH_PEFT,
    logits_alone,
    logits_of,
    make_adapter,
    save_base,
    some_tokens,
    tiny_llama,
)
from support.program import Run, make_fitted
from support.task_data import TEMPLATE, tiny_tokenizer, write_task_data

pytestmark = [LOADS_WITH_PEFT]
NAMES = ("first", "second", "third")
LAYERS = 4
TARGET = "model.layers.3.self_attn.v_proj"
OBSERVED = "model.layers.1.self_attn.q_proj"
TENSORS = ("meteora_request_gate", "meteora_request_gate_bias", "meteora_request_gram")
BASE_AND_DATA = ("--base", "./base", "--data", "./data")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OWN = "w21 w22 w23 w24 w25"
# Words that the tiny tokenizer does not know, as are all of the general prompts.
FOREIGN = "Tell me about the sea, please."


def deep_llama() -> PreTrainedModel:
    return tiny_llama(layers=LAYERS)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE, pad_token="<unk>")
    tokenizer.save_pretrained(save_base(deep_llama(), folder / "base"))
    write_task_data(folder / "data", NAMES, samples=50)
    options = {"r": 4, "target_modules": ["v_proj"], "layers_to_transform": [LAYERS - 1]}
    for seed, name in enumerate(NAMES):
        make_adapter(deep_llama, folder / "adapters" / name, seed=seed, base="org/base", **options)
    return folder


@pytest.fixture
def run(run: Run, workplace: Path) -> Run:
    """The program in the workplace, whose first use makes a fitted bundle of members of the last layer."""
    if not (workplace / "fitted").exists():
        make_fitted(run, NAMES)
    return run


@pytest.fixture
def fitted(run: Run, workplace: Path) -> Path:
    """The fitted bundle; read only."""
    return workplace / "fitted"


@pytest.fixture
def loaded(fitted: Path, workplace: Path) -> LoadedBundle:
    return load_bundle(fitted, workplace / "base")


def decide(loaded: LoadedBundle, prompts: list[str]) -> list[Decision]:
    with routing(loaded.model) as record:
        loaded.generate(prompts, max_new_tokens=1)
    return sorted(record.decisions, key=lambda each: each.sequence)


def peft_decisions(folder: Path) -> list[Decision]:
    """Return what a stock load of a folder decides about two prompts."""
    model = PeftModel.from_pretrained(deep_llama(), folder).eval()
    tokens = tiny_tokenizer(pad_token="<unk>")([OWN, FOREIGN], return_tensors="pt", padding=True)
    with torch.no_grad(), routing(model) as record:
        model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return record.decisions


def tensors_at(folder: Path, path: str) -> set[str]:
    prefix = f"base_model.model.{path}."
    names = load_file(folder / WEIGHTS)
    return {name.removeprefix(prefix) for name in names if name.startswith(prefix)}


def test_request_gates_are_at_an_early_module_that_no_member_touches(fitted: Path) -> None:
    config = Bundle.open(fitted).config
    assert config.gate.request is not None
    assert config.target_modules == (TARGET,)
    assert (config.gate.request.modules, config.observed) == ((OBSERVED,), {OBSERVED: 32})
    assert set(config.required_features) == {"gate-abstain", "gate-observed", "gate-request", "gate-scope"}
    assert tensors_at(fitted, OBSERVED) == set(TENSORS)
    assert tensors_at(fitted, TARGET) == {"meteora_A", "meteora_B", "meteora_gate", "meteora_gate_bias"}


def test_own_prompts_go_to_their_member_and_foreign_ones_to_the_base(
    loaded: LoadedBundle, tmp_path: Path
) -> None:
    write_task_data(tmp_path, NAMES, samples=20, seed=1)
    served = 0
    for name in NAMES:
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        decisions = decide(loaded, [json.loads(line)["prompt"] for line in lines])
        served += sum(each.members[:1] == (name,) for each in decisions)
    assert served >= 44
    assert [each.members for each in decide(loaded, [FOREIGN])] == [()]


def test_looking_ends_with_the_layer_of_the_last_request_gate(loaded: LoadedBundle) -> None:
    ran: list[int] = []
    for place, layer in enumerate(loaded.model.get_base_model().model.layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    decide(loaded, [OWN])
    assert ran == [0, 1, *range(LAYERS)]


def test_an_observed_module_adds_nothing(loaded: LoadedBundle, workplace: Path) -> None:
    tokens = some_tokens()
    for name in NAMES:
        with force_adapter(loaded.model, name):
            alone = logits_alone(deep_llama(), workplace / "adapters" / name, tokens)
            assert torch.allclose(logits_of(loaded.model, tokens), alone, atol=1e-5)
    with loaded.model.disable_adapter():
        assert torch.equal(logits_of(loaded.model, tokens), logits_of(deep_llama(), tokens))
    module = loaded.model.get_base_model().get_submodule(OBSERVED)
    x = torch.randn(1, 2, 32)
    assert torch.equal(module(x), module.base_layer(x))


@pytest.mark.parametrize("mode", [arrow, uniform], ids=["arrow", "uniform"])
def test_other_modes_pass_over_an_observed_module(
    loaded: LoadedBundle, mode: Callable[[nn.Module], AbstractContextManager[None]]
) -> None:
    with mode(loaded.model), routing(loaded.model) as record:
        assert logits_of(loaded.model).isfinite().all()
    assert set(record.modules) == {TARGET}


def without_requests(folder: Path, target: Path) -> Path:
    """Return a copy of a bundle's config and weights without its request gates."""
    config = json.loads((folder / CONFIG).read_bytes())
    for key in ("abstain", "request"):
        del config["gate"][key]
    config["required_features"] = ["gate-scope"]
    tensors = {name: each for name, each in load_file(folder / WEIGHTS).items() if "request" not in name}
    (target / CONFIG).write_text(json.dumps(config))
    save_file(tensors, target / WEIGHTS, {"format": "pt"})
    return target


@pytest.mark.parametrize("scope", ["token", "layer"])
def test_routing_by_token_is_the_same_to_the_bit_without_request_gates(
    fitted: Path, tmp_path: Path, scope: str
) -> None:
    found = []
    for folder in (fitted, without_requests(fitted, tmp_path)):
        model = PeftModel.from_pretrained(deep_llama(), folder).eval()
        with route_as(model, scope=scope), routing(model) as record:
            found.append((logits_of(model), record.modules))
    (logits, modules), (other_logits, other_modules) = found
    assert torch.equal(logits, other_logits)
    assert set(modules) == set(other_modules) == {TARGET}
    assert torch.equal(modules[TARGET].selection, other_modules[TARGET].selection)


def test_saved_and_loaded_again_it_decides_the_same(
    loaded: LoadedBundle, fitted: Path, tmp_path: Path
) -> None:
    loaded.model.save_pretrained(tmp_path, save_embedding_layers=False)
    found = peft_decisions(tmp_path)
    assert found == peft_decisions(fitted)
    assert [each.members[:1] for each in found] == [("second",), ()]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_transformers_loads_it_too(fitted: Path) -> None:
    base = deep_llama()
    base.load_adapter(str(fitted))
    tokens = tiny_tokenizer()(OWN, return_tensors="pt")["input_ids"]
    with torch.no_grad(), routing(base) as record:
        base(input_ids=tokens)
    assert [each.members[:1] for each in record.decisions] == [("second",)]


def test_offloaded_it_decides_the_same(loaded: LoadedBundle) -> None:
    expected = decide(loaded, [OWN, FOREIGN])
    cpu_offload(loaded.model, torch.device("cpu"))
    assert decide(loaded, [OWN, FOREIGN]) == expected


def test_a_module_that_one_bundle_observes_serves_another(
    fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    options = {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]}
    adapter = make_adapter(deep_llama, tmp_path / "query", seed=9, base="org/base", **options)
    model = PeftModel.from_pretrained(deep_llama(), fitted, adapter_name="fitted").eval()
    alone = logits_of(model)
    with meteora_registry.fuse([adapter], base=str(workplace / "base")) as other:
        with pytest.warns(meteora_registry.runtime.GateNotFittedWarning):
            model.load_adapter(str(other.folder), adapter_name="query")
        assert torch.equal(logits_of(model), alone)
        model.set_adapter("query")
        assert torch.allclose(logits_of(model), logits_alone(deep_llama(), adapter, some_tokens()), atol=1e-5)
        model.delete_adapter("fitted")
        assert torch.allclose(logits_of(model), logits_alone(deep_llama(), adapter, some_tokens()), atol=1e-5)


def test_it_verifies_at_every_level(fitted: Path, workplace: Path) -> None:
    own = {name: workplace / "adapters" / name for name in NAMES}
    sources = {name: MemberFiles(folder / CONFIG, folder / WEIGHTS) for name, folder in own.items()}
    for level in Level:
        record = verify_bundle(fitted, level=level, sources=sources)
        assert (record.outcome, record.problems) == (Outcome.PASS, ())
        assert set(record.modules) == {TARGET}


def test_members_come_out_as_they_went_in(run: Run, fitted: Path, workplace: Path, tmp_path: Path) -> None:
    result = run("extract", fitted, "second", "--out", tmp_path / "second")
    assert result.returncode == 0, result.stderr
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "second" / name).read_bytes() == (
            workplace / "adapters" / "second" / name
        ).read_bytes()


def test_fitted_again_for_tokens_it_observes_nothing(run: Run, tmp_path: Path) -> None:
    options = ("--scope", "token", "--name", "tokens", "--out", tmp_path / "tokens")
    result = run("gate", "fit", "./fitted", *BASE_AND_DATA, *options)
    assert result.returncode == 0, result.stderr
    config = Bundle.open(tmp_path / "tokens").config
    assert (config.observed, config.required_features) == ({}, ())


def test_trained_gates_are_adopted_with_the_request_gates_as_they_were(
    run: Run, fitted: Path, tmp_path: Path
) -> None:
    model = PeftModel.from_pretrained(deep_llama(), fitted, is_trainable=True).train()
    tokens = some_tokens()
    with route_as(model, scope="token", top_k=2):
        model(input_ids=tokens, labels=tokens).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(tmp_path / "trained", save_embedding_layers=False)
    result = run("gate", "adopt", tmp_path / "trained", "--out", tmp_path / "adopted")
    assert result.returncode == 0, result.stderr
    before, after = (load_file(folder / WEIGHTS) for folder in (fitted, tmp_path / "adopted"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"base_model.model.{TARGET}.{each}" for each in ("meteora_gate", "meteora_gate_bias")}
    assert peft_decisions(tmp_path / "adopted") == peft_decisions(fitted)


def test_request_gates_of_an_observed_module_that_were_changed_are_not_adopted(
    run: Run, loaded: LoadedBundle, fitted: Path, tmp_path: Path
) -> None:
    loaded.model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    tensors = load_file(tmp_path / "saved" / WEIGHTS)
    tensors[f"base_model.model.{OBSERVED}.meteora_request_gate"] += 1
    save_file(tensors, tmp_path / "saved" / WEIGHTS, {"format": "pt"})
    result = run("gate", "adopt", tmp_path / "saved", "--from", fitted, "--out", tmp_path / "adopted")
    assert result.returncode == 1
    assert f"`{OBSERVED}.meteora_request_gate` differs from that of" in result.stderr


def test_members_come_and_are_replaced_where_request_gates_observe(
    run: Run, fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in NAMES[:2]:
        shutil.copyfile(workplace / "data" / f"{name}.jsonl", data / f"{name}.jsonl")
    kept = ("--base", "./base", "--statistics", tmp_path / "statistics")
    commands = (
        ("fuse", *NAMES[:2], "--out", tmp_path / "two", "--name", "two"),
        ("gate", "fit", "two", *kept, "--data", data, "--out", tmp_path / "two-fitted"),
        (
            *("bundle", "add", "two", NAMES[2], *kept, "--data", f"data/{NAMES[2]}.jsonl"),
            *("--out", tmp_path / "three"),
        ),
        ("bundle", "replace", "two@3", NAMES[0], "--with", "other", "--out", tmp_path / "replaced"),
    )
    options = {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": [LAYERS - 1]}
    make_adapter(deep_llama, tmp_path / "other", seed=9, base="org/base", **options)
    assert run("add", tmp_path / "other").returncode == 0
    for command in commands:
        result = run(*command)
        assert result.returncode == 0, result.stderr
    joint, added, replaced = (
        load_file(folder / WEIGHTS) for folder in (fitted, tmp_path / "three", tmp_path / "replaced")
    )
    assert joint.keys() == added.keys() == replaced.keys()
    assert all(torch.equal(joint[name], added[name]) for name in joint)
    gates = [name for name in joint if "gate" in name or "gram" in name]
    assert any(OBSERVED in name for name in gates)
    assert all(torch.equal(joint[name], replaced[name]) for name in gates)
    assert Bundle.open(tmp_path / "three").config.gate == Bundle.open(fitted).config.gate


def test_it_is_pushed_and_pulled(fitted: Path, tmp_path: Path) -> None:
    home = Home(tmp_path / "empty")
    Catalog.open(home).close()
    with serve() as hub, machine(tmp_path / "machine", hub) as made:
        here, there = (
            hub_workplace(tmp_path / place, made, home.catalog_file) for place in ("here", "there")
        )
        for place, command in (
            (here, ("push", fitted, "org/bundle")),
            (there, ("pull", "org/bundle", "--out", "pulled")),
        ):
            result = place.run(*command)
            assert result.code == 0, result.err
        pulled = there.folder / "pulled"
        assert (pulled / WEIGHTS).read_bytes() == (fitted / WEIGHTS).read_bytes()
        assert peft_decisions(pulled) == peft_decisions(fitted)


Change = Callable[[dict[str, Any], dict[str, Tensor]], Any]


@contextmanager
def forged(folder: Path, target: Path, change: Change) -> Iterator[None]:
    """Write a copy of a bundle whose config and tensors were changed."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    config, tensors = json.loads((target / CONFIG).read_bytes()), load_file(target / WEIGHTS)
    change(config, tensors)
    (target / CONFIG).write_text(json.dumps(config))
    save_file(tensors, target / WEIGHTS, {"format": "pt", "meteora_format": "1"})
    yield


PLACE = f"base_model.model.{OBSERVED}"


def rename_observed(config: dict[str, Any], tensors: dict[str, Tensor], path: str) -> None:
    request = config["gate"]["request"]
    request.update(modules=[path], observed={path: 32})
    for tensor in TENSORS:
        tensors[f"base_model.model.{path}.{tensor}"] = tensors.pop(f"{PLACE}.{tensor}")


def observe_target(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    rename_observed(config, tensors, TARGET)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda config, tensors: tensors.pop(f"{PLACE}.meteora_request_gram"), "lacks 1 of 7 tensors"),
        (
            lambda config, tensors: tensors.update({f"{PLACE}.meteora_A": torch.zeros(8, 32)}),
            rf"1 tensors that its config does not name, the first `{PLACE}\.meteora_A`",
        ),
        (
            lambda config, tensors: tensors.update({f"{PLACE}.meteora_gate": torch.zeros(3, 32)}),
            rf"1 tensors that its config does not name, the first `{PLACE}\.meteora_gate`",
        ),
        (
            lambda config, tensors: config["gate"]["request"]["observed"].update({OBSERVED: 16}),
            r"meteora_request_gate` is \(\d+, 32\) of F32, expected \(\d+, 16\) of F32",
        ),
        (
            lambda config, tensors: tensors.update(
                {f"{PLACE}.meteora_request_gram": tensors[f"{PLACE}.meteora_request_gram"].half()}
            ),
            r"meteora_request_gram` is \(3, 3\) of F16, expected \(3, 3\) of F32",
        ),
        (observe_target, "`gate.request.observed` names `.*v_proj`, which is a target module"),
        (
            lambda config, tensors: config["gate"]["request"].pop("observed"),
            "`gate.request` names `.*q_proj`, which is not a target module, nor observed",
        ),
        (
            lambda config, tensors: config["required_features"].remove("gate-observed"),
            "the gate needs `gate-observed` in `required_features`",
        ),
        (
            lambda config, tensors: config["gate"]["sources"].update({TARGET: OBSERVED}),
            "`model.layers.1.self_attn.q_proj` is not a target module",
        ),
    ],
    ids=[
        "tensor-missing",
        "factor-added",
        "gate-added",
        "features-other",
        "dtype-other",
        "target-observed",
        "not-listed",
        "not-declared",
        "source-of-routing",
    ],
)
def test_forged_inventory_of_an_observed_module_is_refused(
    fitted: Path, tmp_path: Path, change: Change, problem: str
) -> None:
    with forged(fitted, tmp_path, change), pytest.raises(Exception, match=problem) as caught:
        Bundle.open(tmp_path)
    assert type(caught.value).__name__ in ("BundleRefused", "InvalidDocument")


def test_earlier_readers_refuse_it_by_the_name_of_the_feature(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meteora_registry.schemas.bundle.KNOWN_FEATURES", frozenset({"gate-request"}))
    with pytest.raises(BundleRefused, match=r"requires .*`gate-observed`.*, which this reader does not know"):
        BundleConfig.read((fitted / CONFIG).read_bytes())


@pytest.mark.parametrize("path", ["model.layers.1.self_attn.k_nowhere", "model.layers.1.mlp.down_proj"])
def test_observed_module_that_the_base_does_not_have_so_is_refused(
    fitted: Path, tmp_path: Path, path: str
) -> None:
    with forged(fitted, tmp_path, lambda config, tensors: rename_observed(config, tensors, path)):
        with pytest.raises(BundleRefused, match=path):
            attach(tmp_path, deep_llama())
        with pytest.raises(BundleRefused, match=path):
            PeftModel.from_pretrained(deep_llama(), tmp_path)


@pytest.mark.parametrize("tensor", TENSORS)
def test_values_that_are_not_finite_fail_the_verification_and_do_not_load(
    fitted: Path, tmp_path: Path, tensor: str
) -> None:
    def spoil(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors[f"{PLACE}.{tensor}"].fill_(float("nan"))

    with forged(fitted, tmp_path, spoil):
        with pytest.raises(BundleRefused, match=f"{tensor}` has values that are not finite"):
            PeftModel.from_pretrained(deep_llama(), tmp_path)
        manifest = json.loads((tmp_path / "meteora_manifest.json").read_bytes())
        for name in (CONFIG, WEIGHTS):
            data = (tmp_path / name).read_bytes()
            manifest["files"][name] = {"sha256": sha256(data).hexdigest(), "size_bytes": len(data)}
        (tmp_path / "meteora_manifest.json").write_text(json.dumps(manifest))
        (tmp_path / "verification.json").unlink()
        record = verify_bundle(tmp_path, level=Level.INTEGRITY)
        assert record.problems == (f"`{OBSERVED}`: {tensor} has values that are not finite",)
