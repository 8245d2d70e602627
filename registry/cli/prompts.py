"""Prompts from the command line and from stdin: texts that a tokenizer takes."""

from __future__ import annotations

import sys

from ...schemas.errors import UsageError

_STDIN = "-"
_MAX_PROMPT_BYTES = 1 << 20


def read_prompt(stated: str) -> str:
    """Return a prompt as it was stated, or what stdin has for ``-``.

    Raises:
        UsageError: it is not UTF-8, or stdin has more than ``_MAX_PROMPT_BYTES``.
    """
    return _read_stdin() if stated == _STDIN else check_text(stated)


def check_text(text: str, what: str = "the prompt") -> str:
    """Return a text that was typed or is an argument, if it is one.

    Raises:
        UsageError: it was not UTF-8.
    """
    # Python keeps an argument's bytes that are not text, and no tokenizer takes them.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{what} is not UTF-8")
    return text


def _read_stdin() -> str:
    data = sys.stdin.buffer.read(_MAX_PROMPT_BYTES + 1)
    if len(data) > _MAX_PROMPT_BYTES:
        raise UsageError(f"the prompt on stdin has more than {_MAX_PROMPT_BYTES} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError("the prompt on stdin is not UTF-8") from error
