"""A real vLLM engine in a process of its own, started by the program that METEORA_VLLM names.

The tests run beside it, so the engine's environment needs neither PEFT nor our runtime.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .patience import PATIENCE_SECONDS

PROGRAM_VARIABLE = "METEORA_VLLM"
# Healthy after 30 to 70 seconds on two cores.
_POLL_SECONDS = 0.5
# As many as the engine gives.
LIKELIEST = 20
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    # Else the folders of this tree would be packages.
    "PYTHONSAFEPATH": "1",
    # Adapters are loaded and resolved while it runs.
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
_OPTIONS = ("--enable-lora", "--enforce-eager", "--dtype", "float32", "--max-model-len", "64")


def find_vllm() -> Path | None:
    """Return the `vllm` program that METEORA_VLLM names, if it names one."""
    stated = os.environ.get(PROGRAM_VARIABLE)
    return Path(stated).absolute() if stated else None


@dataclass(frozen=True)
class Answer:
    """The status and the document of an HTTP answer."""

    status: int
    document: Any

    @property
    def message(self) -> str:
        """The text of an error, or of an answer that is one."""
        error = self.document.get("error") if isinstance(self.document, dict) else None
        return str(error["message"] if error else self.document)


@dataclass(frozen=True)
class Engine:
    """A running engine."""

    url: str
    model: str
    log: Path

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """Return what the engine answers; with a body it is a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
                text, status = response.read().decode(), response.status
        except urllib.error.HTTPError as error:
            text, status = error.read().decode(), error.code
        try:
            return Answer(status, json.loads(text))
        except ValueError:
            return Answer(status, text)

    def load(self, name: str, folder: Path) -> Answer:
        """Load an adapter under a name."""
        return self.ask("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> Answer:
        """Forget a name."""
        return self.ask("/v1/unload_lora_adapter", {"lora_name": name})

    def complete(self, model: str, prompt: object, **options: Any) -> Answer:
        """Return a greedy completion of one token, unless the options state more."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
        return self.ask("/v1/completions", body | options)

    def next_tokens(self, model: str, prompts: Sequence[Sequence[int]]) -> list[dict[int, float]]:
        """Return the log probabilities of the likeliest tokens after each prompt, by token."""
        answer = self.complete(model, prompts, logprobs=LIKELIEST, return_tokens_as_token_ids=True)
        if answer.status != 200:
            raise EngineRefused(answer.message)
        tops = [choice["logprobs"]["top_logprobs"][0] for choice in answer.document["choices"]]
        return [{int(name.removeprefix("token_id:")): score for name, score in top.items()} for top in tops]


class EngineRefused(Exception):
    """The engine answered a request with an error."""


@contextmanager
def serve_base(
    program: Path, base: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[Engine]:
    """Yield an engine that serves a base on a free port of 127.0.0.1; its output is in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    log = folder / "vllm.log"
    command = [str(program), "serve", str(base), "--host", "127.0.0.1", "--port", str(port)]
    variables = (
        os.environ | _ENVIRONMENT | {"VLLM_CACHE_ROOT": str(folder / "cache")} | dict(environment or {})
    )
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *_OPTIONS, *options],
            env=variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    engine = Engine(f"http://127.0.0.1:{port}", str(base), log)
    try:
        _wait_until_healthy(engine, process)
        yield engine
    finally:
        _stop(process)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_healthy(engine: Engine, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{engine.url}/health", timeout=PATIENCE_SECONDS):
                return
        except OSError:
            time.sleep(_POLL_SECONDS)
    tail = engine.log.read_text(errors="replace")[-4000:]
    raise EngineRefused(f"the engine ended with {process.poll()} or never became healthy: {tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The engine's core is a process of the same group.
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            continue
    process.wait()
