"""A fuse recipe: the TOML file that a team commits, so that a bundle can be made again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self, TypedDict

from pydantic import Field, FiniteFloat, model_validator

from .bundle import MAX_MEMBERS, MAX_TEMPERATURE, MIN_TEMPERATURE
from .document import Document, PositiveCount
from .errors import InvalidDocument, UsageError
from .gate_choices import InitialGate
from .names import Name
from .toml import TomlDocument, dump_toml

DtypeName = Literal["float32", "float16", "bfloat16"]


class RecipeOptions(TypedDict, total=False):
    """Options of a fuse beside its members; the fields of a ``Recipe``, with its defaults."""

    base_revision: str | None
    top_k: int | None
    temperature: float
    dtype: DtypeName | None
    gate: InitialGate
    seed: int
    with_experts: bool
    trust_tensors: bool


class RecipeMember(Document):
    """One member: what to take, and what the bundle calls it (by default the adapter's name).

    A text in place of a table is the ``adapter``, without a name of its own.
    """

    adapter: str
    name: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"adapter": value}
        if not isinstance(value, Mapping | cls):
            raise ValueError(  # noqa: TRY004 - pydantic reports it with the place
                "expected an adapter such as `legal@2`, or a table such as "
                f'`{{adapter = "legal@2", name = "law"}}`, found `{str(value)[:60]}`'
            )
        return value

    def to_value(self) -> str | dict[str, str]:
        """Return the member as a recipe in TOML has it: a text, or a table where it has a name of its own."""
        return self.adapter if self.name is None else {"adapter": self.adapter, "name": self.name}


class Recipe(TomlDocument):
    """The members to fuse, and how.

    ``top_k`` is 2 by default, or the number of members if that is less; ``dtype`` the members'
    common one, else float32; ``base`` the one the members declare. ``base_folder`` has the base's config.
    With ``trust_tensors`` modules that a member's config does not declare, and that PEFT therefore drops,
    are taken all the same.
    """

    example: ClassVar[str] = (
        'the shortest recipe is `members = ["legal@2", "medical"]`; every key is in docs/formats/recipe.md'
    )

    meteora_recipe: Literal[1] = 1
    members: tuple[RecipeMember, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    base: str | None = None
    base_folder: str | None = None
    base_revision: str | None = None
    top_k: PositiveCount | None = None
    temperature: FiniteFloat = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    dtype: DtypeName | None = None
    gate: InitialGate = "arrow"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    with_experts: bool = False
    trust_tensors: bool = False

    @classmethod
    def state(cls, members: Iterable[Mapping[str, str]], options: Mapping[str, object]) -> Self:
        """Make a recipe of members and options that a caller states; None leaves an option at its default.

        Raises:
            UsageError: there are no members, or an option breaks the schema.
        """
        listed = [dict(member) for member in members]
        if not listed:
            raise UsageError("no adapters to fuse were named", hint="name at least one")
        stated = {key: value for key, value in options.items() if value is not None}
        try:
            return cls.from_value(stated | {"members": listed}, what="the options")
        except InvalidDocument as error:
            raise UsageError(error.message, hint=error.hint) from error

    def to_toml(self) -> str:
        """Return the recipe in TOML: its members, and each option that differs from its default."""
        options = self.model_dump(mode="json", exclude_defaults=True, exclude={"meteora_recipe", "members"})
        members = [member.to_value() for member in self.members]
        return dump_toml({"meteora_recipe": self.meteora_recipe, "members": members} | options)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [member.name for member in self.members if member.name is not None]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ, found {names}")
        return self
