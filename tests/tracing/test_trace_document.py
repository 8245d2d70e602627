"""The trace document, and what is worked out of it: places of modules, shares, letters and colours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from meteora_registry.runtime.tracing.display import COLOURS, leading_members, letter_of, token_shares
from meteora_registry.schemas.errors import InvalidDocument
from meteora_registry.schemas.trace import ModulePlace, Trace
from support.traces import make_trace, two_layer_trace


@pytest.mark.parametrize(
    ("path", "layer", "kind"),
    [
        ("model.layers.3.self_attn.q_proj", "model.layers.3", "self_attn.q_proj"),
        ("transformer.h.11.mlp.c_proj", "transformer.h.11", "mlp.c_proj"),
        ("model.layers.2.mlp.experts.7.up_proj", "model.layers.2", "mlp.experts.7.up_proj"),
        ("lm_head", "", "lm_head"),
        ("0.linear", "0", "linear"),
        ("blocks.4", "", "blocks.4"),
    ],
)
def test_place_is_the_path_up_to_the_first_number_and_after_it(path: str, layer: str, kind: str) -> None:
    assert ModulePlace.of(path) == ModulePlace(layer, kind)


def test_layers_are_ordered_by_number() -> None:
    paths = ["lm_head", "a.layers.10.q", "a.layers.9.q", "b.layers.0.q"]
    places = sorted((ModulePlace.of(path) for path in paths), key=lambda place: place.order)
    assert [place.layer for place in places] == ["", "a.layers.9", "a.layers.10", "b.layers.0"]


def test_shares_are_the_mean_weight_over_the_modules() -> None:
    shares = token_shares(two_layer_trace())
    expected = [[1, 0, 0], [0.5 / 3, 2.5 / 3, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]]
    np.testing.assert_allclose(shares, expected)
    assert leading_members(shares) == [0, 1, 1, -1]


def test_equal_shares_go_to_the_lowest_member() -> None:
    trace = make_trace([[[(1, 0.5), (0, 0.5)]]], [("lm_head", 0)], texts=["x"], prompt=1)
    assert leading_members(token_shares(trace)) == [0]


def test_trace_is_read_as_it_was_written() -> None:
    trace = two_layer_trace()
    assert Trace.from_bytes(trace.to_bytes(), what="trace.json") == trace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routings": []}, "routings: tuple should have at least 1 item"),
        ({"members": ["sql"]}, "a token has member 1 of 1"),
        ({"tokens": [{"id": 0, "text": "x", "generated": False}]}, "a routing has 4 and 4 rows for 1 tokens"),
        (
            {"modules": [{"path": "lm_head", "routing": 2}]},
            "`lm_head` has routing 2, expected one of 2",
        ),
    ],
    ids=["no-routings", "unknown-member", "too-many-rows", "unknown-routing"],
)
def test_trace_that_does_not_fit_in_itself_is_refused(change: dict[str, object], message: str) -> None:
    value = two_layer_trace().model_dump(mode="json") | change
    with pytest.raises(InvalidDocument) as caught:
        Trace.from_value(value, what="trace.json")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("member", "letter"),
    [(-1, "-"), (0, "A"), (25, "Z"), (26, "AA"), (27, "AB"), (51, "AZ"), (52, "BA"), (702, "AAA")],
)
def test_letters_go_on_after_z(member: int, letter: str) -> None:
    assert letter_of(member) == letter


def test_no_two_of_four_thousand_letters_are_equal() -> None:
    letters = [letter_of(member) for member in range(4096)]
    assert len(set(letters)) == len(letters)


def _luminance(colour: str) -> float:
    values = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_black_is_legible_on_every_colour() -> None:
    assert min((_luminance(colour) + 0.05) / 0.05 for colour in COLOURS) >= 5.5


def _oklab(colour: str) -> np.ndarray:
    srgb = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return to_lab @ np.cbrt(cones @ linear)


@pytest.mark.parametrize(("count", "distance"), [(8, 0.16), (16, 0.12), (28, 0.09)])
def test_colours_are_apart_from_each_other(count: int, distance: float) -> None:
    colours = [_oklab(colour) for colour in COLOURS[:count]]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) >= distance
