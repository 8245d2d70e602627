"""Bounds that every document of this project has, whichever it is."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

from meteora_registry import schemas
from meteora_registry.schemas.document import Document

for module in pkgutil.iter_modules(schemas.__path__):
    importlib.import_module(f"{schemas.__name__}.{module.name}")


def documents(parent: type[Document] = Document) -> Iterator[type[Document]]:
    for kind in parent.__subclasses__():
        if kind.__module__.startswith(schemas.__name__):
            yield kind
        yield from documents(kind)


def integers(schema: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield place, schema
        for key, inner in schema.items():
            yield from integers(inner, f"{place}.{key}")
    elif isinstance(schema, list):
        for inner in schema:
            yield from integers(inner, place)


@pytest.mark.parametrize("kind", sorted(set(documents()), key=lambda kind: kind.__name__))
def test_every_integer_of_a_document_has_a_largest_value(kind: type[Document]) -> None:
    unbounded = [
        place
        for place, schema in integers(kind.model_json_schema())
        if not schema.keys() & {"maximum", "exclusiveMaximum", "const", "enum"}
    ]
    assert unbounded == []
