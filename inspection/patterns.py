r"""Patterns from a config, never matched by a backtracking engine.

PEFT compiles ``rank_pattern``, ``alpha_pattern`` and the target fields with ``re``, where sixty bytes
are enough to hang a process. Here a plain name is compared as a string; anything else goes to RE2,
whose time is linear and whose memory is bounded. RE2 has no look-around and no back-references, and
reads a few constructs differently from ``re``: such a pattern is not evaluated; its standing is the reason.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# The package carries no annotations.
import re2  # type: ignore[import-untyped]

MAX_PATTERN_CHARACTERS = 1024
MAX_PATTERN_DEPTH = 40
_MAX_AUTOMATON_BYTES = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_.\-]+")
# What `re` and RE2 read alike: escapes of these, groups that begin so, and no nested sets.
_TOKEN = re.compile(
    r"\\(?P<escape>.?)|\((?P<group>\?.{0,2})?|(?P<close>\))|\[(?P<posix>\[)?|(?P<other>&&|--|~~|\{,)",
    re.DOTALL,
)
_SHARED_ESCAPES = set("dDwWsSbBA.*+?()[]{}|^$\\/-_ ")
_SHARED_GROUPS = ("?:", "?P<")
# A group with a repeat inside it and one behind it, the shape on which backtracking explodes.
_REPEAT = re.compile(r"[*+]|\{\d+,\d*\}")


class Standing(StrEnum):
    """The way in which a pattern can be matched, or why it cannot."""

    PLAIN = "plain"
    REGULAR = "regular"
    BROKEN = "broken"
    TOO_LONG = "too long"
    TOO_COSTLY = "too costly"
    UNSUPPORTED = "unsupported"


@dataclass(slots=True)
class Budget:
    """The processor time that all work on the patterns of one adapter may take together."""

    # A collection of garbage in a large process counts too, and must not make a sound adapter a broken one.
    seconds: float = 1.0
    _began: float | None = field(default=None, init=False)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of the block; a block within another is counted with it."""
        if self._began is not None:
            yield
            return
        self._began = began = time.thread_time()
        try:
            yield
        finally:
            self.seconds -= time.thread_time() - began
            self._began = None

    @property
    def is_spent(self) -> bool:
        """Whether the time is used up."""
        running = 0.0 if self._began is None else time.thread_time() - self._began
        return running > self.seconds


class PatternsTooCostly(Exception):
    """The patterns cannot be evaluated within their budget."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern of a config, matched only through this class."""

    text: str
    standing: Standing
    _whole: Any = field(default=None, repr=False, compare=False)
    _tail: Any = field(default=None, repr=False, compare=False)

    @classmethod
    def judge(cls, text: str, budget: Budget | None = None) -> Pattern:
        """Return the pattern of this text, compiled if it can be; uncompiled once the budget is spent."""
        if budget is not None and budget.is_spent and not _PLAIN.fullmatch(text):
            return cls(text, Standing.TOO_COSTLY)
        standing = _read_standing(text)
        if standing is not Standing.REGULAR:
            return cls(text, standing)
        if not _compiles_in_python(text):
            return cls(text, Standing.BROKEN)
        whole, tail = _build_automaton(text), _build_automaton(rf"(?:.*\.)?(?:{text})")
        if whole is None or tail is None:
            return cls(text, Standing.UNSUPPORTED)
        return cls(text, Standing.REGULAR, whole, tail)

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain name."""
        return self.standing is Standing.PLAIN

    @property
    def can_match(self) -> bool:
        """Whether `matches` can be called."""
        return self.standing in (Standing.PLAIN, Standing.REGULAR)

    @property
    def nests_repeats(self) -> bool:
        """Whether a repeated group holds a repeat: what makes backtracking engines hang."""
        unread = self.standing in (Standing.PLAIN, Standing.TOO_COSTLY)
        return not unread and _nests_repeats(self.text)

    def matches(self, text: str) -> bool:
        """Return whether the pattern matches the whole of ``text``, like ``re.fullmatch``.

        Raises:
            ValueError: the pattern cannot be matched at all.
        """
        if self.standing is Standing.PLAIN:
            return _matches_plain(self.text, text)
        self._require_automaton()
        return self._whole.fullmatch(text) is not None

    def matches_tail(self, path: str) -> bool:
        r"""Return whether the pattern matches ``path`` or its part after a dot: ``(.*\.)?(pattern)$``."""
        if self.standing is Standing.PLAIN:
            return any(_matches_plain(self.text, tail) for tail in tails_of(path))
        self._require_automaton()
        return self._tail.fullmatch(path) is not None

    def _require_automaton(self) -> None:
        if self.standing is not Standing.REGULAR:
            raise ValueError(f"the pattern is {self.standing}")


def tails_of(path: str) -> Iterable[str]:
    """Yield a path, and its part after each dot."""
    yield path
    position = path.find(".")
    while position >= 0:
        yield path[position + 1 :]
        position = path.find(".", position + 1)


class PatternList:
    """Patterns in their order, of which the first that matches is found without trying each.

    A dot of a plain pattern stands for any character: the plain ones are kept by their length and the
    places of their dots, and a path is looked up with dots in those places.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self._patterns = patterns
        self._regular: list[int] = []
        self._plain: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        for position, pattern in enumerate(patterns):
            if pattern.standing is Standing.PLAIN:
                text = pattern.text
                dots = tuple(place for place, character in enumerate(text) if character == ".")
                self._plain.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, position)
            elif pattern.can_match:
                self._regular.append(position)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def are_evaluated(self) -> bool:
        """Whether every pattern can be matched; if not, one that no path takes here may take it in PEFT."""
        return all(pattern.can_match for pattern in self._patterns)

    def first(self, path: str, budget: Budget) -> Pattern | None:
        """Return the first pattern that matches the path or a tail of it, as PEFT resolves these fields.

        Call it within ``budget.running()``.

        Raises:
            PatternsTooCostly: the budget is spent.
        """
        if budget.is_spent:
            raise PatternsTooCostly
        found = min(self._plain_matches(path, budget), default=len(self._patterns))
        for position in self._regular:
            if budget.is_spent:
                raise PatternsTooCostly
            if position > found:
                break
            if self._patterns[position].matches_tail(path):
                return self._patterns[position]
        return self._patterns[found] if found < len(self._patterns) else None

    def _plain_matches(self, path: str, budget: Budget) -> Iterator[int]:
        for tail in tails_of(path):
            for dots, texts in self._plain.get(len(tail), {}).items():
                if budget.is_spent:
                    raise PatternsTooCostly
                masked = list(tail)
                for place in dots:
                    masked[place] = "."
                position = texts.get("".join(masked))
                if position is not None:
                    yield position


