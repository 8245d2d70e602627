"""The fit: the pass against a plain computation, the solves against numpy, and statistics that add up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import PreTrainedModel

from meteora_registry.kernels.routing import gate_logits
from meteora_registry.runtime.fitting import FitOptions, FittedGates, fit_gates, read_task_data
from meteora_registry.runtime.fitting.inputs import find_inputs
from meteora_registry.runtime.fitting.moments import Moments
from meteora_registry.runtime.fitting.sequences import encode_samples
from meteora_registry.runtime.fitting.solve import solve_gate
from meteora_registry.runtime.fitting.statistics_file import StatisticsFile, StatisticsFolder
from meteora_registry.runtime.fitting.task_data import TaskData
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import BundleRefused, DataRefused, UsageError
from meteora_registry.schemas.gate_choices import FittedKind
from support.bundles import make_config, write_bundle
from support.gate_definitions import defined_logits
from support.models import make_adapter, tiny_gpt2, tiny_llama
from support.task_data import tiny_tokenizer, write_task_data

NAMES = ("legal", "medical", "sports")
LAYER = "model.layers.0"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BundleConfig:
    """The config of three adapters on every linear module of the tiny Llama."""
    return make_config(tmp_path_factory.mktemp("bundle"), NAMES, modules="all-linear")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    return read_data(write_task_data(tmp_path_factory.mktemp("data"), NAMES), NAMES)


def read_data(folder: Path, names: tuple[str, ...]) -> dict[str, TaskData]:
    return read_task_data(folder, names, tokenizer=tiny_tokenizer(), context_tokens=64)


def fit(config: BundleConfig, data: dict[str, TaskData], options: FitOptions | None = None) -> FittedGates:
    return fit_gates(tiny_llama(), tiny_tokenizer(), config, data, options=options)


def inputs_of(base: PreTrainedModel, path: str, data: dict[str, TaskData]) -> list[np.ndarray]:
    """Return every member's inputs of a module, float64 ``[tokens, h]``, by a plain hook, one at a time."""
    kept: list[torch.Tensor] = []
    base.get_submodule(path).register_forward_hook(lambda _module, args, _out: kept.append(args[0][0]))
    result = []
    for own in data.values():
        kept.clear()
        for sequence in encode_samples(own.samples, tiny_tokenizer(), 0, max_tokens=64, skip_tokens=0):
            with torch.no_grad():
                base(torch.tensor([sequence.ids]))
        result.append(torch.cat(kept).double().numpy())
    return result


Inputs = Callable[[str], list[np.ndarray]]


@pytest.fixture(scope="module")
def inputs(data: dict[str, TaskData]) -> Inputs:
    """The inputs of a module on the data."""
    return cache(lambda path: inputs_of(tiny_llama(), path, data))


@pytest.fixture(scope="module")
def new_inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The inputs of a module on samples that no fit has read."""
    data = read_data(write_task_data(tmp_path_factory.mktemp("new"), NAMES, seed=1), NAMES)
    return cache(lambda path: inputs_of(tiny_llama(), path, data))


@pytest.fixture(scope="module")
def reference(config: BundleConfig, data: dict[str, TaskData]) -> FittedGates:
    """The fit of the data with no options; read only."""
    return fit(config, data)


def plain_lda(inputs: list[np.ndarray], shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and bias of shrunken discriminants with equal priors, as the textbook has them."""
    means = np.stack([x.mean(axis=0) for x in inputs])
    within = np.mean([(x - m).T @ (x - m) / len(x) for x, m in zip(inputs, means, strict=True)], axis=0)
    size = within.shape[0]
    shrunken = (1 - shrinkage) * within + shrinkage * np.trace(within) / size * np.eye(size)
    rows = np.linalg.solve(shrunken, means.T).T
    return rows, -np.sum(rows * means, axis=1) / 2


