"""The layers below every adapter, computed once for all ways of serving a text.

No adapter touches the first layers, so their output for a batch is the same in every way of serving it. The
last of them keeps its output for each input of the first, and a later pass over the same batch takes that.
The outcome is the same to the bit; only the repetition is left out.
"""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def share_lower_layers(model: PreTrainedModel, count: int) -> None:
    """Make the first ``count`` layers of a model, none of which may get an adapter, keep their outputs.

    For passes without a cache that goes on: what is left out is not in the cache either.
    """
    memory = _Memory()
    layers = model.base_model.layers
    for place in range(count):
        layers[place] = _Remembering(layers[place], memory, first=place == 0, last=place == count - 1)


class _Memory:
    """The outputs of the last of the layers, by the input of the first."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}
        self._key = ""

    def begin(self, hidden: Tensor, mask: Tensor | None) -> None:
        """Start a pass with this input of the first layer; padding is part of it."""
        found = hashlib.sha256(hidden.float().numpy().tobytes())
        if mask is not None:
            found.update(mask.float().numpy().tobytes())
        self._key = found.hexdigest()

    @property
    def is_known(self) -> bool:
        """Whether the pass under way is a repetition."""
        return self._key in self._known

    @property
    def output(self) -> Tensor:
        """What the last layer gave for the pass under way."""
        return self._known[self._key]

    @output.setter
    def output(self, hidden: Tensor) -> None:
        self._known[self._key] = hidden


class _Remembering(nn.Module):
    def __init__(self, layer: nn.Module, memory: _Memory, *, first: bool, last: bool) -> None:
        super().__init__()
        self.layer = layer
        self._memory = memory
        self._first, self._last = first, last
        # transformers reads these off its layers.
        for name in ("attention_type", "layer_type"):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._first:
            self._memory.begin(hidden_states, kwargs.get("attention_mask"))
        if self._memory.is_known:
            return self._memory.output if self._last else hidden_states
        out: Tensor = self.layer(hidden_states, *args, **kwargs)
        if self._last:
            self._memory.output = out
        return out
