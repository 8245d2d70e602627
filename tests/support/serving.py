"""A server on a port of this machine, in a thread of the test's process, with a tiny bundle that answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.serving.app import Backend, Service
from meteora_registry.serving.batches import LocalBackend
from meteora_registry.serving.limits import Limits
from meteora_registry.serving.metrics import Metrics
from meteora_registry.serving.names import ModelNames
from meteora_registry.serving.server import Server, address_of, listen
from support.bundles import write_bundle
from support.models import make_llama_adapters
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
    loaded: LoadedBundle | None = None


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
def serving_bundle(loaded: LoadedBundle, limits: Limits | None = None) -> Iterator[Serving]:
    """Serve a loaded bundle within the block."""
    limits, metrics = limits or Limits(batches=2), Metrics()
    names = ModelNames(NAME, loaded.config.names)
    backend = LocalBackend(loaded, names, limits, metrics)
    with serving(backend, limits, metrics) as found:
        yield Serving(found.url, found.server, found.service, loaded)


@contextmanager
def serving(
    backend: Backend, limits: Limits, metrics: Metrics, *, key: str | None = None
) -> Iterator[Serving]:
    """Serve a backend within the block, and stop as a signal would."""
    service = Service(backend, limits=limits, metrics=metrics, key=key)
    server = Server(service)
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield Serving(address_of(listening), server, service)
        finally:
            server.request_stop()
            thread.join()
