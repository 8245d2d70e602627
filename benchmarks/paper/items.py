"""The items of a task: what is asked, every right answer, and the choices where there are some.

An item is asked as ``QUESTION ->`` and answered by `` ANSWER`` and a new line, without an instruction's
marks: of several forms none lost anything, and this one is short. The question is the item's input; for the
tasks of which the paper lists the choices, each follows on a line ``choice: X``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .archive import ITEMS_FILE
from .tasks import PaperTask

ARROW = " ->"
END = "\n"
Split = Literal["train", "validation", "test"]
MIN_TEST_ITEMS = 16
TEST_SHARE = 0.2
VALIDATION_ITEMS = 40
SEED = 0


@dataclass(frozen=True, slots=True)
class Item:
    """One item.

    Attributes:
        task: its name.
        question: as it is asked, choices included where the task shows them.
        targets: every right answer; the first is the one that is learned.
        choices: all that may be answered; none where the answer is free.
    """

    task: str
    question: str
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return self.question + ARROW

    @property
    def response(self) -> str:
        """What an adapter learns to write."""
        return response_of(self.targets[0])


def response_of(answer: str) -> str:
    """Return an answer as it follows a prompt."""
    return f" {answer}{END}"


def read_items(task: PaperTask, folder: Path) -> dict[Split, list[Item]]:
    """Return a task's items by split.

    The test is a fifth of each folder's items, at least ``MIN_TEST_ITEMS`` of the task, as BIG-bench's own
    validation split is, drawn by a fixed seed; another ``VALIDATION_ITEMS`` of the rest are for choosing
    among ways. No question of one split is in another.

    Raises:
        ValueError: a file is not a list of items, or fewer items are short enough than the test needs.
    """
    splits: dict[Split, list[Item]] = {"train": [], "validation": [], "test": []}
    asked: set[str] = set()
    for name in task.folders:
        items = [each for each in _of_file(task, folder / name / ITEMS_FILE) if each.question not in asked]
        asked |= {each.question for each in items}
        random.Random(f"{SEED}:{name}").shuffle(items)
        least = -(-MIN_TEST_ITEMS // len(task.folders))
        tested = max(least, int(TEST_SHARE * len(items)))
        validated = min(VALIDATION_ITEMS // len(task.folders), (len(items) - tested) // 4)
        if len(items) < 2 * tested:
            raise ValueError(f"`{name}` has {len(items)} items that are short enough, expected {2 * tested}")
        splits["test"] += items[:tested]
        splits["validation"] += items[tested : tested + validated]
        splits["train"] += items[tested + validated :]
    for split, items in splits.items():
        random.Random(f"{SEED}:{task.name}:{split}").shuffle(items)
    return splits


def _of_file(task: PaperTask, path: Path) -> list[Item]:
    """Return the items of a file that are short enough, the first of several with one question."""
    # Plain JSON: the archive that it is a copy from is held to its digest.
    document = json.loads(path.read_bytes())
    examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list):
        raise ValueError(f"`{path}` has no list of `examples`")  # noqa: TRY004  # the file's value
    found: dict[str, Item] = {}
    for example in examples:
        item = item_of(task, example)
        if item is not None and len(item.question) <= task.max_letters:
            found.setdefault(item.question, item)
    return list(found.values())


def item_of(task: PaperTask, example: Mapping[str, Any]) -> Item | None:
    """Return the item of one of BIG-bench's examples; None where it has no answer.

    Where there are choices, the right ones among them are the answers, and not a longer text beside them.
    """
    question = str(example["input"]).strip()
    scores: Mapping[str, float] = example.get("target_scores") or {}
    choices = tuple(dict.fromkeys(_one_line(each) for each in scores))
    targets = example.get("target")
    if scores:
        best = max(scores.values())
        targets = [choice for choice, score in scores.items() if score == best > 0]
    if not isinstance(targets, list):
        targets = [targets]
    answers = tuple(dict.fromkeys(_one_line(str(each)) for each in targets))
    if not answers or not all(answers):
        return None
    if task.shows_choices:
        question += "".join(f"\nchoice: {choice}" for choice in choices)
    return Item(task.name, question, answers, choices)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def digest_of_items(items: Sequence[Item]) -> str:
    """Return the sha256 of questions, answers and choices in order."""
    return hashlib.sha256(json.dumps([asdict(item) for item in items]).encode()).hexdigest()


def fit_lines(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Return lines of data for a fit: half as plain prompts, half as messages, in pairs of a kind.

    A fit takes every second line and holds the others out, so that with pairs both halves see both forms.
    """
    return [
        {"prompt": item.prompt, "response": item.response} if place % 4 < 2 else _conversation(item)
        for place, item in enumerate(items)
    ]


def _conversation(item: Item) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": item.question},
            {"role": "assistant", "content": item.targets[0]},
        ]
    }


def prompts_in(file: Path) -> list[str]:
    """Return the prompts of a file of ``fit_lines``, all as plain ones."""
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [line["prompt"] if "prompt" in line else line["messages"][0]["content"] + ARROW for line in lines]
