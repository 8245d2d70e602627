"""Request gates: what they are fitted on, how they decide, and when they leave a prompt to the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

from meteora_registry.runtime.fitting import FitOptions, FittedGates, fit_gates, read_task_data
from meteora_registry.runtime.fitting.forms import template_tokens
from meteora_registry.runtime.fitting.inputs import ModuleInput, find_layer_inputs
from meteora_registry.runtime.fitting.moments import Moments
from meteora_registry.runtime.fitting.request_gates import (
    candidate_inputs,
    choose_inputs,
    general_prompts,
    most_inputs,
    quantiles_of,
    safe_rank,
    spreads,
)
from meteora_registry.runtime.fitting.sequences import hold_out
from meteora_registry.runtime.fitting.solve import solve_request_gate
from meteora_registry.runtime.fitting.task_data import Sample, TaskData
from meteora_registry.runtime.scopes.request_gate import (
    Gram,
    RequestGate,
    RequestRule,
    familiarity_of,
    share_below,
)
from meteora_registry.schemas.bundle import QUANTILES, BundleConfig, TemplateTokens
from meteora_registry.schemas.errors import UsageError
from support.bundles import make_config
from support.models import tiny_llama
from support.task_data import TEMPLATE, tiny_tokenizer, write_task_data

NAMES = ("legal", "medical", "sports")


def samples(count: int) -> list[Sample]:
    return [Sample(f"w{line}", None, line) for line in range(count)]


@pytest.mark.parametrize(
    ("count", "limit", "held"),
    [
        (4, 32, 0),
        (5, 32, 1),
        (12, 32, 2),
        (40, 32, 8),
        (80, 32, 32),
        (48, 32, 16),
        (500, 32, 32),
        (20, 4, 16),
        (200, 100, 32),
    ],
)
def test_what_a_fit_leaves_over_is_held_out_and_at_least_a_fifth(count: int, limit: int, held: int) -> None:
    read, kept = hold_out(samples(count), limit)
    assert (len(read), len(kept)) == (count - held, held)
    assert {each.line for each in (*read, *kept)} == set(range(count))


def test_general_prompts_are_many_of_several_kinds() -> None:
    classes = general_prompts()
    assert len(classes) >= 4
    assert all(len(own) >= 30 for own in classes.values())
    prompts = [sample.prompt for own in classes.values() for sample in own]
    assert len(set(prompts)) == len(prompts)
    assert all(sample.question == sample.prompt for own in classes.values() for sample in own)


def test_quantiles_keep_a_threshold_in_every_form() -> None:
    low, high = torch.arange(39.0), torch.arange(39.0) + 100
    found = quantiles_of([high, low])
    assert found is not None
    assert len(found) == QUANTILES
    # Of so few scores the lowest alone is safe, and of the two forms that of the lower.
    assert (found[5], found[100]) == (0.0, 38.0)
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [
        (18, 0.05, 0),
        (19, 0.05, 1),
        (58, 0.05, 1),
        (92, 0.05, 1),
        (93, 0.05, 2),
        (288, 0.05, 9),
        (288, 0.5, 130),
    ],
)
def test_rank_keeps_the_share_in_19_of_20_draws(count: int, share: float, rank: int) -> None:
    assert safe_rank(count, share) == rank
    # The share of new prompts below the score of a rank, over draws of the held-out ones.
    lost = np.random.default_rng(0).beta(max(rank, 1), count + 1 - max(rank, 1), size=20_000)
    if count >= 59:
        assert np.mean(lost <= share) == pytest.approx(0.97, abs=0.025)


def test_rank_of_all_and_of_none() -> None:
    assert (safe_rank(40, 0.0), safe_rank(40, 1.0)) == (0, 40)


def test_too_few_scores_give_no_quantiles() -> None:
    assert quantiles_of([torch.arange(18.0)]) is None
    assert quantiles_of([torch.arange(19.0)]) is not None
    assert quantiles_of([torch.arange(40.0), torch.arange(18.0)]) is None


def test_confidence_is_the_share_of_scores_below() -> None:
    quantiles = torch.arange(QUANTILES, dtype=torch.float64)
    scores = torch.tensor([-3.0, 0.0, 5.0, 5.5, 100.0, 200.0])
    assert share_below(scores, quantiles).tolist() == pytest.approx([0, 0, 0.05, 0.055, 1, 1])
    # A score that many own prompts share is not below itself.
    flat = torch.cat([torch.zeros(50), torch.ones(51)]).double()
    assert share_below(torch.tensor([0.0, 1.0]), flat).tolist() == pytest.approx([0.49, 1.0])


def test_score_adds_familiarity_and_how_much_a_member_is_above_the_background() -> None:
    # Two members, two background classes, and the familiarity.
    evidence = torch.tensor([[-1.0, -2.0, -3.0, -3.0, 7.0]])
    ratio = -1 + 3 - math.log(2)
    rule = RequestRule(2, ("q",), centre=3.0, spread=2.0, quantiles=None)
    score = 2.0 - math.log1p(math.exp(-ratio))
    assert rule.score(evidence).item() == pytest.approx(score)
    assert rule.confidence(evidence).item() == pytest.approx(1 / (1 + math.exp(-score)))


def test_familiarity_is_the_relative_distance_to_the_nearest_member() -> None:
    generator = np.random.default_rng(0)
    members, background, size = 3, 2, 6
    means = generator.normal(size=(members + background, size))
    spread = generator.normal(size=(size, size))
    within = spread @ spread.T + np.eye(size)
    classes = members + background
    second = classes * within + means.T @ means
    moments = Moments(torch.from_numpy(means), torch.from_numpy(second).float())
    rows, bias, gram = solve_request_gate(moments, members, shrinkage=1e-12)
    x = generator.normal(size=(5, size))
    gate = RequestGate(rows, bias, Gram.of(gram), kind="linear", eps=1e-6)
    found = gate.read(torch.from_numpy(x).float())[:, -1]
    centre = means[:members].mean(axis=0)
    total = within + (means[:members] - centre).T @ (means[:members] - centre) / members
    nearest = [
        min(
            (one - mean) @ np.linalg.solve(within, one - mean)
            - (one - centre) @ np.linalg.solve(total, one - centre)
            for mean in means[:members]
        )
        for one in x
    ]
    assert found.tolist() == pytest.approx([-distance for distance in nearest], rel=1e-3, abs=1e-3)


def test_familiarity_with_a_kept_inverse_is_the_same_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(8, 8, generator=generator)
    values, logits = spread @ spread.T, torch.randn(3, 50, 8, generator=generator)
    own = values.diagonal()
    centred = logits - logits.mean(dim=-1, keepdim=True) + (own - own.mean()) / 2
    # As it was defined before the inverse was kept.
    spanned = (centred * (centred @ torch.linalg.inv(torch.eye(8) * 8 + values))).sum(dim=-1)
    expected = (2 * centred - own).amax(dim=-1) - spanned
    assert familiarity_of(logits, Gram.of(values)).equal(expected)


@pytest.mark.parametrize(
    ("ids", "span"),
    [
        ([1, 2, 3, 7, 8, 9, 4, 5], (3, 6)),
        ([7, 8, 9], (0, 3)),
        ([1, 2, 7, 8, 4, 5], (2, 4)),
        ([1, 2, 3, 7, 8, 5], (3, 6)),
        ([1, 2, 3, 4, 5], (0, 5)),
        ([1], (0, 1)),
        ([], (0, 0)),
    ],
    ids=["whole", "plain", "other-beginning", "other-end", "nothing-between", "one", "none"],
)
def test_the_part_that_is_not_the_templates_is_found(ids: list[int], span: tuple[int, int]) -> None:
    assert TemplateTokens(before=(1, 2, 3), behind=(4, 5)).span_of(ids) == span


def test_template_tokens_are_those_around_every_question() -> None:
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE)
    found = template_tokens(tokenizer)
    words = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in ("user", "assistant")}
    assert found == TemplateTokens(before=(words["user"],), behind=(words["assistant"],))
    assert template_tokens(tiny_tokenizer()) is None


@pytest.mark.parametrize(
    ("layers", "present", "found"),
    [
        (30, range(30), range(3, 15)),
        (30, range(20, 30), range(20, 25)),
        (80, range(80), [9, 12, 15, 17, 20, 23, 25, 28, 31, 33, 36, 39]),
        (2, range(2), [0]),
        (None, range(4), [0, 1]),
    ],
    ids=["all", "late", "deep", "tiny", "unknown-depth"],
)
def test_candidates_are_the_first_inputs_of_the_early_and_middle_layers(
    layers: int | None, present: range, found: Sequence[int]
) -> None:
    inputs = [
        ModuleInput((f"model.layers.{layer}.{module}",), 8)
        for layer in present
        for module in ("self_attn.q_proj", "mlp.up_proj")
    ]
    config = PretrainedConfig(**({} if layers is None else {"num_hidden_layers": layers}))
    candidates = [each.source for each in candidate_inputs(inputs, config)]
    assert candidates == [f"model.layers.{layer}.self_attn.q_proj" for layer in found]


def test_inputs_of_layers_are_those_of_every_linear_module_of_the_base() -> None:
    base = tiny_llama(layers=2)
    attention = [("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)]
    layer = [*attention, ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)]
    found = find_layer_inputs(base, ["lm_head"])
    assert [each.modules for each in found] == [
        tuple(f"model.layers.{number}.{path}" for path in paths) for number in (0, 1) for paths in layer
    ]
    assert [each.features for each in found] == [32, 32, 32, 48] * 2


def test_module_of_the_bundle_is_the_first_of_its_input() -> None:
    own = ["model.layers.1.self_attn.v_proj", "model.layers.1.mlp.up_proj"]
    found = {each.source: each.modules for each in find_layer_inputs(tiny_llama(), own)}
    assert set(own) <= set(found)
    assert found[own[0]][1:] == ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj")
    assert "model.layers.0.self_attn.q_proj" in found


def test_modules_called_twice_or_for_some_tokens_are_no_inputs() -> None:
    base = tiny_llama()
    first, second = base.model.layers
    second.self_attn.o_proj = first.self_attn.o_proj
    first.mlp.expert = torch.nn.Linear(32, 32)

    def call_expert(*_: object) -> None:
        first.mlp.expert(torch.zeros(2, 32))

    first.mlp.register_forward_hook(call_expert)
    found = {path for each in find_layer_inputs(base, ()) for path in each.modules}
    assert not {path for path in found if "o_proj" in path or "expert" in path}
    assert "model.layers.0.mlp.down_proj" in found


def test_base_of_several_stacks_is_read_in_the_one_with_most_inputs() -> None:
    base = tiny_llama(layers=3)
    base.model.extra = torch.nn.ModuleList([torch.nn.Linear(32, 32)])
    base.model.norm.register_forward_pre_hook(lambda _, args: (base.model.extra[0](args[0]),))
    found = {each.source.rpartition(".layers.")[0] for each in find_layer_inputs(base, ())}
    assert found == {"model"}


def test_choices_spread_over_the_inputs_up_to_each_end() -> None:
    assert spreads(7, 3) == [(0, 1, 2), (0, 1, 3), (0, 2, 4), (1, 3, 5), (1, 3, 6)]
    assert spreads(2, 5) == [(0, 1)]
    assert spreads(3, 1) == [(0,), (1,), (2,)]


def evidence_of(right: Sequence[Sequence[bool]]) -> Tensor:
    """Return the evidence of inputs of which each decides for member 0 rightly, or wrongly for member 1."""
    return torch.tensor([[[0.0, -1.0] if each else [-1.0, 0.0] for each in prompts] for prompts in right])


def test_inputs_are_those_that_decide_best_and_of_equal_ones_the_first() -> None:
    members = torch.zeros(4, dtype=torch.int64)
    wrong, some, all_of_them = [False] * 4, [True, True, False, False], [True] * 4
    assert choose_inputs(evidence_of([wrong, some, all_of_them, all_of_them, some]), members, 1) == (2,)
    assert choose_inputs(evidence_of([all_of_them] * 5), members, 3) == (0, 1, 2)
    none = torch.zeros(0, dtype=torch.int64)
    assert choose_inputs(torch.zeros(5, 0, 2), none, 3) == (0, 2, 4)


@pytest.mark.parametrize(
    ("features", "members", "bundle_bytes", "most"),
    [
        # SmolLM2-135M: rank 8 on q and v of 30 layers, eight members in float32, then two in bfloat16.
        (576, 8, 8 * 8 * 30 * (576 + 576 + 576 + 192) * 4, 5),
        (576, 2, 2 * 8 * 30 * (576 + 576 + 576 + 192) * 2, 4),
        # Llama of 8B: rank 8 on q and v of 32 layers, bfloat16.
        (4096, 4, 4 * 8 * 32 * (4096 + 4096 + 4096 + 1024) * 2, 5),
        (8, 2, 1000, 1),
    ],
    ids=["small-base", "few-factors", "large-base", "never-none"],
)
def test_request_gates_stay_a_twentieth_of_a_bundle(
    features: int, members: int, bundle_bytes: int, most: int
) -> None:
    inputs = [ModuleInput(("model.layers.0.q_proj",), features)]
    classes = members + len(general_prompts())
    found = most_inputs(inputs, classes, members, bundle_bytes)
    assert found == most
    if found > 1:
        assert found * 4 * (classes * (features + 1) + members**2) <= 0.05 * bundle_bytes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BundleConfig:
    return make_config(tmp_path_factory.mktemp("bundle"), NAMES, modules=["q_proj"])


def fit(config: BundleConfig, folder: Path, *, samples: int, abstain: float | None = 0.05) -> FittedGates:
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE)
    write_task_data(folder, NAMES, samples=samples)
    data: dict[str, TaskData] = read_task_data(folder, NAMES, tokenizer=tokenizer, context_tokens=64)
    options = FitOptions(requests=True, abstain=abstain)
    return fit_gates(tiny_llama(), tokenizer, config, data, options=options)


def test_fit_judges_its_request_gates_on_samples_that_it_did_not_read(
    config: BundleConfig, tmp_path: Path
) -> None:
    gates = fit(config, tmp_path, samples=50)
    assert gates.requests is not None
    found = gates.requests.description
    assert [data.samples for data in gates.fitting.data] == [32, 32, 32]
    assert (found.modules, found.forms) == (("model.layers.0.self_attn.q_proj",), ("plain", "chat"))
    classes = 3 + len(found.background)
    shapes = [tuple(tensor.shape) for tensor in gates.requests.values[found.modules[0]]]
    assert shapes == [(classes, 32), (classes,), (3, 3)]
    assert found.held_out is not None
    # 18 lines of each of three members, in two forms.
    assert found.held_out.prompts == 108
    assert found.held_out.right + sum(count for _, _, count in gates.requests.confusions) == 108
    assert found.held_out.right > 80
    assert (gates.abstain, found.held_out.abstain) == (0.05, 0.05)
    assert found.held_out.own_left is not None
    assert found.held_out.own_left <= 0.05 * 108


def test_too_few_samples_leave_abstention_off(config: BundleConfig, tmp_path: Path) -> None:
    gates = fit(config, tmp_path, samples=12)
    assert gates.abstain is None
    assert gates.requests is not None
    assert gates.requests.description.quantiles is None
    held_out = gates.requests.description.held_out
    assert held_out is not None
    assert (held_out.prompts, held_out.own_left, held_out.general_left) == (12, None, None)


def test_abstention_that_was_not_asked_for_is_off(config: BundleConfig, tmp_path: Path) -> None:
    gates = fit(config, tmp_path, samples=50, abstain=None)
    assert gates.abstain is None
    assert gates.requests is not None
    assert gates.requests.description.quantiles is not None


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=f"`abstain` is {share}, expected above 0 and below 1"):
        FitOptions(abstain=share)
