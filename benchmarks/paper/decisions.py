"""Decisions about prompts alone: own ones, those of other tasks and general questions, each in two forms.

No answer is written. A row has the confidence of every decision, from which follows what any threshold leaves
to the base.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from benchmarks.gates.base import native_name
from benchmarks.gates.out_of_domain import QUESTIONS
from benchmarks.gates.rows import digest_of
from benchmarks.pages import Row
from meteora_registry.runtime.loaded_bundle import LoadedBundle
from meteora_registry.schemas.names import PLAIN_BASE

from .archive import ITEMS_FILE
from .evaluate import BATCH_ITEMS, Prepared, models_of
from .items import ARROW, Item
from .tasks import FOREIGN
from .ways import Way, served

Group = Literal["own", "foreign", "general", "validation"]
Asked = Literal["plain", "chat"]
FORMS: dict[Asked, str] = {"plain": "in plain text", "chat": "in the chat template"}
"""How a prompt is asked, in words for tables and figures."""

FOREIGN_PROMPTS, MAX_LETTERS = 20, 700
GENERAL = "general questions"


@dataclass(frozen=True, slots=True)
class DecisionUnit:
    """The prompts of one task in one form, and the way that decides for each of them."""

    way: Way
    recipe: str
    group: Group
    task: str
    form: Asked
    questions: tuple[str, ...]

    def facts(self) -> Row:
        """Return the facts of its row that are known before anything is decided."""
        return {
            "way": self.way.name,
            "group": self.group,
            "task": self.task,
            "form": self.form,
            "recipe_sha256": self.recipe,
            "questions_sha256": digest_of(self.questions),
        }


def decision_units(
    way: Way, recipe: str, own: Mapping[str, Sequence[Item]], folder: Path
) -> list[DecisionUnit]:
    """Return the units of a way: the own tasks' items, the foreign tasks' and the general questions.

    Args:
        way: of which one decision serves a whole prompt.
        recipe: a digest of what decides.
        own: the items by task.
        folder: with the items of BIG-bench's tasks.
    """
    groups: dict[Group, dict[str, tuple[str, ...]]] = {
        "own": {name: tuple(item.question for item in items) for name, items in own.items()},
        "foreign": {name: foreign_questions(folder / name / ITEMS_FILE) for name in FOREIGN},
        "general": {GENERAL: QUESTIONS},
    }
    return [
        DecisionUnit(way, recipe, group, name, form, questions)
        for group, tasks in groups.items()
        for name, questions in tasks.items()
        for form in FORMS
    ]


def validation_units(way: Way, recipe: str, own: Mapping[str, Sequence[Item]]) -> list[DecisionUnit]:
    """Return the units of a way that is chosen among: the own tasks' items, asked as the test items are."""
    return [
        DecisionUnit(way, recipe, "validation", name, "plain", tuple(item.question for item in items))
        for name, items in own.items()
    ]


def foreign_questions(file: Path) -> tuple[str, ...]:
    """Return a few of a task's inputs that are short enough, drawn by chance."""
    # Plain JSON: the archive that it is a copy from is held to its digest.
    examples = json.loads(file.read_bytes())["examples"]
    inputs = sorted({str(each["input"]).strip() for each in examples})
    short = [each for each in inputs if 0 < len(each) <= MAX_LETTERS]
    return tuple(random.Random(file.parent.name).sample(short, min(FOREIGN_PROMPTS, len(short))))


@torch.no_grad()
def decide_unit(prepared: Prepared, unit: DecisionUnit) -> Row:
    """Return the row of a unit: who would serve, and the confidence of each decision."""
    loaded = models_of(prepared).loaded_for(unit.way)
    prompts = [*map(partial(_prompt, loaded, form=unit.form), unit.questions)]
    decided: Counter[str] = Counter()
    confidences: list[float] = []
    for at in range(0, len(prompts), BATCH_ITEMS):
        batch = loaded.encode(prompts[at : at + BATCH_ITEMS], padding=True, add_special_tokens=False)
        with served(loaded.model, unit.way, None) as record:
            loaded.model(**batch, use_cache=False, logits_to_keep=1)
        if record is None:
            raise ValueError(f"`{unit.way.name}` does not decide")
        found = sorted(record.decisions, key=lambda each: each.sequence)
        decided.update(each.members[0] if each.members else PLAIN_BASE for each in found)
        confidences += [round(each.confidence, 4) for each in found]
    row: Row = {
        "kind": "decisions",
        "members": prepared.members,
        "element_type": native_name(),
        "settings": asdict(unit.way),
    }
    return row | unit.facts() | {"decided": dict(decided.most_common()), "confidences": confidences}


def _prompt(loaded: LoadedBundle, question: str, *, form: Asked) -> str:
    if form == "plain":
        return question + ARROW
    turns = [{"role": "user", "content": question}]
    return str(loaded.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
