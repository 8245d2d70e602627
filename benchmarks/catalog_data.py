"""Adapter versions by the thousand: written straight into the tables, and small real ones on disk.

What makes a search hard is in proportion: a base that a fifth of all adapters share and others that a
few have, tags and words on everything and on next to nothing, the same seven kinds of modules on most.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from safetensors.numpy import save_file

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.chain import chain, read_head
from meteora_registry.registry.catalog.engine import connection_to
from meteora_registry.registry.catalog.models import Base
from meteora_registry.registry.catalog.search_index import rebuild_index

VERSIONS_PER_NAME = 3
BASES = tuple(f"org-{i % 7}/Base-{i}-{2**i % 97}B" for i in range(20))
RANKS = (4, 8, 8, 16, 16, 16, 32, 32, 64, 128)
LICENSES = ("apache-2.0", "apache-2.0", "mit", "llama3.1", "cc-by-nc-4.0", None)
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# One adapter in ten is of another architecture.
OTHERS = ("c_attn", "c_proj", "c_fc", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
TASKS = ("summarise", "translate", "classify", "extract", "code", "chat", "legal", "medical", "rerank", "sql")
LANGUAGES = ("english", "german", "french", "polish", "swahili", "hindi", "korean", "basque")
START = datetime(2024, 1, 1, tzinfo=UTC)
_BATCH = 2000

Row = dict[str, Any]
Tables = dict[str, list[Row]]


def fill(catalog: Catalog, versions: int) -> None:
    """Bring a catalog that has some versions to ``versions``, and its search index with it."""
    engine = catalog._engine
    with connection_to(engine, writes=True) as connection:
        counts = {
            name: connection.scalar(sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0)))
            for name, table in Base.metadata.tables.items()
            if name in ("base_models", "base_spellings", "entries", "versions", "adapter_targets", "events")
        }
        _write(connection, _bases(counts))
        numbers = iter(range(versions - (counts["versions"] or 0)))
        history = _Chain(connection)
        while batch := list(islice(numbers, _BATCH)):
            tables = _merged(_version(i, counts) for i in batch)
            _write(connection, tables | {"events": [history.append(row) for row in tables["events"]]})
        if engine.dialect.name == "postgresql":
            _set_sequences(connection)
        rebuild_index(connection)
    if engine.dialect.name == "postgresql":
        # What autovacuum does by itself, a minute after so many rows.
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.connection.cursor().execute("VACUUM (ANALYZE)")


class _Chain:
    """The history, which each event is added to with its digest."""

    def __init__(self, connection: sa.Connection) -> None:
        head = read_head(connection)
        self._last = None if head is None else head.digest
        on_postgresql = connection.dialect.name == "postgresql"
        self._role = connection.scalar(sa.text("SELECT session_user")) if on_postgresql else None

    def append(self, event: Row) -> Row:
        """Return the event with its role and digest."""
        event = event | {"role": self._role}
        self._last = chain(self._last, event)
        return event | {"digest": self._last}


def _bases(counts: Row) -> Tables:
    names = dict(enumerate(BASES, start=1))
    return {
        "base_models": [
            {"id": counts["base_models"] + i, "name": name, "created_at": START} for i, name in names.items()
        ],
        "base_spellings": [
            {
                "id": counts["base_spellings"] + i,
                "base_model_id": counts["base_models"] + i,
                "spelling": name,
                "spelling_key": name.casefold(),
            }
            for i, name in names.items()
        ],
    }


def _version(index: int, counts: Row) -> Tables:
    draw = random.Random(index)
    # The square makes the first bases common and the last ones rare.
    base = int(len(BASES) * draw.random() ** 2)
    rank, kinds = draw.choice(RANKS), OTHERS if draw.random() < 0.1 else SEVEN
    tags = [f"batch-{index // 50}"] + ["candidate"] * (draw.random() < 0.3)
    of_version = {"version_id": counts["versions"] + index + 1}
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    first_target = counts["adapter_targets"] + index * len(kinds) + 1
    adapter = _adapter(draw, index, digest, BASES[base], rank)
    ids = {"id": of_version["version_id"], "base_model_id": counts["base_models"] + base + 1}
    return _history(index, counts, digest) | {
        "adapter_versions": [ids | adapter],
        "adapter_files": [
            of_version | {"name": file, "sha256": digest, "size_bytes": 1000}
            for file in ("adapter_config.json", "adapter_model.safetensors")
        ],
        "adapter_targets": [
            of_version | {"id": identifier} | _target(kind, rank)
            for identifier, kind in enumerate(kinds, start=first_target)
        ],
        "tags": [of_version | {"tag": tag} for tag in tags],
    }


def _history(index: int, counts: Row, digest: str) -> Tables:
    """Return the version's number under its name, and the event that it was added."""
    entry, before = divmod(index, VERSIONS_PER_NAME)
    entry_id, version_id = counts["entries"] + entry + 1, counts["versions"] + index + 1
    name, number, at = _name_of(index), before + 1, START + timedelta(minutes=index)
    row = {"id": entry_id, "kind": "adapter", "name": name, "latest_version": VERSIONS_PER_NAME}
    return {
        "entries": [row | {"created_at": at}] if number == 1 else [],
        "versions": [
            {"id": version_id, "entry_id": entry_id, "kind": "adapter", "number": number, "created_at": at}
        ],
        "events": [
            {
                "id": counts["events"] + index + 1,
                "at": at,
                "actor": "benchmark",
                "action": "add",
                "subject": "adapter",
                "name": name,
                "version": number,
                "details": {"weights_sha256": digest},
            }
        ],
    }


