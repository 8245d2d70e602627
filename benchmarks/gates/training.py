"""The adapters, trained by PEFT on the base: one task each, isolated and among other questions.

A sample is one to five questions of which at least one is the adapter's own. The loss is on its own
answers, and on the numbers and questions that any line of answers repeats, which is a skill that all
adapters share; other tasks' answers are in the text and are not learned. A part of the samples sees the
delta switched off on a leading stretch of the text, so that an adapter also knows keys and values that are
not its own: in a routed model the text before an answer was read by others.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from .base import load_tokenizer
from .prompts import Piece, given_pieces, pieces_of
from .tasks import TASKS, Item

IGNORED = -100
BASE_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


class AdapterShape(Protocol):
    """The part of a recipe that PEFT's config is made from."""

    @property
    def rank(self) -> int:
        """The rank of every module."""

    @property
    def alpha(self) -> int:
        """The numerator of the scaling."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the target modules."""

    @property
    def rslora(self) -> bool:
        """Whether the scaling is divided by the root of the rank."""

    @property
    def layers(self) -> tuple[int, int]:
        """The first layer with an adapter, and the one behind the last."""


@dataclass(frozen=True, slots=True)
class AdapterRecipe:
    """One adapter: its shape and how it is trained."""

    task: str
    rank: int
    targets: tuple[str, ...]
    rslora: bool = False
    layers: tuple[int, int] = (12, 30)
    steps: int = 70
    samples_per_step: int = 12
    rows: int = 3
    learning_rate: float = 2e-3
    isolated: float = 0.75
    own: float = 0.5
    sizes: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 5)
    switched_off: float = 0.5
    items: int = 3000
    enough: float = 0.985
    seed: int = 0

    @property
    def alpha(self) -> int:
        """Twice the rank; with rsLoRA what gives rank 8 the same scaling."""
        return 6 if self.rslora else 2 * self.rank


RECIPES = (
    AdapterRecipe("clock", 8, (*ATTENTION, "down_proj"), steps=150),
    AdapterRecipe("day-date", 8, ATTENTION),
    AdapterRecipe("month-date", 16, (*ATTENTION, *FEED_FORWARD)),
    AdapterRecipe("pair", 4, ("q_proj", "v_proj")),
    AdapterRecipe("name", 8, ("q_proj", "v_proj", "up_proj", "down_proj"), rslora=True),
    AdapterRecipe("list", 16, ATTENTION),
    AdapterRecipe("number", 8, ("q_proj", "v_proj", *FEED_FORWARD)),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """Token ids with the own answers as labels, and from where on the delta is switched on."""

    ids: list[int]
    labels: list[int]
    on: int


def adapter_of(recipe: AdapterRecipe, base: Path, cache: Path) -> Path:
    """Return the folder of the adapter that this recipe gives on these samples, trained on the first call."""
    samples = samples_of(recipe, load_tokenizer(base))
    folder = cache / "adapters" / f"{recipe.task}-{digest_of(recipe, samples)[:16]}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            train(recipe, samples, base, Path(scratch) / "adapter")
            shutil.move(Path(scratch) / "adapter", folder)
    return folder


def digest_of(recipe: AdapterRecipe, samples: Sequence[Sample]) -> str:
    """Return the sha256 of everything that training reads but the base: settings and samples in order."""
    found = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode())
    for sample in samples:
        found.update(json.dumps([sample.ids, sample.labels, sample.on]).encode())
    return found.hexdigest()


def train(recipe: AdapterRecipe, samples: Sequence[Sample], base: Path, folder: Path) -> None:
    """Train one adapter and save it as PEFT does, with a log of the steps beside it.

    Training ends early once all labels of nearly all samples of twenty steps were right.
    """
    torch.manual_seed(recipe.seed)
    model = adapter_on(base, recipe)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], recipe.learning_rate, weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, recipe.steps))
    log: list[dict[str, float]] = []
    began = time.process_time()
    for step in range(recipe.steps):
        batch = samples[step * recipe.samples_per_step : (step + 1) * recipe.samples_per_step]
        loss, right = learn_from(model, batch, recipe.rows)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        log.append({"loss": round(loss, 5), "right": round(right, 3)})
        if step % 10 == 9:
            _report(recipe, log, time.process_time() - began)
        if step >= 40 and sum(entry["right"] for entry in log[-20:]) / 20 >= recipe.enough:
            break
    # Else PEFT asks the Hub whether the base is there.
    model.save_pretrained(folder, save_embedding_layers=False)
    written = {"steps": len(log), "processor_seconds": time.process_time() - began, "log": log}
    (folder / "training.json").write_text(json.dumps(written) + "\n", encoding="utf-8")


def rate_at(step: int, steps: int) -> float:
    """Return the part of the learning rate in force: a short rise, then down to a twentieth."""
    return min(1.0, (step + 1) / 10) * max(0.05, 1 - step / steps)


