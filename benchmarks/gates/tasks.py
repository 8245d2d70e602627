"""Seven small tasks with answers that a script can check, whose inputs do not say what is wanted.

An item is a value in a sentence ("The shop opens at 3:45 pm.") and the one right answer ("15:45"); only
its adapter knows that a time is to be rewritten. Values are dealt to the splits by their digest, so none
occurs in two of them, and some sentences are kept for the validation and some for the test. Two tasks
look alike: both get dates in the same sentences, one day first, the other month first, and answer in
different forms.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "validation", "test"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
KEYS = _words(
    """
    colour size shape owner mode level city fruit metal sport music season animal tool plant drink
    """
)
VALUES = _words(
    """
    red blue green round small large open high low gold iron north south summer winter tennis rock jazz
    cat dog horse tea milk rose tree apple lemon hammer London Paris Rome Anna Peter Maria
    """
)
WORDS = _words(
    """
    apple pear lemon bread milk rice salt sugar tea coffee fish egg butter cheese onion corn bean nut
    soup cake chair table lamp bed door window book paper pen box cup plate knife spoon clock phone ring
    coat hat shoe bag key coin stone wood glass iron rope wheel boat train horse dog cat bird cow sheep
    """
)
FIRST = _words(
    """
    Anna Peter Maria John David Sarah Laura James Emma Paul Julia Mark Helen Simon Clara Victor Alice
    Henry Rosa Daniel Nina Oscar Eva Frank Grace Leo Ruth Tom Karen Bruno
    """
)
LAST = _words(
    """
    Lopez Smith Brown Miller Garcia Meyer Rossi Novak Silva Jones Clark Lewis Young King Scott Baker
    Carter Turner Parker Evans Morris Cooper Reed Bell Ward Cox Gray Watson Price Ross Wood Long Fisher
    Stone
    """
)
ONES = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen
    """
)
TENS = _words(
    """
    zero ten twenty thirty forty fifty sixty seventy eighty ninety
    """
)


@dataclass(frozen=True, slots=True)
class Item:
    """One question and the only answer that counts."""

    task: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Task:
    """A task: how its values are drawn and answered, and the sentences that contain them."""

    name: str
    draw: Callable[[random.Random], tuple[str, str]]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def items(self, split: Split, count: int, seed: int) -> list[Item]:
        """Return ``count`` different items; outside training half of them stand in unseen sentences."""
        numbers = random.Random(f"{seed}:{self.name}:{split}")
        found: dict[str, Item] = {}
        while len(found) < count:
            value, answer = self.draw(numbers)
            if split_of(value) != split:
                continue
            unseen = {"train": (), "validation": self.validation, "test": self.test}[split]
            sentences = unseen if unseen and numbers.random() < 0.5 else self.train
            question = numbers.choice(sentences).replace("{}", value)
            found[question] = Item(self.name, question, answer)
        return list(found.values())


def split_of(value: str) -> Split:
    """Return the one split that may use a value: three in five train, the rest in halves."""
    place = hashlib.sha256(value.encode()).digest()[0] % 5
    return "train" if place < 3 else "validation" if place == 3 else "test"


def draw_clock(numbers: random.Random) -> tuple[str, str]:
    """Return a time of twelve hours and the same of twenty-four."""
    hour, minute = numbers.randrange(24), numbers.randrange(60)
    half = "am" if hour < 12 else "pm"
    return f"{(hour - 1) % 12 + 1}:{minute:02d} {half}", f"{hour:02d}:{minute:02d}"


def draw_day_date(numbers: random.Random) -> tuple[str, str]:
    """Return a date with the day first, and year, month, day in digits."""
    day, month, year = _draw_date(numbers)
    return f"{day} {MONTHS[month - 1]} {year}", f"{year}-{month:02d}-{day:02d}"


def draw_month_date(numbers: random.Random) -> tuple[str, str]:
    """Return a date with the month first, and month, day, year in digits."""
    day, month, year = _draw_date(numbers)
    return f"{MONTHS[month - 1]} {day}, {year}", f"{month:02d}/{day:02d}/{year}"


def draw_pair(numbers: random.Random) -> tuple[str, str]:
    """Return a key with its value, and both as JSON."""
    key, value = numbers.choice(KEYS), numbers.choice(VALUES)
    return f"{key} is {value}", f'{{"{key}": "{value}"}}'


def draw_name(numbers: random.Random) -> tuple[str, str]:
    """Return a name, and the same as a catalogue has it."""
    first, last = numbers.choice(FIRST), numbers.choice(LAST)
    return f"{first} {last}", f"{last}, {first[0]}."


def draw_list(numbers: random.Random) -> tuple[str, str]:
    """Return three words, and the same from the last to the first."""
    words = numbers.sample(WORDS, 3)
    return ", ".join(words), ", ".join(reversed(words))


def draw_number(numbers: random.Random) -> tuple[str, str]:
    """Return a number in words, and in digits."""
    number = numbers.randrange(21, 1000)
    return spell(number), str(number)


def spell(number: int) -> str:
    """Return a number under a thousand in English words."""
    if number < 20:
        return ONES[number]
    if number < 100:
        return TENS[number // 10] + (f"-{ONES[number % 10]}" if number % 10 else "")
    rest = f" and {spell(number % 100)}" if number % 100 else ""
    return f"{ONES[number // 100]} hundred{rest}"


def _draw_date(numbers: random.Random) -> tuple[int, int, int]:
    return numbers.randrange(1, 29), numbers.randrange(1, 13), numbers.randrange(1950, 2030)


_DATE_SENTENCES = (
    (
        "Born on {}.",
        "The lease ends on {}.",
        "We met on {}.",
        "Paid on {}.",
        "The letter of {}.",
        "It rained on {}.",
    ),
    ("They left on {}.", "Seen on {}."),
    ("The show opened on {}.", "Signed on {}."),
)

TASKS = (
    Task(
        "clock",
        draw_clock,
        (
            "The shop opens at {}.",
            "The bus leaves at {}.",
            "We meet at {}.",
            "Dinner is at {}.",
            "The call starts at {}.",
            "Wake me at {}.",
        ),
        ("The film ends at {}.", "It is {} now."),
        ("Her train comes at {}.", "Come before {}."),
    ),
    Task("day-date", draw_day_date, *_DATE_SENTENCES),
    Task("month-date", draw_month_date, *_DATE_SENTENCES),
    Task(
        "pair",
        draw_pair,
        (
            "The {}.",
            "Its {}.",
            "Note that the {}.",
            "We know the {}.",
            "Here the {}.",
            "Today the {}.",
        ),
        ("They say the {}.", "So the {}."),
        ("I think the {}.", "Now the {}."),
    ),
    Task(
        "name",
        draw_name,
        ("I met {}.", "Ask {}.", "A gift from {}.", "The author is {}.", "We called {}.", "Here comes {}."),
        ("She knows {}.", "This was {}."),
        ("They invited {}.", "Thanks to {}."),
    ),
    Task(
        "list",
        draw_list,
        ("Buy {}.", "We saw {}.", "Pack {}.", "In the room: {}.", "He sold {}.", "Draw {}."),
        ("Find {}.", "She likes {}."),
        ("They need {}.", "Bring {}."),
    ),
    Task(
        "number",
        draw_number,
        (
            "We counted {}.",
            "The answer was {}.",
            "There were {}.",
            "He guessed {}.",
            "Page {}.",
            "About {} people.",
        ),
        ("Room {}.", "She won {}."),
        ("They sold {}.", "Nearly {} miles."),
    ),
)
TASK_NAMES = tuple(task.name for task in TASKS)
