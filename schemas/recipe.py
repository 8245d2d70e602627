"""A fuse recipe: the TOML file that a team commits, so that a bundle can be made again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from .bundle import MAX_MEMBERS, MAX_TEMPERATURE, MIN_TEMPERATURE
from .document import Document, PositiveCount
from .names import Name
from .toml import load_toml

MAX_RECIPE_BYTES = 1 << 20
DtypeName = Literal["float32", "float16", "bfloat16"]


class RecipeMember(Document):
    """One member: what to take, and what the bundle calls it (by default the adapter's name)."""

    adapter: str
    name: Name | None = None


class Recipe(Document):
    """What to fuse and how.

    ``top_k`` is 2 by default, or the number of members if that is less; ``dtype`` the members'
    common one, else float32; ``base`` the one the members declare.
    """

    # A recipe is typed by hand, with no place to learn of a misspelt key but here.
    model_config = ConfigDict(extra="forbid")

    meteora_recipe: Literal[1] = 1
    members: tuple[RecipeMember, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    base: str | None = None
    base_revision: str | None = None
    top_k: PositiveCount | None = None
    temperature: FiniteFloat = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    dtype: DtypeName | None = None
    gate: Literal["arrow", "normal"] = "arrow"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    with_experts: bool = False

    @classmethod
    def from_toml(cls, data: bytes, *, what: str) -> Self:
        """Read a recipe.

        Raises:
            InvalidDocument: too large or too deep, not TOML, or a field breaks the schema.
        """
        return cls.from_value(load_toml(data, what=what, max_bytes=MAX_RECIPE_BYTES), what=what)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [member.name for member in self.members if member.name is not None]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ, found {names}")
        return self
