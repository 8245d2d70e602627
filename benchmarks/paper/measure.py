"""The paper's tasks on a real base: ``python -m benchmarks.run paper [STAGE ...]``.

Stages: `train` fetches the base and the items and trains the adapters, `fit` fuses them and fits gates,
`validation` lets the bundles that are chosen among decide about the validation items, `test` asks every way
and writes a row for each task, `decisions` lets the gates decide about own prompts and those of no member,
`changes` removes each member, adds it again and replaces it, and kills a training that goes on, `xlora` takes
a few steps of PEFT's X-LoRA, `composites` trains other adapters of eight tasks and asks several tasks in one
prompt, `page` writes the tables of docs/reproduction.md from the rows. What is slow is kept in the cache by a
digest of what it was made from, and rows are appended as they come, so a run that was killed goes on where it
stopped. A test row is written again only if something that it depends on has changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

import platformdirs

from benchmarks.gates.base import prepare_base
from benchmarks.gates.bundles import fuse_adapters
from benchmarks.gates.measure import quiet
from benchmarks.gates.rows import digest_of
from benchmarks.machine import description, version_of
from benchmarks.pages import Row
from meteora_registry.files.digests import hash_file
from meteora_registry.files.staging import staged_folder
from meteora_registry.registry.home import Home
from meteora_registry.runtime.training import TrainingOptions
from meteora_registry.schemas.gate_choices import Scope

from .archive import prepare_items
from .changes import CHANGED, DECIDED_ITEMS, ChangeUnit, change_unit, keep_statistics, parts_row
from .composite_answers import COMPOSITE_WAYS, CompositeUnit, composite_unit
from .composites import COMPOSITE_TASKS, FORMS, PROMPTS, composites, shorter_half
from .decisions import decide_unit, decision_units, validation_units
from .evaluate import Prepared, Unit, score_unit
from .fits import COMPOSITE_FITS, FIT_ITEMS, Fit, cost_file, fit_folder, fits_for, make_fit
from .items import Item, digest_of_items, fit_lines, read_items
from .killed import KILLED_AT, OPTIONS, Folders, killed_row
from .pool import run_units
from .rows import RowsFile, of_kind
from .summary import last_decisions, scores_of, summaries
from .tables import ROWS, write_page
from .tasks import PaperTask, chosen_tasks
from .training import (
    COMPOSITE_RECIPES,
    JOINT_RECIPES,
    LOG,
    RECIPES,
    AdapterRecipe,
    CompositeRecipe,
    adapter_folder,
    train,
)
from .ways import CANDIDATES, PROMPT, UNFITTED, WAYS, Way
from .xlora import xlora_row

STAGES = ("train", "fit", "validation", "test", "decisions", "changes", "xlora", "composites", "page")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The extent of a measurement.

    Attributes:
        test_items: asked of each task.
        processes: of one thread each.
    """

    test_items: int = 32
    processes: int = 2


