"""Every command line in the pages is one that the program accepts: the command and its options exist."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import click
import pytest

from meteora_registry.registry.cli.groups import DefaultGroup
from meteora_registry.registry.cli.main import cli
from support.pages import command_lines_of, commands_in, named_commands_of, pages

# What looks at no file while it reads a value.
CHECKED = (click.Choice, click.types.IntParamType, click.types.FloatParamType)
# cli.md begins each command with its usage.
LINES = [(page, line) for page in pages() for line in command_lines_of(page) if " [OPTIONS]" not in line]


def parse(command: click.Command, words: Sequence[str]) -> None:
    """Read words as the command does, but look at no file and run nothing.

    Raises:
        click.UsageError: the command would refuse them.
    """
    if isinstance(command, DefaultGroup) and words and words[0] not in command.table:
        words = [next(iter(command.table)), *words]
    # Click keeps a command's option for help by the names of the first context that asks for it.
    context = click.Context(command, **cli.context_settings)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    for parameter in command.get_params(context):
        value = values.get(parameter.name or "")
        if not value or parameter.value_is_missing(value):
            if parameter.required:
                raise click.MissingParameter(ctx=context, param=parameter)
        elif isinstance(parameter.type, CHECKED):
            for each in value if isinstance(value, list | tuple) else [value]:
                if isinstance(each, str):
                    parameter.type.convert(each, parameter, context)
    if isinstance(command, click.Group) and rest:
        _, found, rest = command.resolve_command(context, rest)
        assert found is not None
        parse(found, rest)
    elif rest:
        raise click.UsageError(f"unexpected words {rest}")


def test_commands_are_found_in_the_readme_and_the_guides() -> None:
    found = {page for page, _ in LINES}
    assert {
        "README.md",
        "docs/hub.md",
        "docs/store.md",
        "docs/settings.md",
        "docs/formats/recipe.md",
    } <= found


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_of_a_page_is_accepted(page: str, line: str) -> None:
    for words in commands_in(line):
        try:
            parse(cli, words)
        except click.UsageError as error:
            pytest.fail(f"{page}: {line}\n{error.format_message()}")


@pytest.mark.parametrize("page", pages())
def test_commands_that_the_text_names_exist(page: str) -> None:
    for line in named_commands_of(page):
        for words in commands_in(line):
            try:
                # A text may name a command without what it is about.
                with contextlib.suppress(click.MissingParameter):
                    parse(cli, words)
            except click.UsageError as error:
                pytest.fail(f"{page}: {line}\n{error.format_message()}")


@pytest.mark.parametrize(
    "line",
    [
        "meteora-registry fetch org/legal",
        "meteora-registry store tidy",
        "meteora-registry list --colour",
        "meteora-registry tag",
        "meteora-registry history legal medical",
        "meteora-registry verify bundle --level all",
        "A=1 meteora-registry store verify --jobs many > out.txt",
        "cat prompt.txt | meteora-registry trace bundle --base",
    ],
)
def test_a_command_that_the_program_refuses_is_noticed(line: str) -> None:
    (words,) = commands_in(line)
    with pytest.raises(click.UsageError):
        parse(cli, words)
