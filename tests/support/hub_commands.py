"""The real command line in a process of its own, with the real client, against the Hub on loopback.

A process of its own because huggingface_hub reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported,
and this one is imported offline.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.hub import TOKEN, LoopbackHub

_START = "from meteora_registry.registry.cli.main import main; main()"


@dataclass(frozen=True)
class Result:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


@dataclass
class Workplace:
    """A machine's worth of folders: a home, huggingface_hub's own, a place for bundles."""

    folder: Path
    endpoint: str
    token: str | None = TOKEN

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def hub_home(self) -> Path:
        return self.folder / "huggingface"

    def environment(self, **changes: str) -> dict[str, str]:
        """The variables of a command; only what Python needs is taken from this process."""
        kept = {key: value for key, value in os.environ.items() if key in _KEPT}
        kept |= {
            "HOME": str(self.folder),
            "METEORA_HOME": str(self.home),
            "HF_HOME": str(self.hub_home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        if self.token is not None:
            kept["HF_TOKEN"] = self.token
        return kept | changes

    def start(self, *arguments: object, **changes: str) -> subprocess.Popen[str]:
        """Begin a command."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-c", _START, *map(str, arguments)],
            env=self.environment(**changes),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, **changes: str) -> Result:
        """Carry out a command."""
        process = self.start(*arguments, **changes)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    def files(self) -> dict[str, int]:
        """Every file of the home that holds content, by its path: blobs, and whatever was left over."""
        return {
            path.relative_to(self.home).as_posix(): path.stat().st_size
            for path in sorted(self.home.rglob("*"))
            if path.is_file() and not path.name.startswith("catalog.db") and path.name != "lock"
        }


def interrupt(process: subprocess.Popen[str]) -> Result:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    return Result(process.returncode, out, err)


def workplace(folder: Path, hub: LoopbackHub, *, token: str | None = TOKEN) -> Workplace:
    """An empty workplace that knows this Hub."""
    folder.mkdir(parents=True, exist_ok=True)
    return Workplace(folder, hub.url, token)


_KEPT = (
    "PATH",
    "PYTHONPATH",
    "PYTHONSAFEPATH",
    "PYTHONHASHSEED",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "LD_LIBRARY_PATH",
)
