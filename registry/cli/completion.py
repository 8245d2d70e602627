"""``completion``: the script with which a shell completes commands, options and names of the catalog."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from .groups import examples

PROGRAM = "meteora-registry"
_VARIABLE = "_METEORA_REGISTRY_COMPLETE"
_SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command(
    "completion",
    epilog=examples(
        "completion bash >> ~/.bashrc", "completion fish > ~/.config/fish/completions/meteora-registry.fish"
    ),
)
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def command(context: click.Context, *, shell: str) -> None:
    """Print what a shell needs to complete commands and names.

    Names are those of the catalog that the environment names, or that `--catalog` or `--home` before the
    command does.
    """
    root = context.find_root().command
    click.echo(_SHELLS[shell](root, {}, PROGRAM, _VARIABLE).source())
