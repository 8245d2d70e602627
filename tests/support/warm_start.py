"""The initial state of the fork server's children: everything imported, and every command run once."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import httpcore2
import torch
from transformers.utils.chat_template_utils import render_jinja_template

from meteora_registry.kernels import triton_check
from meteora_registry.registry.cli.main import run

from .new_catalogs import shared_statements
from .small_adapters import make_adapter
from .warm import run_in_fork

COMMANDS = (
    "add {folder}/legal {folder}/medical",
    "fuse legal medical --out {folder}/team",
    "verify {folder}/team",
    "remove team --yes",
    "store gc",
    "doctor --fix --yes",
    "remove legal --yes",
)


def _run_every_command() -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_adapter(Path(folder, "legal"))
        make_adapter(Path(folder, "medical"), seed=1)
        for command in COMMANDS:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                code = run(["--home", f"{folder}/home", *command.format(folder=folder).split()])
            if code != 0:
                raise RuntimeError(f"`{command}` ended with {code}: {said.getvalue()}")


torch.set_num_threads(1)
# Every verification starts Triton's interpreter, which takes three seconds, and a tenth of that in a fork.
vars(triton_check)["subprocess"] = SimpleNamespace(run=run_in_fork, TimeoutExpired=TimeoutError)
vars(triton_check)["_ask_interpreter"] = functools.cache(triton_check._ask_interpreter)
_for_ever = contextlib.ExitStack()
_for_ever.enter_context(shared_statements())
with contextlib.suppress(ImportError):
    importlib.import_module("psycopg")
# Every client of a Hub reads the certificates that this machine trusts, which takes 30 milliseconds.
vars(httpcore2)["default_ssl_context"] = functools.cache(httpcore2.default_ssl_context)
httpcore2.default_ssl_context(_trust_env=True)
_run_every_command()
# The rest of what renders a chat template is imported with the first.
render_jinja_template(conversations=[[]], chat_template="", add_generation_prompt=True)
# A child that collects garbage would look through all of this, and copy the memory that holds it.
gc.collect()
gc.freeze()
