"""The measurement of how well fused bundles route on a real base: ``python -m benchmarks.run gates``.

Trains one adapter for each of seven small tasks, fuses them, fits the gates, and counts right answers:
first of many ways of routing on the validation items, then of the chosen ones on the test items, once.
Whatever is slow is kept in a folder by a digest of what it was made from, so a run that was interrupted
goes on where it stopped; every row lands in the rows file as it came out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs
import transformers
from transformers import PreTrainedTokenizerBase

from benchmarks.machine import description, version_of
from meteora_registry.bundle import Bundle
from meteora_registry.files.digests import hash_file
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.gate_fit import FitRequest
from meteora_registry.runtime.fitting import FitOptions
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.trace import ModulePlace

from .base import load_model, load_tokenizer, prepare_base
from .bundles import fit_by_workflow, fit_with, fuse_adapters, write_fit_data
from .figure import write_figure
from .out_of_domain import FORMS, answer, decide
from .prompts import composites
from .rows import Row, append_row, digest_of, digest_of_texts, read_rows, score_row
from .scoring import EncodedText, encode_text, score_texts
from .shared_layers import share_lower_layers
from .tables import write_tables
from .tasks import TASKS, Split
from .training import RECIPES, AdapterRecipe, adapter_of, samples_of
from .training import digest_of as digest_of_samples
from .ways import Models, Way, served

SEED = 0
ROWS = Path("benchmarks/results/gates.jsonl")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The extent of a measurement."""

    validation_items: int = 20
    validation_composites: int = 20
    test_items: int = 300
    test_composites: int = 100
    composite_sizes: tuple[int, ...] = (3, 5)


FITS = {
    "lda": FitOptions(),
    "lda without 4": FitOptions(skip_tokens=4),
    "lda concatenated": FitOptions(concatenated=True),
}
REFERENCES = (Way("base"), Way("oracle"), Way("uniform"), Way("weighted"), Way("routed", "arrow", "token"))
"""Beside what every way of routing is set."""


GATE_FIT = "gate fit"
GATE_FIT_SEGMENT = "gate fit --scope segment"
SEGMENT = Way("routed", GATE_FIT_SEGMENT, "segment")
BY_TOKEN = "lda without 4"
"""The fit with which deciding by token was best on the validation items."""


