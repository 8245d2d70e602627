"""Plain English in every docstring, comment, message and page; `support.prose` has the rules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.prose import ROOT, Passage, check, read_markdown, read_python

# Kept as they were written, or generated from text that is checked where it is written.
SKIPPED = ("CHANGELOG.md", "tests/golden/1/", "docs/api.md", "docs/cli.md", "docs/rules.md")
# Folders of other people's files, or of files that a run leaves.
PRUNED = {"build", "dist", "demo-output", "__pycache__"}
# Each of these folders and files is still to be rewritten: remove its line when its test passes.
TO_DO = (
    "fuser",
    "inspection/adapter.py",
    "inspection/inspection.py",
    "kernels",
    "registry/catalog",
    "registry/cli",
    "registry/hub",
    "registry/workflows",
    "runtime",
)


def part_of(path: str) -> str:
    """Return the entry of ``TO_DO`` that holds a file, else its top folder."""
    waiting = (part for part in TO_DO if path == part or path.startswith(f"{part}/"))
    return next(waiting, path.partition("/")[0])


def files_by_part() -> dict[str, list[str]]:
    """Return the Python files and pages of the tree; links to folders are not followed."""
    found: dict[str, list[str]] = {}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = sorted(name for name in subfolders if name not in PRUNED and name[0] != ".")
        for name in sorted(names):
            path = Path(folder, name).relative_to(ROOT).as_posix()
            if name.endswith((".py", ".md")) and not path.startswith(SKIPPED):
                found.setdefault(part_of(path), []).append(path)
    return found


FILES = files_by_part()


def passages_of(path: str) -> Iterator[Passage]:
    """Yield the prose of a file; texts in tests are data and expectations, not messages."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if Path(path).suffix == ".md":
        yield from read_markdown(text)
    else:
        yield from read_python(text, literals=not path.startswith("tests/"))


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=pytest.mark.xfail(strict=True, reason="to be rewritten"))
        if part in TO_DO
        else part
        for part in sorted(FILES)
    ],
)
def test_prose_is_plain_english(part: str) -> None:
    found = [
        f"{path}:{finding}" for path in FILES[part] for each in passages_of(path) for finding in check(each)
    ]
    assert not found, "\n".join(found)


def test_every_part_to_do_is_in_the_tree() -> None:
    assert set(TO_DO) <= FILES.keys()


def habits_of(passage: Passage) -> list[str]:
    return [finding.habit for finding in check(passage)]


@pytest.mark.parametrize(
    ("habit", "text"),
    [
        ("no for not", "`x` is no folder"),
        ("no for not", "layers that are no `nn.Linear`"),
        ("no for not", "the answer is no\nvalid document"),
        ("somebody", "a gate that nobody fitted"),
        ("somebody", "it is for Whoever reads it"),
        ("code that speaks", "the manifest says 3"),
        ("code that speaks", "a writer is told of the change"),
        ("place as posture", "the folder where the bundle stands"),
        ("place as posture", "files that lie in a cache"),
        ("place as posture", "the blob lies at its digest"),
        ("riddle", "what came of a command"),
        ("riddle", "what it comes to"),
    ],
)
def test_a_habit_is_found_in_a_sentence(habit: str, text: str) -> None:
    assert habits_of(Passage(1, text)) == [habit]


@pytest.mark.parametrize(
    "text",
    [
        "`x` is not a folder, and there is no file of that name",
        "there are no members, and there can be no gates",
        "it is no longer there; the second is no slower than the first, and is no more",
        "a version has no gaps",
        "two answers that cannot be told apart",
        "k stands for the number of slots",
        "`nobody`, `says` and `stands` are code",
        "understand, belies, essays",
    ],
)
def test_ordinary_sentences_are_accepted(text: str) -> None:
    assert habits_of(Passage(1, text)) == []


@pytest.mark.parametrize(
    ("opening", "habits"),
    [
        ("Return the members.", []),
        ("Check that both agree.", []),
        ("The members.", ["no imperative verb"]),
        ("Returns the members.", ["no imperative verb"]),
        ("Whether there are members.", ["no imperative verb"]),
        ("Members by name.", ["no imperative verb"]),
        ("Say what is wrong.", ["no imperative verb"]),
        ("``x`` as a digest.", ["no imperative verb"]),
        ("Name of the file.", ["no imperative verb"]),
    ],
)
def test_docstring_of_a_function_begins_with_a_verb(opening: str, habits: list[str]) -> None:
    (found,) = read_python(f'def read():\n    """{opening}"""\n')
    assert habits_of(found) == habits


@pytest.mark.parametrize(
    ("source", "habits"),
    [
        ('class A:\n    """A member."""\n', []),
        ('class A:\n    """What a member is."""\n', ["no noun"]),
        ('"""How a bundle is read."""\n', ["no noun"]),
        ('class A:\n    @property\n    def b(self):\n        """Whether it is fitted."""\n', []),
        ('@pytest.fixture(scope="module")\ndef bundle():\n    """A bundle of three members."""\n', []),
        ('def test_a():\n    """Three members agree."""\n', []),
    ],
)
def test_docstring_of_a_value_is_a_noun(source: str, habits: list[str]) -> None:
    assert [habit for each in read_python(source) for habit in habits_of(each)] == habits


def test_passages_are_found_with_their_lines() -> None:
    source = '"""A module."""\n\nx = 1  # a comment\n# of two lines\n\nraise E(f"{x} is no folder")\n'
    assert [(each.line, each.text) for each in read_python(source)] == [
        (1, "A module."),
        (6, "x is no folder"),
        (3, "a comment\nof two lines"),
    ]
    page = "# Title\n\nOne\ntwo.\n\n```\nnobody\n```\n\nlast\n"
    assert [(each.line, each.text) for each in read_markdown(page)] == [
        (1, "# Title"),
        (3, "One\ntwo."),
        (10, "last"),
    ]


def test_finding_names_line_habit_and_a_better_text() -> None:
    (found,) = check(Passage(3, "the first\nand a gate that nobody fitted"))
    assert str(found) == (
        "4: somebody: `the first and a gate that nobody fitted`; write who it is, or the passive"
    )
