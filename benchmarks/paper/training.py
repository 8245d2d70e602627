"""The adapters, trained by PEFT alone: one for each task, and two that learn all tasks at once.

LoRA-F learns all training items in the shares that they have, LoRA-B as many of one task as of another, as
the paper's adapters of these names. A sample is a prompt and its first right answer, and the loss is on
the answer. How long an adapter is trained is stated in tokens, so that every machine takes the same steps;
training ends earlier once nearly all answers of many steps were right. An adapter's folder appears whole or
not at all, so what was killed is trained again.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from benchmarks.gates.base import load_tokenizer, native_name, native_type
from benchmarks.gates.training import (
    ATTENTION,
    FEED_FORWARD,
    IGNORED,
    Sample,
    adapter_on,
    learn_from,
    rate_at,
)
from meteora_registry.files.staging import staged_folder

from .composites import COMPOSITE_TASKS, FORMS, RESTATED_WORDS, Composite, Form, Piece, shorter_half
from .items import ARROW, END, Item, digest_of_items
from .tasks import TASKS

LORA_F, LORA_B = "lora-f", "lora-b"
MAX_SAMPLE_TOKENS = 512
MAX_STEP_SAMPLES, MAX_STEP_TOKENS = 8, 720
PACKED_ROWS = 3
ENOUGH_RIGHT, ENOUGH_STEPS, LEAST_STEPS = 0.985, 40, 60
LOG = "training.json"


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """One adapter: its shape, and the number of tokens that it is trained on."""

    name: str
    rank: int
    targets: tuple[str, ...]
    rslora: bool = False
    layers: tuple[int, int] = (10, 30)
    tokens: int = 60_000
    learning_rate: float = 2e-3
    seed: int = 0

    @property
    def alpha(self) -> int:
        """Twice the rank; with rsLoRA what gives rank 8 the same scaling."""
        return 6 if self.rslora else 2 * self.rank


# Shapes differ on purpose, because the adapters that people have do; they are dealt in turn.
_SHAPES: tuple[tuple[int, tuple[str, ...], bool], ...] = (
    (8, ATTENTION, False),
    (16, ("q_proj", "v_proj"), False),
    (4, (*ATTENTION, *FEED_FORWARD), False),
    (8, ("q_proj", "v_proj", *FEED_FORWARD), True),
    (16, ATTENTION, False),
    (8, (*ATTENTION, *FEED_FORWARD), False),
)
RECIPES = {
    task.name: AdapterRecipe(task.name, rank, targets, rslora)
    for task, (rank, targets, rslora) in zip(TASKS, _SHAPES * (len(TASKS) // len(_SHAPES) + 1), strict=False)
}
# Of all tasks at once, with a larger rank and more tokens than any one member has.
JOINT_RECIPES = {
    name: AdapterRecipe(name, 16, (*ATTENTION, *FEED_FORWARD), tokens=240_000) for name in (LORA_F, LORA_B)
}


@dataclass(frozen=True, slots=True)
class CompositeRecipe(AdapterRecipe):
    """An adapter that learns its task alone and among others, so that it can answer in a composite.

    Attributes:
        isolated: the part of the samples that are one item alone.
        switched_off: the part of the others whose leading stretch the adapter does not serve: in a routed
            model the text before an answer was read by others.
        most: questions of a sample.
        forms: of the composites.
        restated_words: with which a restated answer begins.
    """

    isolated: float = 0.5
    switched_off: float = 0.5
    most: int = 3
    forms: tuple[Form, ...] = FORMS
    restated_words: int = RESTATED_WORDS


COMPOSITE_RECIPES = {
    name: CompositeRecipe(name, RECIPES[name].rank, RECIPES[name].targets, RECIPES[name].rslora)
    for name in COMPOSITE_TASKS
}


def adapter_folder(
    recipe: AdapterRecipe, items: Mapping[str, Sequence[Item]], base_sha256: str, cache: Path
) -> Path:
    """Return the folder of the adapter that this recipe gives on these items and this base."""
    bounds = (ARROW, END, MAX_SAMPLE_TOKENS, MAX_STEP_SAMPLES, MAX_STEP_TOKENS, PACKED_ROWS)
    ends = (ENOUGH_RIGHT, ENOUGH_STEPS, LEAST_STEPS)
    digests = {name: digest_of_items(own) for name, own in items.items()}
    made_from = [asdict(recipe), recipe.alpha, digests, base_sha256, str(native_type()), bounds, ends]
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    return cache / "adapters" / f"{recipe.name}-{digest[:16]}"


def train(recipe: AdapterRecipe, items: Mapping[str, Sequence[Item]], base: Path, folder: Path) -> None:
    """Train an adapter into a new folder.

    Args:
        recipe: its shape and length; ``LORA_F`` draws every item with one probability, all others every task.
        items: for training, by task; of one task, or of all for the joint adapters and for composites.
        base: its folder.
        folder: where the adapter is to be; ``adapter_folder`` of the same.
    """
    tokenizer = load_tokenizer(base)
    if isinstance(recipe, CompositeRecipe):
        samples = draw_composites(recipe, items, tokenizer)
    else:
        samples = draw(items, tokenizer, recipe.seed, balanced=recipe.name != LORA_F)
    batches = list(batches_of(samples, recipe.tokens))
    with staged_folder(folder) as staging:
        _train_into(recipe, batches, base, staging)


def _train_into(recipe: AdapterRecipe, batches: Sequence[Sequence[Sample]], base: Path, folder: Path) -> None:
    torch.manual_seed(recipe.seed)
    model = adapter_on(base, recipe, native_type())
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], recipe.learning_rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, len(batches)))
    losses: list[float] = []
    right: list[float] = []
    tokens, began = 0, time.process_time()
    for batch in batches:
        loss, part = learn_from(model, batch, PACKED_ROWS)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss, 5))
        right.append(round(part, 3))
        tokens += sum(len(sample.ids) for sample in batch)
        recent = right[-ENOUGH_STEPS:]
        if len(right) % 20 == 0:
            print(
                f"{recipe.name}: step {len(right)} of {len(batches)}, loss {losses[-1]:.3f}, "
                f"right {sum(recent) / len(recent):.2f}, {time.process_time() - began:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        if len(right) >= LEAST_STEPS and sum(recent) / len(recent) >= ENOUGH_RIGHT:
            break
    # Else PEFT asks the Hub whether the base is there.
    model.save_pretrained(folder, save_embedding_layers=False)
    log: dict[str, Any] = {
        "steps": len(right),
        "element_type": native_name(),
        "tokens": tokens,
        "processor_seconds": round(time.process_time() - began, 1),
        "losses": losses,
        "right": right,
    }
    (folder / LOG).write_text(json.dumps(log) + "\n", encoding="utf-8")


def draw(
    items: Mapping[str, Sequence[Item]], tokenizer: PreTrainedTokenizerBase, seed: int, *, balanced: bool
) -> Iterator[Sample]:
    """Yield samples without end: every item once in a new order, then all again.

    ``balanced`` takes the tasks in turn, however many items each has; else the items of all are one pool.

    Raises:
        ValueError: no item is short enough.
    """
    pools = (
        [list(own) for own in items.values()] if balanced else [[i for own in items.values() for i in own]]
    )
    sources = [_shuffled(pool, random.Random(f"{seed}:{place}")) for place, pool in enumerate(pools)]
    # Between a pool's one short item and the same in its next order can be nearly all others twice.
    skipped, enough = 0, 2 * len(pools) * max(map(len, pools))
    while True:
        for source in sources:
            sample = sample_of(next(source), tokenizer)
            if len(sample.ids) <= MAX_SAMPLE_TOKENS:
                skipped = 0
                yield sample
                continue
            skipped += 1
            if skipped >= enough:
                raise ValueError(f"no item of {', '.join(items)} has at most {MAX_SAMPLE_TOKENS} tokens")


def _shuffled(pool: Sequence[Item], numbers: random.Random) -> Iterator[Item]:
    while True:
        yield from numbers.sample(pool, len(pool))


def sample_of(item: Item, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Return the tokens of an item, its answer to be learned."""
    prompt = tokenizer(item.prompt, add_special_tokens=False).input_ids
    answer = tokenizer(item.response, add_special_tokens=False).input_ids
    return Sample([*prompt, *answer], [IGNORED] * len(prompt) + answer, 0)


