"""A core install: processes in which torch and its dependents are blocked, forked from one of them.

It blocked them before it imported anything of the package, so it has what a core install has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from support.warm import run_in_fork

BLOCKED = (
    "torch",
    "triton",
    "safetensors",
    "peft",
    "transformers",
    "accelerate",
    "scipy",
    "matplotlib",
    "model_signing",
)
# What begins a program of a core install, also one that a test starts by itself.
PREAMBLE = f"import sys\nsys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
PROGRAM = f"{PREAMBLE}from meteora_registry.registry.cli.entry import main\nmain()\n"
_SERVER = f"{PREAMBLE}sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n" + (
    "from support.core_install import serve\nserve()\n"
)
# What most commands import; huggingface_hub reads the environment of a test when it is imported.
_IMPORTED = (
    "alembic.command",
    "httpx2",
    "numpy",
    "pydantic",
    "sqlalchemy.dialects.sqlite",
    "sqlalchemy.orm",
    "tqdm.auto",
    "trio",
    "yaml",
    "meteora_registry.fuser.planning",
    "meteora_registry.registry.catalog.catalog",
    "meteora_registry.registry.cli.main",
    "meteora_registry.registry.face",
    "meteora_registry.registry.workflows.difference",
)


class CoreInstall:
    """A process that runs Python programs in forks of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, program: str, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a program as ``python -c`` does, and capture its output."""
        command = [sys.executable, "-c", program, *arguments]
        requests = cast("IO[str]", self._process.stdin)
        requests.write(json.dumps([command, dict(env)]) + "\n")
        requests.flush()
        code, out, err = json.loads(cast("IO[str]", self._process.stdout).readline())
        return subprocess.CompletedProcess(command, code, out, err)


@contextmanager
def core_install() -> Iterator[CoreInstall]:
    """Yield a core install, which ends with the block."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield CoreInstall(process)


def serve() -> None:
    """Answer each line of the standard input, a command and its environment, by its code and output."""
    for name in _IMPORTED:
        __import__(name)
    # The programs have streams of their own.
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for line in requests:
        command, environment = cast("tuple[Sequence[str], Mapping[str, str]]", json.loads(line))
        done = run_in_fork(command, input=b"", env=environment)
        answers.write(json.dumps([done.returncode, done.stdout.decode(), done.stderr.decode()]) + "\n")
        answers.flush()
