"""Errors as text on stderr, and their exit codes."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

from ...schemas.errors import AdapterRefused, DataRefused, FuseRefused, MeteoraError
from ..secrets import hide_secrets
from .output import print_remark

DONE, REFUSED, USAGE, INCONCLUSIVE, INTERRUPTED = 0, 1, 2, 3, 130
DEBUG_VARIABLE = "METEORA_DEBUG"
# In a batch the first of these that occurred is the code of the whole.
_WORST_FIRST = (INTERRUPTED, USAGE, REFUSED, INCONCLUSIVE)
# How click quotes values, and what it offers for a misspelt name.
_QUOTED = re.compile(r"(?<!\w)'([^'`]+)'(?!\w)")
_GUESS = re.compile(r" \(?(Did you mean [^?]+\?)\)?$")


def report_failure(error: Exception) -> int:
    """Print on stderr what went wrong and what to do, and return the exit code.

    With ``METEORA_DEBUG=1`` the traceback is printed first.
    """
    if os.environ.get(DEBUG_VARIABLE) == "1":
        click.echo(hide_secrets("".join(traceback.format_exception(error))), err=True, nl=False)
    match error:
        case MeteoraError():
            _print_error(error.message, hint=error.hint, details=_details_of(error))
            return error.exit_code
        case click.exceptions.NoArgsIsHelpError():
            # Its message is the help of the group, of many lines.
            click.echo(error.message, err=True)
            return USAGE
        case click.Abort():
            _print_error("interrupted")
            return INTERRUPTED
        case click.ClickException():
            _print_usage_error(error)
            return USAGE
        case OSError():
            _print_error(_describe_os_error(error))
            return USAGE
        case _:
            _print_error(
                f"a defect of meteora-registry: {type(error).__name__}: {error}",
                hint=f"run it again with {DEBUG_VARIABLE}=1 and report the traceback",
            )
            return USAGE


@contextmanager
def reported(codes: list[int]) -> Iterator[None]:
    """Append the exit code of one attempt of a batch to ``codes``, and print an error on stderr."""
    try:
        yield
    except (MeteoraError, OSError) as error:
        codes.append(report_failure(error))
    else:
        codes.append(DONE)


def worst_code(codes: Iterable[int]) -> int:
    """Return the exit code of a batch: 2 over 1 over 3 over 0."""
    found = set(codes)
    return next((code for code in _WORST_FIRST if code in found), DONE)


def _print_error(message: str, *, hint: str | None = None, details: Iterable[str] = ()) -> None:
    print_remark(f"error: {message}")
    for detail in details:
        print_remark(f"  {detail}")
    if hint:
        print_remark(f"hint: {hint}")


def _print_usage_error(error: click.ClickException) -> None:
    """Print an error of click in the form of all others: lower case, no full stop, values in backticks."""
    text = _QUOTED.sub(r"`\1`", error.format_message())
    guess = _GUESS.search(text)
    context = getattr(error, "ctx", None)
    hints = [_begin_lower(guess[1])] if guess else []
    if context:
        hints.append(f"see `{context.command_path} --help`")
    _print_error(_begin_lower(_GUESS.sub("", text)).removesuffix("."), hint=" ".join(hints))


def _begin_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _details_of(error: MeteoraError) -> list[str]:
    if isinstance(error, AdapterRefused):
        return [finding.describe() for finding in error.findings]
    if isinstance(error, DataRefused):
        return list(error.problems)
    return list(error.conflicts) if isinstance(error, FuseRefused) else []


def _describe_os_error(error: OSError) -> str:
    reason = (error.strerror or str(error)).lower()
    if error.filename:
        return f"`{error.filename}`: {reason}"
    # What asks for the current folder does not name it.
    return "the current folder is gone" if error.errno == errno.ENOENT and _is_nowhere() else reason


def _is_nowhere() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - what is wanted is the error
    except FileNotFoundError:
        return True
    return False
