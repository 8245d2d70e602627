from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meteora_registry.schemas.bundle import (
    MAX_SCALING,
    MIN_SCALING,
    BundleConfig,
    ModuleLayout,
)
from meteora_registry.schemas.errors import BundleRefused, InvalidDocument


def config_value(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "peft_type": "METEORA",
        "meteora_format": 1,
        "required_features": [],
        "task_type": None,
        "base_model_name_or_path": "org/base",
        "revision": None,
        "inference_mode": True,
        "target_modules": ["a.q", "a.v"],
        "members": [
            {"name": "one", "rank": 4, "scaling": 2.0, "overrides": {}},
            {"name": "two", "rank": 9, "scaling": 1 / 3, "overrides": {"a.q": {"rank": 0, "scaling": 1.0}}},
        ],
        "rank_alignment": 8,
        "top_k": 2,
        "temperature": 1.0,
        "gate": {
            "kind": "absolute",
            "scope": "token",
            "bias": False,
            "eps": 1e-6,
            "sources": {},
            "initialisation": {"method": "arrow", "seed": 0},
            "fitted": "not fitted",
        },
    }
    return value | changes


def read(value: dict[str, Any]) -> BundleConfig:
    return BundleConfig.read(json.dumps(value).encode())


def test_layouts_give_each_member_its_own_aligned_rows() -> None:
    layouts = read(config_value()).layouts
    assert layouts["a.q"] == ModuleLayout("a.q", (4, 0), (2.0, 1.0), (0, 8, 8))
    assert layouts["a.v"] == ModuleLayout("a.v", (4, 9), (2.0, 1 / 3), (0, 8, 24))
    assert layouts["a.v"].rows_of(1) == slice(8, 17)
    assert layouts["a.v"].padding_of(1) == slice(17, 24)


BEYOND_FLOAT32 = [
    pytest.param(1e300, id="huge"),
    pytest.param(MAX_SCALING * 1.001, id="just too large"),
    pytest.param(MIN_SCALING * 0.999, id="just too small"),
    pytest.param(1e-300, id="tiny"),
]


@pytest.mark.parametrize("scaling", BEYOND_FLOAT32)
@pytest.mark.parametrize("place", ["members.0.scaling", "members.1.overrides.a.q.scaling"])
def test_config_refuses_a_scaling_that_float32_cannot_work_with(scaling: float, place: str) -> None:
    value = config_value()
    member = value["members"][int(place[8])]
    (member["overrides"]["a.q"] if "overrides" in place else member)["scaling"] = scaling
    with pytest.raises(InvalidDocument, match=rf"{place}: input should be (less|greater) than or equal to"):
        read(value)


@pytest.mark.parametrize("scaling", [MIN_SCALING, MAX_SCALING])
def test_config_takes_the_extreme_scalings(scaling: float) -> None:
    value = config_value()
    value["members"][0]["scaling"] = scaling
    assert read(value).members[0].scaling == scaling


@pytest.mark.parametrize("eps", [1e300, 1.001, 1e-21, 1e-320, 0.0, -1.0])
def test_config_refuses_an_eps_that_float32_cannot_work_with(eps: float) -> None:
    value = config_value()
    value["gate"]["eps"] = eps
    with pytest.raises(InvalidDocument, match=r"gate\.eps: input should be (less|greater) than or equal to"):
        read(value)


def test_config_of_very_many_faults_is_refused_without_describing_each() -> None:
    value = config_value(target_modules=[0] * 20_000)
    with pytest.raises(InvalidDocument, match=r"^`adapter_config.json` breaks its schema in \d+ places$"):
        read(value)


def test_config_keeps_scalings_exactly() -> None:
    config = read(config_value())
    assert BundleConfig.read(config.to_bytes()).members[1].scaling == 1 / 3


def test_config_ignores_the_keys_that_peft_adds() -> None:
    assert read(config_value(peft_version="0.21.2", auto_mapping=None)) == read(config_value())