class Measurement:
    """The base, the adapters, the bundles and the file of rows.

    Attributes:
        cache: a folder for whatever is slow to make.
        rows: the file of rows.
    """

    def __init__(self, base: Path, recipes: Sequence[AdapterRecipe], cache: Path, rows: Path) -> None:
        self._base = base
        self._recipes = recipes
        self.cache = cache
        self.rows = rows
        self._home = Home(cache / "home")
        self.adapters: dict[str, Path] = {}
        self.bundles: dict[str, Path] = {}

    def prepare(self) -> None:
        """Train what is not trained, fuse it, and write the data for the fits."""
        self.adapters = {recipe.task: adapter_of(recipe, self._base, self.cache) for recipe in self._recipes}
        mark = digest_of(sorted(str(path.name) for path in self.adapters.values()))[:12]
        folder = self.cache / "bundles" / mark
        folder.mkdir(parents=True, exist_ok=True)
        self._home.folder.mkdir(exist_ok=True)
        self.bundles = {"arrow": fuse_adapters(self.adapters, self._base, self._home, folder / "arrow")}
        self._data = write_fit_data(folder / "data", SEED)
        self._folder = folder

    def fit(self, name: str, options: FitOptions) -> None:
        """Fit gates with some options, if that was not done yet."""
        folder = self._folder / name.replace(" ", "-")
        if not folder.exists():
            say(f"fitting {name}")
            mark = digest_of(options.settings.model_dump())[:12]
            # Samples behind those of other members have no statistics.
            statistics = None if options.concatenated else self._folder / f"{mark}.statistics"
            fit_with(self.bundles["arrow"], self._base, self._data, folder, options, statistics)
        self.bundles[name] = folder

    def fit_as_users_do(self, scope: Scope, name: str) -> None:
        """Fit gates by the workflow behind `gate fit --scope SCOPE`, and write what it cost."""
        folder = self._folder / name.replace(" ", "-")
        if not folder.exists():
            say(name)
            request = FitRequest(str(self._base), self._data, scope)
            cost = fit_by_workflow(self.bundles["arrow"], request, self._home, folder)
            self.write({"kind": "fit", "command": name, "members": len(self.adapters), **asdict(cost)})
        self.bundles[name] = folder

    def write(self, row: Row) -> None:
        """Add a row, with the machine and the versions it was measured with."""
        machine = description("cpu") | {name: version_of(name) for name in ("transformers", "peft", "gguf")}
        append_row(self.rows, row | {"seed": SEED, "machine": machine})

    def describe(self) -> None:
        """Write a row for each adapter, with its recipe and digests, and one for the data of the fits."""
        tokenizer = self.tokenizer()
        known = {row["weights_sha256"] for row in read_rows(self.rows) if row["kind"] == "adapter"}
        for recipe in self._recipes:
            folder = self.adapters[recipe.task]
            sha256 = str(hash_file(folder / "adapter_model.safetensors"))
            training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
            if sha256 not in known:
                self.write(
                    {
                        "kind": "adapter",
                        "task": recipe.task,
                        "recipe": asdict(recipe),
                        "samples_sha256": digest_of_samples(recipe, samples_of(recipe, tokenizer)),
                        "weights_sha256": sha256,
                        "steps": training["steps"],
                        "processor_seconds": round(training["processor_seconds"], 1),
                        "last_steps": training["log"][-5:],
                    }
                )

        files = {path.name: str(hash_file(path)) for path in sorted(self._data.glob("*.jsonl"))}
        if all(row.get("files") != files for row in read_rows(self.rows)):
            self.write({"kind": "fit data", "files": files})

    def score(
        self,
        stage: str,
        name: str,
        texts: Sequence[EncodedText],
        ways: Sequence[Way],
    ) -> None:
        """Write a row for each way on one set of texts, but for those that the file has."""
        mark = digest_of_texts(texts)
        known = {
            (row["stage"], row["set"], row["way"], row["texts_sha256"])
            for row in read_rows(self.rows)
            if row["kind"] == "score"
        }
        base = load_model(self._base)
        share_lower_layers(base, self._untouched_layers())
        models = Models(base, self.bundles, self.adapters)
        for way in ways:
            if (stage, name, way.name, mark) in known:
                continue
            began = time.process_time()
            model = models.model_for(way)
            outcomes = score_texts(model, texts, lambda batch, m=model, w=way: served(m, w, batch))
            seconds = time.process_time() - began
            row = score_row(stage, name, way, texts, outcomes, seconds)
            self.write(row | {"texts_sha256": mark})
            right = sum(digit == "1" for each in row["right"] for digit in each)
            say(f"{stage} {name} {way.name}: {right} of {sum(map(len, row['right']))}, {seconds:.0f} s")

    def _untouched_layers(self) -> int:
        """Return how many of the base's first layers have no module of an adapter or of a request gate."""
        lowest = min(recipe.layers[0] for recipe in self._recipes)
        for folder in self.bundles.values():
            for path in Bundle.open(folder).config.observed:
                lowest = min(lowest, ModulePlace.of(path).order[1])
        return lowest

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the base's tokenizer."""
        return load_tokenizer(self._base)

    def texts(self, split: Split, items: int, size: int = 1, count: int = 0) -> list[EncodedText]:
        """Return the texts of a split: each task's items alone, or ``count`` composites of ``size`` items."""
        pools = {task.name: task.items(split, items, SEED) for task in TASKS}
        tokenizer = self.tokenizer()
        if size == 1:
            return [encode_text([item], tokenizer) for own in pools.values() for item in own]
        return [encode_text(items, tokenizer) for items in composites(pools, size, count, SEED)]

    def look_outside(self, gates: str, in_domain: Sequence[EncodedText]) -> None:
        """Write how sure the prompt's decision is of foreign prompts and of its own, unless rows say it."""
        if any(row["kind"] == "in domain" and row["gates"] == gates for row in read_rows(self.rows)):
            return
        base = load_model(self._base)
        tokenizer = self.tokenizer()
        plain = {form: answer(base, tokenizer, prompts) for form, prompts in FORMS.items()}
        way = Way("routed", gates, "prompt")
        model = Models(base, self.bundles, self.adapters).model_for(way)
        for form, prompts in FORMS.items():
            for abstain in (None, 0.5):
                members, confidences, answers = decide(model, tokenizer, prompts, abstain=abstain)
                self.write(
                    {
                        "kind": "out of domain",
                        "gates": gates,
                        "form": form,
                        "abstain": abstain,
                        "members": members,
                        "confidence": [round(each, 4) for each in confidences],
                        "as_base": [int(a == b) for a, b in zip(answers, plain[form], strict=True)],
                    }
                )
        outcomes = score_texts(model, in_domain, lambda batch: served(model, way, batch))
        self.write(
            {
                "kind": "in domain",
                "gates": gates,
                "confidence": [round(each.confidence or 0.0, 4) for each in outcomes],
            }
        )


