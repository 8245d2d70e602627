"""Rules about the numbers in the weights."""

from __future__ import annotations

from ...schemas.finding import Effect, Severity
from ...schemas.quotation import quote_name
from ..deep import DeepLook
from ..weights import Weights
from .rule import WEIGHTS_FILE, Observation, Observations, rule


@rule(
    "MR401",
    Weights,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="one such number can spoil every output, or give logits that are finite and wrong",
    remedy="train again with a lower learning rate or gradient clipping; take the last good checkpoint",
)
def number_is_not_finite(weights: Weights) -> Observations:
    """A tensor holds NaN or infinity."""
    for name, magnitude in weights.scan.magnitudes.items():
        if not magnitude.is_finite:
            found = "NaN" if magnitude.has_nan else "infinity"
            yield Observation(found, "finite numbers", tensor=name, reason=found)


@rule(
    "MR402",
    Weights,
    Effect.BROKEN,
    file=WEIGHTS_FILE,
    why="the delta is infinite as soon as it is multiplied out in the dtype it is stored in",
    remedy="train again; such magnitudes are a run that has diverged",
)
def product_overflows(weights: Weights) -> Observations:
    """The scaled product B A overflows the dtype of its factors."""
    for overflow in weights.overflows:
        if overflow.dtype is not None:
            yield Observation(
                f"entries up to {overflow.largest:.3g} in {quote_name(overflow.path)}",
                f"at most {overflow.limit:.3g} ({overflow.dtype})",
                tensor=overflow.tensor,
            )


@rule(
    "MR403",
    Weights,
    Severity.WARN,
    file=WEIGHTS_FILE,
    why="a base in float16 cannot hold the delta; it becomes infinite there",
    remedy="use the adapter with a base in bfloat16 or float32 only",
)
def product_overflows_half(weights: Weights) -> Observations:
    """The scaled product B A overflows float16."""
    for overflow in weights.overflows:
        if overflow.dtype is None:
            yield Observation(
                f"entries up to {overflow.largest:.3g} in {quote_name(overflow.path)}",
                f"at most {overflow.limit:.3g} (F16)",
                tensor=overflow.tensor,
            )


@rule(
    "MR404",
    Weights,
    Severity.WARN,
    file=WEIGHTS_FILE,
    why="the adapter loads and changes nothing",
    remedy="take the checkpoint after training; a policy can refuse untrained adapters",
)
def adapter_is_untrained(weights: Weights) -> Observations:
    """Every product B A is zero."""
    pairs = [(pair.a, pair.b) for pair in weights.tensors.pairs if pair.is_sound and pair.a and pair.b]
    seen = weights.scan.magnitudes
    if pairs and all(
        any(entry.name in seen and seen[entry.name].is_zero for entry in pair) for pair in pairs
    ):
        zero = "B" if all(seen[b.name].is_zero for _, b in pairs) else "A or B"
        yield Observation(f"{zero} is zero in all {len(pairs)} modules", "trained factors")


@rule(
    "MR411",
    DeepLook,
    Severity.NOTE,
    file=WEIGHTS_FILE,
    why="the rest of the rank costs memory and time in every bundle and adds next to nothing",
    remedy="nothing needs doing; a smaller rank in training would save it",
)
def rank_is_hardly_used(look: DeepLook) -> Observations:
    """Most of the rank is hardly used."""
    wasteful = [each for each in look.ranks if each.effective * 4 <= each.rank]
    if wasteful:
        first = wasteful[0]
        yield Observation(
            f"{len(wasteful)} of {len(look.ranks)} modules hold 99 % of their change in a quarter of "
            f"the rank, such as {first.effective} of {first.rank} in {quote_name(first.path)}",
            "more than a quarter of the rank in use",
        )