def test_tensor_names_have_a_bias_only_where_the_gate_has_one() -> None:
    config = read(config_value())
    assert len(config.tensor_names) == 6
    imported = {"bias": True, "initialisation": None, "fitted": {"method": "imported", "data": []}}
    biased = read(config_value(gate=config_value()["gate"] | imported))
    assert biased.tensor_names - config.tensor_names == {
        "base_model.model.a.q.meteora_gate_bias",
        "base_model.model.a.v.meteora_gate_bias",
    }


GATE = config_value()["gate"]


def test_reader_bounds_members_times_modules_before_laying_them_out() -> None:
    many = [{"name": f"m{index}", "rank": 1, "scaling": 1.0, "overrides": {}} for index in range(4096)]
    paths = sorted(f"m{index}" for index in range(6000))
    with pytest.raises(InvalidDocument, match="4096 members of 6000 modules are more than 1000000 entries"):
        read(config_value(members=many, target_modules=paths))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"peft_type": "LORA"},
            "`adapter_config.json` is not a MeteoRA bundle: peft_type is `LORA`, expected `METEORA`",
        ),
        ({"meteora_format": 2}, "`adapter_config.json` has bundle format `2`, this reader knows `1`"),
        ({"meteora_format": True}, "`adapter_config.json` has bundle format `True`, this reader knows `1`"),
        (
            {"required_features": ["later", {"x": 1}]},
            "`adapter_config.json` requires `later`, which this reader does not know",
        ),
    ],
    ids=["peft type", "format", "format true", "feature"],
)
def test_reader_refuses_what_it_does_not_know(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleRefused) as caught:
        read(config_value(**changes))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"top_k": 3}, "top_k is 3, expected at most the number of members, 2"),
        ({"top_k": 0}, "top_k: input should be greater than or equal to 1, found `0`"),
        ({"temperature": "1"}, "temperature: input should be a valid number, found `'1'`"),
        ({"temperature": 0.0}, "temperature: input should be greater than or equal to 0.000001, found `0.0`"),
        ({"target_modules": ["a.v", "a.q"]}, "target_modules must be sorted and differ"),
        ({"target_modules": ["a.q", "a.v", "a.z/../x"]}, "target_modules.2: string should match pattern"),
        ({"rank_alignment": 16}, "rank_alignment: input should be 8, found `16`"),
        ({"gate": {}}, "gate.kind: field required"),
        (
            {"gate": GATE | {"bias": True}},
            "gate: a gate that is not fitted has the kind `absolute` of `arrow` and no",
        ),
        (
            {"gate": GATE | {"kind": "linear"}},
            "gate: a gate that is not fitted has the kind `absolute` of `arrow`",
        ),
        (
            {"gate": GATE | {"fitted": {"method": "closed form", "data": []}}},
            "a fitted gate names the data of every member in order, found []",
        ),
        (
            {"members": [{"name": "one", "rank": 4, "scaling": 0.0, "overrides": {}}]},
            "members.0.scaling: input should",
        ),
        (
            {"members": [{"name": "one", "rank": 1 << 30, "scaling": 1.0, "overrides": {}}]},
            "members.0.rank: input",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_reader_refuses_what_breaks_the_schema(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidDocument) as caught:
        read(config_value(**changes))
    assert any(found.startswith(problem) for found in caught.value.problems), caught.value.problems


def test_reader_refuses_members_that_do_not_fit_together() -> None:
    one = {"name": "one", "rank": 4, "scaling": 2.0, "overrides": {}}
    absent = {path: {"rank": 0, "scaling": 1.0} for path in ("a.q", "a.v")}
    for members, problem in (
        ([one, one], "member names must differ, found ['one', 'one']"),
        (
            [one, one | {"name": "two", "overrides": {"b.q": {"rank": 1, "scaling": 1.0}}}],
            "member `two` overrides `b.q`, which is not a target module",
        ),
        (
            [one | {"overrides": absent}, one | {"name": "two", "overrides": absent}],
            "no member touches the target module `a.q`",
        ),
    ):
        with pytest.raises(InvalidDocument) as caught:
            read(config_value(members=members))
        assert caught.value.problems == (problem,)


def test_gate_without_initialisation_says_how_it_was_fitted() -> None:
    gate = config_value()["gate"] | {"initialisation": None}
    with pytest.raises(InvalidDocument, match="a gate that is not fitted states its initialisation"):
        read(config_value(gate=gate))
    fitted = gate | {"fitted": {"method": "imported", "data": []}}
    assert read(config_value(gate=fitted)).gate.initialisation is None


@given(st.lists(st.integers(min_value=0, max_value=300), min_size=1, max_size=40))
def test_layout_rows_are_disjoint_and_cover_everything(ranks: list[int]) -> None:
    layout = ModuleLayout.of("m", tuple(ranks), (1.0,) * len(ranks))
    covered: list[int] = []
    for member, rank in enumerate(ranks):
        rows, padding = layout.rows_of(member), layout.padding_of(member)
        assert rows.stop - rows.start == rank
        assert padding.stop - padding.start < 8
        covered += [*range(rows.start, rows.stop), *range(padding.start, padding.stop)]
    assert covered == list(range(layout.rows))


def gate_value(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = GATE | changes
    return value


@pytest.mark.parametrize(
    ("features", "changes"),
    [
        (["gate-sources"], {"sources": {"a.v": "a.q"}}),
        (["gate-scope"], {"scope": "layer"}),
        (["gate-scope"], {"scope": "prompt+token"}),
        (["gate-abstain", "gate-scope"], {"scope": "segment", "abstain": 0.5}),
        (["gate-trained"], {"fitted": {"method": "trained", "data": []}}),
    ],
    ids=["sources", "layer", "prompt+token", "abstain", "trained"],
)
def test_config_with_a_feature_is_read_and_written_alike(
    features: list[str], changes: dict[str, Any]
) -> None:
    config = read(config_value(required_features=features, gate=gate_value(**changes)))
    assert list(config.gate.features) == features
    assert BundleConfig.read(config.to_bytes()) == config
    with pytest.raises(InvalidDocument) as caught:
        read(config_value(gate=gate_value(**changes)))
    assert caught.value.problems == (
        f"the gate needs `{features[0]}` in `required_features`, which lacks it",
    )


def test_config_without_a_feature_is_written_as_before_there_was_one() -> None:
    value = config_value()
    written = read(value).to_bytes()
    assert json.loads(written) == value
    assert b"abstain" not in written


def test_module_with_a_source_has_no_gate_tensors() -> None:
    shared = gate_value(sources={"a.v": "a.q"})
    config = read(config_value(required_features=["gate-sources"], gate=shared))
    assert config.has_gate("a.q")
    assert not config.has_gate("a.v")
    assert read(config_value()).tensor_names - config.tensor_names == {"base_model.model.a.v.meteora_gate"}


@pytest.mark.parametrize(
    ("gate", "problem"),
    [
        (
            {"sources": {"a.v": "a.q", "a.q": "a.z"}},
            "gate: `a.v` takes its routing from `a.q`, which has none of its own: it takes it from `a.z`",
        ),
        (
            {"sources": {"a.q": "a.q"}},
            "gate: `a.q` takes its routing from `a.q`, which has none of its own: it takes it from `a.q`",
        ),
        (
            {"sources": {"a.v": "a.z"}},
            "`gate.sources` takes `a.v` to `a.z`, but `a.z` is not a target module",
        ),
        (
            {"abstain": 0.5},
            "gate: `abstain` goes with the scopes `prompt`, `prompt+token`, `segment`, found `token`",
        ),
        ({"scope": "prompt", "abstain": 1.5}, "gate.abstain: input should be less than or equal to 1"),
        ({"scope": "page"}, "gate.scope: input should be 'token', 'layer', 'prompt', 'prompt+token' or"),
    ],
    ids=["chain", "itself", "stranger", "abstain alone", "abstain range", "scope"],
)
def test_reader_refuses_a_gate_that_cannot_route(gate: dict[str, Any], problem: str) -> None:
    features = ["gate-abstain", "gate-scope", "gate-sources"]
    with pytest.raises(InvalidDocument) as caught:
        read(config_value(required_features=features, gate=gate_value(**gate)))
    assert caught.value.problems[0].startswith(problem), caught.value.problems