def _read_standing(text: str) -> Standing:
    """Return the standing that the text alone shows; ``REGULAR`` where it has to be compiled."""
    if len(text) > MAX_PATTERN_CHARACTERS:
        return Standing.TOO_LONG
    if _PLAIN.fullmatch(text):
        return Standing.PLAIN
    if _depth(text) > MAX_PATTERN_DEPTH:
        return Standing.TOO_LONG
    return Standing.REGULAR if _reads_alike(text) else Standing.UNSUPPORTED


def _build_automaton(text: str) -> Any:
    options = re2.Options()
    options.max_mem = _MAX_AUTOMATON_BYTES
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except (re2.error, UnicodeEncodeError):
        return None


def _matches_plain(pattern: str, text: str) -> bool:
    # A dot of a plain pattern is a wildcard to PEFT, so it is one here.
    if len(pattern) != len(text):
        return False
    return pattern == text or all(p in (".", t) for p, t in zip(pattern, text, strict=True))


def _depth(text: str) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        if token[0].startswith("("):
            depth += 1
        elif token["close"]:
            depth -= 1
        deepest = max(deepest, depth)
    return deepest


def _compiles_in_python(text: str) -> bool:
    # Compiling is bounded by the length and depth checked before; only matching can run away.
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _reads_alike(text: str) -> bool:
    for token in _TOKEN.finditer(text):
        if token[0].startswith("\\") and (token["escape"] not in _SHARED_ESCAPES or not token["escape"]):
            return False
        if token["group"] and not token["group"].startswith(_SHARED_GROUPS):
            return False
        if token["posix"] or token["other"]:
            return False
    return True


def _nests_repeats(text: str) -> bool:
    repeats_at_depth = [False]
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        if character == "[":
            position = _end_of_set(text, position)
        elif character == "(":
            repeats_at_depth.append(False)
        elif character == ")" and len(repeats_at_depth) > 1:
            inner = repeats_at_depth.pop()
            outer = _REPEAT.match(text, position + 1) is not None
            if inner and outer:
                return True
            repeats_at_depth[-1] |= inner or outer
        elif _REPEAT.match(text, position):
            repeats_at_depth[-1] = True
        position += 1
    return False


def _end_of_set(text: str, begin: int) -> int:
    position = begin + 1 + text.startswith("^", begin + 1)
    position += text.startswith("]", position)
    while position < len(text) and text[position] != "]":
        position += 2 if text[position] == "\\" else 1
    return position
