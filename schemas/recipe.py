"""A fuse recipe: the TOML file that a team commits, so that a bundle can be made again."""

from __future__ import annotations

import json
import tomllib
from typing import Literal, Self

from pydantic import ConfigDict, Field, FiniteFloat, model_validator

from .bundle import MAX_TEMPERATURE, MIN_TEMPERATURE
from .document import Document
from .errors import InvalidDocument
from .names import Name

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
    members: tuple[RecipeMember, ...] = Field(min_length=1)
    base: str | None = None
    base_revision: str | None = None
    top_k: int | None = Field(default=None, ge=1)
    temperature: FiniteFloat = Field(default=1.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    dtype: DtypeName | None = None
    gate: Literal["arrow", "normal"] = "arrow"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    with_experts: bool = False

    @classmethod
    def from_toml(cls, data: bytes, *, what: str) -> Self:
        """Read a recipe.

        Raises:
            InvalidDocument: too large, not TOML, or a field breaks the schema.
        """
        if len(data) > MAX_RECIPE_BYTES:
            raise InvalidDocument(f"`{what}` has {len(data)} bytes, expected at most {MAX_RECIPE_BYTES}")
        try:
            value = tomllib.loads(data.decode("utf-8"))
            json.dumps(value)
        except (ValueError, RecursionError) as error:
            raise InvalidDocument(f"`{what}` is not TOML: {error}") from error
        except TypeError as error:
            raise InvalidDocument(f"`{what}` holds a date or a time, which no field takes") from error
        return cls.from_value(value, what=what)

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [member.name for member in self.members if member.name is not None]
        if len(set(names)) != len(names):
            raise ValueError(f"member names must differ, found {names}")
        return self
