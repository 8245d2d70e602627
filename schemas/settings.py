"""The settings that files hold: a user's own, and what a project may set for those who work in it.

A project's folder may have been checked out from anywhere. It must not choose a database, a store or a
policy, so all that it can set is what a short name for a base stands for.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator

from .base_name import present_name
from .names import check_name, is_repository
from .toml import TomlDocument

_KEYS = "the keys are in docs/settings.md"
_ONLY_A_USER = (
    "{key}: only a user's own file may set it, because a folder that was checked out must not choose a "
    "database, a store or a policy"
)


def _check_place(path: str) -> str:
    if not path.startswith(("/", "~")):
        raise ValueError("expected an absolute path, or one that begins with `~/`")
    return path


_Text = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
# Relative to what, a file that holds for every folder cannot state.
_Place = Annotated[_Text, AfterValidator(_check_place)]


class ProjectSettings(TomlDocument):
    """Short names for bases, for those who work in the folder."""

    example: ClassVar[str] = f'it is such as `base_aliases = {{llama = "meta-llama/Llama-3.1-8B"}}`; {_KEYS}'

    base_aliases: dict[str, str] = Field(default_factory=dict, max_length=1000)

    @field_validator("base_aliases")
    @classmethod
    def _check_aliases(cls, aliases: dict[str, str]) -> dict[str, str]:
        for alias, base in aliases.items():
            check_name(alias, what="alias of a base")
            if present_name(alias) != alias:
                raise ValueError(f"`{alias}` is the name of a base already: `{present_name(alias)}`")
            if not is_repository(base):
                raise ValueError(f"`{alias}` stands for `{base[:120]}`, expected `org/model`")
        return aliases

    @classmethod
    def _describe(cls, error: ValidationError, *, with_input: bool) -> list[str]:
        # Without what was found: a URL may hold a password.
        return [cls._reason(line) for line in super()._describe(error, with_input=False)]

    @classmethod
    def _reason(cls, line: str) -> str:
        key = line.partition(":")[0]
        is_of_users = key in UserSettings.model_fields and key not in cls.model_fields
        return _ONLY_A_USER.format(key=key) if is_of_users else line


class UserSettings(ProjectSettings):
    """A user's own settings; None leaves one to the default."""

    example: ClassVar[str] = f'it is such as `home = "~/adapters"`; {_KEYS}'

    home: _Place | None = None
    catalog: _Text | None = None
    store: _Text | None = None
    policy: _Place | None = None