def _report(recipe: AdapterRecipe, log: Sequence[dict[str, float]], seconds: float) -> None:
    loss, right = (sum(entry[key] for entry in log[-10:]) / 10 for key in ("loss", "right"))
    print(
        f"{recipe.task} step {len(log)}: loss {loss:.4f}, right {right:.3f}, processor {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )


def samples_of(recipe: AdapterRecipe, tokenizer: PreTrainedTokenizerBase) -> list[Sample]:
    """Return all samples of the training, in order."""
    numbers = random.Random(f"{recipe.seed}:{recipe.task}:training")
    pools = {
        task.name: task.items("train", pool_size(task.name, recipe.items), recipe.seed) for task in TASKS
    }
    count = recipe.steps * recipe.samples_per_step
    return [draw(recipe, pools, numbers, tokenizer) for _ in range(count)]


def pool_size(task: str, wanted: int) -> int:
    """Return how many different items a task can give: few pairs of key and value exist."""
    return min(wanted, 1200) if task in ("pair", "name") else wanted


def adapter_on(base: Path, recipe: AdapterShape, dtype: torch.dtype = torch.bfloat16) -> PeftModel:
    """Return the base in an element type with a fresh float32 adapter."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, attn_implementation="eager")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.targets),
        layers_to_transform=list(range(*recipe.layers)),
        use_rslora=recipe.rslora,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = BASE_NAME
    return adapted


def draw(
    recipe: AdapterRecipe,
    pools: dict[str, list[Item]],
    numbers: random.Random,
    tokenizer: PreTrainedTokenizerBase,
) -> Sample:
    """Return one sample: isolated, or the own question among one to four others."""
    others = [name for name in pools if name != recipe.task]
    size = 1 if numbers.random() < recipe.isolated else numbers.choice(recipe.sizes)
    tasks = [recipe.task if numbers.random() < recipe.own else numbers.choice(others) for _ in range(size)]
    tasks[numbers.randrange(size)] = recipe.task
    items = [numbers.choice(pools[task]) for task in tasks]
    return sample_of(recipe, items, numbers, tokenizer)


def sample_of(
    recipe: AdapterRecipe,
    items: Sequence[Item],
    numbers: random.Random,
    tokenizer: PreTrainedTokenizerBase,
) -> Sample:
    """Return the whole text up to the last own answer's end, with what is to be learned as labels."""
    ids: list[int] = []
    labels: list[int] = []
    pieces = pieces_of(items)
    given = given_pieces(items)
    last = max(i for i, piece in enumerate(pieces) if piece.kind == "answer" and _own(recipe, items, piece))
    first_answer = 0
    for index, piece in enumerate(pieces[: last + 1]):
        tokens = tokenizer(piece.text, add_special_tokens=False).input_ids
        own_answer = piece.kind == "answer" and _own(recipe, items, piece)
        learned = index >= given and (own_answer or piece.kind in ("number", "again"))
        if own_answer and not first_answer:
            first_answer = len(ids)
        ids += tokens
        labels += tokens if learned else [IGNORED] * len(tokens)
    on = numbers.randrange(first_answer) if numbers.random() < recipe.switched_off else 0
    return Sample(ids, labels, on)


def _own(recipe: AdapterRecipe, items: Sequence[Item], piece: Piece) -> bool:
    return items[piece.place].task == recipe.task


def learn_from(model: PeftModel, samples: Sequence[Sample], rows: int) -> tuple[float, float]:
    """Add the gradient of the mean loss; return it, and the part of samples with every label right."""
    packed = pack(samples, rows)
    with switched_on(model, packed.on):
        inner = model.base_model.model.model
        hidden = inner(
            input_ids=packed.ids,
            position_ids=packed.positions,
            attention_mask=packed.visible(inner.dtype),
            use_cache=False,
        ).last_hidden_state
    row, column = torch.nonzero(packed.labels != IGNORED, as_tuple=True)
    logits = model.base_model.model.lm_head(hidden[row, column - 1]).float()
    labels = packed.labels[row, column]
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    missed = packed.sample[row, column][logits.argmax(-1) != labels]
    return loss.item(), 1 - len(missed.unique()) / len(samples)


@dataclass(frozen=True, slots=True)
class Packed:
    """Samples behind one another in a few rows [B, T]; each sees itself alone, and counts from 0."""

    ids: Tensor
    labels: Tensor
    positions: Tensor
    sample: Tensor
    on: Tensor

    def visible(self, dtype: torch.dtype) -> Tensor:
        """Return what is added to the attention's logits [B, 1, T, T]."""
        length = self.ids.shape[1]
        same = self.sample.unsqueeze(1) == self.sample.unsqueeze(2)
        seen = same & torch.ones(length, length, dtype=torch.bool).tril()
        hidden = torch.finfo(dtype).min
        return torch.where(seen, 0.0, hidden).to(dtype).unsqueeze(1)


def pack(samples: Sequence[Sample], rows: int) -> Packed:
    """Return the samples dealt to rows of nearly equal length, the longest first."""
    dealt: list[list[int]] = [[] for _ in range(rows)]
    lengths = [0] * rows
    for place in sorted(range(len(samples)), key=lambda each: -len(samples[each].ids)):
        row = lengths.index(min(lengths))
        dealt[row].append(place)
        lengths[row] += len(samples[place].ids)
    shape = (rows, max(lengths))
    packed = Packed(
        ids=torch.zeros(shape, dtype=torch.int64),
        labels=torch.full(shape, IGNORED),
        positions=torch.zeros(shape, dtype=torch.int64),
        sample=torch.full(shape, -1),
        on=torch.zeros(*shape, 1),
    )
    for row, places in enumerate(dealt):
        start = 0
        for place in places:
            sample = samples[place]
            end = start + len(sample.ids)
            packed.ids[row, start:end] = torch.tensor(sample.ids)
            packed.labels[row, start:end] = torch.tensor(sample.labels)
            packed.positions[row, start:end] = torch.arange(end - start)
            packed.sample[row, start:end] = place
            packed.on[row, start + sample.on : end] = 1.0
            start = end
    return packed


@contextmanager
def switched_on(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Restrict the adapter's delta, within the block, to where ``mask`` [B, T, 1] is 1."""

    def apply(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * mask.to(output.dtype)

    hooks = [
        module.register_forward_hook(apply) for name, module in model.named_modules() if ".lora_A." in name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
