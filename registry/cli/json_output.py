"""Records on stdout as JSON; apart from text, since help and errors do not need pydantic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from ...schemas.document import canonical_json
from ..secrets import mask_urls


def print_json(value: Any) -> None:
    """Print records as JSON: dataclasses and documents as objects, in one canonical spelling."""
    click.echo(canonical_json(to_json(value)).decode("ascii"), nl=False)


def mask(value: Any) -> Any:
    """Return a document, or a value in one, with every URL masked."""
    match value:
        case BaseModel():
            return value.model_copy(update={name: mask(each) for name, each in value})
        case tuple() | list():
            return type(value)(map(mask, value))
        case dict():
            return {mask(key): mask(each) for key, each in value.items()}
        # Not a choice or a digest, which are strings of other types.
        case str() if type(value) is str:
            return mask_urls(value)
        case _:
            return value


def to_json(value: Any) -> Any:
    """Return a record as JSON values, its URLs masked."""
    match value:
        case str():
            return mask_urls(value)
        case BaseModel():
            return to_json(value.model_dump(mode="json"))
        case datetime():
            return value.isoformat()
        case Path():
            return mask_urls(str(value))
        case Mapping():
            return {mask_urls(str(key)): to_json(each) for key, each in value.items()}
        case list() | tuple() | frozenset() | set():
            return [to_json(each) for each in value]
        case _ if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return {field.name: to_json(getattr(value, field.name)) for field in fields}
        case _:
            return value
