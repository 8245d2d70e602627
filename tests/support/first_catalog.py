"""A catalog as the first revision had it, with awkward rows in every table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from alembic import command

from meteora_registry.registry.catalog import database
from meteora_registry.registry.catalog.engine import engine_for

Rows = dict[str, list[dict[str, Any]]]

_THEN = datetime(2026, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
_BIG = 2**53 + 1

ROWS: Rows = {
    "base_models": [{"id": 7, "name": "meta-llama/Llama-2-7b-hf", "created_at": _THEN}],
    "base_spellings": [
        {
            "id": 1,
            "base_model_id": 7,
            "spelling": "meta-llama/Llama-2-7b-hf",
            "spelling_key": "meta-llama/llama-2-7b-hf",
        },
        {"id": 2, "base_model_id": 7, "spelling": "Mirror/L2", "spelling_key": "mirror/l2"},
    ],
    "entries": [
        {"id": 3, "kind": "adapter", "name": "legal", "latest_version": 9, "created_at": _THEN},
        {"id": 4, "kind": "bundle", "name": "team", "latest_version": 2, "created_at": _THEN},
        {"id": 5, "kind": "adapter", "name": "gone", "latest_version": 4, "created_at": _THEN},
    ],
    "versions": [
        {"id": 11, "entry_id": 3, "kind": "adapter", "number": 8, "created_at": _THEN},
        {"id": 12, "entry_id": 3, "kind": "adapter", "number": 9, "created_at": _THEN},
        {"id": 13, "entry_id": 4, "kind": "bundle", "number": 2, "created_at": _THEN},
    ],
    "adapter_versions": [
        {
            "id": 11,
            "origin_kind": "hub",
            "origin_location": "hf://org/Straße-漢字@abc/sub",
            "origin_commit": "abc",
            "weights_sha256": "a" * 64,
            "config_sha256": "b" * 64,
            "canonical_config_sha256": "c" * 64,
            "weights_bytes": _BIG,
            "declared_base": "Mirror/L2",
            "stated_base": "meta-llama/Llama-2-7b-hf",
            "base_revision": "main",
            "base_model_id": 7,
            "task_type": "CAUSAL_LM",
            "license": "Apache 2.0 'quoted' \\ \"twice\"",
            "peft_version": "0.21.2",
            "shape_signature": "d" * 64,
            "rank": 8,
            "max_rank": 64,
            "scaling": 0.1,
            "dtypes": "BF16 F32",
            "sound": True,
            "fusable": False,
            "findings": [{"code": "MR121", "text": "line\nbreak \u2028 \U0001f600"}],
        },
        {
            "id": 12,
            "origin_kind": "folder",
            "origin_location": "folder",
            "origin_commit": None,
            "weights_sha256": "1" * 64,
            "config_sha256": "2" * 64,
            "canonical_config_sha256": "3" * 64,
            "weights_bytes": 0,
            "declared_base": None,
            "stated_base": None,
            "base_revision": None,
            "base_model_id": None,
            "task_type": None,
            "license": None,
            "peft_version": None,
            "shape_signature": None,
            "rank": None,
            "max_rank": None,
            "scaling": None,
            "dtypes": None,
            "sound": True,
            "fusable": True,
            "findings": [],
        },
    ],
    "aliases": [{"entry_id": 3, "alias": "champion", "number": 8}],
    "tags": [{"version_id": 11, "tag": "good"}, {"version_id": 13, "tag": "shipped"}],
    "adapter_files": [
        {"version_id": 11, "name": "adapter_config.json", "sha256": "b" * 64, "size_bytes": 100},
        {"version_id": 11, "name": "adapter_model.safetensors", "sha256": "a" * 64, "size_bytes": _BIG},
    ],
    "adapter_targets": [
        {
            "id": 21,
            "version_id": 11,
            "kind": "q_proj",
            "in_features": 4096,
            "out_features": 4096,
            "min_rank": 8,
            "max_rank": 64,
            "min_scaling": 0.1,
            "max_scaling": 1e300,
            "layers": 32,
        }
    ],
    "bundle_versions": [
        {
            "id": 13,
            "manifest_sha256": "e" * 64,
            "path": "/bundles/the team",
            "size_bytes": _BIG,
            "base": "meta-llama/Llama-2-7b-hf",
            "base_revision": None,
            "dtype": "BF16",
            "top_k": 2,
            "temperature": 5e-324,
            "gate_kind": "linear",
            "gate_scope": "token",
            "gate_fitted": "not fitted",
        }
    ],
    "bundle_members": [
        {
            "bundle_version_id": 13,
            "position": 0,
            "name": "legal",
            "adapter_version_id": 11,
            "weights_sha256": "a" * 64,
            "config_sha256": "b" * 64,
        },
        {
            "bundle_version_id": 13,
            "position": 1,
            "name": "stranger",
            "adapter_version_id": None,
            "weights_sha256": "8" * 64,
            "config_sha256": "9" * 64,
        },
    ],
    "verifications": [
        {
            "id": 31,
            "bundle_version_id": 13,
            "level": "source",
            "outcome": "pass",
            "record": '{"any": "text"}\n',
            "created_at": _THEN,
        }
    ],
    "events": [
        {
            "id": 41,
            "at": _THEN,
            "actor": "somebody",
            "action": "add",
            "subject": "adapter",
            "name": "legal",
            "version": 8,
            "details": {"weights_sha256": "a" * 64, "nested": [1, None, {"é": "x"}]},
        },
        {
            "id": 44,
            "at": _THEN,
            "actor": "somebody",
            "action": "spelling",
            "subject": "base",
            "name": "meta-llama/Llama-2-7b-hf",
            "version": None,
            "details": {},
        },
    ],
}


def migrate(url: sa.URL, revision: str) -> None:
    """Bring a database to a revision, forwards or back."""
    config = database.alembic_config()
    with engine_for(url, foreign_keys=False) as engine, engine.connect() as connection:
        found = database.find_revision(engine)
        config.attributes["connection"] = connection
        if found is not None and found > revision:
            command.downgrade(config, revision)
        else:
            command.upgrade(config, revision)


def fill(engine: sa.Engine, rows: Rows = ROWS) -> None:
    """Put the rows into a catalog, through the tables as they are in the database."""
    with engine.begin() as connection:
        tables = reflect(connection)
        assert set(tables.tables) - set(rows) <= {"alembic_version", "search_adapters", "search_words"}
        for table in tables.sorted_tables:
            for row in rows.get(table.name, []):
                connection.execute(table.insert().values(row))


def read(engine: sa.Engine) -> Rows:
    """Return every row of every table but alembic's, ordered by the primary key."""
    with engine.begin() as connection:
        tables = reflect(connection).sorted_tables
        return {
            table.name: [
                {key: _plain(value) for key, value in row._mapping.items()}
                for row in connection.execute(table.select().order_by(*table.primary_key.columns))
            ]
            for table in tables
            if table.name != "alembic_version"
        }


def reflect(connection: sa.Connection) -> sa.MetaData:
    """Return the tables as the database describes them."""
    metadata = sa.MetaData()
    metadata.reflect(connection)
    return metadata


def _plain(value: Any) -> Any:
    # SQLite keeps no time zone: every moment is in UTC.
    return value.replace(tzinfo=UTC) if isinstance(value, datetime) and value.tzinfo is None else value
