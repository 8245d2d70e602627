"""The config of a base in a folder, looked at before transformers reads it.

transformers builds what a config asks for, whatever it costs, and raises whatever Python raises on the way.
So the file is read here first, bounded in bytes and in the numbers that say how often something is repeated;
and every failure of transformers becomes one of ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_module_registration_hook

from ..files.reading import read_start
from ..schemas.errors import MeteoraError, SourceUnreadable

CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 4 << 20
# The deepest models have a few hundred layers, and the largest vocabularies less than a million labels.
_MAX_LAYERS = 10_000
_MAX_REPEATED = 1_000_000
_MAX_POSITIONS = 1 << 24
# The largest mixtures of experts in transformers have some ten thousand modules.
_MAX_MODULES = 200_000
_LAYERS = re.compile(r"layer|depth|block|stage")
_POSITIONS = re.compile(r"position|ctx|context|length|seq")
_REPEATED = re.compile(r"^(n|num)_")
_MAX_REASON = 300
_HINT = "name the folder that holds the base's `config.json`"


def check_base_config(folder: Path) -> None:
    """Refuse a base, its folder or its config, that cannot be one, or asks for more than any model has.

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
        limit = _limit_of(key)
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


def _limit_of(key: str) -> int | None:
    if _POSITIONS.search(key):
        return _MAX_POSITIONS
    if _LAYERS.search(key):
        return _MAX_LAYERS
    return _MAX_REPEATED if _REPEATED.search(key) else None


def _words_of(error: BaseException) -> str:
    return " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
