"""A fitted bundle that leaves prompts which no member was made for to the base, from the command line on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from meteora_registry.bundle import Bundle
from meteora_registry.runtime import Decision, LoadedBundle, load_bundle, observation, route_as, routing
from meteora_registry.schemas.errors import BundleRefused
from support.models import LOADS_WITH_PEFT, tiny_llama
from support.program import Run
from support.task_data import TEMPLATE, make_fit_workplace, write_lines, write_task_data

pytestmark = [LOADS_WITH_PEFT]
NAMES = ("rank4", "rank8", "rslora16")
OWN = "w21 w22 w23 w24 w25"
# Words that the tiny tokenizer does not know, as are all of the general prompts.
FOREIGN = "Tell me about the sea, please."


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    return make_fit_workplace(folder, NAMES, samples=50, chat_template=TEMPLATE, pad_token="<unk>")


@pytest.fixture
def fitted(run: Run, workplace: Path) -> Path:
    """The fitted bundle, made once; what the fit printed is beside it."""
    folder = workplace / "fitted"
    if not folder.exists():
        assert run("add", *(workplace / "adapters" / name for name in NAMES)).returncode == 0
        assert run("fuse", *NAMES, "--out", workplace / "bundle").returncode == 0
        result = run("gate", "fit", workplace / "bundle", *arguments(workplace), "--out", folder)
        assert result.returncode == 0, result.stderr
        (workplace / "printed").write_text(result.stdout)
    return folder


def arguments(workplace: Path) -> list[object]:
    return ["--base", workplace / "base", "--data", workplace / "data"]


@pytest.fixture
def loaded(fitted: Path, workplace: Path) -> LoadedBundle:
    return load_bundle(fitted, workplace / "base")


def test_fit_prints_and_keeps_what_its_decisions_are_worth(fitted: Path, workplace: Path) -> None:
    printed = (workplace / "printed").read_text()
    assert "held out: 108 prompts (plain and chat) that the fit did not read:" in printed
    assert "general prompts are left to the base" in printed
    config = Bundle.open(fitted).config
    assert config.gate.abstain == 0.05
    assert {"gate-abstain", "gate-request", "gate-scope"} <= set(config.required_features)
    assert config.gate.request is not None
    assert config.gate.request.held_out is not None
    assert config.gate.request.held_out.prompts == 108
    card = (fitted / "README.md").read_text()
    assert "A prompt is left to the base if it scores lower than 95 % of the members' own prompts do:" in card


def decide(loaded: LoadedBundle, prompts: list[str]) -> list[Decision]:
    with routing(loaded.model) as record:
        loaded.generate(prompts, max_new_tokens=1)
    return sorted(record.decisions, key=lambda each: each.sequence)


def test_own_prompts_are_served_by_their_member(loaded: LoadedBundle, tmp_path: Path) -> None:
    write_task_data(tmp_path, NAMES, samples=20, seed=1)
    served, left = 0, 0
    for name in NAMES:
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        decisions = decide(loaded, [json.loads(line)["prompt"] for line in lines])
        served += sum(each.members[:1] == (name,) for each in decisions)
        left += sum(each.members == () for each in decisions)
    # A threshold from 18 prompts of each member is not exact: 7 of these 60 are left, and not 3.
    assert served >= 44
    assert left <= 12


def test_decision_is_that_of_a_whole_pass_but_later_layers_run_for_the_answer_alone(
    loaded: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    layers = loaded.model.get_base_model().model.layers
    for place, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, place=place: ran.append(place))
    prompts = [OWN, FOREIGN, "w1 w2 w3"]
    short = decide(loaded, prompts)
    # The request gates read the first of two layers.
    assert ran == [0, 0, 1]
    ran.clear()
    monkeypatch.setattr(observation, "shortened", lambda model, paths: model)
    assert decide(loaded, prompts) == short
    assert ran == [0, 1, 0, 1]


def test_gram_matrix_is_inverted_once_and_again_when_it_changes(
    loaded: LoadedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverted, invert = [], torch.linalg.inv

    def count(matrix: Tensor) -> Tensor:
        inverted.append(matrix)
        return invert(matrix)

    monkeypatch.setattr(torch.linalg, "inv", count)
    first = decide(loaded, [OWN, FOREIGN])
    assert decide(loaded, [OWN, FOREIGN]) == first
    assert len(inverted) == 1
    layer = loaded.model.get_base_model().model.layers[0].self_attn.q_proj
    layer.meteora_request_gram["default"].data.mul_(4)
    assert decide(loaded, [OWN, FOREIGN]) != first
    assert len(inverted) == 2


def test_request_gates_are_a_small_part_of_the_bundle(fitted: Path) -> None:
    sizes = {name: tensor.nbytes for name, tensor in load_file(fitted / "adapter_model.safetensors").items()}
    own = sum(size for name, size in sizes.items() if "meteora_request_" in name)
    assert 0 < own <= 0.05 * sum(sizes.values())


def test_evidence_is_each_members_and_what_is_missing_no_members(loaded: LoadedBundle) -> None:
    own, foreign = decide(loaded, [OWN, FOREIGN])
    assert len(own.evidence) == len(loaded.config.names)
    assert loaded.config.names[own.evidence.index(max(own.evidence))] == own.members[0]
    assert sum(foreign.evidence) < 0.5 < sum(own.evidence) <= 1 + 1e-6


def test_a_foreign_prompt_gets_the_answer_of_the_base(loaded: LoadedBundle) -> None:
    (decision,) = decide(loaded, [FOREIGN])
    assert decision.members == ()
    assert decision.confidence < 0.05
    answer = loaded.generate(FOREIGN, max_new_tokens=3)
    with loaded.model.disable_adapter():
        assert loaded.generate(FOREIGN, max_new_tokens=3) == answer


def test_the_chat_template_changes_no_decision(loaded: LoadedBundle) -> None:
    prompts = [OWN, FOREIGN]
    plain, chat = decide(loaded, prompts), decide(loaded, [f"<user> {each} <assistant>" for each in prompts])
    assert [each.members for each in plain] == [each.members for each in chat]


@pytest.mark.parametrize("scope", ["prompt", "prompt+token"])
def test_request_gates_decide_in_both_scopes_of_requests(loaded: LoadedBundle, scope: str) -> None:
    with route_as(loaded.model, scope=scope), routing(loaded.model) as record:
        loaded.generate(FOREIGN, max_new_tokens=2)
    assert [each.members for each in record.decisions] == [()]


def test_without_a_threshold_the_best_member_serves(loaded: LoadedBundle) -> None:
    with route_as(loaded.model, abstain=None), routing(loaded.model) as record:
        loaded.generate(FOREIGN, max_new_tokens=2)
    assert all(each.members for each in record.decisions)


def test_segments_are_decided_by_the_modules_own_gates(loaded: LoadedBundle) -> None:
    with route_as(loaded.model, scope="segment", abstain=None), routing(loaded.model) as record:
        loaded.generate(OWN, max_new_tokens=2)
    assert record.decisions[0].members == ("rank8",)


def test_saved_and_loaded_again_it_decides_the_same(
    loaded: LoadedBundle, fitted: Path, tmp_path: Path
) -> None:
    loaded.model.save_pretrained(tmp_path / "saved", save_embedding_layers=False)
    tokens = loaded.tokenizer(OWN, return_tensors="pt")
    found = []
    for folder in (fitted, tmp_path / "saved"):
        model = PeftModel.from_pretrained(tiny_llama(), folder).eval()
        with torch.no_grad(), routing(model) as record:
            model(**tokens)
        found.append(record.decisions)
    assert found[0] == found[1]
    assert found[0][0].members[0] == "rank8"


def test_offloaded_it_decides_the_same(loaded: LoadedBundle) -> None:
    expected = decide(loaded, [OWN, FOREIGN])
    cpu_offload(loaded.model, torch.device("cpu"))
    assert decide(loaded, [OWN, FOREIGN]) == expected


@pytest.mark.parametrize(
    "tensor", ["meteora_request_gate", "meteora_request_gate_bias", "meteora_request_gram"]
)
def test_request_gates_that_are_not_finite_are_refused(fitted: Path, tmp_path: Path, tensor: str) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(fitted / name, tmp_path / name)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    spoilt = next(name for name in tensors if name.endswith(f".{tensor}"))
    tensors[spoilt].fill_(float("nan"))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BundleRefused, match=f"{tensor}` has values that are not finite"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_bundle_whose_request_gates_are_not_declared_is_refused(fitted: Path, tmp_path: Path) -> None:
    for path in fitted.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((fitted / "adapter_config.json").read_text())
    del config["gate"]["request"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleRefused, match="tensors that its config does not name"):
        Bundle.open(tmp_path)


def test_it_is_fitted_again_without_abstention(
    run: Run, fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    options = ("--abstain", "none", "--out", tmp_path / "without", "--format", "json")
    result = run("gate", "fit", fitted, *arguments(workplace), *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["abstain"], found["request"]["held_out"]["own_left"]) == (None, None)
    assert Bundle.open(tmp_path / "without").config.gate.abstain is None


def test_share_that_is_none_is_refused(run: Run, fitted: Path, workplace: Path) -> None:
    options = ("--abstain", "150%", "--out", workplace / "never")
    result = run("gate", "fit", fitted, *arguments(workplace), *options)
    assert result.returncode == 2
    assert "`150%` is not a share such as `5%` or `0.05`, nor `none`" in result.stderr


def test_eval_counts_what_is_left_to_the_base(
    run: Run, fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    write_task_data(tmp_path / "data", NAMES, samples=6, seed=2)
    (tmp_path / "foreign").mkdir()
    write_lines(tmp_path / "foreign" / "chat.jsonl", [{"text": FOREIGN}, {"text": "What is new?"}])
    options = ("--modes", "base", "--limit", "6", "--as", "both", "--max-new-tokens", "1")
    data = ("--base", workplace / "base", "--data", tmp_path / "data")
    result = run("eval", fitted, *data, *options, "--foreign", tmp_path / "foreign", "--format", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)["abstention"]
    # Every line is asked in two forms.
    assert (found["abstain"], found["own"], found["foreign"], found["foreign_left"]) == (0.05, 36, 4, 4)
    assert found["own_left"] <= 12
    assert found["auroc"] > 0.8
    assert max(found["foreign_confidence"]) < 0.05
    shown = run("eval", fitted, *data, *options, "--foreign", tmp_path / "foreign")
    assert "left to the base, below the confidence 0.05" in shown.stdout


def test_eval_shows_the_confidence_of_routed_prompts(run: Run, fitted: Path, workplace: Path) -> None:
    options = ("--modes", "base,routed", "--limit", "4", "--max-new-tokens", "1")
    result = run("eval", fitted, *arguments(workplace), *options)
    assert result.returncode == 0, result.stderr
    (row,) = (line for line in result.stdout.splitlines() if line.startswith("routed") and "prompts" in line)
    assert len(row.split(",")) == 3
    assert "CONFIDENCE (QUARTILES)" in result.stdout


def test_eval_refuses_a_folder_without_foreign_prompts(
    run: Run, fitted: Path, workplace: Path, tmp_path: Path
) -> None:
    result = run("eval", fitted, *arguments(workplace), "--foreign", tmp_path)
    assert result.returncode == 2
    assert f"`{tmp_path}` has no file that ends in `.jsonl`" in result.stderr


def test_trace_shows_the_decision_with_its_confidence(run: Run, fitted: Path, workplace: Path) -> None:
    options = ("--prompt", FOREIGN, "--base", workplace / "base", "--max-new-tokens", "2")
    result = run("trace", fitted, *options)
    assert result.returncode == 0, result.stderr
    assert "left to the base, confidence 0.0" in result.stdout
    found = json.loads(run("trace", fitted, *options, "--format", "json").stdout)["decisions"]
    assert [(each["members"], each["start"]) for each in found] == [([], 0)]
