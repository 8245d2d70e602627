"""A gate in closed form: linear discriminant analysis with shrinkage, or ridge regression.

Both follow from the moments alone. With L members, means mu_i, their mean mu, and S the sum over members
of the mean of x x^T:

    W = S / L - (1/L) sum_i mu_i mu_i^T                     the covariance within the members
    lda:    C = (1 - g) W + g (tr W / h) I
            G_i = C^-1 (mu_i - mu)
            b_i = -G_i (mu_i + mu) / 2                      up to what all members share
    ridge:  T = S / L - mu mu^T                             the whole covariance
            G_i = c (T + g (tr T / h) I)^-1 (mu_i - mu)
            b_i = -G_i mu                                   up to what all members share

where c = 1 / L would give least squares, and the c of `_posterior_scale` gives logits whose
differences are of the size of differences of log posteriors.

LDA is Bayes' rule for Gaussians of one covariance and equal priors (Hastie, Tibshirani, Friedman, "The
Elements of Statistical Learning", 2nd edition, 4.3); the shrinkage towards a multiple of the identity is
that of Ledoit and Wolf (2004), with g given and not estimated, because tokens of one text are far from
independent. Ridge is least squares on indicators (4.2 there) with a penalty. All in float64.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...schemas.errors import DataRefused
from .moments import Moments

Method = Literal["lda", "ridge"]


def solve_gate(
    moments: Moments, method: Method, *, shrinkage: float, what: str = "an input"
) -> tuple[Tensor, Tensor]:
    """Solve for the gate's rows ``[L, h]`` and bias ``[L]``, float32, whose logits are log posteriors.

    Up to a number per token that all members share. Memory: two matrices of h x h in float64 beside
    the moments. If nothing varies within the members the gate is zero.

    Args:
        moments: of all members.
        method: which classifier.
        shrinkage: above 0, at most 1.
        what: how messages call the input.

    Raises:
        DataRefused: the moments are not finite, or cannot come from data.
    """
    means, members = moments.means, moments.means.shape[0]
    centre = means.mean(dim=0)
    offsets = means - centre
    covariance = moments.second.to(torch.float64, copy=True).div_(members)
    covariance.addmm_(means.T, means, alpha=-1 / members)
    variance = torch.diagonal(covariance).sum().item()
    if not bool(torch.isfinite(covariance).all()):
        raise DataRefused(
            f"the moments of {what} are not finite",
            hint="a base in float16 may overflow: fit on one in bfloat16 or float32",
        )
    if variance <= 0:
        zeros = torch.zeros(means.shape, dtype=torch.float32)
        return zeros, zeros[:, 0].clone()
    solved = (_lda if method == "lda" else _ridge)(covariance, offsets, centre, shrinkage)
    if solved is None:
        raise DataRefused(f"the moments of {what} cannot come from data: their covariance is not positive")
    return solved[0].to(torch.float32).cpu(), solved[1].to(torch.float32).cpu()


def solve_request_gate(
    moments: Moments, members: int, *, shrinkage: float, what: str = "an input"
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve for a request gate: rows and bias by ``lda`` over all classes, and the members' Gram matrix.

    That is M_ij = (mu_i - m)^T C^-1 (mu_j - m) over the first ``members`` classes, with m their mean. The
    rows are C^-1 (mu_i - mu), so it follows from them.

    Raises:
        DataRefused: as ``solve_gate``.
    """
    rows, bias = solve_gate(moments, "lda", shrinkage=shrinkage, what=what)
    own = moments.means[:members].cpu()
    towards = rows[:members].double()
    gram = (towards - towards.mean(dim=0)) @ (own - own.mean(dim=0)).T
    return rows, bias, ((gram + gram.T) / 2).to(torch.float32)


def _lda(within: Tensor, offsets: Tensor, centre: Tensor, shrinkage: float) -> tuple[Tensor, Tensor] | None:
    scale = torch.diagonal(within).mean() * shrinkage
    rows = _solve(within.mul_(1 - shrinkage), scale, offsets)
    return None if rows is None else (rows, _centred(-(rows * (offsets / 2 + centre)).sum(dim=1)))


def _ridge(within: Tensor, offsets: Tensor, centre: Tensor, shrinkage: float) -> tuple[Tensor, Tensor] | None:
    members = offsets.shape[0]
    # The whole covariance in the place of that within, and back, to save a matrix.
    within.addmm_(offsets.T, offsets, alpha=1 / members)
    rows = _solve(within, torch.diagonal(within).mean() * shrinkage, offsets)
    within.addmm_(offsets.T, offsets, alpha=-1 / members)
    if rows is None:
        return None
    rows *= _posterior_scale(rows, within, offsets)
    return rows, _centred(-(rows @ centre))


def _centred(bias: Tensor) -> Tensor:
    return bias - bias.mean()


def _posterior_scale(rows: Tensor, within: Tensor, offsets: Tensor) -> Tensor:
    """Return the factor by which a difference of two scores becomes a log ratio of posteriors.

    The difference of the scores of i and j has, over their tokens, the means d_i, d_j and the variance v
    within; for two Gaussians the log ratio has the slope (d_i - d_j) / v. Averaged over all pairs.
    """
    members = rows.shape[0]
    first, second = torch.triu_indices(members, members, offset=1)
    between, apart = rows[first] - rows[second], offsets[first] - offsets[second]
    spread = ((between @ within) * between).sum(dim=1)
    slopes = ((between * apart).sum(dim=1) / spread)[spread > 0]
    return slopes.mean() if len(slopes) else rows.new_ones(())


def _solve(matrix: Tensor, ridge: Tensor, offsets: Tensor) -> Tensor | None:
    """Return the rows times (matrix + ridge I)^-1, None if it is not positive; ``matrix`` is restored."""
    diagonal = torch.diagonal(matrix)
    diagonal += ridge
    factor, failed = torch.linalg.cholesky_ex(matrix)
    diagonal -= ridge
    return None if int(failed) else torch.cholesky_solve(offsets.T, factor).T
