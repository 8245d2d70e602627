"""Adapters as files that a test can change: a config, and tensors."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from meteora_registry.inspection.adapter import Inspection, inspect_adapter
from meteora_registry.schemas.bundle import CONFIG_FILE, WEIGHTS_FILE


@dataclass
class AdapterFiles:
    """The files of an adapter's folder; ``config`` and ``weights`` may be replaced by raw bytes."""

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    raw_config: bytes | None = None
    raw_weights: bytes | None = None
    extra: dict[str, bytes] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, folder: Path) -> AdapterFiles:
        """Return the files that PEFT wrote."""
        return cls(json.loads((folder / CONFIG_FILE).read_text()), load_file(folder / WEIGHTS_FILE))

    def weights(self) -> bytes:
        """Return the bytes of the weights file."""
        if self.raw_weights is not None:
            return self.raw_weights
        return save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, {"format": "pt"})

    def write(self, folder: Path) -> Path:
        """Write the files."""
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(self.config).encode() if self.raw_config is None else self.raw_config
        files = {CONFIG_FILE: config, WEIGHTS_FILE: self.weights(), **self.extra}
        for name, data in files.items():
            if name not in self.absent:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        return folder

    def names(self, ending: str) -> list[str]:
        """Return the tensors whose names end so, sorted."""
        return sorted(name for name in self.tensors if name.endswith(ending))

    def rename(self, old: str, new: str) -> None:
        """Replace a part of every tensor name."""
        self.tensors = {name.replace(old, new): tensor for name, tensor in self.tensors.items()}


def codes_of(inspection: Inspection) -> list[str]:
    """Return the codes of the findings, each once."""
    return sorted({finding.code for finding in inspection.findings})


def inspect_written(files: AdapterFiles, folder: Path) -> Inspection:
    """Write an adapter and inspect it."""
    return inspect_adapter(files.write(folder))


def safetensors_bytes(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """Return a file with any header at all: an object, or the text itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    """Return a header's entry."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