def plain_ridge(inputs: list[np.ndarray], shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and bias of weighted least squares on indicators, solved with an explicit intercept."""
    members, size = len(inputs), inputs[0].shape[1]
    weights = np.concatenate([np.full(len(x), 1 / (members * len(x))) for x in inputs])
    x = np.concatenate(inputs)
    y = np.concatenate([np.tile(np.eye(members)[i], (len(own), 1)) for i, own in enumerate(inputs)])
    centre = weights @ x
    total = (x - centre).T @ (weights[:, None] * (x - centre))
    penalty = np.zeros((size + 1, size + 1))
    penalty[:size, :size] = shrinkage * np.trace(total) / size * np.eye(size)
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solved = np.linalg.solve(
        design.T @ (weights[:, None] * design) + penalty, design.T @ (weights[:, None] * y)
    )
    return solved[:size].T, solved[size]


def differences(rows: np.ndarray, bias: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the logits without the part that all members share."""
    logits = x @ rows.T + bias
    return logits - logits.mean(axis=1, keepdims=True)


def test_inputs_are_shared_where_the_same_tensor_arrives() -> None:
    paths = [path for path, module in tiny_llama().named_modules() if isinstance(module, torch.nn.Linear)]
    found = find_inputs(tiny_llama(), [path for path in sorted(paths) if path.startswith(LAYER)])
    assert [tuple(path.rpartition(".")[2] for path in each.modules) for each in found] == [
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj",),
        ("gate_proj", "up_proj"),
        ("down_proj",),
    ]
    assert [each.features for each in found] == [32, 32, 32, 48]


def test_inputs_changed_in_place_are_not_shared() -> None:
    base = tiny_llama()
    base.get_submodule(f"{LAYER}.self_attn.q_proj").register_forward_hook(
        lambda _module, args, _out: args[0].add_(1)
    )
    found = find_inputs(base, [f"{LAYER}.self_attn.{name}_proj" for name in ("q", "k", "v")])
    assert [len(each.modules) for each in found] == [1, 2]


def test_a_module_that_is_not_called_is_refused() -> None:
    base = tiny_llama()
    base.model.layers[0].extra = torch.nn.Linear(32, 32)
    with pytest.raises(BundleRefused) as caught:
        find_inputs(base, [f"{LAYER}.extra"])
    assert str(caught.value) == (
        "the base calls `model.layers.0.extra` 0 times in a pass, expected once: no gate can be fitted for it"
    )


@pytest.mark.parametrize("kind", get_args(FittedKind))
@pytest.mark.parametrize("module", ["self_attn.q_proj", "mlp.down_proj"])
def test_lda_is_that_of_a_plain_computation_in_float64(
    config: BundleConfig, data: dict[str, TaskData], inputs: Inputs, kind: str, module: str
) -> None:
    # A gate of ones on the diagonal gives back what the kind makes of its input.
    own = [
        defined_logits(torch.from_numpy(x), torch.eye(x.shape[1]), None, kind).numpy()
        for x in inputs(f"{LAYER}.{module}")
    ]
    expected = plain_lda(own, 0.1)
    gates = fit(config, data, FitOptions(kind=kind))
    rows, bias = (tensor.double().numpy() for tensor in gates.values[f"{LAYER}.{module}"])
    x = np.concatenate(own)
    found, wanted = differences(rows, bias, x), differences(*expected, x)
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_ridge_is_least_squares_with_a_penalty_but_for_one_factor(
    config: BundleConfig, data: dict[str, TaskData], inputs: Inputs
) -> None:
    own = inputs(f"{LAYER}.mlp.down_proj")
    wanted = differences(*plain_ridge(own, 0.1), np.concatenate(own))
    gates = fit(config, data, FitOptions(method="ridge", kind="linear"))
    rows, bias = (tensor.double().numpy() for tensor in gates.values[f"{LAYER}.mlp.down_proj"])
    found = differences(rows, bias, np.concatenate(own))
    factor = (found * wanted).sum() / (wanted * wanted).sum()
    assert factor > 0
    assert np.abs(found - factor * wanted).max() < 1e-4 * np.abs(found).max()


@pytest.mark.parametrize("method", ["lda", "ridge"])
def test_logits_are_log_posteriors_where_the_model_is_true(method: str) -> None:
    # Two Gaussians one apart in the first direction: the log ratio is x_1 - 1/2.
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    second = (2 * torch.eye(2) + means.T @ means).float()
    rows, bias = solve_gate(Moments(means, second), method, shrinkage=1e-9)
    assert torch.allclose(rows[1] - rows[0], torch.tensor([1.0, 0.0]), atol=1e-6)
    assert (bias[1] - bias[0]).item() == pytest.approx(-0.5, abs=1e-6)


@pytest.mark.parametrize("method", ["lda", "ridge"])
@pytest.mark.parametrize("kind", get_args(FittedKind))
def test_fitted_gates_tell_new_samples_apart(
    config: BundleConfig, data: dict[str, TaskData], new_inputs: Inputs, method: str, kind: str
) -> None:
    gates = fit(config, data, FitOptions(method=method, kind=kind))
    for path in (f"{LAYER}.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        rows, bias = gates.values[path]
        for place, x in enumerate(new_inputs(path)):
            logits = gate_logits(torch.from_numpy(x).float(), rows, bias, kind=kind)
            # Each sample's ten tokens together.
            chosen = torch.log_softmax(logits, dim=-1).reshape(-1, 10, len(NAMES)).sum(dim=1).argmax(dim=1)
            assert (chosen == place).float().mean() > 0.9


def test_every_module_has_a_gate_or_a_source_with_one(config: BundleConfig, reference: FittedGates) -> None:
    gates = reference
    assert gates.values.keys().isdisjoint(gates.sources)
    assert gates.values.keys() | gates.sources.keys() == set(config.target_modules)
    assert set(gates.sources.values()) <= gates.values.keys()
    assert gates.sources[f"{LAYER}.self_attn.v_proj"] == f"{LAYER}.self_attn.q_proj"


def test_a_member_counts_the_same_however_long_its_data(
    config: BundleConfig, reference: FittedGates, tmp_path: Path
) -> None:
    folder = write_task_data(tmp_path, NAMES)
    doubled = folder / "legal.jsonl"
    doubled.write_text(doubled.read_text() * 2)
    twice = fit(config, read_data(folder, NAMES))
    assert [each.samples for each in twice.fitting.data] == [24, 12, 12]
    assert close(reference, twice, 1e-4)


@pytest.mark.parametrize("limit", [1, 40 * 32 * 32, 1 << 30], ids=["one-at-a-time", "some", "all"])
def test_gates_do_not_depend_on_how_many_passes_there_are(
    config: BundleConfig, data: dict[str, TaskData], reference: FittedGates, limit: int
) -> None:
    steps: list[str] = []
    gates = fit_gates(
        tiny_llama(),
        tiny_tokenizer(),
        config,
        data,
        options=FitOptions(max_memory_bytes=limit),
        progress=lambda step, _done, _total: steps.append(step),
    )
    passes = {1: 8, 1 << 30: 1}
    if limit in passes:
        assert len({step for step in steps if step.startswith("reading")}) == passes[limit]
    assert all(
        torch.equal(a, b)
        for path in gates.values
        for a, b in zip(gates.values[path], reference.values[path], strict=True)
    )


def test_another_number_of_threads_changes_no_more_than_the_last_digits(
    config: BundleConfig, data: dict[str, TaskData]
) -> None:
    threads = torch.get_num_threads()
    try:
        fits = []
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            fits.append(fit(config, data))
    finally:
        torch.set_num_threads(threads)
    assert close(fits[0], fits[1], 1e-4)
    assert close(fits[0], fits[2], 0)


def known(data: dict[str, TaskData], *names: str) -> dict[str, Digest]:
    """Return the digests of members' data, as a fitted bundle states them."""
    return {name: data[name].sha256 for name in names}


def test_statistics_give_the_joint_fit_of_any_members_bit_for_bit(
    config: BundleConfig, data: dict[str, TaskData], tmp_path: Path
) -> None:
    folder, options = tmp_path / "statistics", FitOptions(requests=True)
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    two = make_config(tmp_path / "two", NAMES[:2], modules="all-linear")
    old = {name: data[name] for name in NAMES[:2]}
    first = fit_gates(model, tokenizer, two, old, statistics=folder, options=options)
    # A member more, from its own data alone.
    added = fit_gates(
        model,
        tokenizer,
        config,
        {NAMES[2]: data[NAMES[2]]},
        statistics=folder,
        known=known(data, *NAMES[:2]),
        options=options,
    )
    assert same(added, fit_gates(model, tokenizer, config, data, options=options))
    # A member less, without any data.
    removed = fit_gates(
        model, tokenizer, two, {}, statistics=folder, known=known(data, *NAMES[:2]), options=options
    )
    assert same(removed, first)


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskData]:
    """Data of which enough is held out to know a threshold."""
    return read_data(write_task_data(tmp_path_factory.mktemp("owned"), NAMES, samples=48), NAMES)


@pytest.fixture(scope="module")
def made_apart(owned: dict[str, TaskData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with the parts that members made, each of its own data in a bundle of its own; read only."""
    folder = tmp_path_factory.mktemp("apart")
    for name, own in owned.items():
        alone = make_config(folder / f"{name}-alone", [name], modules="all-linear")
        make_part(folder / f"{name}-statistics", alone, own)
        shutil.copytree(folder / f"{name}-statistics", folder / "statistics", dirs_exist_ok=True)
    return folder / "statistics"


def make_part(folder: Path, config: BundleConfig, own: TaskData, *, skip_tokens: int = 0) -> None:
    options = FitOptions(requests=True, skip_tokens=skip_tokens)
    fit_gates(tiny_llama(), tiny_tokenizer(), config, {own.member: own}, statistics=folder, options=options)


ABSTAINING = FitOptions(requests=True, abstain=0.05)


@pytest.fixture(scope="module")
def joint(config: BundleConfig, owned: dict[str, TaskData]) -> FittedGates:
    """The fit of all members together; read only."""
    return fit(config, owned, ABSTAINING)


@pytest.mark.parametrize("at_hand", [(), ("medical",)], ids=["no-data", "data-of-one"])
def test_parts_that_were_made_apart_give_the_joint_fit(
    config: BundleConfig,
    owned: dict[str, TaskData],
    joint: FittedGates,
    made_apart: Path,
    at_hand: tuple[str, ...],
) -> None:
    given = {name: owned[name] for name in at_hand}
    apart = fit_gates(
        tiny_llama(), tiny_tokenizer(), config, given, statistics=made_apart, options=ABSTAINING
    )
    assert close(joint, apart, 1e-4)
    assert joint.fitting == apart.fitting
    assert joint.requests is not None and apart.requests is not None
    assert joint.requests.values.keys() == apart.requests.values.keys()
    for path, expected in joint.requests.values.items():
        for one, other in zip(expected, apart.requests.values[path], strict=True):
            assert (one - other).abs().max() <= 1e-4 * one.abs().max()
    # Thresholds and figures on held-out prompts included, which no sum has.
    assert joint.describe("prompt") == apart.describe("prompt")
    assert joint.abstain == apart.abstain == 0.05


def test_the_one_part_that_fits_is_taken_and_two_are_refused(
    config: BundleConfig, owned: dict[str, TaskData], made_apart: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(made_apart, tmp_path / "statistics")
    other = read_data(write_task_data(tmp_path / "other", NAMES, samples=48, seed=5), NAMES)["legal"]
    own, options = (
        StatisticsFolder(folder).place_of("legal", owned["legal"].sha256),
        FitOptions(requests=True),
    )

    def fit_without_data() -> FittedGates:
        return fit_gates(tiny_llama(), tiny_tokenizer(), config, {}, statistics=folder, options=options)

    # Parts of another member, other settings or fewer inputs are passed by.
    shutil.copyfile(own, folder / f"legal-more-{owned['legal'].sha256.short}.safetensors")
    wide = make_config(tmp_path / "wide", ["legal"], modules="all-linear")
    narrow = make_config(tmp_path / "narrow", ["legal"], modules=["q_proj"])
    for alone, skipped in ((wide, 4), (narrow, 0)):
        make_part(folder, alone, other, skip_tokens=skipped)
        assert fit_without_data().fitting.data[0].sha256 == owned["legal"].sha256
        StatisticsFolder(folder).place_of("legal", other.sha256).unlink()
    make_part(folder, wide, other)
    with pytest.raises(DataRefused) as caught:
        fit_without_data()
    places = sorted(
        StatisticsFolder(folder).place_of("legal", each.sha256) for each in (owned["legal"], other)
    )
    assert str(caught.value) == (
        f"there are 2 parts of the member `legal`, each of other data: `{places[0]}`, `{places[1]}`"
    )
    assert caught.value.hint == "keep one of them in the folder, or name the data with `--data`"
    # The only part, if it does not fit, is refused for its reason.
    own.unlink()
    StatisticsFolder(folder).place_of("legal", other.sha256).unlink()
    make_part(folder, narrow, other)
    with pytest.raises(DataRefused, match="have no input of"):
        fit_without_data()


def test_a_member_without_data_and_part_is_refused(
    config: BundleConfig, made_apart: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataRefused) as caught:
        fit_gates(tiny_llama(), tiny_tokenizer(), config, {}, statistics=tmp_path)
    assert str(caught.value) == "there is no data for the member `legal`"
    assert caught.value.hint == "name its data with `--data`, or a folder with its part with `--statistics`"


def same(first: FittedGates, second: FittedGates) -> bool:
    """Return whether two fits are one, with their request gates, thresholds and confusions."""
    assert first.requests is not None and second.requests is not None
    return (
        close(first, second, 0)
        and first.describe("prompt") == second.describe("prompt")
        and first.requests.confusions == second.requests.confusions
        and all(
            torch.equal(one, other)
            for path, values in first.requests.values.items()
            for one, other in zip(values, second.requests.values[path], strict=True)
        )
    )


def test_statistics_know_an_input_by_any_module_that_reads_it(tmp_path: Path) -> None:
    everyone = read_data(write_task_data(tmp_path / "data", NAMES, samples=50), NAMES)
    late = make_config(tmp_path / "late", NAMES[:2], modules=["v_proj"])
    folder, options = tmp_path / "statistics", FitOptions(requests=True)
    old = {name: everyone[name] for name in NAMES[:2]}
    fit_gates(tiny_llama(), tiny_tokenizer(), late, old, statistics=folder, options=options)
    with StatisticsFile(StatisticsFolder(folder).place_of(NAMES[0], everyone[NAMES[0]].sha256)) as opened:
        (place,) = opened.description.prompts
    # The same tensor as `q_proj` reads, which the base calls first, and which no member touched so far.
    assert place == f"{LAYER}.self_attn.v_proj"
    both = make_config(tmp_path / "both", NAMES, modules=["q_proj", "v_proj"])
    new = {NAMES[2]: everyone[NAMES[2]]}
    added = fit_gates(
        tiny_llama(),
        tiny_tokenizer(),
        both,
        new,
        statistics=folder,
        known=known(everyone, *NAMES[:2]),
        options=options,
    )
    joint = fit(both, everyone, options)
    assert added.requests is not None and joint.requests is not None
    assert added.requests.description == joint.requests.description


@pytest.fixture(scope="module")
def kept(config: BundleConfig, data: dict[str, TaskData], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The statistics of a fit of all members; read only."""
    folder = tmp_path_factory.mktemp("kept") / "statistics"
    fit_gates(tiny_llama(), tiny_tokenizer(), config, data, statistics=folder)
    return folder


def from_statistics(
    kept: Path,
    config: BundleConfig,
    known: dict[str, Digest],
    options: FitOptions | None = None,
    base: PreTrainedModel | None = None,
) -> FittedGates:
    return fit_gates(
        base or tiny_llama(), tiny_tokenizer(), config, {}, statistics=kept, known=known, options=options
    )


def test_statistics_without_prompts_are_refused_for_request_gates(
    config: BundleConfig, data: dict[str, TaskData], tmp_path: Path
) -> None:
    folder = tmp_path / "statistics"
    fit_gates(
        tiny_llama(), tiny_tokenizer(), config, data, statistics=folder, options=FitOptions(segments=True)
    )
    with pytest.raises(DataRefused, match="have no held-out prompts in the form `given`"):
        from_statistics(folder, config, known(data, *NAMES), FitOptions(requests=True))


def test_a_fit_whose_parts_are_all_kept_reads_and_writes_no_data(
    kept: Path, config: BundleConfig, data: dict[str, TaskData], reference: FittedGates
) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in kept.iterdir()}
    assert set(before) == {f"{name}-{data[name].sha256.short}.safetensors" for name in NAMES}
    # The samples are gone, their digests suffice.
    unread = {name: replace(own, samples=()) for name, own in data.items()}
    again = fit_gates(tiny_llama(), tiny_tokenizer(), config, unread, statistics=kept)
    assert close(reference, again, 0)
    assert reference.fitting == again.fitting
    assert {path.name: path.stat().st_mtime_ns for path in kept.iterdir()} == before


def close(first: FittedGates, second: FittedGates, tolerance: float) -> bool:
    """Return whether two fits have the same gates, to a part of each tensor's largest entry."""
    pairs = [
        (a, b) for path in first.values for a, b in zip(first.values[path], second.values[path], strict=True)
    ]
    return all((a - b).abs().max() <= tolerance * a.abs().max() for a, b in pairs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (FitOptions(kind="linear"), "were made with kind `normalised`, this fit asks for `linear`"),
        (FitOptions(skip_tokens=2), "were made with skip_tokens `0`, this fit asks for `2`"),
    ],
    ids=["kind", "skip-tokens"],
)
def test_statistics_in_other_units_are_refused(
    config: BundleConfig, data: dict[str, TaskData], kept: Path, changed: FitOptions, message: str
) -> None:
    with pytest.raises(DataRefused, match=message):
        from_statistics(kept, config, known(data, *NAMES), changed)


def test_statistics_of_another_base_are_refused(
    config: BundleConfig, data: dict[str, TaskData], kept: Path
) -> None:
    other = tiny_llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(DataRefused, match="were made with another base"):
        from_statistics(kept, config, known(data, *NAMES), base=other)


def test_statistics_of_other_data_are_not_found(
    config: BundleConfig, data: dict[str, TaskData], kept: Path
) -> None:
    digests = known(data, *NAMES) | {"medical": Digest.of_bytes(b"other")}
    with pytest.raises(DataRefused) as caught:
        from_statistics(kept, config, digests)
    assert str(caught.value) == (
        f"the statistics in `{kept}` have nothing of the member `medical` on its data with the digest "
        f"`{digests['medical'].short}`"
    )


def test_a_part_under_the_name_of_another_member_is_refused(
    config: BundleConfig, data: dict[str, TaskData], kept: Path, tmp_path: Path
) -> None:
    folder = StatisticsFolder(shutil.copytree(kept, tmp_path / "statistics"))
    legal, sports = (folder.place_of(name, data[name].sha256) for name in ("legal", "sports"))
    shutil.copyfile(legal, sports)
    with pytest.raises(DataRefused, match=r"are of `legal` on data with .* expected `sports` on"):
        from_statistics(folder.path, config, known(data, *NAMES))


def test_concatenated_samples_change_the_fit_and_have_no_statistics(
    tmp_path: Path, data: dict[str, TaskData]
) -> None:
    options = FitOptions(concatenated=True)
    two = {name: data[name] for name in NAMES[:2]}
    config = make_config(tmp_path / "two", NAMES[:2], modules="all-linear")
    assert not close(fit(config, two, options), fit(config, two), 1e-3)
    with pytest.raises(UsageError, match="there are no statistics of samples behind those of other members"):
        fit_gates(
            tiny_llama(), tiny_tokenizer(), config, two, options=options, statistics=tmp_path / "statistics"
        )
    assert not (tmp_path / "statistics").exists()


def test_samples_end_where_the_context_of_the_base_ends(tmp_path: Path) -> None:
    adapters = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=0, r=4, target_modules=["c_attn"], fan_in_fan_out=True
        )
        for name in NAMES
    }
    bundle = write_bundle(tmp_path / "bundle", adapters)
    config = BundleConfig.read((bundle / "adapter_config.json").read_bytes())
    # Prompts fit into the context of 64, prompt and response together do not.
    data = read_data(write_task_data(tmp_path / "data", NAMES, length=100), NAMES)
    folder = StatisticsFolder(tmp_path / "statistics")
    fit_gates(tiny_gpt2(), tiny_tokenizer(), config, data, statistics=folder.path)
    for name, own in data.items():
        with StatisticsFile(folder.place_of(name, own.sha256)) as opened:
            assert opened.description.settings.max_tokens == 64
            assert opened.description.part.tokens == 12 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrinkage": 0.0}, "the shrinkage is 0.0, expected above 0 and at most 1"),
        ({"max_samples": 0}, "`max_samples` is 0, expected at least 1"),
        ({"skip_tokens": 9, "max_tokens": 9}, "`skip_tokens` is 9, expected 0 to 8"),
    ],
    ids=["shrinkage", "samples", "skip"],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        FitOptions(**options)
    assert str(caught.value) == message


