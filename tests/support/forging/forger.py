"""The tools of a skilled forger: a bundle taken apart, changed, and sealed again with every digest right.

Written from the published format alone. Nothing here is taken from the code that verifies.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

Json = dict[str, Any]

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MANIFEST = "meteora_manifest.json"
RECORD = "verification.json"
CARD = "README.md"
PREFIX = "base_model.model."


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def spell(value: Any) -> bytes:
    """Return JSON in the format's one spelling."""
    return (json.dumps(value, sort_keys=True, indent=2) + "\n").encode()


class Forger:
    """A bundle's folder, opened for forging."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Json = json.loads((folder / CONFIG).read_bytes())
        self.manifest: Json = json.loads((folder / MANIFEST).read_bytes())
        self.record: Json = json.loads((folder / RECORD).read_bytes())
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            self.metadata: dict[str, str] = file.metadata()
            names = list(file.keys())
            self.tensors = {name: file.get_tensor(name).clone() for name in names}
        self.targets: list[str] = self.config["target_modules"]

    def member(self, name: str) -> Json:
        """Return a member's entry in the config."""
        found: Json = next(each for each in self.config["members"] if each["name"] == name)
        return found

    def quoted(self, name: str) -> Json:
        """Return a member's entry in the manifest."""
        found: Json = next(each for each in self.manifest["members"] if each["name"] == name)
        return found

    def change_quoted_config(self, name: str, change: Callable[[Json], Any]) -> None:
        """Change the quoted config of a member, with its digest."""
        config = json.loads(self.quoted(name)["config_text"])
        change(config)
        self.quote_config(name, json.dumps(config, indent=2))

    def quote_config(self, name: str, text: str) -> None:
        self.quoted(name).update(config_text=text, config_sha256=sha256(text.encode()))

    def rank(self, name: str, path: str) -> int:
        member = self.member(name)
        rank: int = member["overrides"].get(path, member)["rank"]
        return rank

    def rows(self, name: str, path: str) -> slice:
        """Return the rows of a member's padded block in a module."""
        start = 0
        for member in self.config["members"]:
            padded = -(-self.rank(member["name"], path) // 8) * 8
            if member["name"] == name:
                return slice(start, start + padded)
            start += padded
        raise KeyError(name)

    def factors(self, name: str, letter: str) -> list[torch.Tensor]:
        """Return a member's own rows of A or of B in every module that it touches, to change in place."""
        touched = [path for path in self.targets if self.rank(name, path)]
        blocks = ((path, self.tensors[f"{PREFIX}{path}.meteora_{letter}"]) for path in touched)
        return [block[self.rows(name, path)][: self.rank(name, path)] for path, block in blocks]

    def gates(self) -> list[torch.Tensor]:
        return [found for name, found in sorted(self.tensors.items()) if name.endswith(".meteora_gate")]

    def requote_weights(self, name: str) -> bytes:
        """Make the quoted digest that of the file which the forged factors give."""
        quoted = self.quoted(name)
        data = bytearray(quoted["weights_header"].encode())
        data = bytearray(struct.pack("<Q", len(data))) + data
        start = len(data)
        for tensor, entry in json.loads(quoted["weights_header"]).items():
            if tensor == "__metadata__":
                continue
            path, _, letter = tensor.removeprefix(PREFIX).removesuffix(".weight").rpartition(".lora_")
            rows = self.tensors[f"{PREFIX}{path}.meteora_{letter}"][self.rows(name, path)]
            own = rows[: self.rank(name, path)]
            own = (own.T if letter == "B" else own).contiguous()
            first, last = entry["data_offsets"]
            data += bytes(max(0, start + last - len(data)))
            data[start + first : start + last] = own.view(torch.uint8).numpy().tobytes()
        quoted.update(weights_sha256=sha256(data), weights_bytes=len(data))
        return bytes(data)

    def seal(self, *, tensors: bool = True) -> None:
        """Write everything with right digests and a record that claims a pass."""
        self.write(CONFIG, spell(self.config))
        if tensors:
            whole = {name: found.contiguous() for name, found in self.tensors.items()}
            self.write(WEIGHTS, save(whole, self.metadata))
        self.cover_modules()
        self.relist()
        self.bind()

    def write(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def relist(self, *more: str) -> None:
        """Make the manifest's digests those of the files, and list ``more``."""
        for name in [*self.manifest["files"], *more]:
            path = self.folder / name
            if path.is_file():
                entry = {"sha256": sha256(path.read_bytes()), "size_bytes": path.stat().st_size}
                self.manifest["files"][name] = entry

    def bind(self, manifest: bytes | None = None) -> None:
        """Write the manifest, and bind the record to it."""
        self.write(MANIFEST, spell(self.manifest) if manifest is None else manifest)
        self.record["manifest_sha256"] = sha256((self.folder / MANIFEST).read_bytes())
        self.seal_record()

    def cover_modules(self) -> None:
        """Let the record cover the modules that the config has now."""
        modules = self.record["modules"]
        some = next(iter(modules.values()))
        targets = self.config["target_modules"]
        self.record["modules"] = {path: modules.get(path, some) for path in targets}
        for run in self.record["backends_run"]:
            run["modules"] = len(set(targets))

    def seal_record(self) -> None:
        body = {key: value for key, value in self.record.items() if key != "record_sha256"}
        self.record = body | {"record_sha256": sha256(spell(body))}
        self.write(RECORD, spell(self.record))

    def put(self, name: str, data: bytes) -> None:
        """Put a file's own bytes in, and make everything else agree with them."""
        self.write(name, data)
        self.relist(name)
        self.bind()

    def weights_parts(self) -> tuple[Json, bytes]:
        """Return the header and the data of the weights as they are."""
        raw = (self.folder / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        return json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def put_weights(self, header: bytes, data: bytes) -> None:
        """Put weights together from a header and data, and make the digests agree."""
        header += b" " * (-len(header) % 8)
        self.put(WEIGHTS, struct.pack("<Q", len(header)) + header + data)


@dataclass(frozen=True)
class Forgery:
    """One forgery: which sound bundle it begins with, and what is done to it."""

    name: str
    forged: str
    start: str
    forge: Callable[[Forger], Any]


FORGERIES: dict[str, Forgery] = {}


def add(name: str, forged: str, forge: Callable[[Forger], Any], *, start: str = "plain") -> None:
    """Add one forgery to the registry."""
    assert name not in FORGERIES, name
    FORGERIES[name] = Forgery(name, forged, start, forge)


def forgery(
    forged: str, *, start: str = "plain"
) -> Callable[[Callable[[Forger], Any]], Callable[[Forger], Any]]:
    """Add the function that follows, under its own name."""

    def keep(forge: Callable[[Forger], Any]) -> Callable[[Forger], Any]:
        add(forge.__name__.replace("_", "-"), forged, forge, start=start)
        return forge

    return keep
