"""Every command in a bad environment, and with unexpected values of every parameter.

Whatever happens, the exit code is one of the documented ones, and no message calls it a defect.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from meteora_registry.registry.cli.main import run
from support.command_tree import Command, arguments_of, every_command
from support.examples import a_third_of
from support.laboratory import Laboratory, make_laboratory

DOCUMENTED = (0, 1, 2, 3)
# A model generates until it ends its answer: that takes long, and has nothing to do with parameters.
SHORT = {"eval run": {"limit": "1", "max_new_tokens": "1"}, "trace": {"max_new_tokens": "1"}}
Spoil = Callable[[Path, pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return make_laboratory(tmp_path_factory.mktemp("laboratory"))


@pytest.fixture(autouse=True)
def restored(laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A current folder of its own, and the laboratory as it was afterwards."""
    for name in ("METEORA_HOME", "METEORA_CATALOG", "METEORA_STORE", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    laboratory.restore()


def check(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Run a command, and return what it printed on stderr."""
    code = run(arguments)
    printed = capfd.readouterr()
    assert code in DOCUMENTED, arguments
    for text in printed:
        assert "a defect of meteora-registry" not in text, (arguments, text)
        assert "Traceback" not in text, (arguments, text)
    # Every failure has a message, and every result has an output.
    assert code == 0 or printed.err or printed.out, arguments
    return printed.err


def without_an_account(folder: Path, patch: pytest.MonkeyPatch) -> None:
    def find_none(user: object) -> object:
        raise KeyError(user)

    patch.delenv("HOME", raising=False)
    # No other user may read the interpreter of every machine that runs the tests.
    patch.setattr(pwd, "getpwuid", find_none)


def with_variable(name: str, value: str) -> Spoil:
    def spoil(folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv(name, value.format(folder=folder))

    return spoil


def with_temporary_folder(value: str) -> Spoil:
    def spoil(folder: Path, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("TMPDIR", value.format(folder=folder))
        patch.setattr(tempfile, "tempdir", None)

    return spoil


def with_bytes_in_home(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(os.environb, b"HOME", os.fsencode(folder) + b"/\xff\xfe")


def without_path(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("PATH", raising=False)


def in_a_folder_that_is_gone(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "gone").mkdir()
    patch.chdir(folder / "gone")
    (folder / "gone").rmdir()


LONG = "/" + "a" * 5000
ENVIRONMENTS: dict[str, Spoil] = {
    "no account": without_an_account,
    "HOME is a file": with_variable("HOME", "{folder}/file"),
    "HOME is no text": with_bytes_in_home,
    "no PATH": without_path,
    "current folder gone": in_a_folder_that_is_gone,
    "TMPDIR is missing": with_temporary_folder("{folder}/missing"),
    "METEORA_HOME is a device": with_variable("METEORA_HOME", "/dev/null"),
    "METEORA_HOME is too long": with_variable("METEORA_HOME", LONG),
    "METEORA_HOME is of nobody": with_variable("METEORA_HOME", "~no.such.user/x"),
    "METEORA_HOME is a loop": with_variable("METEORA_HOME", "{folder}/loop"),
    "METEORA_CATALOG is a folder": with_variable("METEORA_CATALOG", "sqlite:///{folder}"),
    "METEORA_CATALOG is a pipe": with_variable("METEORA_CATALOG", "sqlite:///{folder}/pipe"),
    "METEORA_CATALOG is nonsense": with_variable("METEORA_CATALOG", "nonsense"),
    "METEORA_CATALOG has a bad port": with_variable("METEORA_CATALOG", "postgresql://u@h:x/n"),
    "METEORA_CATALOG has a bad host": with_variable("METEORA_CATALOG", "postgresql://u@[::1/n"),
    "METEORA_CATALOG is elsewhere": with_variable("METEORA_CATALOG", "postgresql://u@/n?host={folder}"),
    "METEORA_STORE is nonsense": with_variable("METEORA_STORE", "nonsense"),
    "METEORA_STORE is of nobody": with_variable("METEORA_STORE", "~no.such.user/x"),
    "METEORA_ACTOR is long": with_variable("METEORA_ACTOR", "x" * 100_000),
    "METEORA_ACTOR is no text": with_variable("METEORA_ACTOR", "\udcff"),
    "METEORA_DEBUG is nonsense": with_variable("METEORA_DEBUG", "nonsense"),
    "HF_ENDPOINT is nonsense": with_variable("HF_ENDPOINT", "nonsense"),
}
# Without one of their own, what is under test is the user's data folder.
NEEDS_NO_HOME = tuple(
    name for name in ENVIRONMENTS if not name.startswith(("HOME", "METEORA_HOME", "no acc"))
)


@pytest.mark.parametrize("name", list(ENVIRONMENTS))
def test_no_command_calls_a_bad_environment_a_defect(
    laboratory: Laboratory,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    if name in NEEDS_NO_HOME:
        monkeypatch.setenv("METEORA_HOME", str(laboratory.home))
    ENVIRONMENTS[name](tmp_path, monkeypatch)
    for command in a_third_of(every_command(), list(ENVIRONMENTS).index(name)):
        check(arguments_of(command, laboratory.values, given=SHORT.get(command.name)), capfd)
        laboratory.tidy()


@pytest.mark.parametrize("name", ["no account", "HOME is a file", "METEORA_HOME is of nobody"])
def test_commands_that_need_no_home_do_not_touch_it(
    laboratory: Laboratory,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    ENVIRONMENTS[name](tmp_path, monkeypatch)
    adapter, bundle = laboratory.values["paths"], laboratory.values["bundle"]
    for arguments in (
        ["validate", adapter],
        ["validate", adapter, "--base", laboratory.values["base"]],
        ["validate", "--explain", "all"],
        ["verify", bundle],
        ["extract", bundle, "rank4", "--out", str(tmp_path / "out")],
        ["export", bundle, "--layout", "official", "--out", str(tmp_path / "official")],
        ["eval", "compare", laboratory.values["first"], laboratory.values["second"]],
    ):
        assert run(arguments) == 0, capfd.readouterr().err
        assert "error" not in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "official", "out"]


def test_command_that_needs_a_home_says_how_to_name_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_an_account(tmp_path, monkeypatch)
    assert run(["list"]) == 2
    assert capsys.readouterr() == (
        "",
        "error: the folder of catalog and content store cannot be found: this account has no home, or the "
        "current folder is gone\n"
        "hint: name an absolute path with `--home`, or in METEORA_HOME\n",
    )


def hostile_values(parameter: click.Parameter, folder: Path) -> list[str]:
    """Return texts that a parameter of this kind may trip over."""
    numbers = ["", "-1", "9" * 30, "9" * 5000, "nan", "1e400"]
    texts = [
        "",
        "\udcff",
        "a\nb",
        "9" * 30,
        "name@" + "9" * 30,
        "a@b@c",
        "http://[::1",
        "~no.such.user/x",
        LONG,
    ]
    paths = ["\udcff", LONG, "/dev/null", "/dev/full"]
    paths += [str(folder / name) for name in ("folder", "empty", "bytes", "loop", "pipe", "missing")]
    match parameter.type:
        case click.types.IntParamType() | click.types.FloatParamType():
            return numbers
        case click.Path():
            return ["", *paths]
        case click.Choice():
            return ["", "\udcff"]
        case _ if "FOLDER" in (getattr(parameter, "metavar", None) or ""):
            return texts + paths
        case _:
            return texts


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.name)
def test_no_value_of_a_parameter_is_called_a_defect(
    laboratory: Laboratory,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("METEORA_HOME", str(laboratory.home))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(bytes(range(256)))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for place, parameter in enumerate(command.parameters, start=len(command.name)):
        if getattr(parameter, "is_flag", False):
            continue
        for value in a_third_of(hostile_values(parameter, tmp_path), place):
            given = SHORT.get(command.name, {}) | {parameter.name or "": value}
            check(arguments_of(command, laboratory.values, given=given), capfd)
            laboratory.tidy()


def test_zero_byte_in_an_argument_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["validate", "a\0b"]) == 2
    assert capsys.readouterr() == ("", "error: an argument has a zero byte\n")
