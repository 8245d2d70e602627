"""The settings: home, catalog, store, policy and short names for bases, each with the place that states it.

An option comes before a variable, a variable before the user's file, and that before the default; of a short
name the user's before the project's. This is decided here alone, and `config show` prints it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from ..schemas.errors import InvalidDocument, SourceUnreadable, UsageError
from .home import CATALOG_VARIABLE, HOME_VARIABLE, STORE_VARIABLE, Home
from .secrets import remember_url

if TYPE_CHECKING:
    from ..schemas.settings import ProjectSettings, UserSettings
    from .workspace import StrPath

    File = TypeVar("File", bound=ProjectSettings)

POLICY_VARIABLE = "METEORA_POLICY"
# Of the current folder alone, as every path of a command is relative to it: none above it is asked.
PROJECT_FILE = Path("meteora.toml")
DEFAULT = "default"
_USER, _PROJECT = "user file", "project file"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, None where the default holds, and where it was stated: an option, a variable or a file."""

    value: str | None
    source: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its source."""

    home: Setting
    catalog: Setting
    store: Setting
    policy: Setting
    base_aliases: Mapping[str, Setting] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        home: StrPath | None = None,
        catalog: str | None = None,
        store: str | None = None,
        *,
        with_project: bool = False,
        environment: Mapping[str, str] = os.environ,
    ) -> Self:
        """Return what the arguments state, else the environment, else the user's file, else the default.

        Nothing is opened or created but the files of settings. An empty variable counts as not set.

        Args:
            home: the folder, as an option states it.
            catalog: the URL of a catalog.
            store: the URL of a content store.
            with_project: whether the current folder may have short names for bases.
            environment: the variables.

        Raises:
            UsageError: a file of settings is malformed.
            SourceUnreadable: it cannot be read.
        """
        user = _read_user()
        project = _read_project() if with_project else None

        def choose(key: str, variable: str, stated: str | None = None) -> Setting:
            sources = (
                (stated, f"--{key}"),
                (environment.get(variable), variable),
                (getattr(user, key, None), _USER),
            )
            return next(
                (Setting(value, source) for value, source in sources if value), Setting(None, DEFAULT)
            )

        aliases: dict[str, Setting] = {}
        for file, source in ((project, _PROJECT), (user, _USER)):
            if file is not None:
                aliases |= {alias: Setting(base, source) for alias, base in file.base_aliases.items()}
        settings = cls(
            home=choose("home", HOME_VARIABLE, None if home is None else os.fspath(home)),
            catalog=choose("catalog", CATALOG_VARIABLE, catalog),
            store=choose("store", STORE_VARIABLE, store),
            policy=choose("policy", POLICY_VARIABLE),
            base_aliases=dict(sorted(aliases.items())),
        )
        for setting in (settings.catalog, settings.store):
            remember_url(setting.value or "")
        return settings

    @property
    def place(self) -> Home:
        """The home, with the catalog and the store of these settings."""
        return Home(Path(self.home.value) if self.home.value else None, self.catalog.value, self.store.value)

    @property
    def policy_file(self) -> Path | None:
        """The file with the policy.

        Raises:
            SourceUnreadable: it is in the home of an account that has none.
        """
        if self.policy.value is None:
            return None
        try:
            return Path(self.policy.value).expanduser()
        except RuntimeError as error:
            raise SourceUnreadable(
                f"`{self.policy.value}` cannot be found: this account has no home",
                hint="name an absolute path",
            ) from error


def user_file() -> Path | None:
    """Return where a user's own settings are looked for; None for an account without a home."""
    # Imported where it is needed, because every help loads this module.
    import platformdirs

    try:
        path = platformdirs.user_config_path("meteora-registry") / "config.toml"
    except (RuntimeError, OSError):
        return None
    # Without a home, or with a relative XDG_CONFIG_HOME, it would be in the current folder: a project's.
    return path if path.is_absolute() else None


def _read_user() -> UserSettings | None:
    path = user_file()
    if path is None or not os.path.lexists(path):
        return None
    from ..files.reading import read_bounded
    from ..schemas.settings import UserSettings
    from ..schemas.toml import MAX_TOML_BYTES

    return _parse(UserSettings, read_bounded(path, MAX_TOML_BYTES), path)


def _read_project() -> ProjectSettings | None:
    if not os.path.lexists(PROJECT_FILE):
        return None
    from ..files.reading import read_start
    from ..schemas.settings import ProjectSettings
    from ..schemas.toml import MAX_TOML_BYTES

    # Never through a link: what it leads to is not the project's, and a message could show some of it.
    return _parse(ProjectSettings, read_start(PROJECT_FILE, MAX_TOML_BYTES), PROJECT_FILE)


def _parse(kind: type[File], data: bytes, path: Path) -> File:
    try:
        return kind.from_toml(data, what=str(path))
    except InvalidDocument as error:
        # A mistake that a person typed is a usage error, in a file as on the command line.
        raise UsageError(error.message, hint=error.hint) from error
