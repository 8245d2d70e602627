"""Every command of the command line, taken from click's own tree, and arguments that each accepts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import click

from meteora_registry.registry.cli.main import cli


@dataclass(frozen=True)
class Command:
    """A command or group with the words that call it."""

    words: tuple[str, ...]
    click: click.Command

    @property
    def name(self) -> str:
        """The words as one, for the id of a test."""
        return " ".join(self.words) or "meteora-registry"

    @property
    def parameters(self) -> list[click.Parameter]:
        """What can be given, but for `--help`."""
        return list(self.click.params)


def every_command() -> list[Command]:
    """Return all commands that do something; a new one is found by itself."""
    return [each for each in _walk((), cli) if not isinstance(each.click, click.Group)]


def every_group() -> list[Command]:
    """Return all groups, the program itself among them."""
    return [each for each in _walk((), cli) if isinstance(each.click, click.Group)]


def arguments_of(
    command: Command,
    values: Mapping[str, str],
    *,
    given: Mapping[str, str] | None = None,
    flags: frozenset[str] = frozenset(),
) -> list[str]:
    """Return a command line with the required parameters, from ``values`` by name, and ``given``."""
    chosen = dict(given or {})
    words = [*command.words]
    last: list[str] = []
    for parameter in command.parameters:
        name = parameter.name or ""
        if isinstance(parameter, click.Argument):
            if name in chosen or parameter.required or name in values:
                last.append(chosen.get(name, values.get(name, "x")))
        elif isinstance(parameter, click.Option):
            if parameter.is_flag:
                words += [parameter.opts[-1]] if parameter.opts[-1] in flags else []
            elif name in chosen or parameter.required:
                words.append(f"{parameter.opts[-1]}={chosen.get(name, _value_for(parameter, values))}")
    return [*words, "--", *last] if last else words


def _value_for(parameter: click.Parameter, values: Mapping[str, str]) -> str:
    if isinstance(parameter.type, click.Choice):
        return str(parameter.type.choices[0])
    return values.get(parameter.name or "", "1")


def _walk(words: tuple[str, ...], command: click.Command) -> Iterator[Command]:
    yield Command(words, command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _walk((*words, name), found)
