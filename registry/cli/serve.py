"""``serve``: answer requests over HTTP, in the form of OpenAI's interface."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ...bundle import Bundle
from ...files.reading import read_bounded, real_path
from ...schemas.errors import UsageError
from ...serving.limits import Limits
from ..dependencies import require_serving, require_torch
from ..face import Registry
from ..secrets import API_KEY_VARIABLE, remember_secret
from ..workflows.base_place import choose_base_to_run
from ..workflows.bundle_folder import find_bundle_folder
from .groups import examples
from .output import print_gate_remark, print_remark
from .parameters import MAX_COUNT, base_folder_option, base_option, bundle_argument, pass_registry

_MAX_KEY_BYTES = 4096
_MIN_KEY_CHARACTERS = 8


@click.command(
    "serve",
    epilog=examples(
        "serve ./bundle --base ./llama",
        "serve bundle@2 --base ./llama --name assistant --port 8080",
        "serve ./bundle --base ./llama --host 0.0.0.0 --api-key-file key.txt",
    ),
)
@bundle_argument
@base_option
@base_folder_option
@click.option("--name", metavar="NAME", help="What requests call the bundle. Default: its folder's name.")
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
@click.option(
    "--max-tokens",
    metavar="N",
    type=click.IntRange(1, MAX_COUNT),
    default=1024,
    show_default=True,
    help="The longest answer that a request may ask for.",
)
@click.option(
    "--batch-size",
    metavar="N",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Prompts that are answered together.",
)
@click.option(
    "--queue",
    metavar="N",
    type=click.IntRange(1, MAX_COUNT),
    default=256,
    show_default=True,
    help="Prompts that may wait; further ones are refused with 429.",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.IntRange(1, 86400),
    default=600,
    show_default=True,
    help="The longest time from a request to the end of its answer.",
)
@pass_registry
def command(
    registry: Registry,
    bundle: str,
    *,
    base: str | None,
    base_folder: Path | None,
    name: str | None,
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
    """
    require_torch("serving")
    require_serving()
    from ...runtime.fitting import open_base
    from ...serving.app import Service
    from ...serving.batches import LocalBackend
    from ...serving.metrics import Metrics
    from ...serving.names import ModelNames
    from ...serving.server import Server, address_of, check_host, listen
    from ..workflows.inference import load_for_command

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
    with listen(host, port) as listening:
        metrics = Metrics()
        loaded = load_for_command(folder, open_base(source))
        if not opened.is_fitted:
            print_gate_remark()
        service = Service(
            LocalBackend(loaded, names, limits, metrics), limits=limits, metrics=metrics, key=key
        )
        print_remark(f"serving {', '.join(f'`{model}`' for model in names.models)}")
        print_remark(f"listening on {address_of(listening)}/v1; Ctrl-C stops")
        server = Server(service)
        server.run(sockets=[listening])
    if server.force_exit:
        raise click.Abort


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
