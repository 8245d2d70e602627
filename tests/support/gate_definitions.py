"""The definition of every gate kind written out once more, in float64; nothing of the kernels is used."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

# Of the products G x, the token's length [..., 1] and eps.
DEFINITIONS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linear": lambda products, length, eps: products,
    "absolute": lambda products, length, eps: products.abs(),
    "normalised": lambda products, length, eps: products / (length + eps),
}


def defined_logits(x: Tensor, gate: Tensor, bias: Tensor | None, kind: str, eps: float = 1e-6) -> Tensor:
    """Return the logits [..., L] of tokens x [..., h] by hand."""
    x = x.double()
    logits = DEFINITIONS[kind](x @ gate.double().T, x.pow(2).sum(-1, keepdim=True).sqrt(), eps)
    return logits if bias is None else logits + bias.double()