class Measurement:
    """The base, the tasks, what was made of them in the cache, and the file of rows."""

    def __init__(
        self,
        base: Path,
        items: Path,
        tasks: Sequence[PaperTask],
        cache: Path,
        rows: Path,
        *,
        sizes: Sizes | None = None,
        recipes: Sequence[AdapterRecipe] | None = None,
        fits: Sequence[Fit] | None = None,
    ) -> None:
        self._base = base
        self._folder = items
        self._cache = cache
        self._sizes = sizes or Sizes()
        self.rows = RowsFile(rows)
        self.tasks = {task.name: task for task in tasks}
        self._items = {task.name: read_items(task, items) for task in tasks}
        stated = recipes or [*(RECIPES[name] for name in self.tasks), *JOINT_RECIPES.values()]
        self._recipes = {recipe.name: recipe for recipe in stated}
        self._base_sha256 = str(hash_file(base / "model.safetensors"))
        self._folders = {
            name: adapter_folder(recipe, self._learned_by(recipe), self._base_sha256, cache)
            for name, recipe in self._recipes.items()
        }
        self.members = digest_of([self._folders[name].name for name in self.tasks])[:12]
        self._fit_lines = {name: fit_lines(own["train"][:FIT_ITEMS]) for name, own in self._items.items()}
        self._bundles = cache / "bundles" / self.members
        self._data = self._bundles / f"data-{digest_of(self._fit_lines)[:12]}"
        wanted = fits_for(len(tasks)) if fits is None else fits
        self._fits = {fit: fit_folder(fit, self._fit_lines, self._bundles) for fit in wanted}

    def _learned_by(self, recipe: AdapterRecipe) -> dict[str, list[Item]]:
        is_alone = recipe.name in self.tasks and not isinstance(recipe, CompositeRecipe)
        names = [recipe.name] if is_alone else list(self.tasks)
        return {each: self._items[each]["train"] for each in names}

    def train(self) -> None:
        """Train the adapters that are not there, and write a row for each that has none."""
        missing = [name for name, folder in self._folders.items() if not folder.exists()]
        work = partial(train_unit, self._base)
        units = [
            (self._recipes[name], self._learned_by(self._recipes[name]), self._folders[name])
            for name in missing
        ]
        for (recipe, _, _), _ in run_units(work, units, self._sizes.processes):
            self._describe(recipe.name)
        for name in self._folders:
            self._describe(name)

    def _describe(self, name: str) -> None:
        folder, recipe = self._folders[name], self._recipes[name]
        sha256 = str(hash_file(folder / "adapter_model.safetensors"))
        if of_kind(self.rows.read(), "adapter", members=self.members, name=name, weights_sha256=sha256):
            return
        log = json.loads((folder / LOG).read_text(encoding="utf-8"))
        learned = self._learned_by(recipe)
        self._write(
            {
                "kind": "adapter",
                "name": name,
                "recipe": asdict(recipe),
                "items": {task: len(own) for task, own in learned.items()},
                "items_sha256": {task: digest_of_items(own) for task, own in learned.items()},
                "weights_sha256": sha256,
                "element_type": log["element_type"],
                "steps": log["steps"],
                "tokens": log["tokens"],
                "processor_seconds": log["processor_seconds"],
                "right_at_last": round(sum(log["right"][-20:]) / len(log["right"][-20:]), 3),
            }
        )

    def fit(self) -> None:
        """Fuse the adapters and fit the gates of every bundle, as a user does."""
        home = Home(self._cache / "home")
        home.folder.mkdir(parents=True, exist_ok=True)
        adapters = {name: self._folders[name] for name in self.tasks}
        self._bundles.mkdir(parents=True, exist_ok=True)
        for top_k in sorted({1, *(fit.top_k for fit in self._fits)}):
            fuse_adapters(adapters, self._base, home, self._fused(top_k), top_k=top_k)
        self._write_fit_data()
        units = [
            (fit, self._fused(fit.top_k), folder)
            for fit, folder in self._fits.items()
            if not cost_file(folder).exists()
        ]
        work = partial(fit_unit, self._base, self._data, home)
        for (fit, *_), _ in run_units(work, units, self._sizes.processes):
            self._describe_fit(fit)
        for fit in self._fits:
            self._describe_fit(fit)

    def _describe_fit(self, fit: Fit) -> None:
        folder = self._fits[fit]
        if of_kind(self.rows.read(), "fit", members=self.members, folder=folder.name):
            return
        self._write(
            {
                "kind": "fit",
                "bundle": fit.name,
                "folder": folder.name,
                "scope": fit.scope,
                "adapters": len(self.tasks),
                "training": fit.settings,
                **json.loads(cost_file(folder).read_text(encoding="utf-8")),
            }
        )

    def _fused(self, top_k: int) -> Path:
        return self._bundles / f"{UNFITTED}-top-{top_k}"

    def _write_fit_data(self) -> None:
        if self._data.exists():
            return
        with staged_folder(self._data) as staging:
            for name, lines in self._fit_lines.items():
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (staging / f"{name}.jsonl").write_text(text, encoding="utf-8")

    def choose(self) -> None:
        """Write a row for each candidate and task: what it decides about all validation items."""
        prepared = self._prepared()
        own = {name: items["validation"] for name, items in self._items.items()}
        known = self.rows.read()
        units = [
            unit
            for way in CANDIDATES
            if prepared.has(way)
            for unit in validation_units(way, prepared.recipe_of(way), own)
            if not of_kind(known, "choice", members=self.members, **unit.facts())
        ]
        for unit, row in run_units(partial(decide_unit, prepared), units, self._sizes.processes):
            self._write(row | {"kind": "choice"})
            say(f"choices, {unit.way.name}, {unit.task}: {row['decided']}")

    def ask(self, ways: Sequence[Way] = WAYS) -> None:
        """Write a row for each way and task on the test items, unless there is one of this recipe and items.

        Ways whose bundle or adapter is missing are left out, and named on standard error.
        """
        prepared = self._prepared()
        for way in ways:
            if not prepared.has(way):
                say(f"{way.name}: left out, because `{way.folder}` was not made")
        asked = [
            row for tasks in scores_of(self.rows.read(), self.members).values() for row in tasks.values()
        ]
        units = [
            unit
            for unit in self._units([way for way in ways if prepared.has(way)], prepared)
            if not of_kind(asked, "score", **unit.facts())
        ]
        for unit, row in run_units(partial(score_unit, prepared), units, self._sizes.processes):
            self._write(row)
            mean = 100 * sum(row["scores"]) / len(row["scores"])
            say(f"{unit.way.name}, {unit.task}: {mean:.1f}, {row.get('seconds', 0)} s")
        for row in summaries(self.rows.read(), self.members):
            self._write(row)

    def decide(self, way: Way = PROMPT) -> None:
        """Write a row for each group of prompts and each form about which this way has not decided yet."""
        prepared = self._prepared()
        own = {name: items["test"][: self._sizes.test_items] for name, items in self._items.items()}
        known = last_decisions(self.rows.read(), self.members)
        units = [
            unit
            for unit in decision_units(way, prepared.recipe_of(way), own, self._folder)
            if not of_kind(known, "decisions", **unit.facts())
        ]
        for unit, row in run_units(partial(decide_unit, prepared), units, self._sizes.processes):
            self._write(row)
            say(f"decisions, {unit.way.name}, {unit.task}, {unit.form}: {len(row['confidences'])}")

    def change(self) -> None:
        """Write a row for each member that goes, comes again and is replaced, in each scope that changes."""
        bundles = {fit.name: folder for fit, folder in self._fits.items() if fit.name in CHANGED}
        known = self.rows.read()
        units = [
            unit
            for scope in CHANGED
            if scope in bundles and bundles[scope].exists()
            for unit in self._change_units(scope, bundles[scope])
            if not of_kind(known, "change", members=self.members, **unit.facts())
        ]
        for statistics, scope in {unit.statistics: unit.scope for unit in units}.items():
            keep_statistics(self._fused(1), self._base, self._data, scope, statistics)
            if not of_kind(known, "parts", members=self.members, scope=scope):
                self._write(parts_row(self._fused(1), self._base, statistics, bundles[scope], scope))
        for unit, row in run_units(change_unit, units, self._sizes.processes):
            self._write(row)
            say(f"changes, {unit.scope}, {unit.member}: {row['seconds']}")

    def kill_training(self, options: TrainingOptions = OPTIONS, killed_at: int = KILLED_AT) -> None:
        """Write a row for a training that is killed and goes on, unless there is one of this training."""
        facts = {"settings": options.settings.model_dump(mode="json"), "killed_at": killed_at}
        if of_kind(self.rows.read(), "killed", members=self.members, **facts):
            return
        # Those that members come and go with, if they are there.
        statistics = next(_statistics_of(folder) for fit, folder in self._fits.items() if fit.name == "token")
        keep_statistics(self._fused(1), self._base, self._data, "token", statistics)
        folders = Folders(self._fused(1), self._base, self._data, statistics)
        self._write(killed_row(folders, options, killed_at))

    def cost_xlora(self) -> None:
        """Write a row of what X-LoRA costs with these members, unless there is one."""
        if of_kind(self.rows.read(), "xlora", members=self.members):
            return
        adapters = {name: self._folders[name] for name in self.tasks}
        read = [own["train"][:FIT_ITEMS] for own in self._items.values()]
        # In turn, so that the first batch has an item of each of several tasks.
        learned = [item for together in zip_longest(*read) for item in together if item is not None]
        asked = [own["test"][0] for own in self._items.values()]
        self._write(xlora_row(self._base, adapters, learned, asked))

    def _change_units(self, scope: Scope, fitted: Path) -> list[ChangeUnit]:
        prompts = {
            name: tuple(item.prompt for item in own["test"][:DECIDED_ITEMS])
            for name, own in self._items.items()
        }
        return [
            ChangeUnit(
                scope,
                member,
                fitted,
                _statistics_of(fitted),
                self._base,
                tuple((name, self._folders[name]) for name in self.tasks),
                self._data,
                tuple((name, asked) for name, asked in prompts.items() if name != member),
            )
            for member in self.tasks
        ]

    def ask_composites(self, prompts: Mapping[tuple[str, ...], int] = PROMPTS) -> None:
        """Write a row for each way, size and form of composites, but for those that have one.

        Args:
            prompts: how many there are of one question of each of these tasks.
        """
        prepared = self._prepared()
        metrics = tuple((name, task.metric) for name, task in self.tasks.items())
        pools = {name: shorter_half(items["test"]) for name, items in self._items.items()}
        units = [
            CompositeUnit(
                way,
                prepared.recipe_of(way.loaded),
                form,
                composites({name: pools[name] for name in names}, form, count),
                metrics,
            )
            for names, count in prompts.items()
            for form in FORMS
            for way in COMPOSITE_WAYS
        ]
        known = self.rows.read()
        missing = [
            unit for unit in units if not of_kind(known, "composite", members=self.members, **unit.facts())
        ]
        for unit, row in run_units(partial(composite_unit, prepared), missing, self._sizes.processes):
            self._write(row)
            mean = 100 * sum(row["scores"]) / len(row["scores"])
            say(f"composites of {unit.size}, {unit.form}, {unit.way.name}: {mean:.1f}, {row['seconds']} s")

    def _units(self, ways: Sequence[Way], prepared: Prepared) -> list[Unit]:
        units = []
        for way in ways:
            recipe = prepared.recipe_of(way)
            for name, task in self.tasks.items():
                items = tuple(self._items[name]["test"][: self._sizes.test_items])
                if way.kind == "likelihood" and not all(item.choices for item in items):
                    continue
                answers = Counter(item.targets[0] for item in self._items[name]["train"])
                most_frequent = answers.most_common(1)[0][0]
                units.append(Unit(way, recipe, name, task.metric, items, most_frequent))
        return units

    def _prepared(self) -> Prepared:
        places = {UNFITTED: self._fused(1)} | {fit.name: folder for fit, folder in self._fits.items()}
        bundles = {name: folder for name, folder in places.items() if folder.exists()}
        joint = {name: folder for name, folder in self._folders.items() if name not in self.tasks}
        return Prepared(
            base=self._base,
            base_sha256=self._base_sha256,
            members=self.members,
            adapters=tuple((name, self._folders[name]) for name in self.tasks),
            bundles=tuple(sorted(bundles.items())),
            joint=tuple((name, folder) for name, folder in joint.items() if folder.exists()),
            data=self._data,
        )

    def _write(self, row: Row) -> None:
        machine = description("cpu") | {name: version_of(name) for name in ("transformers", "peft")}
        facts = {"members": self.members, "tasks": len(self.tasks), "machine": machine}
        self.rows.append(row | facts)