def draw_composites(
    recipe: CompositeRecipe, items: Mapping[str, Sequence[Item]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[Sample]:
    """Yield samples of a task without end, alone and among items of the other tasks.

    Raises:
        ValueError: the items are so long that hardly any composite is short enough.
    """
    numbers = random.Random(f"{recipe.seed}:{recipe.name}:composites")
    pools = {name: shorter_half(own) for name, own in items.items()}
    others = [name for name in pools if name != recipe.name]
    while True:
        for _ in range(1000):
            if numbers.random() < recipe.isolated:
                sample = sample_of(numbers.choice(items[recipe.name]), tokenizer)
            else:
                among = numbers.sample(others, numbers.randint(1, min(recipe.most - 1, len(others))))
                names = numbers.sample([recipe.name, *among], len(among) + 1)
                chosen = tuple(numbers.choice(pools[name]) for name in names)
                composite = Composite(chosen, numbers.choice(recipe.forms))
                sample = composite_sample(composite, recipe, numbers, tokenizer)
            if len(sample.ids) <= MAX_SAMPLE_TOKENS:
                break
        else:
            raise ValueError(f"no composite with `{recipe.name}` has at most {MAX_SAMPLE_TOKENS} tokens")
        yield sample


def composite_sample(
    composite: Composite,
    recipe: CompositeRecipe,
    numbers: random.Random,
    tokenizer: PreTrainedTokenizerBase,
) -> Sample:
    """Return the text up to the own answer and the number behind it.

    The own answer is learned, and the number of every line, because every member has to go on to the next.
    """
    (own,) = (place for place, item in enumerate(composite.items) if item.task == recipe.name)
    ids: list[int] = []
    labels: list[int] = []
    first = 0

    def add(pieces: Sequence[Piece], *, learned: bool) -> None:
        # As one text: a line's end and an empty line behind it can be one token.
        tokens = tokenizer("".join(piece.text for piece in pieces), add_special_tokens=False).input_ids
        ids.extend(tokens)
        labels.extend(tokens if learned else [IGNORED] * len(tokens))

    add(composite.begin(), learned=False)
    is_numbered = composite.form != "turns"
    for place in range(own + 1):
        if place:
            add(composite.head(place), learned=is_numbered)
        first = len(ids)
        line = composite.line(place, composite.items[place].targets[0])
        add([Piece(line, place)], learned=place == own)
    if is_numbered and own + 1 < len(composite.items):
        add(composite.head(own + 1), learned=True)
    on = numbers.randrange(first) if numbers.random() < recipe.switched_off else 0
    return Sample(ids, labels, on)


def batches_of(samples: Iterator[Sample], tokens: int) -> Iterator[list[Sample]]:
    """Yield the samples of each step until all steps together have so many tokens."""
    batch: list[Sample] = []
    size = total = 0
    for sample in samples:
        if batch and (len(batch) == MAX_STEP_SAMPLES or size + len(sample.ids) > MAX_STEP_TOKENS):
            yield batch
            total += size
            if total >= tokens:
                return
            batch, size = [], 0
        batch.append(sample)
        size += len(sample.ids)
