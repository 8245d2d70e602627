"""A base model by its folder or name: its config checked first, then read by transformers part by part.

transformers builds what a config asks for, whatever it costs, and lets any exception out. So the config of a
folder is read here first, bounded in bytes and in the numbers that say how often something is repeated; and
every failure of transformers becomes one of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..files.reading import read_start
from ..schemas.errors import MeteoraError, SourceUnreadable
from .config_limits import limit_of
from .gguf_base import gguf_file_in

CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 4 << 20
# The largest mixtures of experts in transformers have some ten thousand modules.
_MAX_MODULES = 200_000
_MAX_REASON = 300
_HINT = "name the folder that holds the base's `config.json`"


def check_base_config(folder: Path) -> None:
    """Refuse a base, its folder or its config, that cannot be a base, or asks for more than any model has.

    Raises:
        SourceUnreadable: it is missing, not a JSON object, or out of bounds.
    """
    path = folder if folder.is_file() else folder / CONFIG_FILE
    with _reported(folder):
        data = read_start(path, _MAX_CONFIG_BYTES, follows_links=True)
    if len(data) > _MAX_CONFIG_BYTES:
        raise _refused(folder, f"`{CONFIG_FILE}` has more than {_MAX_CONFIG_BYTES} bytes")
    try:
        # Not `load_json`: configs of state space models hold `Infinity`, which JSON does not have.
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _refused(folder, f"`{CONFIG_FILE}` is not JSON that can be read: {_words_of(error)}") from error
    if not isinstance(config, dict):
        raise _refused(folder, f"`{CONFIG_FILE}` holds a {type(config).__name__}, expected an object")
    for key, number in _numbers_in(config):
        limit = limit_of(key)
        if limit is not None and number > limit:
            raise _refused(folder, f"its `{key}` is {number:.3g}, expected at most {limit}")


@contextmanager
def translated_failures(what: str, *, hint: str = _HINT) -> Iterator[None]:
    """Raise what transformers raises on a base as ``SourceUnreadable``; ``what`` begins the message."""
    try:
        yield
    except MeteoraError:
        raise
    # A config with a wrong value ends in the code of its model, which checks little: anything may be raised.
    except Exception as error:
        raise SourceUnreadable(f"{what}: {_words_of(error)}", hint=hint) from error


@contextmanager
def bounded_modules(folder: str) -> Iterator[None]:
    """Refuse a model of more modules than any has, while it is being built on this thread."""
    count = 0

    def count_module(parent: torch.nn.Module, name: str, module: torch.nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MAX_MODULES:
            raise SourceUnreadable(
                f"the base `{folder}` has more than {_MAX_MODULES} modules", hint="check its `config.json`"
            )

    hook = register_module_module_registration_hook(count_module)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _reported(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _refused(folder, getattr(error, "message", None) or str(error)) from error


def _refused(folder: Path, reason: str) -> SourceUnreadable:
    return SourceUnreadable(f"`{folder}` is not a base model: {reason}", hint=_HINT)


def _numbers_in(config: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number with the key that it is found under, however deep."""
    waiting: list[tuple[str, Any]] = list(config.items())
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [(key, each) for each in value]
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key, _as_float(value)


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        return float("inf")


def _words_of(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__


def check_base_folder(folder: Path) -> dict[str, str]:
    """Check a base's folder, if it is one, and return the argument that names its GGUF file, if it is one.

    Raises:
        SourceUnreadable, MissingDependency: as ``check_base_config`` and ``gguf_file_in``.
    """
    gguf = gguf_file_in(folder)
    if gguf is not None:
        return {"gguf_file": gguf}
    if folder.is_dir():
        check_base_config(folder)
    return {}


def read_pretrained(kind: Any, name: str, **options: Any) -> Any:
    """Load a base's part by name or folder with one of transformers' auto classes; no code of it is run.

    A folder with one GGUF file and no config is read by transformers, which dequantises it.

    Raises:
        MissingDependency: a GGUF file needs `gguf`, which is not installed.
        SourceUnreadable: there is nothing there that transformers can read.
    """
    options |= check_base_folder(Path(name))
    if "gguf_file" in options:
        options.pop("use_safetensors", None)
    with translated_failures(
        f"`{name}` cannot be loaded as the base",
        hint="name a folder or a Hub repository with model and tokenizer",
    ):
        return kind.from_pretrained(name, trust_remote_code=False, **options)


@dataclass(frozen=True, slots=True)
class OpenedBase:
    """A base by name or folder: its config and tokenizer are read, its weights not yet."""

    name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    def load(self) -> PreTrainedModel:
        """Load the model in the element type of its files, on the GPUs if there are any.

        Raises:
            SourceUnreadable: it has no safetensors weights that transformers can load.
        """
        options = {"device_map": "auto"} if torch.cuda.is_available() else {}
        # A pickle is never loaded.
        model: PreTrainedModel = read_pretrained(
            AutoModelForCausalLM, self.name, use_safetensors=True, **options
        )
        return model


def open_base(name: str) -> OpenedBase:
    """Open a base by its folder or its name on the Hub; no code of any repository is run.

    Raises:
        SourceUnreadable: it has no config or no tokenizer that transformers can read.
    """
    return OpenedBase(name, read_pretrained(AutoConfig, name), read_pretrained(AutoTokenizer, name))


def context_of(config: PretrainedConfig) -> int | None:
    """Return how many tokens the base takes at once; None if its config states no bound."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None
