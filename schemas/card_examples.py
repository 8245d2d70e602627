"""The example prompts and answers that a publisher chose for a bundle's page on the Hub.

They come from a file of their own, as JSON Lines. Data of a fit or of an evaluation may be private, so
nothing reads examples from there.
"""

from __future__ import annotations

from dataclasses import dataclass

from .document import load_json
from .errors import DataRefused

MAX_EXAMPLES = 10
MAX_TEXT_CHARACTERS = 2000
MAX_EXAMPLES_BYTES = 256 << 10
_KEYS = ("prompt", "response")
_SHAPE = '{"prompt": "...", "response": "..."}'


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the answer that the bundle gave to it."""

    prompt: str
    response: str


def parse_examples(data: bytes, what: str) -> tuple[Example, ...]:
    """Return the examples of a file; ``what`` is how messages call it.

    Raises:
        DataRefused: a line has another shape or is too long, or there are too many or none.
        InvalidDocument: a line is not JSON.
    """
    lines = [(number, line) for number, line in enumerate(data.splitlines(), 1) if line.strip()]
    if not 1 <= len(lines) <= MAX_EXAMPLES:
        raise DataRefused(
            f"`{what}` has {len(lines)} examples, expected 1 to {MAX_EXAMPLES}", hint=f"a line is {_SHAPE}"
        )
    return tuple(_example(line, f"{what}, line {number}") for number, line in lines)


def _example(line: bytes, what: str) -> Example:
    value, where = load_json(line, what=what), f"`{what}`"
    if not (isinstance(value, dict) and set(value) == set(_KEYS)):
        found = ", ".join(sorted(value))[:200] if isinstance(value, dict) else type(value).__name__
        raise DataRefused(f"{where} has {found or 'nothing'}, expected {_SHAPE}")
    for key in _KEYS:
        text = value[key]
        if not (isinstance(text, str) and 1 <= len(text.strip()) <= len(text) <= MAX_TEXT_CHARACTERS):
            found = f"{len(text)} characters" if isinstance(text, str) and text.strip() else "no text"
            raise DataRefused(
                f"{where} has {found} as `{key}`, expected 1 to {MAX_TEXT_CHARACTERS} characters"
            )
    return Example(value["prompt"], value["response"])
