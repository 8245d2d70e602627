"""The entry point: finds the command, runs it, and turns what it raises into text and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from ...schemas.errors import UsageError
from ..home import CATALOG_VARIABLE, HOME_VARIABLE, STORE_VARIABLE
from .commands import COMMANDS, SECTIONS
from .failures import REFUSED, report_failure
from .groups import LazyGroup, examples


def _print_versions(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from .versions import print_versions

    print_versions()
    context.exit()


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples("add ./my-adapter --base meta-llama/Llama-3.1-8B", "list", "show my-adapter"),
)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of catalog and content store. Default: {HOME_VARIABLE}, else of the settings, else the "
    "user's data folder.",
)
@click.option(
    "--catalog",
    metavar="URL",
    help=f"A catalog elsewhere, such as postgresql://user@host/name. Default: {CATALOG_VARIABLE}, else "
    "of the settings, else catalog.db in the home.",
)
@click.option(
    "--store",
    metavar="URL",
    help="A content store elsewhere, such as s3://bucket/adapters or file:///shared/adapters. "
    f"Default: {STORE_VARIABLE}, else of the settings, else blobs in the home.",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_versions,
    help="Show the versions of this and of what it computes with, and exit.",
)
def cli(**_stated: object) -> None:
    """Catalogue LoRA adapters, check them, and fuse them into one model that routes every token.

    Exit codes: 0 done, 1 refused or failed, 2 usage or I/O, 3 inconclusive, 130 interrupted.
    """
    # The options are read with the other settings, by the commands that need them.


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; an error is printed on stderr."""
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale, a name in another alphabet must not end a command.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        if any("\0" in argument for argument in arguments or ()):
            # A shell cannot pass one on; a program that calls this can.
            raise UsageError("an argument has a zero byte")  # noqa: TRY301
        code = cli.main(args=arguments, prog_name="meteora-registry", standalone_mode=False)
        # A full disk or a reader that left must be noticed here, not while the interpreter ends.
        sys.stdout.flush()
    except BrokenPipeError:
        return REFUSED
    # The one place where every failure ends: an error that is not known here is reported as a defect.
    except Exception as error:  # noqa: BLE001
        return report_failure(error)
    return code if isinstance(code, int) else 0
