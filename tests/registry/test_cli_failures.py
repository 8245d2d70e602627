"""A command that fails: one line with the reason, a way out, and its exit code."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.cli.failures import worst_code
from meteora_registry.registry.cli.main import run
from meteora_registry.registry.home import Home
from support import warm
from support.catalogued import new_adapter
from support.program import PROGRAM
from support.small_adapters import make_adapter
from support.users import as_ordinary_user


def test_each_folder_of_a_batch_is_tried_and_the_worst_code_is_returned(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = make_adapter(tmp_path / "good")
    broken = make_adapter(tmp_path / "broken", lora_alpha=0)
    missing = tmp_path / "missing"
    assert run(["add", str(broken), str(good)]) == 1
    out, err = capsys.readouterr()
    assert out == "added: good@1 (sound, fusable)\n"
    lines = err.splitlines()
    assert lines[0] == f"error: `{broken}` is broken and was not added"
    assert lines[1].startswith("  MR")
    assert run(["add", str(missing), str(broken), str(good)]) == 2


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([0, 0], 0), ([0, 3], 3), ([3, 1, 0], 1), ([1, 2, 3, 0], 2)],
    ids=str,
)
def test_in_a_batch_two_is_over_one_over_three_over_zero(codes: list[int], code: int) -> None:
    assert worst_code(codes) == code


@pytest.mark.parametrize(
    ("arguments", "err"),
    [
        (["bogus"], "error: no such command `bogus`\nhint: see `meteora-registry --help`\n"),
        (
            ["lsit"],
            "error: no such command `lsit`\nhint: did you mean `list`? see `meteora-registry --help`\n",
        ),
        (
            ["db", "exprot"],
            "error: no such command `exprot`\n"
            "hint: did you mean `export`? see `meteora-registry db --help`\n",
        ),
        (
            ["search", "--order", "size"],
            "error: no such option `--order`\n"
            "hint: did you mean one of: `--sort`, `--wide`? see `meteora-registry search --help`\n",
        ),
        (
            ["search", "--sort", "x"],
            "error: invalid value for `--sort`: `x` is not one of `name`, `date`, `size`, `rank`\n"
            "hint: see `meteora-registry search --help`\n",
        ),
        (
            ["show"],
            "error: missing argument `NAME[@VERSION|@ALIAS]`\nhint: see `meteora-registry show --help`\n",
        ),
        (
            ["show", "No Name"],
            "error: `No Name` is not a valid name: expected 1 to 96 of `a-z 0-9 . _ -`, the first a letter "
            "or a digit\nhint: such as `no-name`\n",
        ),
        (
            ["add", "a", "b", "--name", "c"],
            "error: `--name` names one adapter, found 2 sources\nhint: add them one by one\n",
        ),
        (
            ["--catalog", "nonsense", "list"],
            "error: the catalog is not a URL that can be read\n"
            "hint: such as `sqlite:////folder/catalog.db` or `postgresql://user@host/name`\n",
        ),
    ],
    ids=[
        "unknown command",
        "misspelled command",
        "misspelled command of a group",
        "misspelled option",
        "no such choice",
        "missing argument",
        "malformed name",
        "two folders, one name",
        "malformed URL",
    ],
)
def test_a_wrong_request_is_code_two_with_a_way_out(
    home: Home, arguments: list[str], err: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    assert capsys.readouterr() == ("", err)


def test_a_reader_that_leaves_is_no_failure_to_shout_about(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    process = warm.Popen([PROGRAM, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_an_interrupt_is_code_130(home: Home, adapter: Path, catalog: Catalog) -> None:
    script = (
        "import os, signal, threading\n"
        "from meteora_registry.registry.cli.main import main\n"
        "from meteora_registry.registry.workflows import additions\n"
        "additions.inspect_adapter = lambda folder, **options: os.kill(os.getpid(), signal.SIGINT)\n"
        f"main(['add', {str(adapter)!r}])\n"
    )
    done = warm.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nerror: interrupted\n")


@pytest.mark.parametrize("debug", [False, True], ids=["plain", "debug"])
def test_a_defect_is_called_one_and_its_traceback_can_be_had(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, debug: bool
) -> None:
    def fail(home: Home) -> None:
        raise RuntimeError("the unexpected")

    monkeypatch.setattr(Catalog, "open", fail)
    monkeypatch.setenv("METEORA_DEBUG", "1" if debug else "0")
    assert run(["list"]) == 2
    err = capsys.readouterr().err
    assert err.endswith(
        "error: a defect of meteora-registry: RuntimeError: the unexpected\n"
        "hint: run it again with METEORA_DEBUG=1 and report the traceback\n"
    )
    assert ("Traceback" in err) is debug


def test_a_full_disk_is_said_in_one_line(home: Home, adapter: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 64; trap '' XFSZ; exec {PROGRAM} add {adapter}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_home_that_cannot_be_written_is_said_in_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    # Not below pytest's own folder, into which another user may not look.
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "home"
        arguments = ["--home", str(folder), "tag", "legal", "good"]
        with Catalog.open(Home(folder)) as catalog:
            catalog.add_version(new_adapter())
        # Once as it should be, so that everything is imported.
        assert run(arguments) == 0
        (folder / "catalog.db").chmod(0o444)
        folder.chmod(0o555)
        capsys.readouterr()
        with as_ordinary_user():
            assert run(arguments) == 2
        folder.chmod(0o755)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"error: the catalog `{folder / 'catalog.db'}` cannot be opened for writing: ")
    assert lines[1:] == [
        "hint: check the permissions and free space of its folder, or name another with `--home`"
    ]


def test_a_home_that_cannot_be_made_is_said_with_a_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["--home", str(tmp_path / "file" / "home"), "list"]) == 2
    lock = tmp_path / "file" / "home" / "catalog.db.lock"
    assert capsys.readouterr() == (
        "",
        f"error: the lock `{lock}` cannot be taken: Not a directory\n"
        "hint: check the permissions and the free space of its folder, or name another home with `--home`\n",
    )
