"""What the gates of a bundle say of a stretch of text, from one pass of the plain base over it.

A gate's logits are log posteriors of the members up to a constant for each token, so their log softmax is
evidence that adds up over modules and tokens. It is gathered with the adapters off, because an adapter at
work marks the activations of every module behind it, and gates are fitted on those of the plain base.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...schemas.errors import UsageError


class Evidence:
    """The log posteriors of one bundle's members for each token of a call, averaged over the modules.

    Holds one float32 [B, T, L], whatever the number of modules.
    """

    def __init__(self, batch: int, tokens: int, members: int) -> None:
        self._shape = (batch, tokens, members)
        self._sum: Tensor | None = None
        self._modules = 0

    def add(self, path: str, logits: Tensor) -> None:
        """Add what one module's gate says, logits [B, T, L] or [B * T, L].

        Raises:
            UsageError: the module saw other tokens than the model was given.
        """
        if logits.numel() != torch.Size(self._shape).numel():
            raise UsageError(
                f"`{path}` saw tokens {list(logits.shape[:-1])}, the model was given "
                f"{list(self._shape[:-1])}: its gate cannot tell which sequence they belong to",
                hint="route by token within `route_as(model, scope='token')`",
            )
        log_posterior = torch.log_softmax(logits, dim=-1).reshape(self._shape)
        self._modules += 1
        if self._sum is None:
            self._sum = log_posterior
        else:
            self._sum = self._sum + log_posterior.to(self._sum.device)

    @property
    def mean(self) -> Tensor:
        """Float32 [B, T, L], the mean over modules.

        Raises:
            UsageError: no module with a gate was called.
        """
        if self._sum is None:
            raise UsageError("no module with a gate was called, so nothing can be decided")
        return self._sum / self._modules
