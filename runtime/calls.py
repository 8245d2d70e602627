"""One call of a base model, read from its arguments: its tokens, their padding, whether a request is new.

A call whose cache is absent or empty begins new sequences; any other continues the cache's.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ..schemas.errors import UsageError
from .known_prompt import known_prompt
from .scopes.decision import Stretch

# transformers' names of the argument that carries the cache.
_CACHE_NAMES = ("past_key_values", "cache_params")
_IGNORED_LABEL = -100
# Arguments that the plain base's own pass over a request does not need.
_NOT_OBSERVED = frozenset(
    {
        *_CACHE_NAMES,
        "cache_position",
        "labels",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "use_cache",
    }
)


_OTHER_RULE = "route by token within `route_as(model, scope='token')`"
# Always the same text, so that it is shown once.
_UNMASKED = (
    "a batch without `attention_mask`: the bundle's scope decides for each sequence by all of its tokens, "
    "padding included; pass `attention_mask`, and where the answers are there too also `labels` that are "
    "-100 in the prompts"
)


class ForwardCall:
    """The arguments of one forward pass of ``module``."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.module = module
        self._args = args
        self._kwargs = kwargs
        self._known = known_prompt(module)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Every argument by its name."""
        if not self._args:
            return self._kwargs
        names = [*inspect.signature(self.module.forward).parameters]
        return dict(zip(names, self._args, strict=False)) | self._kwargs

    @property
    def cache(self) -> Any:
        """The cache that was passed in, or None."""
        return next(
            (self.arguments[name] for name in _CACHE_NAMES if self.arguments.get(name) is not None), None
        )

    @cached_property
    def past_tokens(self) -> int | None:
        """Tokens that the cache holds, 0 without one; None if the cache does not count them."""
        if self.cache is None:
            return 0
        if not hasattr(self.cache, "get_seq_length"):
            return None
        try:
            return int(self.cache.get_seq_length())
        except ValueError:
            # A cache without attention layers counts no tokens.
            return None if self.cache.has_previous_state() else 0

    @property
    def is_new(self) -> bool:
        """Whether the call begins new sequences."""
        return self.past_tokens == 0

    @cached_property
    def goes_on_in_prompt(self) -> bool:
        """Whether all tokens belong to a prompt of which the cache holds the beginning."""
        past = self.past_tokens
        if self._known is None or not past:
            return False
        return past + self.shape[1] <= self._known.tokens

    @cached_property
    def deciding(self) -> ForwardCall:
        """The call with the tokens that decide: this one, or the whole prompt if this has a piece of it."""
        known = self._known
        if known is None or not self.is_new or self.shape[1] >= known.tokens or not known.inputs:
            return self
        # Beams and several answers to one prompt repeat its rows.
        rows = {
            name: tensor.repeat_interleave(self.shape[0] // tensor.shape[0], dim=0).to(self.device)
            for name, tensor in known.inputs.items()
        }
        return ForwardCall(self.module, (), rows)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of each, [B, T].

        Raises:
            UsageError: the model was given no tokens.
        """
        ids, embeddings = self.arguments.get("input_ids"), self.arguments.get("inputs_embeds")
        if ids is not None and ids.ndim == 2:
            return ids.shape[0], ids.shape[1]
        if embeddings is not None and embeddings.ndim == 3:
            return embeddings.shape[0], embeddings.shape[1]
        raise UsageError(
            "the bundle's scope decides for a whole request, but the model was given no `input_ids` [B, T] "
            "and no `inputs_embeds` [B, T, h]",
            hint="route by token within `route_as(model, scope='token')`",
        )

    @property
    def leading_shape(self) -> tuple[int, int]:
        """The same shape, or one sequence of no tokens if the model is given something else."""
        ids, embeddings = self.arguments.get("input_ids"), self.arguments.get("inputs_embeds")
        return (1, 0) if ids is None and embeddings is None else self.shape

    @cached_property
    def device(self) -> torch.device:
        """The device of the tokens."""
        ids = self.arguments.get("input_ids")
        found: torch.device = (self.arguments["inputs_embeds"] if ids is None else ids).device
        return found

    @cached_property
    def stretch(self) -> Stretch:
        """The tokens of this call.

        The prompt of a new sequence ends where ``generate`` was given it to, or before its first label, where
        there are labels.
        """
        if not self.is_new:
            every = torch.ones(self.shape, dtype=torch.bool, device=self.device)
            in_prompt = self.goes_on_in_prompt
            return Stretch(every, every if in_prompt else ~every, has_prompt=in_prompt, ids=self._ids)
        own, labels = self._own_tokens(), self.arguments.get("labels")
        if labels is None:
            is_prompt = torch.ones_like(own)
            if self._known is not None:
                is_prompt[:, self._known.tokens :] = False
            return Stretch(own, own & is_prompt, has_prompt=True, ids=self._ids)
        is_answer = (labels != _IGNORED_LABEL).to(own.device).cumsum(dim=1) > 0
        return Stretch(own, own & ~is_answer, has_prompt=True, ids=self._ids)

    @property
    def _ids(self) -> Tensor | None:
        ids: Tensor | None = self.arguments.get("input_ids")
        return ids

    def check_model(self, scope: str) -> None:
        """Check that all gates read one text, and a cache holds what was read of it, for a scope of texts.

        Raises:
            UsageError: the model reads a text and writes another, or has a state in place of a cache.
        """
        if getattr(getattr(self.module, "config", None), "is_encoder_decoder", False):
            raise UsageError(
                f"`{type(self.module).__name__}` reads a text with an encoder and writes another with a "
                f"decoder, but the bundle's scope `{scope}` decides by one text that all gates read",
                hint=_OTHER_RULE,
            )
        declared = _declared_by(type(self.module).forward)
        if getattr(self.module, "_is_stateful", False) and declared.isdisjoint(_CACHE_NAMES):
            raise UsageError(
                f"`{type(self.module).__name__}` has a state in place of a cache, but a decision of the "
                f"bundle's scope `{scope}` is kept on the cache",
                hint=_OTHER_RULE,
            )

    def check_rows(self, scope: str) -> None:
        """Check that each row of the call is one text, for a scope that decides for rows.

        Raises:
            UsageError: a row holds several texts.
        """
        positions = self.arguments.get("position_ids")
        if isinstance(positions, Tensor) and positions.ndim == 2 and positions.shape[1] == self.shape[1]:
            own = self.stretch.own.to(positions.device).expand(positions.shape[0], -1)
            starts_again = (positions[:, 1:] <= positions[:, :-1]) & own[:, 1:] & own[:, :-1]
            if bool(starts_again.any()):
                raise UsageError(
                    "`position_ids` start again within a row, so it holds several texts, but the bundle's "
                    f"scope `{scope}` decides for each row",
                    hint=f"pass each text in a row of its own, or {_OTHER_RULE}",
                )

    def _own_tokens(self) -> Tensor:
        mask: Tensor | dict[str, Tensor] | None = self.arguments.get("attention_mask")
        if isinstance(mask, dict):
            mask = mask.get("full_attention")
        if mask is None:
            # `generate` drops a mask of all ones, which it has or makes for every prompt.
            if self.shape[0] > 1 and self._known is None:
                warnings.warn(_UNMASKED, UserWarning, stacklevel=2)
            return torch.ones(self.shape, dtype=torch.bool, device=self.device)
        if mask.shape == self.shape:
            return mask.bool()
        if mask.ndim == 4 and mask.shape[2] == self.shape[1]:
            # Each token's view of all; the last one sees every token but padding.
            seen = mask[:, 0, -1, : self.shape[1]]
            return (seen if seen.dtype == torch.bool else seen == 0).expand(self.shape)
        raise UsageError(
            f"`attention_mask` is {list(mask.shape)}, expected {list(self.shape)}: the bundle's scope "
            "decides for a whole request and has to know its tokens",
            hint="pass a mask [B, T], or route by token within `route_as(model, scope='token')`",
        )

    def observed_arguments(
        self, reader: nn.Module, own: Tensor, *, past: Any, use_cache: bool
    ) -> dict[str, Any]:
        """Return the arguments for the plain base's pass over the tokens: its cache, no labels, no logits.

        Args:
            reader: the part of the base that reads them, which gets what its class declares: a trainer may
                pass the model more, for a loss of its own.
            own: bool [B, past and present tokens], False where one is padding.
            past: the cache of the base's last pass, or None.
            use_cache: whether to leave a cache this time.
        """
        declared = _declared_by(type(reader).forward)
        kept = {
            name: value
            for name, value in self.arguments.items()
            if name in declared and name not in _NOT_OBSERVED
        }
        cache = next((name for name in _CACHE_NAMES if name in declared), _CACHE_NAMES[0])
        # A base that counts no tokens has a state in place of them, and takes no mask for what is behind it.
        mask = {} if self.past_tokens is None else {"attention_mask": own.long()}
        return (
            kept
            | mask
            | ({} if past is None else {cache: past})
            | ({"use_cache": use_cache} if "use_cache" in declared else {})
        )


@lru_cache(maxsize=64)
def _declared_by(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def cache_in(output: Any) -> Any:
    """Return the cache in a model's output, or None."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    found = (getattr(output, name, None) for name in _CACHE_NAMES)
    return next((cache for cache in found if cache is not None), None)
