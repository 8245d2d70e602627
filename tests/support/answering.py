"""A tiny bundle of three members with a base and a tokenizer on disk: what `trace` and `eval` need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from support.members import fuse, read_members
from support.models import make_adapter, tiny_llama
from support.task_data import save_text_base

MEMBERS = ("one", "two", "three")


@dataclass(frozen=True, slots=True)
class Workplace:
    """The folders of a bundle and of its base."""

    bundle: Path
    base: Path


def make_workplace(folder: Path) -> Workplace:
    """Return adapters of PEFT, fused with random gates, and the base that they were made for."""
    adapters = {
        name: make_adapter(tiny_llama, folder / name, seed=seed, r=4, target_modules=["q_proj", "up_proj"])
        for seed, name in enumerate(MEMBERS)
    }
    base = save_text_base(folder / "base", pad_token="<unk>")
    return Workplace(fuse(read_members(adapters), folder / "bundle", gate="normal"), base)
