"""One unit of the evaluation: a way answers the items of a task, which gives one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.gates.base import native_name, native_type
from benchmarks.gates.rows import digest_of
from benchmarks.pages import Row
from meteora_registry.files.digests import hash_file
from meteora_registry.runtime.evaluation.generation import Meter, generate_answers
from meteora_registry.runtime.evaluation.likelihood import likeliest, log_probabilities, read_prompt
from meteora_registry.runtime.evaluation.tally import RoutingTally, count_routing, sum_counts
from meteora_registry.runtime.loaded_bundle import LoadedBundle
from meteora_registry.schemas.evaluation import Metric
from meteora_registry.schemas.evaluation_run import RoutingCounts
from meteora_registry.schemas.names import PLAIN_BASE
from meteora_registry.scores import metrics
from meteora_registry.scores.metrics import Expected, judge_of

from .items import ARROW, END, Item, digest_of_items, prompts_in
from .ways import Models, Way, embed, nearest, served

BATCH_ITEMS = 8
# A right answer that continues must not be cut off to one that counts as right.
MORE_THAN_EXPECTED = 8
CENTROID_ITEMS = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """The folders that the ways need, by name.

    Attributes:
        base: the base's folder.
        base_sha256: of its weights.
        members: a digest of the members, under which the rows are kept.
        adapters: the members' folders by task, in the bundle's order.
        bundles: folders by name, the unfitted one among them.
        joint: folders of adapters that PEFT loads alone.
        data: the folder of the data that gates are fitted on.
    """

    base: Path
    base_sha256: str
    members: str
    adapters: tuple[tuple[str, Path], ...]
    bundles: tuple[tuple[str, Path], ...]
    joint: tuple[tuple[str, Path], ...]
    data: Path

    def has(self, way: Way) -> bool:
        """Return whether everything that a way needs is there."""
        if way.kind == "adapter":
            return way.folder in dict(self.joint)
        return way.kind in ("majority", "weighted") or way.folder in dict(self.bundles)

    def recipe_of(self, way: Way) -> str:
        """Return a digest of everything that scores depend on but the items.

        That is the base, the files of the way's folders, which must exist, how it is asked, and the code of
        the judges.
        """
        files = sorted(path for folder in self._folders_of(way) for path in folder.rglob("*"))
        digests = [(path.name, str(hash_file(path))) for path in files if path.is_file()]
        asked = (ARROW, END, BATCH_ITEMS, MORE_THAN_EXPECTED, CENTROID_ITEMS)
        judges = str(hash_file(Path(metrics.__file__)))
        return digest_of([asdict(way), asked, digests, self.base_sha256, native_name(), judges])

    def _folders_of(self, way: Way) -> list[Path]:
        if way.kind == "majority":
            return []
        if way.kind == "weighted":
            return [folder for _, folder in self.adapters]
        if way.kind == "adapter":
            return [dict(self.joint)[way.folder]]
        return [dict(self.bundles)[way.folder], *([self.data] if way.kind == "centroid" else [])]


@dataclass(frozen=True, slots=True)
class Unit:
    """One way on one task: its recipe, the items that are asked, and the most frequent answer in training."""

    way: Way
    recipe: str
    task: str
    metric: Metric
    items: tuple[Item, ...]
    most_frequent: str

    def facts(self) -> Row:
        """Return the facts of its row that are known before it is answered."""
        return {
            "way": self.way.name,
            "task": self.task,
            "recipe_sha256": self.recipe,
            "items_sha256": digest_of_items(self.items),
            "items": len(self.items),
            "metric": self.metric,
        }


def score_unit(prepared: Prepared, unit: Unit) -> Row:
    """Return the row of a unit; the model is kept for the next unit of this process."""
    judge = judge_of(unit.metric)
    asked = _Asked(prepared, unit)
    answers = asked.answer()
    scores = [
        judge(answer, Expected(item.targets, item.choices))
        for answer, item in zip(answers, unit.items, strict=True)
    ]
    row: Row = {
        "kind": "score",
        "members": prepared.members,
        "scores": [round(score, 4) for score in scores],
        "settings": asdict(unit.way),
    }
    return row | unit.facts() | asked.facts()


class _Asked:
    """The answers to a unit's items, and what was seen while they were given."""

    def __init__(self, prepared: Prepared, unit: Unit) -> None:
        self._unit = unit
        self._prepared = prepared
        self._decided: Counter[str] = Counter()
        self._meter: Meter | None = None
        self._prompt_tokens = self._new_tokens = 0
        self._names: tuple[str, ...] = ()
        self._counts: list[RoutingCounts] = []

    def answer(self) -> list[str]:
        """Return an answer for each item."""
        unit = self._unit
        if unit.way.kind == "majority":
            return [unit.most_frequent] * len(unit.items)
        torch.manual_seed(0)
        loaded = models_of(self._prepared).loaded_for(unit.way)
        self._names = loaded.config.names
        self._meter = Meter(loaded.model.device)
        if unit.way.kind == "likelihood":
            return [self._choose(loaded, item) for item in unit.items]
        members = self._members(loaded)
        answers: dict[int, str] = {}
        for places, member in self._batches(loaded, members):
            answers |= zip(places, self._write(loaded, places, member), strict=True)
        return [answers[place] for place in range(len(unit.items))]

    def facts(self) -> Row:
        """Return routing and cost, for the row."""
        facts: Row = {}
        if self._decided:
            facts["decided"] = dict(self._decided.most_common())
        if self._counts:
            tally = RoutingTally(self._names)
            tally.add(self._unit.task, sum_counts(self._counts))
            found = tally.result()
            facts["tokens_rightly"] = found.accuracy
            facts["shares"] = list(found.shares[self._unit.task])
        if self._meter is not None:
            facts |= {
                "seconds": round(self._meter.seconds, 3),
                "prompt_tokens": self._prompt_tokens,
                "new_tokens": self._new_tokens,
                "peak_bytes": self._meter.peak_memory_bytes,
                "element_type": native_name(),
            }
        return facts

    def _members(self, loaded: LoadedBundle) -> list[str | None]:
        """Return the member that is to answer each item, where the way names one."""
        unit = self._unit
        if unit.way.kind == "member":
            return [unit.task] * len(unit.items)
        if unit.way.kind != "centroid":
            return [None] * len(unit.items)
        names, centres = _centroids(self._prepared, loaded)
        with _meter_of(self._meter).running():
            prompts = [item.prompt for item in unit.items]
            found = torch.cat([embed(loaded, prompts[at : at + BATCH_ITEMS]) for at in _steps(prompts)])
            chosen = [names[place] for place in nearest(found, centres)]
        self._decided.update(chosen)
        return list(chosen)

    def _batches(
        self, loaded: LoadedBundle, members: Sequence[str | None]
    ) -> Iterator[tuple[list[int], str | None]]:
        """Yield places of items that one member is to answer together, of like lengths."""
        lengths = [len(item.prompt) for item in self._unit.items]
        for member in dict.fromkeys(members):
            own = sorted((p for p, each in enumerate(members) if each == member), key=lambda p: lengths[p])
            for at in _steps(own):
                yield own[at : at + BATCH_ITEMS], member

    def _write(self, loaded: LoadedBundle, places: Sequence[int], member: str | None) -> list[str]:
        unit, meter = self._unit, _meter_of(self._meter)
        items = [unit.items[place] for place in places]
        longest = max(
            len(loaded.tokenizer(f" {target}", add_special_tokens=False).input_ids)
            for item in unit.items
            for target in item.targets
        )
        with served(loaded.model, unit.way, member) as record:
            answers = generate_answers(
                loaded,
                [item.prompt for item in items],
                max_new_tokens=longest + MORE_THAN_EXPECTED,
                stop=END,
                meter=meter,
            )
        self._prompt_tokens += int(answers.read.prompt.sum())
        self._new_tokens += answers.new_tokens
        if record is not None:
            self._counts.append(count_routing(self._names, unit.task, record.modules, answers.read))
            # One decision for a sequence; a scope that decides for segments has several, and no such count.
            if unit.way.scope in ("prompt", "prompt+token"):
                self._decided.update(
                    each.members[0] if each.members else PLAIN_BASE for each in record.decisions
                )
        return answers.texts

    def _choose(self, loaded: LoadedBundle, item: Item) -> str:
        meter = _meter_of(self._meter)
        choices = [f" {choice}" for choice in item.choices]
        with meter.running(), served(loaded.model, self._unit.way, None):
            read = read_prompt(loaded, item.prompt)
            found = log_probabilities(loaded, read, choices)
        self._prompt_tokens += int(read.mask.sum())
        return likeliest(choices, found, "likelihood").strip()


