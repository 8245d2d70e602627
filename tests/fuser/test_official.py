from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from transformers import PreTrainedModel

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.bundle_writer import GivenGate, write_bundle
from meteora_registry.fuser.fuse_member import Member
from meteora_registry.fuser.official import ImportedMember, OfficialWeights, export_official
from meteora_registry.kernels.reference import relative_error
from meteora_registry.schemas.bundle import Fitting
from meteora_registry.schemas.errors import BundleRefused, MeteoraError, SourceUnreadable
from support.members import fuse, plan_of, read_member, read_members
from support.models import LOADS_WITH_PEFT, logits_alone, make_adapter, some_tokens, tiny_gpt2, tiny_llama
from support.tampering import Json, change_config, copy_bundle

pytestmark = LOADS_WITH_PEFT
PARTS = (*(f"self_attn.{each}" for each in "qkvo"), *(f"mlp.{each}" for each in ("gate", "up", "down")))
PATHS = [f"model.layers.{layer}.{part}_proj" for layer in range(2) for part in PARTS]
QUANTISED = save({f"{path}.weight": torch.zeros(2, dtype=torch.int8) for path in PATHS})
OUTSIDE = b'{"weight_map": {"a": "../a"}}'
Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def exported(fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("official") / "export"
    export_official(Bundle.open(fused), target)
    return target


def test_export_pads_every_member_to_the_largest_rank(exported: Path) -> None:
    tensors = load_file(exported / "moe_lora.safetensors")
    assert len(tensors) == 3 * 14
    assert tensors[f"{Q_PROJ}.lora_A.weight"].shape == (5 * 16, 32)
    assert tensors[f"{Q_PROJ}.lora_B.weight"].shape == (32, 5 * 16)
    assert tensors[f"{Q_PROJ}.moe_gate.weight"].shape == (5, 32)


def test_export_says_what_the_layout_cannot_carry(fused: Path, tmp_path: Path) -> None:
    losses = export_official(Bundle.open(fused), tmp_path / "export").losses
    assert losses == (
        "the gate is `absolute`, their code scores linearly without one: it will route differently",
        "`patterns` has scalings that differ by module: they were multiplied into its B",
        "`last-layer` has scalings that differ by module: they were multiplied into its B",
    )


def test_export_refuses_scalings_whose_quotient_overflows(fused: Path, tmp_path: Path) -> None:
    bundle = copy_bundle(fused, tmp_path / "bundle")

    def change(config: Json) -> None:
        member = config["members"][0]
        member["overrides"]["model.layers.0.self_attn.q_proj"] = {"rank": member["rank"], "scaling": 1e20}
        member["scaling"] = 1e-20

    change_config(bundle, change)
    with pytest.raises(BundleRefused, match=r"has the scaling 1e\+20 in .* and 1e-20 elsewhere"):
        export_official(Bundle.open(bundle), tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_peft_loads_each_padded_folder_and_gets_the_members_own_logits(
    exported: Path, adapters: dict[str, Path]
) -> None:
    tokens = some_tokens()
    for name, original in adapters.items():
        config = json.loads((exported / "adapters" / name / "adapter_config.json").read_bytes())
        assert config["r"] == 16
        padded = logits_alone(tiny_llama(), exported / "adapters" / name, tokens)
        assert relative_error(padded, logits_alone(tiny_llama(), original, tokens).double()) <= 1e-5, name


def adapter_of(make_base: Callable[[], PreTrainedModel], folder: Path, **options: Any) -> Path:
    return make_adapter(make_base, folder / "one", seed=1, base="org/base", r=4, **options)


def test_export_names_what_the_authors_code_does_not_take(fused: Path, tmp_path: Path) -> None:
    assert export_official(Bundle.open(fused), tmp_path / "export").limits == (
        "their code has a constant of 28 members, this has 5: change it there",
        "their code has a constant of 224 rows of all members together, this has 80: change it there",
        "their evaluation loads a full `model.safetensors` strictly, the base's tensors among it: "
        "export with `--base-folder FOLDER` to write one",
    )


def test_export_names_the_projections_that_a_bundle_lacks(tmp_path: Path) -> None:
    member = read_member(adapter_of(tiny_llama, tmp_path, target_modules=["q_proj", "v_proj"]))
    limits = export_official(Bundle.open(fuse([member], tmp_path / "bundle")), tmp_path / "export").limits
    assert any("top_k 2 and temperature 1, this has 1 and 1" in limit for limit in limits)
    assert any("lacks some in 2 layers, such as `k_proj` in layer 0" in limit for limit in limits)


def test_export_of_another_architecture_names_the_first_module_that_is_not_llamas(tmp_path: Path) -> None:
    member = read_member(adapter_of(tiny_gpt2, tmp_path, target_modules=["c_attn"], fan_in_fan_out=True))
    limits = export_official(Bundle.open(fuse([member], tmp_path / "bundle")), tmp_path / "export").limits
    assert any("`transformer.h.0.attn.c_attn` is none of these" in limit for limit in limits)


def test_members_without_a_task_are_exported_for_causal_models(tmp_path: Path) -> None:
    folder = adapter_of(tiny_llama, tmp_path, target_modules=["q_proj"], task_type=None)
    export_official(Bundle.open(fuse([read_member(folder)], tmp_path / "bundle")), tmp_path / "export")
    (config,) = (tmp_path / "export" / "adapters").glob("*/adapter_config.json")
    assert json.loads(config.read_bytes())["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["one file", "shards"])
def test_checkpoint_has_every_tensor_of_base_and_layers_for_a_strict_load(
    fused: Path, tmp_path: Path, options: dict[str, str]
) -> None:
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base", **options)
    exported = export_official(Bundle.open(fused), tmp_path / "export", base=tmp_path / "base")
    assert not any("model.safetensors" in limit for limit in exported.limits)
    modules = set(Bundle.open(fused).config.layouts)
    expected = load_file(tmp_path / "export" / "moe_lora.safetensors")
    for name, tensor in base.state_dict().items():
        module, _, parameter = name.rpartition(".")
        inside = f"{module}.base_layer.{parameter}" if module in modules else name
        expected[f"base_model.model.{inside}"] = tensor
    found = load_file(tmp_path / "export" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_checkpoint_of_a_tied_base_has_its_output_layer_too(fused: Path, tmp_path: Path) -> None:
    tensors = tiny_llama().state_dict()
    embedding = tensors["model.embed_tokens.weight"]
    del tensors["lm_head.weight"]
    (tmp_path / "base").mkdir()
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    export_official(Bundle.open(fused), tmp_path / "export", base=tmp_path / "base")
    found = load_file(tmp_path / "export" / "model.safetensors")
    assert torch.equal(found["base_model.model.lm_head.weight"], embedding)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, SourceUnreadable, "cannot be read: No such file"),
        ({"model.safetensors": b"not tensors"}, SourceUnreadable, "is not a safetensors file"),
        ({"model.safetensors.index.json": OUTSIDE}, SourceUnreadable, "names no files"),
        ({"model.safetensors": save({"other.weight": torch.zeros(2)})}, BundleRefused, "has no weights of"),
        ({"model.safetensors": QUANTISED}, SourceUnreadable, "stored as I8, expected floats"),
    ],
    ids=["empty", "no tensors", "index leads out", "another base", "quantised"],
)
def test_export_refuses_a_base_without_its_weights(
    fused: Path, tmp_path: Path, files: dict[str, bytes], error: type[MeteoraError], message: str
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for name, data in files.items():
        (base / name).write_bytes(data)
    with pytest.raises(error, match=message):
        export_official(Bundle.open(fused), tmp_path / "export", base=base)
    assert not (tmp_path / "export").exists()


def test_import_gives_back_what_was_exported(tmp_path: Path) -> None:
    ranks = {"one": 4, "two": 8, "three": 5}
    folders = {
        name: make_adapter(
            tiny_llama,
            tmp_path / name,
            seed=rank,
            base="org/base",
            r=rank,
            lora_alpha=6,
            target_modules=targets,
        )
        for (name, rank), targets in zip(
            ranks.items(), (["q_proj"], ["q_proj", "up_proj"], ["o_proj"]), strict=True
        )
    }
    members = read_members(folders)
    bundle = fuse(members, tmp_path / "bundle", gate="normal")
    export_official(Bundle.open(bundle), tmp_path / "export")
    weights = OfficialWeights(
        tmp_path / "export" / "moe_lora.safetensors",
        [ImportedMember(name, rank, 6.0) for name, rank in ranks.items()],
    )
    assert weights.padded_rank == 8
    imported = [
        read_member(folder) for folder in weights.write_adapters(tmp_path / "imported", base="org/base")
    ]
    assert [m.inventory.shape_signature for m in imported] == [m.inventory.shape_signature for m in members]
    again = tmp_path / "again"
    again.mkdir()
    gate = GivenGate(Fitting(method="imported", data=()), weights.gate)
    write_bundle(plan_of(imported), imported, again, given_gate=gate)
    found, expected = (
        load_file(again / "adapter_model.safetensors"),
        load_file(bundle / "adapter_model.safetensors"),
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert Bundle.open(again).config.layouts == Bundle.open(bundle).config.layouts
    assert Bundle.open(again).is_fitted
    export_official(Bundle.open(again), tmp_path / "twice")
    gates = [
        json.loads((tmp_path / name / "export.json").read_bytes())["gate"] for name in ("export", "twice")
    ]
    assert gates == ["not fitted", {"method": "imported", "data": []}]


def test_import_takes_what_the_export_states_for_members_with_patterns(
    exported: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    facts = json.loads((exported / "export.json").read_bytes())
    stated = [ImportedMember(m["name"], m["rank"], m["alpha"]) for m in facts["members"]]
    assert [member.rank for member in stated] == [4, 8, 16, 12, 9]
    weights = OfficialWeights(exported / "moe_lora.safetensors", stated)
    tokens = some_tokens()
    for folder in weights.write_adapters(tmp_path / "imported", base=None):
        alone = logits_alone(tiny_llama(), adapters[folder.name], tokens)
        assert relative_error(logits_alone(tiny_llama(), folder, tokens), alone.double()) <= 1e-5, folder.name


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("lora_A.weight", torch.zeros(8)),
        ("lora_A.weight", torch.zeros(80, 32, dtype=torch.int8)),
        ("lora_B.weight", torch.zeros(32, 72)),
        ("moe_gate.weight", torch.zeros(5, 31)),
        ("moe_gate.weight", torch.zeros(())),
    ],
    ids=["one dimension", "integers", "too few columns", "narrow gate", "no dimension"],
)
def test_import_refuses_tensors_that_do_not_fit_together(
    exported: Path, tmp_path: Path, name: str, tensor: torch.Tensor
) -> None:
    tensors = load_file(exported / "moe_lora.safetensors")
    tensors[f"{Q_PROJ}.{name}"] = tensor
    save_file(tensors, tmp_path / "moe.safetensors")
    with pytest.raises(BundleRefused, match=r"expected (a matrix of floats|A \(L\*R, in\))"):
        OfficialWeights(tmp_path / "moe.safetensors", [ImportedMember(f"m{i}", 16, 8.0) for i in range(5)])


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ([16] * 4, "the gates have [5] rows, 4 members are named"),
        ([17, 16, 16, 16, 16], "`m0` has rank 17, expected 1 to 16"),
        ([3, 16, 16, 16, 16], "`m0` has values beyond rank 3"),
    ],
    ids=["members", "above", "below"],
)
def test_import_refuses_what_does_not_fit(
    exported: Path, tmp_path: Path, ranks: list[int], message: str
) -> None:
    named = [ImportedMember(f"m{index}", rank, 8.0) for index, rank in enumerate(ranks)]
    with pytest.raises(BundleRefused) as caught:
        OfficialWeights(exported / "moe_lora.safetensors", named).write_adapters(tmp_path / "out", base=None)
    assert message in str(caught.value)


def test_import_refuses_a_file_of_another_kind(members: list[Member]) -> None:
    with pytest.raises(BundleRefused, match=r"found no modules with lora_A\.weight"):
        OfficialWeights(members[0].weights_path, [ImportedMember("one", 4, 8.0)])
