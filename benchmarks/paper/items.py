"""The items of a task: what is asked, every right answer, and the choices where there are some.

An item is asked as ``QUESTION ->`` and answered by `` ANSWER`` and a new line, without an instruction's
marks: of several forms none lost anything, and this one is short. The question is the item's input, without
the sentence that BIG-bench puts before all items of a task and that would name it to a router; where the
paper's prompt lists the choices, each follows on a line ``choice: X``.
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
# Of BIG-bench's own splits.
BIGBENCH_SEED = 42
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

    The test is of BIG-bench's own validation split: the last fifth of each file, at least 16 items, after its
    examples were shuffled with the seed 42. Of its training split ``VALIDATION_ITEMS`` of a task are for
    choosing among ways. Items that are too long are left out, and so are those of other splits whose
    question, with the choices that it shows, is in the test.

    Raises:
        ValueError: a file has no list of items, or too few are short enough.
    """
    learned: list[Item] = []
    tested: list[Item] = []
    for name in task.folders:
        train, test = _of_file(task, folder / name / ITEMS_FILE)
        learned += train
        tested += test
    tested = _distinct(tested, {})
    learned = _distinct(learned, {item.question: item for item in tested})
    if len(tested) < MIN_TEST_ITEMS or len(learned) < 2 * VALIDATION_ITEMS:
        raise ValueError(f"`{task.name}` has {len(tested)} items for the test, {len(learned)} for training")
    for place, items in enumerate((tested, learned)):
        random.Random(f"{SEED}:{task.name}:{place}").shuffle(items)
    return {"train": learned[VALIDATION_ITEMS:], "validation": learned[:VALIDATION_ITEMS], "test": tested}


def _of_file(task: PaperTask, path: Path) -> tuple[list[Item], list[Item]]:
    """Return the items of BIG-bench's two splits of a file, as far as they are short enough."""
    # Plain JSON: the archive that it is a copy from is held to its digest.
    document = json.loads(path.read_bytes())
    examples = document.get("examples") if isinstance(document, dict) else None
    if not isinstance(examples, list):
        raise ValueError(f"`{path}` has no list of `examples`")  # noqa: TRY004  # the file's value
    random.Random(BIGBENCH_SEED).shuffle(examples)
    tested = max(int(TEST_SHARE * len(examples)), MIN_TEST_ITEMS)
    items = [item_of(task, example) for example in examples]
    short = [None if each is None or len(each.question) > task.max_letters else each for each in items]
    border = len(short) - tested
    return [each for each in short[:border] if each], [each for each in short[border:] if each]


def _distinct(items: Sequence[Item], others: Mapping[str, Item]) -> list[Item]:
    """Return the first item of each question that is not among others."""
    found: dict[str, Item] = {}
    for item in items:
        if item.question not in others:
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
    answers = tuple(dict.fromkeys(_one_line(str(each)) for each in targets if each is not None))
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
