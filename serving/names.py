"""The names of models: that of the bundle routes, `NAME/MEMBER` is a member, `NAME/base` the plain base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..schemas.errors import UsageError
from ..schemas.names import PLAIN_BASE
from .errors import unknown_model


@dataclass(frozen=True, slots=True)
class Target:
    """A model that a request named.

    Attributes:
        model: the name in the request.
        member: the member that was named; None for the bundle's own choice, and for the plain base.
        is_base: whether the plain base was named.
    """

    model: str
    member: str | None = None
    is_base: bool = False

    @property
    def is_routed(self) -> bool:
        """Whether the bundle chooses."""
        return self.member is None and not self.is_base


class ModelNames:
    """The names of one bundle's models.

    Args:
        name: the bundle's.
        members: the names of its members.

    Raises:
        UsageError: the name is empty or not printable, or a member has the name of the plain base.
    """

    def __init__(self, name: str, members: Sequence[str]) -> None:
        if not name or not name.isprintable() or name != name.strip():
            raise UsageError(f"{name!r} cannot name a model", hint="choose another with `--name`")
        if PLAIN_BASE in members:
            raise UsageError(
                f"the bundle has a member `{PLAIN_BASE}`, and `{name}/{PLAIN_BASE}` names the plain base",
                hint="fuse the bundle with another name for that member",
            )
        self.name = name
        self.members = tuple(members)
        targets = [
            Target(name),
            *(Target(f"{name}/{member}", member=member) for member in members),
            Target(f"{name}/{PLAIN_BASE}", is_base=True),
        ]
        self._targets = {target.model: target for target in targets}

    @property
    def models(self) -> tuple[str, ...]:
        """Every name that a request may use."""
        return tuple(self._targets)

    def find(self, model: str) -> Target:
        """Return what a name in a request means.

        Raises:
            ApiError: there is no such model.
        """
        target = self._targets.get(model)
        if target is None:
            raise unknown_model(model, self.models)
        return target
