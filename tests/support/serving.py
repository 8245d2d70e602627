"""A server on a port of this machine, in a thread of the test's process, with a tiny bundle that answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.serving.app import Backend, Service
from meteora_registry.serving.batches import LocalBackend
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.metrics import Metrics
from meteora_registry.serving.names import ModelNames
from meteora_registry.serving.server import Server, address_of, listen
from support.bundles import write_bundle
from support.models import make_llama_adapters
from support.patience import PATIENCE_SECONDS
from support.task_data import TEMPLATE, save_text_base

NAME = "tiny"
MEMBERS = ("rank4", "rank8", "rslora16")
KEY = "a-key-of-the-tests"


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that runs, and what it runs on."""

    url: str
    server: Server
    service: Service
    loaded: LoadedBundle | None


def make_served(folder: Path, *, scope: str = "prompt", template: str | None = TEMPLATE) -> tuple[Path, Path]:
    """Return a bundle of three members, and its base with a tokenizer of words."""
    members = {
        name: path for name, path in make_llama_adapters(folder / "adapters").items() if name in MEMBERS
    }
    bundle = write_bundle(folder / NAME, members, top_k=1, scope=scope)
    options = {} if template is None else {"chat_template": template}
    return bundle, save_text_base(folder / "base", pad_token="<unk>", **options)


def load_served(folder: Path, **options: str) -> LoadedBundle:
    """Return such a bundle on its base."""
    return load_bundle(*make_served(folder, **options))


@contextmanager
def serving_bundle(
    loaded: LoadedBundle, limits: Limits | None = None, *, key: str | None = None
) -> Iterator[Serving]:
    """Serve a loaded bundle within the block."""
    limits, metrics = limits or Limits(batches=2), Metrics()
    names = ModelNames(NAME, loaded.config.names)
    backend = LocalBackend(loaded, names, limits, metrics)
    with serving(backend, limits, metrics, key=key, loaded=loaded) as found:
        yield found


@contextmanager
def serving(
    backend: Backend,
    limits: Limits,
    metrics: Metrics,
    *,
    key: str | None = None,
    loaded: LoadedBundle | None = None,
) -> Iterator[Serving]:
    """Serve a backend within the block, and stop as a signal would."""
    service = Service(backend, limits=limits, metrics=metrics, key=key)
    server = Server(service)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Serving(address_of(listening), server, service, loaded)
        finally:
            server.request_stop()
            thread.join()


class Held:
    """The passes of a model, each of which waits until it is allowed."""

    def __init__(self) -> None:
        self._permits = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def allow(self, passes: int) -> None:
        """Let this many more passes run."""
        self._permits.release(passes)

    def wait_for_a_pass(self) -> None:
        """Wait until a pass has begun that was not waited for before."""
        assert self.begun.acquire(timeout=PATIENCE_SECONDS)

    def hold(self, *_: object) -> None:
        """Wait for leave; a hook before a pass."""
        self.begun.release()
        assert self._permits.acquire(timeout=PATIENCE_SECONDS)


@contextmanager
def held(loaded: LoadedBundle) -> Iterator[Held]:
    """Hold every pass of the base within the block; those that still wait at its end go on."""
    found = Held()
    handle = loaded.model.get_base_model().register_forward_pre_hook(found.hold)
    try:
        yield found
    finally:
        handle.remove()
        found.allow(1000)


def post(served: Serving, path: str = "/v1/completions", **body: object) -> httpx2.Response:
    """Return the answer to a request; by default a greedy one of four tokens, of the bundle."""
    asked = {"model": NAME, "max_tokens": 4, "temperature": 0} | body
    if path == "/v1/completions":
        asked = {"prompt": "w1 w2"} | asked
    return httpx2.post(f"{served.url}{path}", json=asked, timeout=PATIENCE_SECONDS)


def metric(served: Serving, name: str, **labels: str) -> float:
    """Return the value of a metric of the server; 0 if it was never counted."""
    text = httpx2.get(f"{served.url}/metrics", timeout=PATIENCE_SECONDS).text
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return next((each.value for each in samples if each.name == name and each.labels == labels), 0.0)


@contextmanager
def asking() -> Iterator[Callable[..., Future[httpx2.Response]]]:
    """Ask in the background within the block."""
    with ThreadPoolExecutor(16) as pool:
        yield lambda served, **body: pool.submit(post, served, **body)


def running(served: Serving) -> dict[str, int]:
    """Return how many prompts wait and run."""
    found: dict[str, int] = httpx2.get(f"{served.url}/health").json()
    return {name: found[name] for name in ("waiting", "running")}
