"""``serve``: answer requests over HTTP, in the form of OpenAI's interface."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...bundle import Bundle
from ...files.reading import read_bounded, real_path
from ...schemas.errors import UsageError
from ...serving.limits import Limits
from ..dependencies import require_serving, require_torch
from ..face import Registry
from ..secrets import API_KEY_VARIABLE, ENGINE_KEY_VARIABLE, remember_secret
from ..workflows.base_place import choose_base_to_run
from ..workflows.bundle_folder import find_bundle_folder
from .groups import examples
from .output import print_gate_remark, print_remark
from .parameters import base_folder_option, base_option, bundle_argument, count_option, pass_registry

if TYPE_CHECKING:
    from ...serving.app import Backend
    from ...serving.metrics import Metrics
    from ...serving.names import ModelNames
    from ..workflows.engine_backend import EngineChoice

_MAX_KEY_BYTES = 4096
_MIN_KEY_CHARACTERS = 8


@click.command(
    "serve",
    epilog=examples(
        "serve ./bundle --base ./llama",
        "serve bundle@2 --base ./llama --name assistant --port 8080",
        "serve ./bundle --base ./llama --host 0.0.0.0 --api-key-file key.txt",
        "serve ./bundle --base ./llama --engine vllm",
        "serve ./bundle --base ./llama --engine-url http://gpu-1:8000 --engine-url http://gpu-2:8000",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@click.option("--name", metavar="NAME", help="What requests call the bundle. Default: its folder's name.")
@click.option(
    "--engine",
    type=click.Choice(["vllm"]),
    help="Start vLLM with the members, and let it answer; METEORA_VLLM names its program.",
)
@click.option(
    "--engine-url",
    "engine_urls",
    metavar="URL",
    multiple=True,
    help="An engine that runs already and has the members as models; may be given several times. Its key is "
    f"read from {ENGINE_KEY_VARIABLE}.",
)
@click.option("--engine-args", metavar="TEXT", help="Further arguments of the engine that is started.")
@click.option(
    "--engine-log",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Where the output of that engine is kept. Default: it is deleted at the end.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="The port to listen on; 0 is any that is free.",
)
@click.option(
    "--api-key-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"Holds the key that clients must send. Default: {API_KEY_VARIABLE}, else no key.",
)
@count_option("--max-tokens", "The longest answer that a request may ask for.", default=1024)
@count_option("--batch-size", "Prompts that are answered together.", default=8, most=1024)
@count_option("--queue", "Prompts that may wait; further ones are refused with 429.", default=256)
@count_option(
    "--timeout",
    "The longest time from a request to the end of its answer.",
    default=600,
    most=86400,
    metavar="SECONDS",
)
@pass_registry
def command(
    registry: Registry,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    name: str | None,
    engine: str | None,
    engine_urls: tuple[str, ...],
    engine_args: str | None,
    engine_log: Path | None,
    host: str,
    port: int,
    api_key_file: Path | None,
    max_tokens: int,
    batch_size: int,
    queue: int,
    timeout: int,
) -> None:
    """Answer requests over HTTP, in the form of OpenAI's interface.

    The model NAME lets the bundle choose, NAME/MEMBER is one member, and NAME/base the plain base. Each
    answer states who gave it, in the field `meteora` and in headers. Ctrl-C and SIGTERM let what runs end.

    With engines only the first layers of the base are loaded here: they decide who answers, and an engine
    with that member writes the answer.
    """
    require_torch("serving")
    require_serving()
    from ...serving.app import Service
    from ...serving.metrics import Metrics
    from ...serving.names import ModelNames
    from ...serving.server import Server, address_of, check_host, listen
    from ..workflows.engine_backend import EngineChoice

    engine_key = os.environ.get(ENGINE_KEY_VARIABLE) or None
    choice = EngineChoice(engine_urls, engine is not None, engine_args, engine_log, engine_key)
    choice.check()
    key = _read_key(api_key_file)
    check_host(host, has_key=key is not None)
    folder = find_bundle_folder(registry, bundle)
    opened = Bundle.open(folder)
    names = ModelNames(name or real_path(folder).name, opened.config.names)
    source = choose_base_to_run(registry, folder, base, base_folder)
    limits = Limits(
        max_new_tokens=max_tokens, max_batch=batch_size, max_waiting=queue, answer_seconds=float(timeout)
    )
    # An address that is taken is found before the base is loaded.
    metrics = Metrics()
    with (
        listen(host, port) as listening,
        _open_backend(folder, source, choice, names, limits, metrics) as backend,
    ):
        if not opened.is_fitted:
            print_gate_remark()
        if choice.is_any and opened.config.top_k > 1:
            print_remark(
                f"the bundle gives a request {opened.config.top_k} members; an engine gives it the likeliest "
                "alone"
            )
        service = Service(backend, limits=limits, metrics=metrics, key=key)
        if choice.starts_vllm:
            print_remark("starting vLLM, which takes a minute or more; requests wait for it")
        print_remark(f"serving {', '.join(f'`{model}`' for model in names.models)}")
        print_remark(f"listening on {address_of(listening)}/v1; Ctrl-C stops")
        server = Server(service)
        server.run(sockets=[listening])
    if server.force_exit:
        raise click.Abort


@contextmanager
def _open_backend(
    folder: Path, source: str, choice: EngineChoice, names: ModelNames, limits: Limits, metrics: Metrics
) -> Iterator[Backend]:
    """Yield what answers: the bundle in this process, or engines."""
    if choice.is_any:
        from ..workflows.engine_backend import engine_backend

        with engine_backend(folder, source, choice, names, limits, metrics) as routed:
            yield routed
        return
    from ...runtime.fitting import open_base
    from ...serving.batches import LocalBackend
    from ..workflows.inference import load_for_command

    yield LocalBackend(load_for_command(folder, open_base(source)), names, limits, metrics)


def _read_key(path: Path | None) -> str | None:
    """Return the key that clients must send; None if there is none.

    Raises:
        UsageError: it is too short, or has characters that no header can hold.
        SourceUnreadable: the file cannot be read.
    """
    if path is None:
        key, source = os.environ.get(API_KEY_VARIABLE), API_KEY_VARIABLE
    else:
        key, source = read_bounded(path, _MAX_KEY_BYTES).decode("utf-8", "replace").strip(), f"`{path}`"
    if path is None and not key:
        return None
    remember_secret(key)
    if not key or len(key) < _MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"the key in {source} is not at least {_MIN_KEY_CHARACTERS} printable ASCII characters without "
            "a space",
            hint="make one with `openssl rand -hex 32`",
        )
    return key
