"""Calls of a base model's ``generate``, watched for what a forward pass cannot know: where the prompt ends.

A cache that is passed in may hold the beginning of the prompt, computed when that was the whole prompt and
perhaps by another member. The whole prompt decides again; if it decides otherwise, the cache is emptied and
the prompt is read anew, so that the answer is the one without a cache.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..schemas.errors import UsageError
from .cache_memory import CacheMemory
from .calls import ForwardCall
from .hooks import ModelHooks, RequestPass
from .known_prompt import KnownPrompt, knowing, prompt_in

_BATCHING = ("generate_batch", "init_continuous_batching")


class _Watched:
    """A method of one model, kept on the model itself in place of its class's."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self._model = model
        self._name = name
        # Another library's, which replaced the method of this model.
        self._replaced = model.__dict__.get(name)
        self.__wrapped__ = getattr(type(model), name)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self._replaced is not None:
            return self._replaced(*args, **kwargs)
        return getattr(type(self._model), self._name)(self._model, *args, **kwargs)

    def remove(self) -> None:
        """Put back what was there."""
        if self._replaced is None:
            del self._model.__dict__[self._name]
        else:
            self._model.__dict__[self._name] = self._replaced


class _Generate(_Watched):
    """``generate``, with its prompt known to the forward passes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate."""
        # An encoder runs by itself, before the first pass of its model.
        call = ForwardCall(self._model, (), {})
        for each in RequestPass.started(call):
            if each.decides_ahead:
                call.check_model(each.rule.scope)
        prompt = prompt_in(self._model, args, kwargs)
        with knowing(prompt):
            if prompt is not None:
                _decide_again(prompt, kwargs.get("past_key_values"))
            return self._call(*args, **kwargs)


class _GenerateBatch(_Watched):
    """Continuous batching, which puts tokens of several requests in one row."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate, unless a bundle decides for requests."""
        started = RequestPass.started(ForwardCall(self._model, (), {}))
        scopes = [each.rule.scope for each in started if each.decides_ahead]
        if scopes:
            raise UsageError(
                f"continuous batching (`{self._name}`) puts several requests into one row of tokens, but the "
                f"bundle's scope `{scopes[0]}` decides for each row",
                hint="use `generate`, or route by token within `route_as(model, scope='token')`",
            )
        return self._call(*args, **kwargs)


def watch_generate(model: nn.Module) -> None:
    """Watch the calls of a model's ``generate``, and of its forms for continuous batching."""
    for name in ("generate", *_BATCHING):
        if hasattr(type(model), name) and not isinstance(model.__dict__.get(name), _Watched):
            model.__dict__[name] = (_Generate if name == "generate" else _GenerateBatch)(model, name)


def stop_watching(model: nn.Module) -> None:
    """Undo ``watch_generate``."""
    for watched in [each for each in vars(model).values() if isinstance(each, _Watched)]:
        watched.remove()


def _decide_again(prompt: KnownPrompt, cache: Any) -> None:
    """Let the whole prompt decide where a cache holds its beginning."""
    past = 0 if cache is None else ForwardCall(prompt.model, (), {"past_key_values": cache}).past_tokens
    memory = None if cache is None else CacheMemory.of(cache)
    # A cache without decisions is refused by the first pass, if the scope needs one.
    if not past or memory is None or not memory.kept:
        return
    whole = RequestPass(prompt.model, ModelHooks.of(prompt.model).present_routers)
    call = ForwardCall(prompt.model, (), dict(prompt.inputs))
    started = [each for each in RequestPass.started(call) if each.decides_ahead]
    if not started or any(memory.kept_by(each.router.adapter_name, each.rule) is None for each in started):
        return
    if not prompt.inputs:
        raise UsageError(
            f"the cache holds {past} tokens, and `generate` was given the tokens behind them alone: the "
            f"bundle's scope `{started[0].rule.scope}` decides for the whole prompt",
            hint="pass the whole prompt as `input_ids`, the tokens in the cache included",
        )
    if not any(each.rule.observes_answers for each in started):
        whole.settle(call)
        if all(decision.serves_as(memory.kept[name], past) for name, decision in whole.decided.items()):
            CacheMemory.attach(cache, whole.decided, None)
            return
    _empty(cache, past)


def _empty(cache: Any, tokens: int) -> None:
    try:
        cache.crop(-tokens)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        if not hasattr(cache, "reset"):
            raise UsageError(
                f"the cache holds {tokens} tokens that another decision served than the whole prompt's, and "
                f"`{type(cache).__name__}` cannot be emptied",
                hint="begin the request without a cache",
            ) from None
        cache.reset()
