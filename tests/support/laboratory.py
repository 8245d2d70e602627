"""A folder with one of everything that a command may be given, and the arguments that name it.

The base has no weights: commands come as far as loading it, and stay quick.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from meteora_registry.registry.cli.main import run
from support.evaluations import make_evaluation
from support.models import make_llama_adapters
from support.task_data import save_text_base, write_task_data

NAMES = ("rank4", "rank8", "rslora16")


@dataclass(frozen=True)
class Laboratory:
    """Adapters, a base, data, a bundle, and a home whose catalog has them."""

    folder: Path

    @property
    def home(self) -> Path:
        """The home with catalog and store."""
        return self.folder / "home"

    @property
    def values(self) -> dict[str, str]:
        """A good value for each parameter that some command requires, or reads as an argument."""
        return {
            "paths": str(self.folder / "adapters" / "rank4"),
            "sources": str(self.folder / "adapters" / "rank4"),
            "adapters": "rank4",
            "source": "rank4",
            "words": "rank4",
            "names": "rank4",
            "name": "rank4",
            "tags": "good",
            "alias": "champion",
            "bundle": str(self.folder / "bundle"),
            "member": "rank4",
            "members": "rank4:4:8",
            "base": str(self.folder / "base"),
            "data": str(self.folder / "data"),
            "out": str(self.folder / "made"),
            "prompt": "one",
            "repository": "org/name",
            "weights": str(self.folder / "bundle" / "model.safetensors"),
            "first": str(self.folder / "first.json"),
            "second": str(self.folder / "second.json"),
            "file": str(self.folder / "made.jsonl"),
        }

    def tidy(self) -> None:
        """Take away what a command made beside the rest."""
        for path in self.folder.glob("made*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def restore(self) -> None:
        """Put the home back as it was, too."""
        self.tidy()
        shutil.rmtree(self.home)
        shutil.copytree(self.folder / "home-as-made", self.home)


def write_evaluations(folder: Path) -> None:
    """Write two evaluations that can be compared."""
    for name in ("first", "second"):
        evaluation = make_evaluation({"member": {"rank4": [1.0, 0.0]}}, bundle=name)
        (folder / f"{name}.json").write_bytes(evaluation.to_bytes())


def make_laboratory(folder: Path) -> Laboratory:
    """Make one, with a catalog that has three adapters and their bundle."""
    made = Laboratory(folder)
    (save_text_base(folder / "base") / "model.safetensors").unlink()
    write_task_data(folder / "data", NAMES)
    make_llama_adapters(folder / "adapters", base="org/base")
    write_evaluations(folder)
    where = ["--home", str(made.home)]
    assert run([*where, "add", *(str(folder / "adapters" / name) for name in NAMES)]) == 0
    assert run([*where, "fuse", *NAMES, "--out", str(folder / "bundle")]) == 0
    shutil.copytree(made.home, folder / "home-as-made")
    return made