def test_leaving_out_every_token_of_a_member_is_refused(
    config: BundleConfig, data: dict[str, TaskData]
) -> None:
    with pytest.raises(DataRefused, match=r"no token of `legal.jsonl` counts"):
        fit(config, data, FitOptions(skip_tokens=10))


def test_a_base_that_overflows_is_refused(config: BundleConfig, data: dict[str, TaskData]) -> None:
    base = tiny_llama()
    with torch.no_grad():
        base.model.layers[0].mlp.up_proj.weight.fill_(float("inf"))
    with pytest.raises(DataRefused) as caught:
        fit_gates(base, tiny_tokenizer(), config, data)
    assert str(caught.value) == "the moments of the input of `model.layers.0.mlp.down_proj` are not finite"


def test_a_base_with_an_adapter_is_refused(config: BundleConfig, data: dict[str, TaskData]) -> None:
    base = tiny_llama()
    base.add_adapter(LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(UsageError) as caught:
        fit_gates(base, tiny_tokenizer(), config, data)
    assert str(caught.value) == f"`{LAYER}.self_attn.q_proj` carries an adapter, expected the plain base"


def test_conv1d_and_a_bfloat16_base_are_fitted(tmp_path: Path) -> None:
    adapters = {
        name: make_adapter(
            tiny_gpt2, tmp_path / name, seed=seed, r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
        )
        for seed, name in enumerate(NAMES)
    }
    bundle = write_bundle(tmp_path / "bundle", adapters)
    config = BundleConfig.read((bundle / "adapter_config.json").read_bytes())
    data = read_data(write_task_data(tmp_path / "data", NAMES), NAMES)
    gates = fit_gates(tiny_gpt2().to(torch.bfloat16), tiny_tokenizer(), config, data)
    assert set(gates.values) == set(config.target_modules)
    assert all(rows.isfinite().all() for rows, _ in gates.values.values())
