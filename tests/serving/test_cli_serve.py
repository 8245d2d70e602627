"""The command ``serve``: in a process of its own it listens, answers, and stops in order; or it refuses."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from meteora_registry.registry.secrets import API_KEY_VARIABLE
from support import warm
from support.members import fuse, read_members
from support.models import make_llama_adapters
from support.patience import PATIENCE_SECONDS
from support.program import PROGRAM, Run
from support.task_data import TEMPLATE, save_text_base

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the bundle `pair` and its `base`."""
    found = tmp_path_factory.mktemp("serve")
    members = dict([*make_llama_adapters(found / "adapters").items()][:2])
    fuse(read_members(members), found / "pair", gate="normal")
    save_text_base(found / "base", pad_token="<unk>", chat_template=TEMPLATE)
    return found


@contextmanager
def started(
    folder: Path, *options: str, program: type[subprocess.Popen[str]] = warm.RuntimePopen
) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Run the command within the block; yields the process, its URL, and what it printed."""
    command = [str(PROGRAM), "serve", "pair", "--base", "./base", "--port", "0", *options]
    with program(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        printed = ""
        for line in process.stderr:
            printed += line
            if line.startswith("listening on "):
                break
        url = line.partition("listening on ")[2].partition(";")[0]
        try:
            yield process, url, printed
        finally:
            process.kill()


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(warm.RuntimePopen, id="warm"),
        # Also what an interpreter prints while it imports and ends.
        pytest.param(subprocess.Popen, id="cold", marks=pytest.mark.slow),
    ],
)
def test_serve_answers_and_stops_in_order(folder: Path, program: type[subprocess.Popen[str]]) -> None:
    with started(folder, program=program) as (process, url, printed):
        body = {"model": "pair/rank4", "prompt": "w1 w2", "max_tokens": 4, "temperature": 0}
        answer = httpx2.post(f"{url}/completions", json=body, timeout=PATIENCE_SECONDS)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        code = process.wait()
    assert answer.status_code == 200, answer.text
    assert answer.json()["meteora"]["member"] == "rank4"
    assert (code, rest) == (0, "")
    assert "serving `pair`, `pair/rank4`, `pair/rank8`, `pair/base`\n" in printed
    assert "gate" in printed, "it is not fitted, which every command states"


def test_serve_on_every_address_asks_for_the_key_of_its_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "key.txt"
    file.write_text(f"{KEY}\n")
    options = ("--host", "0.0.0.0", "--api-key-file", str(file), "--name", "mine")
    with started(folder, *options) as (process, url, printed):
        models = url.replace("0.0.0.0", "127.0.0.1") + "/models"
        assert httpx2.get(models).status_code == 401
        found = httpx2.get(models, headers={"authorization": f"Bearer {KEY}"}).json()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert KEY not in printed + process.stderr.read()
    assert [model["id"] for model in found["data"]] == ["mine", "mine/rank4", "mine/rank8", "mine/base"]


@pytest.fixture
def here(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in the folder of bundle and base."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
    return run


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_serve_for_other_machines_without_a_key_is_refused(here: Run, host: str) -> None:
    done = here("serve", "pair", "--base", "./base", "--host", host)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: `--host {host}` lets other machines ask, and there is no key\nhint: "
    )


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_serve_refuses_a_host_that_cannot_be_a_name(here: Run, tmp_path: Path, host: str) -> None:
    (tmp_path / "key").write_text(KEY)
    done = here("serve", "pair", "--base", "./base", "--host", host, "--api-key-file", tmp_path / "key")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: `--host {host}` is not the name of a machine: it has a part that is empty or longer than 63 "
        "characters\n"
    )


@pytest.mark.parametrize("key", ["", "short", "with a space", "umläute-umläute"])
def test_serve_refuses_a_key_that_no_client_could_send(here: Run, tmp_path: Path, key: str) -> None:
    (tmp_path / "key").write_text(key)
    done = here("serve", "pair", "--base", "./base", "--api-key-file", tmp_path / "key")
    assert done.returncode == 2
    assert "is not at least 8 printable ASCII characters" in done.stderr
    assert "openssl rand -hex 32" in done.stderr


def test_serve_refuses_a_key_of_the_environment_without_printing_it(
    here: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "a key with spaces")
    done = here("serve", "pair", "--base", "./base")
    assert done.returncode == 2
    assert API_KEY_VARIABLE in done.stderr
    assert "a key with spaces" not in done.stderr


@pytest.mark.parametrize("library", ["starlette", "uvicorn", "sse_starlette", "prometheus_client"])
def test_serve_without_its_extra_is_refused_with_the_way_to_install_it(
    here: Run, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = here("serve", "pair", "--base", "./base")
    assert done.returncode == 2
    assert done.stderr == (
        f"error: serving needs `{library}`, which is not installed\n"
        'hint: in the source folder of meteora-registry: pip install ".[serve]"\n'
    )


def test_serve_on_a_port_that_is_taken_is_refused_before_the_base_is_loaded(here: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = here("serve", "pair", "--base", "./base", "--port", port)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: cannot listen on `127.0.0.1` port {port}: address already in use\n"
        "hint: choose another with `--host` or `--port`\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pair"], "`org/base` cannot be loaded as the base"),
        (["none", "--base", "./base"], "`none`"),
        (["pair", "--base", "./base", "--name", " "], "' ' cannot name a model"),
        (["pair", "--base", "./base", "--api-key-file", "none"], "`none`"),
        (["pair", "--base", "./base", "--host", "127.0.0.1", "--port", "65536"], "65536"),
    ],
    ids=["no base", "no bundle", "name", "no key file", "port"],
)
def test_serve_refuses_what_it_cannot_use(here: Run, arguments: list[str], message: str) -> None:
    done = here("serve", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "defect" not in done.stderr