def _statistics_of(fitted: Path) -> Path:
    """Return the folder of each member's part in the gates of a bundle."""
    return fitted.with_name(f"{fitted.name}.statistics")


def train_unit(base: Path, unit: tuple[AdapterRecipe, dict[str, list[Item]], Path]) -> None:
    """Train one adapter in this process."""
    recipe, items, folder = unit
    train(recipe, items, base, folder)


def fit_unit(base: Path, data: Path, home: Home, unit: tuple[Fit, Path, Path]) -> None:
    """Fit the gates of one bundle in this process: how, the fused bundle, the new folder."""
    make_fit(base, data, home, *unit)


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"`{text}` is not a number from 1 on")
    return int(text)


def main(arguments: Sequence[str]) -> None:
    """Run some stages, or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run paper", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=[*STAGES, []], default=[], help="all unless named")
    parser.add_argument(
        "--tasks", nargs="+", default=["core"], help="names, `core` for the sixteen short ones, or `all`"
    )
    parser.add_argument("--test-items", type=_count, default=Sizes().test_items, help="of each task")
    parser.add_argument("--processes", type=_count, default=Sizes().processes, help="of one thread each")
    parser.add_argument(
        "--cache", type=Path, default=platformdirs.user_cache_path("meteora-registry") / "paper"
    )
    parser.add_argument(
        "--rows", type=Path, default=ROWS, help="of another file than the default no page is written"
    )
    parsed = parser.parse_args(arguments)
    has_own_rows = parsed.rows.resolve() != ROWS.resolve()
    if has_own_rows and "page" in parsed.stages:
        parser.error(f"the page shows the rows of `{ROWS}` alone, found `--rows {parsed.rows}`")
    stages = parsed.stages or [stage for stage in STAGES if stage != "page" or not has_own_rows]
    if stages != ["page"]:
        quiet()
        try:
            tasks = chosen_tasks(parsed.tasks)
            items = prepare_items(parsed.cache)
        except ValueError as error:
            parser.error(str(error))
        sizes = replace(Sizes(), test_items=parsed.test_items, processes=parsed.processes)
        measure = partial(Measurement, prepare_base(parsed.cache), items, sizes=sizes)
        if {*stages} - {"composites", "page"}:
            run_stages(measure(tasks, parsed.cache, parsed.rows), stages)
        if "composites" in stages:
            run_composites(
                measure(
                    chosen_tasks(list(COMPOSITE_TASKS)),
                    parsed.cache,
                    parsed.rows,
                    recipes=[*COMPOSITE_RECIPES.values()],
                    fits=COMPOSITE_FITS,
                )
            )
    if "page" in stages:
        write_page()


def run_composites(measurement: Measurement) -> None:
    """Measure composites; the adapters and bundles that they need are made if they are missing."""
    measurement.train()
    measurement.fit()
    measurement.ask_composites()


def run_stages(measurement: Measurement, stages: Sequence[str]) -> None:
    """Run the stages that measure; what a later one needs of an earlier one is made if it is missing."""
    measurement.train()
    if stages != ["train"]:
        measurement.fit()
    if "validation" in stages:
        measurement.choose()
    if "test" in stages:
        measurement.ask()
    if "decisions" in stages:
        measurement.decide()
    if "changes" in stages:
        measurement.change()
        measurement.kill_training()
    if "xlora" in stages:
        measurement.cost_xlora()
