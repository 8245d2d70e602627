"""The tables themselves, for statements over many rows: as objects of the models these would cost tenfold."""

from __future__ import annotations

from .models import Base

_tables = Base.metadata.tables

entries = _tables["entries"]
versions = _tables["versions"]
adapter_versions = _tables["adapter_versions"]
adapter_files = _tables["adapter_files"]
bundle_versions = _tables["bundle_versions"]
aliases = _tables["aliases"]
tags = _tables["tags"]
base_models = _tables["base_models"]
search_adapters = _tables["search_adapters"]
search_words = _tables["search_words"]

# Adapter versions with their numbers and names.
named_adapters = adapter_versions.join(versions, versions.c.id == adapter_versions.c.id).join(
    entries, entries.c.id == versions.c.entry_id
)
