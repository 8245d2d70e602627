"""Settings for every test: none asks a model hub, and none is judged by how long it takes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every program that they
# start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when huggingface_hub is imported, so it comes before any import that might do that.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

# Threads for every core in several processes wait for one another, which costs several times the work.
# Read when torch is imported, here and in every program that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from meteora_registry.registry import secrets
from support.examples import examples
from support.program import Run, run_here
from support.random_numbers import same_random_numbers as same_random_numbers

# One server of each for all folders.
pytest_plugins = ("support.postgres", "support.pgbouncer")

# Python would look through everything again and again while the tests are collected, which takes two seconds.
gc.disable()

# On a busy machine an example takes as long as it takes.
settings.register_profile(
    "untimed", examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")


# What takes longest is begun first, so that no worker is busy long after the others are done; and before that
# what needs no warm process, whose server is still starting.
LONGEST = (
    "tests/runtime/test_requests.py",
    "tests/runtime/test_threads.py",
    "tests/faults/",
    "tests/kernels/test_triton.py",
    "tests/registry/hub/",
    "tests/matrix/",
    "tests/forgeries/",
    "tests/end_to_end/",
    "tests/evaluation/",
    "tests/benchmarks/test_gates.py",
    "tests/kernels/test_gpu_compilation.py",
    "tests/registry/test_store_remote.py",
    "tests/registry/test_transfer.py",
)


TESTS = Path(__file__).parent
# What `make test-engines` runs, so that `make test` stays short.
ENGINES = (
    # What serves, evaluates, trains and compiles, the jobs of CI, and benchmarks.
    "answers",
    "benchmarks",
    "ci",
    "end_to_end/test_gate_training.py",
    "end_to_end/test_member_change.py",
    "evaluation",
    "kernels",
    "registry/test_catalog_benchmark.py",
    "serving",
    "training",
    "vllm",
    # Faults of the system and of services, and every command with bad environments and values.
    "faults",
    "registry/hub/test_faults.py",
    "registry/test_cli_environment.py",
    "registry/test_cli_secrets.py",
    "registry/test_store_faults.py",
    # Signatures, object stores, and the tables of evidence that are made again.
    "forgeries",
    "matrix",
    "registry/hub/test_signing.py",
    "registry/test_store_remote.py",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        choices=("library", "engines"),
        help="without paths: leave out what `make test-engines` runs, or run that alone",
    )
    parser.addoption(
        "--faults",
        choices=("sample", "sweep"),
        default="sample",
        help="put faults at a sample of the system calls (default), or kill at every one",
    )
    parser.addoption(
        "--matrix",
        choices=("sample", "whole"),
        default="sample",
        help="make a sample of the rows of verdicts and forgeries again (default), or every one",
    )
    parser.addoption(
        "--pairs", type=int, default=30, help="the pairs of random adapters that validate and fuse judge"
    )
    parser.addoption(
        "--slow", action="store_true", help="also install the checker with pip, and run benchmarks in small"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        _ignore_the_users_settings(config)
    elif address := config.workerinput["warm_server"]:
        from support import warm

        warm.use_shared(address)


def _ignore_the_users_settings(config: pytest.Config) -> None:
    """Let no test, and no program that one starts, read the settings of who runs them."""
    patch, folder = pytest.MonkeyPatch(), tempfile.TemporaryDirectory(prefix="meteora-config-")
    patch.setenv("XDG_CONFIG_HOME", folder.name)
    patch.delenv("METEORA_POLICY", raising=False)
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(patch.undo)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Give all workers one server of warm processes, begun while they collect; few tests may need none."""
    is_every_test = _is_every_test(node.config)
    if is_every_test:
        from support import warm
    node.workerinput["warm_server"] = warm.start_shared() if is_every_test else None


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    part = config.getoption("--part")
    if part is None or not _is_every_test(config) or collection_path == TESTS:
        return None
    path = collection_path.relative_to(TESTS)
    is_engine = any(each.as_posix() in ENGINES for each in (path, *path.parents))
    if part == "library":
        return is_engine or None
    leads_to_one = any(each.startswith(f"{path.as_posix()}/") for each in ENGINES)
    return not (is_engine or leads_to_one) or None


def _is_every_test(config: pytest.Config) -> bool:
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and config.getoption("--part"):
        terminalreporter.write_line(
            "No test of this half was chosen; `make test` and `make test-engines` run one half each."
        )


def _turn_of(item: pytest.Item) -> int:
    turns = (turn for turn, start in enumerate(LONGEST) if item.nodeid.startswith(start))
    return next(turns, len(LONGEST))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=_turn_of)
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes long: give `--slow`"))


def pytest_collection_finish() -> None:
    # What was imported stays, and is not looked through again. Collecting after every 700 new objects, as by
    # default, takes a twentieth of the tests' time.
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test hide what another one's URLs made a secret of this process."""
    monkeypatch.setattr(secrets, "_remembered", set())


@pytest.fixture(scope="session", autouse=True)
def _nothing_waits_for_the_disk() -> None:
    from support.unsynced import wait_for_no_disk

    wait_for_no_disk()


@pytest.fixture(scope="session", autouse=True)
def _catalogs_are_copied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from support.new_catalogs import copied_catalogs, remembered_schemas, shared_statements

    with copied_catalogs(tmp_path_factory.mktemp("catalogs")), shared_statements(), remembered_schemas():
        yield


@pytest.fixture(scope="session", autouse=True)
def _triton_is_asked_in_a_warm_process() -> Iterator[None]:
    # Tests that import no torch themselves verify nothing, and should not wait for its import.
    if "torch" not in sys.modules:
        yield
        return
    from support import warm
    from support.triton_replies import keep_replies

    with pytest.MonkeyPatch.context() as patch:
        keep_replies(patch, warm.run)
        yield


@pytest.fixture(scope="session", autouse=True)
def _chat_templates_are_rendered_in_warm_processes() -> Iterator[None]:
    # Its process imports transformers, which takes more than a second.
    if "transformers" not in sys.modules:
        yield
        return
    from meteora_registry.runtime.fitting import chat_template
    from support import warm

    start = SimpleNamespace(Popen=warm.Popen, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template, "subprocess", start)
        yield


@pytest.fixture(scope="session", autouse=True)
def _what_is_always_the_same_is_made_once() -> Iterator[None]:
    # The template of the card that PEFT writes with every adapter takes half of the time of making it.
    # And every client of a server reads the certificates that this machine trusts, for 30 milliseconds.
    jinja2, httpcore2 = sys.modules.get("jinja2"), sys.modules.get("httpcore2")
    with pytest.MonkeyPatch.context() as patch:
        if jinja2 is not None:
            patch.setattr(jinja2.Environment, "compile", cache(jinja2.Environment.compile))
        if httpcore2 is not None:
            patch.setattr(httpcore2, "default_ssl_context", cache(httpcore2.default_ssl_context))
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """The command line within this process, in an empty folder with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METEORA_HOME", str(tmp_path / "home"))
    for name in ("METEORA_CATALOG", "METEORA_STORE"):
        monkeypatch.delenv(name, raising=False)
    return partial(run_here, capfd)


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters that PEFT made for a tiny Llama, different in everything a LoRA can differ in; read only."""
    from support.models import make_llama_adapters

    return make_llama_adapters(tmp_path_factory.mktemp("adapters"), base="org/base")


@pytest.fixture(scope="session")
def bundles(adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of them for each scope; read only."""
    from support.scopes import write_scope_bundles

    return write_scope_bundles(tmp_path_factory.mktemp("scopes"), adapters)
