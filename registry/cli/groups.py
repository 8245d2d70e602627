"""A group of commands that lists them from a table, and imports only the one that runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click


class Listed(NamedTuple):
    """A command as its group lists it: a summary, and the module and name that define it."""

    summary: str
    module: str
    name: str = "command"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, and listed without.

    Args:
        name: the word that calls it.
        table: the commands by name, in the order of the help.
        sections: the same commands under the titles of the help; without them there is one section.
        options: everything else that click takes.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        table: Mapping[str, Listed],
        sections: Mapping[str, Mapping[str, Listed]] | None = None,
        **options: Any,
    ) -> None:
        # click suggests from these when a name is misspelled, and reads nothing else of them.
        stubs = {name: click.Command(name, short_help=listed.summary) for name, listed in table.items()}
        super().__init__(name, commands=stubs, **options)
        self.table = table
        self.sections = sections or {"Commands": table}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command, in the order of the help."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command of that name, or None."""
        listed = self.table.get(cmd_name)
        if listed is None:
            return None
        command: click.Command = getattr(importlib.import_module(listed.module, __package__), listed.name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table, with all summaries in one column."""
        width = max(map(len, self.table))
        for title, table in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), listed.summary) for name, listed in table.items()])


class DefaultGroup(LazyGroup):
    """A group in which ``eval BUNDLE`` is ``eval run BUNDLE``: its first command needs no name."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Return the arguments with the first command put before them where none is named."""
        if args and args[0] not in (*self.table, *ctx.help_option_names):
            args = [next(iter(self.table)), *args]
        return super().parse_args(ctx, args)


def examples(*lines: str) -> str:
    """Return an epilog for a command's help; each line follows ``meteora-registry``."""
    shown = "\n".join(f"  meteora-registry {line}" for line in lines)
    return f"\b\nExamples:\n{shown}"
