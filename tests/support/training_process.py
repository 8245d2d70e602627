"""One process of a training that a launcher started: ``training_process.py FOLDER OUT [KEY=VALUE ...]``.

accelerate has FSDP for GPUs and their like alone, though torch's runs on processors too. Where the
environment asks for FSDP this process therefore lets accelerate take processors for such devices; all that
follows, the division, the collectives and the loop, is theirs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import state


def main(folder: Path, out: str, *options: str) -> None:
    """Train the gates of the bundle in a folder, and print what this process got."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        torch.distributed.init_process_group("gloo")
        state.PartialState._prepare_backend = lambda *_, **__: ("gloo", state.DistributedType.MULTI_GPU)
    import meteora_registry as meteora

    values: dict[str, Any] = {"checkpoint": folder / f"{out}.state"}
    for option in options:
        key, _, value = option.partition("=")
        values[key] = float(value) if key == "learning_rate" else int(value)
    try:
        with meteora.Registry(home=folder / "home") as registry:
            found = registry.fit(
                folder / "bundle",
                base=folder / "base",
                data=folder / "data",
                out=folder / out,
                training=meteora.TrainingOptions(**values),
            )
    except meteora.MeteoraError as error:
        sys.exit(f"refused: {error}")
    kind = state.AcceleratorState().distributed_type.value
    sys.stdout.write(f"{kind} {found.version.source} {found.training.resumed_at}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
