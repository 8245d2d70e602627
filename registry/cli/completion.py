"""``completion``: the script with which a shell completes commands, options and names of the catalog."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ...schemas.errors import UsageError
from .groups import examples

PROGRAM = "meteora-registry"
_VARIABLE = "_METEORA_REGISTRY_COMPLETE"


@click.command(
    "completion",
    epilog=examples(
        "completion bash >> ~/.bashrc", "completion fish > ~/.config/fish/completions/meteora-registry.fish"
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    """Print what a shell needs to complete commands and names.

    Names are those of the catalog that the environment names, or that `--catalog` or `--home` before the
    command does.
    """
    found = get_completion_class(shell)
    if found is None:
        raise UsageError(f"there is no completion for `{shell}`")
    root = context.find_root().command
    click.echo(found(root, {}, PROGRAM, _VARIABLE).source())
