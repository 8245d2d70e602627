"""The text output of commands: data on stdout, and remarks on stderr.

Names, bases and licences come from files of other authors. Everything printed is escaped
here, so none of it moves the cursor, changes a colour or hides a line; and a URL among it is shown without
its secrets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

import click

from ..secrets import hide_secrets, mask_urls

if TYPE_CHECKING:
    from ...schemas.signers import SignedBy
    from ...schemas.verification import Level, VerificationRecord

# Control, format (which reorders or hides text), surrogate, private use, and line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# The last two join characters or keep them apart, in Persian, Indic scripts and emoji.
_OF_ANSWERS = "\n\t\u200c\u200d"
_UNITS = ("kB", "MB", "GB", "TB")


def escape(text: str) -> str:
    r"""Return text on one line, each character that a terminal would act on as ``\x1b``, URLs masked."""
    return _escape(mask_urls(text), "")


def escape_answer(text: str) -> str:
    r"""Return a model's text as ``escape`` does, but with its lines, tabs and joined characters."""
    return _escape(text, _OF_ANSWERS)


def _escape(text: str, kept: str) -> str:
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _UNPRINTABLE and character not in kept
        else character
        for character in text
    )


def print_line(text: str = "") -> None:
    """Print one line of data."""
    click.echo(escape(text))


def print_remark(text: str) -> None:
    """Print one line on stderr, for people."""
    click.echo(escape(hide_secrets(text)), err=True)


def print_facts(facts: Sequence[tuple[str, str | None]]) -> None:
    """Print labels and values, one a line; a value that is not known is a dash."""
    width = max(len(label) for label, _ in facts)
    for label, value in facts:
        click.echo(f"{label.ljust(width)}  {escape(value) if value else '-'}")


def count(things: Sized, noun: str) -> str:
    """Return ``3 adapters``; empty if there are none."""
    if not things:
        return ""
    return f"{len(things)} {noun}{'s' if len(things) > 1 else ''}"


def describe_bytes(size_bytes: int) -> str:
    """Return a size for people: ``12.3 MB``, in powers of 1000."""
    if size_bytes < 1000:
        return f"{size_bytes} bytes"
    # From 999950 on a thousand of one unit would be printed.
    power = next((i for i in range(1, len(_UNITS)) if size_bytes < 999.95 * 1000**i), len(_UNITS))
    return f"{size_bytes / 1000**power:.1f} {_UNITS[power - 1]}"


def describe_share(share: float) -> str:
    """Return a share in percent, such as ``99.4 %``."""
    return f"{100 * share:.1f} %"


def print_gate_remark() -> None:
    """Print on stderr that a gate is not fitted, and what can be done."""
    print_remark(
        "note: the gate is not fitted: left to itself the bundle often picks the wrong adapter; fit it with "
        "`meteora-registry gate fit`, or force one with meteora_registry.runtime.force_adapter"
    )


def print_verified(record: VerificationRecord) -> None:
    """Print how a bundle that was just written verified; it passed, so some backend was measured."""
    errors = [run.max_error for run in record.backends_run if run.max_error is not None]
    print_line(f"verified: {describe_level(record.level)}, {record.outcome}, largest error {max(errors):.1e}")


def describe_level(level: Level) -> str:
    """Return a level of verification with what a pass at it establishes."""
    return f"level {level} ({', '.join(level.establishes)})"


def describe_established(record: VerificationRecord) -> str:
    """Return what a record establishes where it was made."""
    return ", ".join(record.established) or "nothing"


def describe_rest(record: VerificationRecord) -> str:
    """Return what a verification can establish and this one did not."""
    return ", ".join(record.not_established) or "nothing"


def describe_signer(signed_by: SignedBy | None, *, has_signature: bool) -> str:
    """Return who signed a bundle, as far as that was checked."""
    if signed_by is not None:
        return f"{signed_by}; it covers the manifest and the record"
    return "not checked, because no signer was named" if has_signature else "no one"
