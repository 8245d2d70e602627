"""Copies of modules that share the original's tensors, but have parts or modes of their own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MethodType
from typing import Any

from torch import nn


def shallow_copy(module: nn.Module, parts: Mapping[str, nn.Module | None]) -> nn.Module:
    """Return a copy of a module with these parts, in the place of its own of the same names."""
    copy = object.__new__(type(module))
    copy.__dict__.update({name: _bound_to(copy, module, value) for name, value in vars(module).items()})
    copy.__dict__["_modules"] = dict(parts)
    return copy


def _bound_to(copy: nn.Module, module: nn.Module, value: Any) -> Any:
    """Return an attribute that does for the copy what it does for the module.

    accelerate and others replace the ``forward`` of single modules.
    """
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, copy)
    if isinstance(value, functools.partial) and value.args[:1] == (module,):
        return functools.partial(value.func, copy, *value.args[1:], **value.keywords)
    return value
