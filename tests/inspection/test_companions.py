"""Adapters that are to be fused together: whether they agree, and which of them disagrees about what."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from meteora_registry.inspection.adapter import inspect_adapter
from meteora_registry.inspection.comparison import compare_companions, look_deeper
from meteora_registry.inspection.deep import effective_rank, measure_cosine
from meteora_registry.schemas.bundle import WEIGHTS_FILE
from meteora_registry.schemas.finding import Finding
from support.adapters import AdapterFiles
from support.models import make_adapter, tiny_llama


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> AdapterFiles:
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    folder = make_adapter(tiny_llama, tmp_path_factory.mktemp("made"), seed=1, base="org/base", **options)
    return AdapterFiles.read(folder)


def compare(
    folder: Path, members: dict[str, AdapterFiles], *, base: str | None = None, deep: bool = False
) -> list[Finding]:
    folders = {name: files.write(folder / name) for name, files in members.items()}
    weights = {name: path / WEIGHTS_FILE for name, path in folders.items()} if deep else None
    inspected = {name: inspect_adapter(path) for name, path in folders.items()}
    return list(compare_companions(inspected, stated_base=base, weights=weights))


def changed(files: AdapterFiles, change: float = 1.5) -> AdapterFiles:
    other = copy.deepcopy(files)
    other.tensors = {name: tensor * change for name, tensor in files.tensors.items()}
    return other


def test_alike_adapters_go_together(files: AdapterFiles, tmp_path: Path) -> None:
    assert compare(tmp_path, {"a": files, "b": changed(files)}) == []


def test_shapes_that_disagree_name_who_and_what(files: AdapterFiles, tmp_path: Path) -> None:
    other = changed(files)
    for name in other.names("lora_A.weight")[:1]:
        other.tensors[name] = other.tensors[name][:, :16]
    (found,) = compare(tmp_path, {"a": files, "b": other, "c": changed(files, 2)})
    assert found.code == "MR601"
    assert found.found == (
        "`model.layers.0.self_attn.q_proj`: 16 in, 32 out in `b`; 32 in, 32 out in `a`, `c`"
    )


def test_different_bases_need_a_word(files: AdapterFiles, tmp_path: Path) -> None:
    other = changed(files)
    other.config["base_model_name_or_path"] = "org/other"
    (found,) = compare(tmp_path, {"a": files, "b": other})
    assert (found.code, found.found) == ("MR602", "`org/base` in `a`; `org/other` in `b`")
    assert compare(tmp_path, {"a": files, "b": other}, base="org/base") == []


@pytest.mark.parametrize(
    ("base", "found"),
    [(None, "no base"), ("/models/llama", "the path `/models/llama`")],
    ids=["none", "path"],
)
def test_common_base_that_a_bundle_cannot_name_is_found(
    files: AdapterFiles, tmp_path: Path, base: str | None, found: str
) -> None:
    one, other = changed(files, 2), changed(files, 3)
    one.config["base_model_name_or_path"] = other.config["base_model_name_or_path"] = base
    assert [each.found for each in compare(tmp_path, {"a": one, "b": other})] == [found]
    assert compare(tmp_path, {"a": one, "b": other}, base="org/base") == []


def test_old_and_new_name_are_one_base(files: AdapterFiles, tmp_path: Path) -> None:
    old, new = changed(files, 2), changed(files, 3)
    old.config["base_model_name_or_path"] = "gpt2"
    new.config["base_model_name_or_path"] = "openai-community/gpt2"
    assert compare(tmp_path, {"a": old, "b": new}) == []


def test_what_cannot_be_fused_alone_is_named(files: AdapterFiles, tmp_path: Path) -> None:
    other = changed(files)
    other.config["bias"] = "all"
    (found,) = compare(tmp_path, {"a": files, "b": other})
    assert (found.code, found.found) == ("MR603", "`b` is sound, not fusable")


def test_dtypes_disjoint_modules_and_copies_are_seen(files: AdapterFiles, tmp_path: Path) -> None:
    half = copy.deepcopy(files)
    half.tensors = {name: tensor.half() for name, tensor in files.tensors.items()}
    apart = changed(files)
    apart.rename("model.layers.", "language_model.layers.")
    codes = [each.code for each in compare(tmp_path, {"a": files, "b": half, "c": apart, "d": files})]
    assert codes == ["MR604", "MR605", "MR605", "MR605", "MR608"]


def test_equal_weights_under_another_config_are_seen(files: AdapterFiles, tmp_path: Path) -> None:
    other = copy.deepcopy(files)
    other.config["lora_alpha"] = 16
    (found,) = compare(tmp_path, {"a": files, "b": other})
    assert (found.code, found.found) == ("MR606", "`a`, `b`")


def test_adapters_of_the_body_and_of_the_whole_model_do_not_go_together(
    files: AdapterFiles, tmp_path: Path
) -> None:
    body = changed(files)
    body.config["task_type"] = "FEATURE_EXTRACTION"
    body.rename("base_model.model.model.", "base_model.model.")
    codes = [each.code for each in compare(tmp_path, {"a": files, "b": body})]
    assert codes == ["MR605", "MR609"]


def test_near_copy_is_seen_only_when_deep(files: AdapterFiles, tmp_path: Path) -> None:
    near = changed(files, 1.01)
    assert compare(tmp_path, {"a": files, "b": near}) == []
    (found,) = compare(tmp_path, {"a": files, "b": near}, deep=True)
    assert (found.code, found.found) == ("MR607", "a cosine of 1.0000 between `a` and `b`")


def test_cosine_is_that_of_the_whole_deltas(files: AdapterFiles, tmp_path: Path) -> None:
    torch.manual_seed(3)
    other = copy.deepcopy(files)
    other.tensors = {name: tensor + torch.randn_like(tensor) * 0.2 for name, tensor in files.tensors.items()}
    other.config["lora_alpha"] = 20
    sides, deltas = [], []
    for name, each in (("a", files), ("b", other)):
        inspection = inspect_adapter(each.write(tmp_path / name))
        assert inspection.header and inspection.inventory
        sides.append((tmp_path / name / WEIGHTS_FILE, inspection.header, inspection.inventory))
        products = [
            m.scaling * each.tensors[m.b].double() @ each.tensors[m.a].double()
            for m in inspection.inventory.modules
        ]
        deltas.append(torch.cat([product.flatten() for product in products]))
    expected = torch.nn.functional.cosine_similarity(deltas[0], deltas[1], dim=0).item()
    assert measure_cosine(sides[0], sides[1]) == pytest.approx(expected, rel=1e-9)


def test_effective_rank_counts_what_holds_the_energy() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(40, 2).double(), torch.randn(2, 30).double()
    mixed = torch.randn(8, 2).double()
    a, b = (mixed @ right).numpy(), (left @ torch.linalg.pinv(mixed)).numpy()
    assert effective_rank(a, b) == 2
    assert effective_rank(a * 1e200, b * 1e200) == 2
    assert effective_rank(a * 0, b) == 0


def test_wasted_rank_is_noted(files: AdapterFiles, tmp_path: Path) -> None:
    wasteful = copy.deepcopy(files)
    for name in wasteful.names("lora_A.weight"):
        wasteful.tensors[name][1:] = 0
    folder = wasteful.write(tmp_path)
    (found,) = look_deeper(inspect_adapter(folder), folder / WEIGHTS_FILE)
    assert found.code == "MR411"
    assert look_deeper(inspect_adapter(files.write(tmp_path)), tmp_path / WEIGHTS_FILE) == ()
