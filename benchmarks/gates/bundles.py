"""Adapters become bundles by the project's own workflows: added to a catalog, fused, their gates fitted."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meteora_registry.bundle import Bundle
from meteora_registry.fuser.refit import NewGates, refit_bundle
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workflows.fuse_plan import prepare_fuse
from meteora_registry.registry.workflows.fusion import fuse
from meteora_registry.registry.workflows.gate_fit import FitRequest, fit_bundle
from meteora_registry.registry.workspace import Workspace
from meteora_registry.runtime.fitting import FitOptions, context_of, fit_gates, open_base, read_task_data
from meteora_registry.schemas.recipe import Recipe, RecipeMember

from .prompts import ARROW, prompt_of, response_of
from .tasks import TASKS, Item

FIT_SAMPLES = 32


@dataclass(frozen=True, slots=True)
class FitCost:
    """The cost of one `gate fit`, verification included."""

    wall_seconds: float
    processor_seconds: float
    peak_bytes: int


def fuse_adapters(
    adapters: Mapping[str, Path], base: Path, home: Home, folder: Path, *, top_k: int = 1
) -> Path:
    """Return the folder of these adapters' bundle, made on the first call."""
    if not folder.exists():
        with Workspace(home) as workspace:
            # The home may have a later version of an adapter's name, from another recipe.
            added = [add_folder(workspace, adapter, name=name) for name, adapter in adapters.items()]
            members = tuple(
                RecipeMember(adapter=str(each.version.source), name=each.version.name) for each in added
            )
            recipe = Recipe(members=members, base=str(base), top_k=top_k)
            fuse(workspace, prepare_fuse(workspace, recipe), folder)
    return folder


def write_fit_data(folder: Path, seed: int) -> Path:
    """Return a folder with a file of training samples for every task.

    Every other one is an isolated prompt with its answer; the rest have the question as it appears among
    others, and then the line that answers it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        items = task.items("train", FIT_SAMPLES, seed + 1)
        lines = [json.dumps(_fit_sample(item, place)) for place, item in enumerate(items)]
        (folder / f"{task.name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _fit_sample(item: Item, place: int) -> dict[str, str]:
    if place % 2 == 0:
        return {"prompt": prompt_of([item]), "response": response_of([item])}
    number = place // 2 % 5 + 1
    asked = f"{number}. {item.question}\n"
    return {"text": f"{asked}\n{number}. {item.question}{ARROW} {item.answer}\n"}


def fit_by_workflow(bundle: Path, request: FitRequest, home: Home, folder: Path) -> FitCost:
    """Fit a bundle's gates as `gate fit` does, into a new catalogued version."""
    wall, processor = time.perf_counter(), time.process_time()
    with Workspace(home) as workspace:
        fit_bundle(workspace, bundle, folder, request)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return FitCost(time.perf_counter() - wall, time.process_time() - processor, peak)


def fit_with(
    bundle: Path, base: Path, data: Path, folder: Path, options: FitOptions, statistics: Path | None
) -> None:
    """Fit a bundle's gates with options that `gate fit` does not offer, to compare them.

    The statistics are kept: fits that differ only in how they solve share one pass of the base.
    """
    opened = open_base(str(base))
    old = Bundle.open(bundle)
    found = read_task_data(
        data, old.config.names, tokenizer=opened.tokenizer, context_tokens=context_of(opened.config)
    )
    fitted = fit_gates(
        opened.load(), opened.tokenizer, old.config, found, options=options, statistics=statistics
    )
    folder.mkdir(parents=True)
    gate = fitted.describe("token")
    refit_bundle(old, NewGates(gate, old.config.top_k, old.config.temperature, fitted.values), folder)