def validation_ways() -> tuple[Way, ...]:
    """Return the ways that are compared on the validation items alone."""
    fits = tuple(Way("routed", fit, "token") for fit in FITS)
    mixed = tuple(Way("routed", "lda", "token", 2, temperature) for temperature in (1.0, 3.0))
    scopes: tuple[Scope, ...] = ("layer", "prompt", "prompt+token", "segment")
    decided = tuple(Way("routed", "lda", scope) for scope in scopes)
    return (*REFERENCES, *fits, *mixed, *decided, Way("routed", "lda", "prompt", 2))


def composite_ways(gates: Sequence[str]) -> tuple[Way, ...]:
    """Return the ways that are compared on the composite validation prompts."""
    scopes: tuple[Scope, ...] = ("token", "layer", "segment")
    routed = tuple(Way("routed", name, scope) for name in gates for scope in scopes)
    return (Way("base"), Way("oracle"), Way("uniform"), Way("routed", "arrow", "token"), *routed)


def test_ways(by_token: str) -> tuple[Way, ...]:
    """What is run once on the test items; ``by_token`` is the fit that was best at deciding by token."""
    scopes: tuple[Scope, ...] = ("prompt", "prompt+token", "token", "layer")
    as_fitted = tuple(Way("routed", GATE_FIT, scope) for scope in scopes)
    best = tuple(Way("routed", by_token, scope) for scope in ("token", "prompt+token"))
    return (*REFERENCES, *as_fitted, *(way for way in best if by_token != GATE_FIT), SEGMENT)


def composite_test_ways(by_token: str) -> tuple[Way, ...]:
    """Return the ways that are compared on the composite test prompts."""
    references = (Way("base"), Way("oracle"), Way("uniform"), Way("routed", "arrow", "token"))
    fits = dict.fromkeys((GATE_FIT, by_token, GATE_FIT_SEGMENT))
    return (*references, *(Way("routed", fit, "token") for fit in fits), SEGMENT)


def main(arguments: Sequence[str]) -> None:
    """Run one stage or all of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run gates", description=__doc__)
    parser.add_argument("stages", nargs="*", choices=["train", "validate", "test", "tables"], default=[])
    parser.add_argument(
        "--cache", type=Path, default=platformdirs.user_cache_path("meteora-registry") / "gates"
    )
    parser.add_argument("--rows", type=Path, default=ROWS)
    parsed = parser.parse_args(arguments)
    quiet()
    parsed.cache.mkdir(parents=True, exist_ok=True)
    stages = parsed.stages or ["train", "validate", "test", "tables"]
    measurement = Measurement(prepare_base(parsed.cache), RECIPES, parsed.cache, parsed.rows)
    if stages != ["tables"]:
        measurement.prepare()
        measurement.describe()
    if "validate" in stages:
        validate(measurement, Sizes())
    if "test" in stages:
        test(measurement, Sizes(), BY_TOKEN)
    if "tables" in stages:
        write_tables(parsed.rows)
        write_figure(parsed.rows)


def quiet() -> None:
    """Switch off progress bars, and warnings about what is intended."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


def validate(measurement: Measurement, sizes: Sizes) -> None:
    """Compare the ways on the validation items."""
    for name, options in FITS.items():
        measurement.fit(name, options)
    measurement.score(
        "validation", "single", measurement.texts("validation", sizes.validation_items), validation_ways()
    )
    for size in sizes.composite_sizes:
        texts = measurement.texts("validation", sizes.validation_items, size, sizes.validation_composites)
        measurement.score("validation", f"composite-{size}", texts, composite_ways(list(FITS)))


def test(measurement: Measurement, sizes: Sizes, by_token: str) -> None:
    """Run the chosen ways on the test items."""
    measurement.fit_as_users_do("prompt", GATE_FIT)
    measurement.fit_as_users_do("segment", GATE_FIT_SEGMENT)
    if by_token in FITS:
        measurement.fit(by_token, FITS[by_token])
    single = measurement.texts("test", sizes.test_items)
    measurement.score("test", "single", single, test_ways(by_token))
    for size in sizes.composite_sizes:
        texts = measurement.texts("test", sizes.test_items, size, sizes.test_composites)
        measurement.score("test", f"composite-{size}", texts, composite_test_ways(by_token))
    measurement.look_outside(GATE_FIT, measurement.texts("validation", sizes.validation_items))


def say(text: str) -> None:
    """Report progress on standard error."""
    print(text, file=sys.stderr, flush=True)
