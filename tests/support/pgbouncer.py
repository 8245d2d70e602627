"""A real PgBouncer in transaction mode, in front of the PostgreSQL of a test session."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from support.patience import PATIENCE_SECONDS

_PORT = 6432
_SETTINGS = """\
[databases]
* = host={server} port=5432
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = 4
max_client_conn = 200
"""


@pytest.fixture(scope="session")
def pgbouncer_server(postgres_server: str) -> Iterator[str]:
    """The URL of a pooler that gives each transaction one of four sessions of the server."""
    # Debian installs it where only root's path leads.
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
    from sqlalchemy.engine import make_url

    server = make_url(postgres_server)
    # The path of a socket must be short, and the pooler refuses to run as root.
    folder = Path(tempfile.mkdtemp(prefix="mpb-"))
    folder.chmod(0o777)
    configuration = folder / "pgbouncer.ini"
    configuration.write_text(
        _SETTINGS.format(server=server.query["host"], port=_PORT, folder=folder), encoding="utf-8"
    )
    names = [server.username, "meteora_owner", "alice", "bob"]
    (folder / "users").write_text("".join(f'"{name}" ""\n' for name in names), encoding="utf-8")
    owner = Path(str(server.query["host"])).stat().st_uid
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, configuration], user=owner, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        url = server.set(query={"host": str(folder)}, port=_PORT).render_as_string(hide_password=False)
        _wait_for(url, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pgbouncer_catalog_url(postgres_catalog_url: str, pgbouncer_server: str) -> str:
    """The URL of a database with an empty catalog, through the pooler."""
    from sqlalchemy.engine import make_url

    database = make_url(postgres_catalog_url).database
    return make_url(pgbouncer_server).set(database=database).render_as_string(hide_password=False)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    from sqlalchemy.exc import OperationalError

    from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url

    deadline = time.monotonic() + PATIENCE_SECONDS
    with engine_for(parse_catalog_url(url)) as engine:
        while True:
            with suppress(OperationalError), engine.connect():
                return
            assert process.poll() is None, log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline, "the pooler does not answer"
            time.sleep(0.05)
