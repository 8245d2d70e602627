"""The bundles that are active on a model, and how they route within a block of code.

A member can be forced, all members can share alike, another rule can hold, and the routing can be recorded.
A pass that begins within the block keeps what holds then to its end, its backward pass included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from ..schemas.errors import UsageError
from ..schemas.gate_choices import Scope
from .hooks import ModelHooks
from .layer import MeteoraLayer
from .router import BundleRouter
from .routing_record import RoutingRecord
from .scopes.passes import BASE_ALONE, BasePass, ForcedPass, GivenPass, RoutingPass, UniformPass
from .scopes.routing_rule import changed_rule


class Unchanged(Enum):
    """The value of an argument that was not stated, where None is a statement."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


@contextmanager
def force_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """Route every token to the member ``name`` within the block, in every module, with weight 1.

    Works on a ``PeftModel`` and on a transformers model with a loaded bundle, for the bundles that are
    active on entry. Blocks nest; leaving one, by an exception too, brings back what was before. The choice is
    the model's, so it holds in every thread, for the passes that begin within the block; their backward
    passes may follow later.

    Raises:
        UsageError: the model has no active bundle, or a bundle without such a member.
    """
    with overridden(model, lambda router: ForcedPass(_index_of(router, name))):
        yield


@contextmanager
def force_tokens(
    model: nn.Module,
    members: Sequence[Sequence[str | None]],
    *,
    beyond: str | Unchanged | None = UNCHANGED,
) -> Iterator[None]:
    """Route each token to the member that is given for it within the block, in every module, with weight 1.

    For texts of which it is known who should serve which part, such as several tasks in one prompt: what a
    routing without a mistake would reach. As with ``force_adapter`` blocks nest, and hold in every thread.
    The tokens of a pass are found by its cache, so prompt, pieces of a prompt and answer may be passes of
    their own::

        prompt = ["legal"] * 12 + ["medical"] * 9
        with force_tokens(model, [prompt], beyond="medical"):
            model.generate(**inputs)

    Args:
        model: as for ``force_adapter``.
        members: [B, T], for each sequence of the batch the member of each token by name, or None for the base
            alone; padding counts as a token. All sequences have the same number.
        beyond: who serves the tokens behind those, None for the base alone; by default they are refused.

    Raises:
        UsageError: the model has no active bundle, or one without such a member; nothing is given, or not as
            much for each sequence. A pass raises it for another number of sequences, or for more tokens.
    """
    lengths = {len(row) for row in members}
    if len(lengths) != 1 or lengths == {0}:
        found = ", ".join(str(len(row)) for row in members[:8]) or "none"
        raise UsageError(
            f"the members are given for sequences of these lengths: {found}; expected one length, at least 1",
            hint="padding counts: give None for it",
        )
    with overridden(model, lambda router: _given_pass(router, members, beyond)):
        yield


def _given_pass(
    router: BundleRouter, members: Sequence[Sequence[str | None]], beyond: str | Unchanged | None
) -> GivenPass:
    place: dict[str | None, int] = {None: BASE_ALONE}
    for name in {name for row in members for name in row if name is not None}:
        place[name] = _index_of(router, name)
    if isinstance(beyond, Unchanged):
        behind = None
    else:
        behind = BASE_ALONE if beyond is None else _index_of(router, beyond)
    return GivenPass(torch.tensor([[place[name] for name in row] for row in members]), behind)


@contextmanager
def uniform(model: nn.Module) -> Iterator[None]:
    """Let every member serve every token within the block, each with weight 1 / L, as ``force_adapter`` does.

    Raises:
        UsageError: the model has no active bundle.
    """
    with overridden(model, lambda router: UniformPass(len(router.members))):
        yield


@contextmanager
def overridden(
    model: nn.Module, pass_for: Callable[[BundleRouter], RoutingPass], *, for_call: bool = False
) -> Iterator[None]:
    """Let a pass replace every other of each active bundle; ``for_call`` in this thread alone."""
    passes = {router: pass_for(router) for router in active_routers(model)}
    with ExitStack() as stack:
        for router, replacing in passes.items():
            stack.enter_context(router.overrides.made(replacing, for_call=for_call))
        yield


