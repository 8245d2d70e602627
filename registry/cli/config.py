"""``config``: the settings, and where each of them comes from."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ...schemas.errors import SourceUnreadable
from ..secrets import mask_url
from ..settings import PROJECT_FILE, Setting, Settings, user_file
from .groups import examples
from .json_output import print_json
from .output import print_line
from .parameters import format_option, settings_of, wide_option
from .tables import EMPTY, Column, print_table


@click.command("show", epilog=examples("config show", "--home ./home config show --format json"))
@wide_option
@format_option
@click.pass_context
def show(context: click.Context, *, as_json: bool) -> None:
    """Show every setting and where it comes from.

    An option comes before a variable, a variable before the user's file, and that before the default.
    A password in a URL is not shown.
    """
    settings = settings_of(context)
    values = _values_of(settings)
    if as_json:
        print_json(
            {
                "settings": values,
                "base_aliases": settings.base_aliases,
                "files": {name: {"path": path, "exists": exists} for name, path, exists in _files()},
            }
        )
        return
    rows = [(name, each.value or EMPTY, each.source) for name, each in values.items()]
    for alias, each in settings.base_aliases.items():
        rows.append((f"base {alias}", each.value or EMPTY, each.source))
    print_table(("SETTING", Column("VALUE", gives_way=1, stays=True), "FROM"), rows)
    print_line()
    for name, path, exists in _files():
        print_line(f"{name} file: {path}{'' if exists else ' (not there)'}")


@click.command("path", epilog=examples("config path", "config show"))
def path() -> None:
    """Print the path of the user's file of settings.

    The file may not be there yet: every setting has a default.
    """
    found = user_file()
    if found is None:
        raise SourceUnreadable(
            "there is no folder for the user's file of settings: this account has no home",
            hint="name one in XDG_CONFIG_HOME by its absolute path",
        )
    print_line(str(found))


def _values_of(settings: Settings) -> dict[str, Setting]:
    """Return the settings that hold, the defaults with their values and every URL without its secrets."""
    home = settings.place
    catalog = str(home.catalog_file)
    if home.catalog_url:
        # What is not a URL may still have a password somewhere in it.
        catalog = mask_url(home.catalog_url) if "://" in home.catalog_url else "(not a URL)"
    policy = settings.policy_file
    return {
        "home": Setting(str(home.folder), settings.home.source),
        "catalog": Setting(catalog, settings.catalog.source),
        "store": Setting(home.store_place, settings.store.source),
        "policy": Setting(None if policy is None else str(policy), settings.policy.source),
    }


def _files() -> list[tuple[str, Path, bool]]:
    """Return the two files that may hold settings, and whether they are there."""
    user, project = user_file(), PROJECT_FILE.absolute()
    known = [("user", user), ("project", project)]
    return [(name, path, os.path.lexists(path)) for name, path in known if path is not None]