def _name_of(index: int) -> str:
    entry = index // VERSIONS_PER_NAME
    return f"{TASKS[entry % 10]}-{LANGUAGES[entry // 10 % 8]}-{entry:06d}"


def _adapter(draw: random.Random, index: int, digest: str, base: str, rank: int) -> Row:
    return {
        "origin_kind": "hub",
        "origin_location": f"hf://team-{index % 500}/{_name_of(index)}-lora@{digest[:40]}",
        "origin_commit": digest[:40],
        "weights_sha256": digest,
        "config_sha256": digest,
        "canonical_config_sha256": digest,
        "weights_bytes": rank * draw.randrange(10**5, 10**6),
        "declared_base": base,
        "stated_base": None,
        "base_revision": None,
        "task_type": "CAUSAL_LM",
        "license": draw.choice(LICENSES),
        "peft_version": "0.21.2",
        "shape_signature": hashlib.sha256(base.encode()).hexdigest(),
        "rank": rank,
        "max_rank": rank,
        "scaling": 2.0,
        "dtypes": ("BF16",),
        "sound": True,
        "fusable": draw.random() < 0.95,
        "findings": [],
    }


def _target(kind: str, rank: int) -> Row:
    return {
        "kind": kind,
        "in_features": 4096,
        "out_features": 4096,
        "min_rank": rank,
        "max_rank": rank,
        "min_scaling": 2.0,
        "max_scaling": 2.0,
        "layers": 32,
    }


def _merged(tables: Iterable[Tables]) -> Tables:
    merged: Tables = {}
    for each in tables:
        for name, rows in each.items():
            merged.setdefault(name, []).extend(rows)
    return merged


def _write(connection: sa.Connection, tables: Tables) -> None:
    for table in Base.metadata.sorted_tables:
        rows = tables.get(table.name, [])
        if rows and connection.dialect.name == "postgresql":
            _copy(connection, table, rows)
        elif rows:
            connection.execute(table.insert(), rows)


def _copy(connection: sa.Connection, table: sa.Table, rows: list[Row]) -> None:
    columns = [table.c[name] for name in rows[0]]
    names = ", ".join(f'"{column.name}"' for column in columns)
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table.name} ({names}) FROM STDIN") as copy:  # type: ignore[attr-defined]
        for row in rows:
            copy.write_row([_copied(row[column.name]) for column in columns])


def _copied(value: Any) -> Any:
    """Return a value as COPY takes it, which goes past the types of the columns."""
    if isinstance(value, tuple):
        return " ".join(value)
    return json.dumps(value) if isinstance(value, dict | list) else value


def _set_sequences(connection: sa.Connection) -> None:
    for table in Base.metadata.sorted_tables:
        if table.autoincrement_column is not None:
            connection.exec_driver_sql(
                f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), max(id)) FROM {table.name} "
                "HAVING max(id) IS NOT NULL"
            )


def write_adapters(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield small real adapters of two layers and seven kinds of modules, each with its own weights."""
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/base-of-the-real-ones",
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": sorted(SEVEN),
    }
    for name in names:
        path = folder / name
        path.mkdir(parents=True)
        numbers = np.random.default_rng(int.from_bytes(name.encode()[-6:]))
        tensors = {}
        for layer in range(2):
            for kind in SEVEN:
                module = f"base_model.model.model.layers.{layer}.self_attn.{kind}"
                tensors[f"{module}.lora_A.weight"] = numbers.standard_normal((4, 32), dtype=np.float32)
                tensors[f"{module}.lora_B.weight"] = numbers.standard_normal((32, 4), dtype=np.float32)
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
        yield path
