"""What a base model that lies on this machine says about the members of a fuse."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...fuser.planning import BaseModules


def read_base_modules(folder: Path, paths: Iterable[str]) -> BaseModules:
    """The base's modules, and the present names of those of ``paths`` that it renamed.

    Raises:
        SourceUnreadable: the folder has no config that transformers can read.
        UsageError: transformers does not have the architecture.
        MissingDependency: transformers is not installed.
    """
    from ...runtime.base_modules import module_shapes, read_base, resolve_paths

    base = read_base(folder)
    shapes = {path: (shape.in_features, shape.out_features) for path, shape in module_shapes(base).items()}
    return BaseModules(shapes=shapes, renamed=resolve_paths(paths, base))