def _index_of(router: BundleRouter, name: str) -> int:
    if name not in router.members:
        raise UsageError(
            f"bundle `{router.adapter_name}` has no member `{name}`, "
            f"it has {', '.join(f'`{member}`' for member in router.members)}"
        )
    return router.members.index(name)


@contextmanager
def route_as(
    model: nn.Module,
    *,
    scope: Scope | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    abstain: float | Unchanged | None = UNCHANGED,
) -> Iterator[None]:
    """Route by another rule within the block; the active bundles keep their own for what is not stated.

    Blocks nest, and hold in every thread, as with ``force_adapter``. A cache belongs to the rule it was begun
    under: a request that began in the block ends in it. A scope without decisions has no use for
    a threshold, and drops the bundle's.

    Args:
        model: as for ``force_adapter``.
        scope: what one decision serves.
        top_k: members for each token.
        temperature: of the softmax over them.
        abstain: the confidence below which a decision serves the base's own answer; None for never.

    Raises:
        UsageError: the model has no active bundle, or a value is out of range or does not fit the scope.
    """
    stated = {"scope": scope, "top_k": top_k, "temperature": temperature}
    changes: dict[str, Any] = {key: value for key, value in stated.items() if value is not None}
    if not isinstance(abstain, Unchanged):
        changes["abstain"] = abstain
    with ruled(model, changes):
        yield


@contextmanager
def ruled(model: nn.Module, changes: Mapping[str, Any], *, for_call: bool = False) -> Iterator[None]:
    """Let each active bundle's rule be changed within the block; for this thread alone if ``for_call``."""
    rules = {
        router: changed_rule(router.rule, changes, members=len(router.members))
        for router in active_routers(model)
    }
    with ExitStack() as stack:
        for router, rule in rules.items():
            stack.enter_context(router.rules.made(rule, for_call=for_call))
        yield


@contextmanager
def called_with(
    model: nn.Module, *, member: str | Unchanged | None, changes: Mapping[str, Any]
) -> Iterator[None]:
    """Let a member, or a changed rule, hold for the calls of this thread within the block.

    A ``member`` of None is the base alone.

    Raises:
        UsageError: as for ``force_adapter`` and ``route_as``.
    """
    with ExitStack() as stack:
        if changes:
            stack.enter_context(ruled(model, changes, for_call=True))
        if not isinstance(member, Unchanged):
            forced = overridden(model, lambda router: _forced_pass(router, member), for_call=True)
            stack.enter_context(forced)
        yield


def _forced_pass(router: BundleRouter, member: str | None) -> RoutingPass:
    return BasePass() if member is None else ForcedPass(_index_of(router, member))


def active_routers(model: nn.Module) -> list[BundleRouter]:
    """Return the routers of a model's active bundles; of a ``PeftModel`` or a transformers model.

    Raises:
        UsageError: there is none.
    """
    # A model of thirty layers has two thousand modules, which are looked at only if it has no hooks itself.
    hooks = ModelHooks.find(model.get_base_model() if isinstance(model, PeftModel) else model)
    if hooks is not None:
        routers = [router for router in hooks.present_routers if router.is_chosen]
    else:
        layers = [module for module in model.modules() if isinstance(module, MeteoraLayer)]
        found = {
            router: None for layer in layers for router in layer.meteora_routers.values() if router.is_chosen
        }
        routers = [*found]
    if not routers:
        raise UsageError(
            "the model has no active bundle",
            hint="load one with `PeftModel.from_pretrained` or `model.load_adapter`, or set it active",
        )
    return routers


def only_router(model: nn.Module) -> BundleRouter:
    """Return the router of a model's one active bundle.

    Raises:
        UsageError: there is none, or more than one.
    """
    routers = active_routers(model)
    if len(routers) > 1:
        listed = ", ".join(f"`{router.adapter_name}`" for router in routers)
        raise UsageError(
            f"the model has {len(routers)} active bundles, {listed}, expected one",
            hint="set one of them active with `set_adapter`",
        )
    return routers[0]


@contextmanager
def routing(model: nn.Module) -> Iterator[RoutingRecord]:
    """Record within the block how the model's one active bundle routes; the block gets the record.

    Blocks nest; the innermost alone is written. Passes of another thread are written too, unless it is within
    a block of its own.

    Raises:
        UsageError: the model has no active bundle, or more than one.
    """
    router = only_router(model)
    record = RoutingRecord(router.members)
    with router.records.made(record):
        yield record
