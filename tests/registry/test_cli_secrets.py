"""No command prints a secret that is in a URL, however it fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import CATALOG_VARIABLE, HOME_VARIABLE, Home
from support import warm
from support.command_tree import Command, arguments_of, every_command
from support.examples import a_third_of
from support.laboratory import Laboratory, make_laboratory
from support.program import PROGRAM

SENTINEL = "Sentinel-0123456789"


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return make_laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.fixture(autouse=True)
def restored(laboratory: Laboratory, home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(laboratory.folder)
    yield
    laboratory.restore()


def catalogs(folder: Path) -> dict[str, str]:
    nowhere = f"host={folder}"
    return {
        "password": f"postgresql://user:{SENTINEL}@/name?{nowhere}",
        "password in the query": f"postgresql://user@/name?{nowhere}&password={SENTINEL}",
        "unknown option": f"postgresql://user@/name?{nowhere}&passwrod={SENTINEL}",
        "option without a value": f"postgresql://user@/name?{nowhere}&{SENTINEL}",
        "settings": f"postgresql://user@/name?{nowhere}&options=-c%20a.b={SENTINEL}",
        "file of a key": f"postgresql://user@/name?{nowhere}&sslkey={SENTINEL}&sslmode=require",
        "instead of a port": f"postgresql://host:{SENTINEL}/name",
        "password with a slash": f"postgresql://user:a/{SENTINEL}@/name?{nowhere}",
        "password with an at": f"postgresql://user:a@{SENTINEL}@/name?{nowhere}",
        "two hosts": f"postgresql://user:{SENTINEL}@/name?host=a,b&port=1,2,3",
        "driver": f"mysql://user:{SENTINEL}@host/name",
        "no database": f"postgresql://user:{SENTINEL}@host",
        "SQLite": f"sqlite:////nowhere/x.db?password={SENTINEL}",
        "SQLite with a user": f"sqlite://user:{SENTINEL}@host/x.db",
        "no URL": f"//user:{SENTINEL}@host",
    }


STORES = {
    "password": f"s3://key:{SENTINEL}@bucket/x",
    "password with a slash": f"s3://key:a/{SENTINEL}@bucket/x",
    "token": f"s3://bucket/x?token={SENTINEL}",
    "fragment": f"s3://bucket/x#{SENTINEL}",
    "user": f"http://{SENTINEL}@127.0.0.1:1/x",
    "instead of a port": f"ftp://127.0.0.1:{SENTINEL}/x",
    "chained": f"simplecache::s3://key:{SENTINEL}@bucket",
    "scheme": f"nothing://key:{SENTINEL}@bucket",
}


@pytest.mark.parametrize("kind", list(catalogs(Path())))
def test_no_command_prints_a_secret_of_the_catalogs_url(
    laboratory: Laboratory,
    tmp_path: Path,
    kind: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METEORA_DEBUG", "1")
    url = catalogs(tmp_path)[kind]
    for command in a_third_of(every_command(), list(catalogs(tmp_path)).index(kind)):
        assert run(["--catalog", url, *arguments_of(command, laboratory.values)]) in (0, 1, 2, 3)
        printed = "".join(capfd.readouterr())
        assert SENTINEL not in printed, command.name


@pytest.mark.parametrize("kind", list(STORES))
def test_no_command_prints_a_secret_of_the_stores_url(
    laboratory: Laboratory, kind: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METEORA_DEBUG", "1")
    monkeypatch.setenv("METEORA_STORE", STORES[kind])
    monkeypatch.setenv("METEORA_HOME", str(laboratory.home))
    for command in [each for each in every_command() if each.name.partition(" ")[0] in USES_THE_STORE]:
        assert run(arguments_of(command, laboratory.values)) in (0, 1, 2, 3)
        printed = "".join(capfd.readouterr())
        assert SENTINEL not in printed, command.name


USES_THE_STORE = ("add", "fuse", "remove", "store", "doctor", "push", "validate", "verify")


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.name)
def test_a_url_in_the_wrong_place_is_not_repeated_with_its_secret(
    laboratory: Laboratory, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"postgresql://user:{SENTINEL}@host/name?password={SENTINEL}"
    for parameter in command.parameters:
        if not getattr(parameter, "is_flag", False):
            with suppress(SystemExit):
                run(arguments_of(command, laboratory.values, given={parameter.name or "": url}))
            assert SENTINEL not in "".join(capsys.readouterr()), parameter.name


def test_what_the_catalog_holds_is_printed_without_secrets_in_urls(
    home: Home, tmp_path: Path, laboratory: Laboratory, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"https://user:{SENTINEL}@host/model"
    adapter = laboratory.folder / "adapters" / "rank4"
    assert run(["add", str(adapter), "--base", base]) == 0
    for command in (["list"], ["show", "rank4"], ["search"], ["history"]):
        assert run(command) == 0
        assert run([*command, "--format", "json"]) == 0
    printed = "".join(capsys.readouterr())
    assert "https://***@host/model" in printed
    assert SENTINEL not in printed


HUB_ENVIRONMENTS = {
    "endpoint": {"HF_ENDPOINT": f"http://user:{SENTINEL}@127.0.0.1:1"},
    "broken endpoint": {"HF_ENDPOINT": f"http://user:{SENTINEL}@[::1"},
    "scheme": {"HF_ENDPOINT": f"nonsense://127.0.0.1/?token={SENTINEL}"},
    "proxy": {"HTTP_PROXY": f"http://user:{SENTINEL}@127.0.0.1:1", "HF_ENDPOINT": "http://hub.invalid"},
    "broken proxy": {"HTTP_PROXY": f"nonsense://user:{SENTINEL}@x:y", "HF_ENDPOINT": "http://hub.invalid"},
    "token": {"HF_TOKEN": SENTINEL, "HF_ENDPOINT": "http://127.0.0.1:1"},
    "token of two lines": {"HF_TOKEN": f"{SENTINEL}\nx", "HF_ENDPOINT": "http://127.0.0.1:1"},
}


@pytest.fixture(scope="module")
def additions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """What `add` does in each environment, all at once: it waits for seconds before it tries again."""
    homes = {name: str(tmp_path_factory.mktemp("home")) for name in HUB_ENVIRONMENTS}

    def add(name: str) -> subprocess.CompletedProcess[str]:
        own = {"HF_HUB_OFFLINE": "0", "METEORA_DEBUG": "1", HOME_VARIABLE: homes[name]}
        environment = {**os.environ, **own, **HUB_ENVIRONMENTS[name]}
        environment.pop(CATALOG_VARIABLE, None)
        return warm.run(
            [PROGRAM, "add", "org/name"], env=environment, capture_output=True, text=True, timeout=200
        )

    with ThreadPoolExecutor(len(HUB_ENVIRONMENTS)) as pool:
        return dict(zip(HUB_ENVIRONMENTS, pool.map(add, HUB_ENVIRONMENTS), strict=True))


@pytest.mark.parametrize("name", HUB_ENVIRONMENTS)
def test_no_secret_of_the_hubs_environment_is_printed(
    additions: dict[str, subprocess.CompletedProcess[str]], name: str
) -> None:
    done = additions[name]
    assert done.returncode == 2
    assert "a defect" not in done.stderr
    assert SENTINEL not in done.stdout + done.stderr


def test_json_of_the_store_shows_its_url_without_the_user(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("METEORA_STORE", f"memory://{SENTINEL}@host/x")
    assert run(["store", "du", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["store"] == "memory://***@host/x"
