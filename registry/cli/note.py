"""Letting the catalog know of what is done already, whether or not there is a catalog."""

from __future__ import annotations

from collections.abc import Callable

from ...schemas.errors import MeteoraError
from ..catalog.catalog import Catalog
from ..home import Home
from .output import print_remark


def note_in_catalog(home: Home, note: Callable[[Catalog], object]) -> None:
    """Have it noted; where that fails, a remark says so, and the command succeeded all the same."""
    try:
        with Catalog.open(home) as catalog:
            note(catalog)
    except (MeteoraError, OSError) as error:
        print_remark(f"warning: not noted in the catalog: {error}")
