"""A program with the arguments of `vllm serve` that is a fake engine.

It ends at once with an error if the base's folder has a file `refused`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from support.engines import FakeEngine

TESTS = Path(__file__).parents[1]


def make_program(folder: Path) -> Path:
    """Return a program `vllm` that is a fake engine."""
    program = folder / "vllm"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={TESTS} exec {sys.executable} -m support.fake_vllm "$@"\n')
    program.chmod(0o755)
    return program


def main(arguments: list[str]) -> None:
    """Serve until a signal."""
    base = Path(arguments[1])
    if (base / "refused").exists():
        sys.stderr.write("error: there is no memory\n")
        raise SystemExit(3)
    modules = [json.loads(each) for each in arguments[arguments.index("--lora-modules") + 1 :]]
    engine = FakeEngine(members=[module["name"] for module in modules], key=os.environ.get("VLLM_API_KEY"))
    engine.base = arguments[arguments.index("--served-model-name") + 1]
    engine.port = int(arguments[arguments.index("--port") + 1])
    engine.start()
    engine.join()


if __name__ == "__main__":
    main(sys.argv[1:])
