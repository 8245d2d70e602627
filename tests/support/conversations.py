"""A tiny bundle whose base has a chat template: what `generate`, `chat` and the pages about them need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import meteora_registry as meteora
from meteora_registry.schemas.gate_choices import Scope
from support.models import make_adapter, tiny_llama
from support.task_data import TEMPLATE, save_text_base, write_task_data

MEMBERS = ("legal", "medical")


@dataclass(frozen=True, slots=True)
class Place:
    """The folders of a fitted bundle, of its base and of the data."""

    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"


def make_place(folder: Path) -> Place:
    """Return two adapters of PEFT, fused and fitted by request; the base is known by its folder."""
    save_chat_base(folder / "base")
    write_task_data(folder / "data", MEMBERS)
    for seed, name in enumerate(MEMBERS):
        make_adapter(tiny_llama, folder / name, seed=seed, r=4 + seed, target_modules=["q_proj"])
    fit_bundle(Place(folder), folder / "bundle")
    return Place(folder)


def fit_bundle(place: Place, folder: Path, *, scope: Scope = "prompt", top_k: int = 1) -> Path:
    """Return a bundle of the two adapters, fitted for a scope."""
    fused = meteora.fuse([place.folder / name for name in MEMBERS], base=str(place.base), top_k=top_k)
    return fused.fit(place.folder / "data", scope=scope).save(folder)


def fitted_bundle(place: Place, *, scope: Scope, top_k: int = 1) -> Path:
    """Return such a bundle that several tests read, made at the first call."""
    folder = place.folder / f"{scope}-{top_k}"
    return folder if folder.exists() else fit_bundle(place, folder, scope=scope, top_k=top_k)


def abstaining_bundle(place: Place, folder: Path) -> Path:
    """Return a copy of the bundle that leaves every prompt to the base: no score reaches its threshold."""

    def leave_all(config: dict[str, Any]) -> None:
        config["required_features"] = [*config["required_features"], "gate-abstain"]
        config["gate"]["abstain"] = 0.05
        config["gate"]["request"]["quantiles"] = [1000.0 + step for step in range(101)]

    return changed_bundle(place, folder, leave_all)


def changed_bundle(place: Place, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Return a copy of the bundle with another config; loading does not compare it with the manifest."""
    path = shutil.copytree(place.bundle, folder) / "adapter_config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    return folder


def save_chat_base(folder: Path, *, context_tokens: int | None = None) -> Path:
    """Write the tiny Llama with a chat template; ``context_tokens`` is how much it takes, by default 64."""
    save_text_base(folder, chat_template=TEMPLATE)
    if context_tokens is not None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context_tokens}))
    return folder


def written(*turns: tuple[str, str]) -> str:
    """Return a conversation as the template writes it, with the cue to answer."""
    return "".join(f"<{role}> {content} " for role, content in turns) + "<assistant> "
