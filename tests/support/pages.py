"""The blocks of code in the pages for people: the README, the contribution guide, and everything in docs."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from support.program import PROGRAM
from support.source_tree import ROOT

_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?"
    r"(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_MARK = re.compile(r"(?P<name>[\w ]+): (?:run|read) by (?P<file>tests/\S+\.py)\b")
_PYTHON = {"python", "python3", "py", "pycon"}
_PUNCTUATION = set("();<>|&")


@dataclass(frozen=True)
class Block:
    """A block between fences, and the mark in the line before it."""

    page: str
    mark: str
    language: str
    text: str

    @property
    def is_python(self) -> bool:
        """Whether the block is an example in Python."""
        return self.language in _PYTHON

    @property
    def runner(self) -> tuple[str, str] | None:
        """The name in the block's mark, and the test file named there that uses it; None without a mark."""
        found = _MARK.match(self.mark)
        return found and (found["name"], found["file"])


def pages() -> list[str]:
    """Return every page that people write and read, from the root of the tree; api.md is generated."""
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    names = {path.relative_to(ROOT).as_posix() for path in found}
    return sorted(names - {"CHANGELOG.md", "docs/api.md"})


def blocks_of(page: str) -> list[Block]:
    """Return the blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(page, found["mark"] or "", found["language"].lower(), found["text"])
        for found in _BLOCK.finditer(text)
    ]


def examples_of(page: str, name: str) -> list[str]:
    """Return the blocks of a page that are marked with this name."""
    return [block.text for block in blocks_of(page) if block.runner and block.runner[0] == name]


def example_of(page: str, name: str) -> str:
    """Return the one block of a page that is marked with this name."""
    (text,) = examples_of(page, name)
    return text


def command_lines_of(page: str) -> list[str]:
    """Return the lines of a page's blocks that hold a command of the program, continued ones as one."""
    blocks = (block.text for block in blocks_of(page) if not block.is_python)
    lines = (line for text in blocks for line in text.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if next(commands_in(line), None) is not None]


def named_commands_of(page: str) -> list[str]:
    """Return the commands of the program that a page's text names, outside its blocks."""
    text = _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))
    return [" ".join(found.split()) for found in re.findall(rf"`({PROGRAM.name}\s[^`]+)`", text)]


def commands_in(line: str) -> Iterator[list[str]]:
    """Yield the words after the program's name, for each command of a shell line that is the program."""
    if PROGRAM.name not in line:
        return
    reader = shlex.shlex(line.strip().removeprefix("$ "), posix=True, punctuation_chars=True)
    reader.whitespace_split = True
    for words in _commands(reader):
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if words and words[0] == PROGRAM.name:
            yield words[1:]


def _commands(words: Iterator[str]) -> Iterator[list[str]]:
    """Yield the simple commands of a shell line, without what is redirected."""
    command: list[str] = []
    for word in words:
        if not word or not set(word) <= _PUNCTUATION:
            command.append(word)
        elif set(word) <= set("<>"):
            next(words, None)
        else:
            yield command
            command = []
    yield command