def _meter_of(meter: Meter | None) -> Meter:
    if meter is None:
        raise ValueError("a way without a model has no cost")
    return meter


def _steps(items: Sequence[object]) -> range:
    return range(0, len(items), BATCH_ITEMS)


@lru_cache(maxsize=1)
def models_of(prepared: Prepared) -> Models:
    """Return the models that this process keeps, on a base that is loaded once."""
    base = AutoModelForCausalLM.from_pretrained(prepared.base, dtype=native_type()).eval()
    return Models(base, dict(prepared.bundles), dict(prepared.adapters), dict(prepared.joint))


_CENTROIDS: dict[Path, tuple[tuple[str, ...], torch.Tensor]] = {}


def _centroids(prepared: Prepared, loaded: LoadedBundle) -> tuple[tuple[str, ...], torch.Tensor]:
    """Return the tasks, and the centre of the embeddings of each one's prompts, ``[L, h]``."""
    if prepared.data not in _CENTROIDS:
        names = tuple(name for name, _ in prepared.adapters)
        centres = []
        for name in names:
            prompts = prompts_in(prepared.data / f"{name}.jsonl")[:CENTROID_ITEMS]
            found = [embed(loaded, prompts[at : at + BATCH_ITEMS]) for at in _steps(prompts)]
            centres.append(torch.cat(found).mean(dim=0))
        _CENTROIDS[prepared.data] = names, torch.stack(centres)
    return _CENTROIDS[prepared.data]
