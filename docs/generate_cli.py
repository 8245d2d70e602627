"""The writer of ``docs/cli.md``, from the commands themselves: ``python docs/generate_cli.py``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from meteora_registry.registry.cli.main import cli

TARGET = Path(__file__).with_name("cli.md")
PREFACE = """# Command line

Written by `docs/generate_cli.py` from the commands themselves; change them, not this file.
"""


def render() -> str:
    """Return the whole page."""
    context = click.Context(cli, info_name="meteora-registry", **cli.context_settings)
    return "\n".join([PREFACE, *(section for section in _sections(cli, context))])


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    yield _section(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None:
                yield from _sections(child, click.Context(child, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.command_path}", f"```\n{usage}\n```", inspect.cleandoc(command.help or "")]
    options = [each for each in command.get_params(context) if isinstance(each, click.Option)]
    records = [record for each in options if (record := each.get_help_record(context))]
    if records:
        parts.append("| option | |\n|---|---|\n" + "\n".join(_row(*record) for record in records))
    if command.epilog:
        examples = inspect.cleandoc(command.epilog.removeprefix("\b\nExamples:\n"))
        parts.append(f"Examples:\n\n```sh\n{examples}\n```")
    return "\n\n".join(parts) + "\n"


def _row(names: str, help_text: str) -> str:
    cells = (cell.replace("|", "\\|") for cell in (f"`{names}`", help_text))
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
