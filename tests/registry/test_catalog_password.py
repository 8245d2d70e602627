"""The password of a catalog on PostgreSQL, from the places where libpq looks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from meteora_registry.registry.catalog.engine import engine_for, parse_catalog_url
from support.postgres import execute
from support.program import Run

ROLE, SECRET = "guarded", "open-sesame"
LIST = ("list", "--format", "json")


@pytest.fixture
def guarded(postgres_catalog_url: str) -> Iterator[sa.URL]:
    """The URL, without the password, of an empty catalog whose role has to log in with one."""
    server = parse_catalog_url(postgres_catalog_url)
    execute(
        server,
        f"CREATE ROLE {ROLE} SUPERUSER LOGIN PASSWORD '{SECRET}'",
    )
    with engine_for(server) as engine, engine.connect() as connection:
        rules = Path(connection.exec_driver_sql("SHOW hba_file").scalar_one())
    before = rules.read_text()
    rules.write_text(f"local all {ROLE} scram-sha-256\n{before}")
    reload(server)
    yield server.set(username=ROLE)
    rules.write_text(before)
    reload(server)
    execute(server, f"DROP ROLE {ROLE}")


def reload(server: sa.URL) -> None:
    """Have the server read its rules again, and wait until new connections are judged by them."""
    since = loaded_at(server)
    execute(server, "SELECT pg_reload_conf()")
    while loaded_at(server) == since:
        pass


def loaded_at(server: sa.URL) -> object:
    with engine_for(server) as engine, engine.connect() as connection:
        return connection.exec_driver_sql("SELECT pg_conf_load_time()").scalar_one()


def write_secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def without_password(url: sa.URL) -> str:
    # `set` takes None for what stays as it is.
    return url.set(drivername="postgresql")._replace(password=None).render_as_string()


def test_password_comes_from_the_file_that_pgpassfile_names(
    run: Run, guarded: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_secret(tmp_path / "pgpass", f"*:*:{guarded.database}:{ROLE}:{SECRET}\n")
    monkeypatch.setenv("PGPASSFILE", str(file))
    result = run("--catalog", without_password(guarded), *LIST)
    assert (result.returncode, result.stderr) == (0, "")


def test_everything_comes_from_a_service_file(
    run: Run, guarded: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"host": guarded.query["host"], "dbname": guarded.database, "user": ROLE, "password": SECRET}
    lines = [f"{key}={value}" for key, value in entry.items()]
    file = write_secret(tmp_path / "services", "\n".join(["[team]", *lines, ""]))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    result = run("--catalog", "postgresql:///?service=team", *LIST)
    assert (result.returncode, result.stderr) == (0, "")
    monkeypatch.setenv("PGSERVICE", "team")
    assert run("--catalog", "postgresql://", *LIST).returncode == 0


def test_message_of_a_missing_password_names_the_places_for_it(
    run: Run, guarded: sa.URL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    result = run("--catalog", without_password(guarded), *LIST)
    assert result.returncode == 2
    assert "password" in result.stderr
    assert "hint: put the password into `~/.pgpass` or the file of PGPASSFILE" in result.stderr


def test_service_that_is_not_in_the_file_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSERVICEFILE", str(write_secret(tmp_path / "services", "[other]\n")))
    result = run("--catalog", "postgresql:///?service=team", *LIST)
    assert result.returncode == 2
    assert 'definition of service "team" not found' in result.stderr
    assert "`postgresql:///?service=team`" in result.stderr


def test_password_on_the_command_line_is_warned_of_and_not_shown(
    run: Run, guarded: sa.URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = guarded.set(drivername="postgresql", password=SECRET).render_as_string(hide_password=False)
    result = run("--catalog", url, *LIST)
    assert result.returncode == 0
    assert result.stderr.startswith("warning: everyone on this machine can see the password in `--catalog`")
    assert SECRET not in result.stderr
    # The environment is its user's own.
    monkeypatch.setenv("METEORA_CATALOG", url)
    assert run(*LIST).stderr == ""
