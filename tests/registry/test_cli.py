"""The command line: what it prints where, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import meteora_registry
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.schema import HEAD_REVISION
from meteora_registry.registry.cli.failures import worst_code
from meteora_registry.registry.cli.main import cli, run
from meteora_registry.registry.cli.output import describe_bytes, escape
from meteora_registry.registry.home import Home
from meteora_registry.schemas.names import CatalogSource
from support.catalogued import new_adapter, new_bundle, some_verification
from support.small_adapters import make_adapter
from support.users import as_ordinary_user

# The installed script, in the environment that runs the tests.
TOOL = str(Path(sys.executable).with_name("meteora-registry"))


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Each command with its full name, groups included."""

    def walk(
        name: str, command: click.Command, context: click.Context
    ) -> Iterator[tuple[str, click.Command]]:
        yield name, command
        if isinstance(command, click.Group):
            for child in command.list_commands(context):
                found = command.get_command(context, child)
                assert found is not None, f"{name} {child} is listed and cannot be found"
                yield from walk(f"{name} {child}", found, click.Context(found, parent=context))

    return walk("meteora-registry", cli, click.Context(cli))


COMMANDS = dict(every_command())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_of_itself(name: str) -> None:
    result = CliRunner().invoke(cli, [*name.split()[1:], "--help"])
    assert result.exit_code == 0
    help_text, _, examples = result.stdout.partition("Examples:\n")
    assert COMMANDS[name].help
    assert "Usage: " in help_text
    words = name.split()[1:]
    assert any(
        line.split()[0] == "meteora-registry" and set(words) <= set(line.split())
        for line in examples.splitlines()
    )


def test_the_command_line_reference_is_fresh(repository: Path) -> None:
    generator = {"__file__": str(repository / "docs" / "generate_cli.py"), "__name__": "generate_cli"}
    exec((repository / "docs" / "generate_cli.py").read_text(), generator)
    page = (repository / "docs" / "cli.md").read_text()
    assert page == generator["render"](), "run `python docs/generate_cli.py`"  # type: ignore[operator]
    for name in COMMANDS:
        assert f"## {name}\n" in page


@pytest.fixture
def repository() -> Path:
    return Path(__file__).resolve().parents[2]


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"meteora-registry {meteora_registry.__version__}\n"


def test_a_session_with_one_adapter(home: Home, adapter: Path, tmp_path: Path) -> None:
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = subprocess.run([TOOL, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    assert call("add", "summarise", "--tag", "good") == ("added: summarise@1 (sound, fusable)\n", "")
    assert call("add", "summarise") == ("already there: summarise@1 (sound, fusable)\n", "")
    assert call("alias", "summarise", "champion") == ("summarise@champion: summarise@1\n", "")
    header, row = call("list")[0].splitlines()
    assert " ".join(header.split()) == "NAME KIND VERSION BASE RANK DTYPE SIZE VERDICT ALIASES TAGS"
    assert " ".join(row.split()) == "summarise adapter 1 org/base 4 F32 4.6 kB sound, fusable champion good"
    assert "q_proj" in call("show", "summarise@champion")[0]
    assert call("remove", "summarise@2", code=1) == (
        "",
        "error: `summarise` has no version 2, it has `1`\n",
    )
    assert call("remove", "summarise") == ("removed: summarise@1\n", "4.9 kB set free\n")
    assert call("list") == ("", "the catalog is empty; add an adapter with `meteora-registry add FOLDER`\n")


def test_show_prints_what_a_person_wants_to_know(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = make_adapter(
        tmp_path / "legal",
        targets=("q_proj", "up_proj"),
        rank_pattern={"up_proj": 16},
        base="mirror/base",
        card="---\nlicense: mit\n---\n",
    )
    assert run(["add", str(folder), "--base", "org/base"]) == 0
    with Catalog.open(home) as catalog:
        version = catalog.find(CatalogSource("legal"))
    capsys.readouterr()
    assert run(["show", "legal"]) == 0
    out = capsys.readouterr().out
    facts, _, targets = out.partition("\n\n")
    lines = {line[:18].strip(): line[18:].strip() for line in facts.splitlines()}
    assert lines == {
        "adapter": "legal@1",
        "versions": "1",
        "verdict": "sound, fusable",
        "base": "org/base",
        "base declared": "mirror/base",
        "base model": "org/base",
        "base revision": "-",
        "task": "CAUSAL_LM",
        "license": "mit",
        "rank": "4, at most 16",
        "scaling": "2",
        "dtype": "F32",
        "size": describe_bytes(version.size_bytes),
        "source": "folder legal",
        "commit": "-",
        "weights sha256": version.weights_sha256,
        "config sha256": version.config_sha256,
        "canonical config": version.canonical_config_sha256,
        "shape signature": version.shape_signature,
        "PEFT": "0.21.2",
        "aliases": "-",
        "tags": "-",
        "added": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
    }
    assert [line.split() for line in targets.splitlines()] == [
        ["TARGET", "LAYERS", "IN", "OUT", "RANK", "SCALING"],
        ["q_proj", "2", "32", "32", "4", "2"],
        ["up_proj", "2", "32", "48", "16", "0.5"],
    ]


def test_show_of_a_bundle_names_its_members_and_verifications(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    members = [catalog.add_version(new_adapter(name, name)).version for name in ("legal", "code")]
    catalog.register_bundle(new_bundle(*members, verification=some_verification()))
    assert run(["show", "team"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["legal", "legal@1", members[0].weights_sha256] in rows
    assert rows[-1][-2:] == ["source", "pass"]
    assert run(["list"]) == 0
    assert "source pass" in capsys.readouterr().out


def test_data_as_json_is_the_whole_record(
    home: Home, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["add", str(adapter), "--format", "json"]) == 0
    (added,) = json.loads(capsys.readouterr().out)
    assert (added["created"], added["version"]["name"]) == (True, "summarise")
    assert run(["show", "summarise", "--format", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"kind": "adapter", "versions": [1]} | added["version"]
    assert [target["kind"] for target in shown["targets"]] == ["q_proj", "v_proj"]
    assert run(["list", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in listed["adapters"]] == ["summarise"]
    assert listed["bundles"] == []


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
        (["bogus"], "error: No such command 'bogus'.\nhint: see `meteora-registry --help`\n"),
        (
            ["show"],
            "error: Missing argument 'NAME[@VERSION|@ALIAS]'.\nhint: see `meteora-registry show --help`\n",
        ),
        (
            ["show", "No Name"],
            "error: `No Name` is no valid name: expected 1 to 96 of `a-z 0-9 . _ -`, the first a letter or a "
            "digit\nhint: such as `no-name`\n",
        ),
        (
            ["add", "a", "b", "--name", "c"],
            "error: `--name` names one adapter, found 2 sources\nhint: add them one by one\n",
        ),
        (
            ["--catalog", "nonsense", "list"],
            "error: the catalog is no URL that can be read\n"
            "hint: such as `sqlite:////folder/catalog.db` or `postgresql://user@host/name`\n",
        ),
    ],
    ids=[
        "unknown command",
        "unknown subcommand",
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


def test_db_commands(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["db", "current"]) == 0
    assert capsys.readouterr() == ("none\n", f"this version of meteora-registry needs {HEAD_REVISION}\n")
    assert not home.folder.exists()
    assert run(["db", "upgrade"]) == 0
    assert run(["db", "current"]) == 0
    assert capsys.readouterr() == (f"{HEAD_REVISION}\n{HEAD_REVISION}\n", "")
    assert run(["db", "check"]) == 0
    assert capsys.readouterr().err == "the catalog is sound, and its schema is this version's\n"
    with Catalog.open(home) as catalog, catalog._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE tags")
    assert run(["db", "check"]) == 1
    assert "tags" in capsys.readouterr().out


def test_tags_and_aliases_are_changed_and_printed(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog.add_version(new_adapter())
    assert run(["tag", "legal", "b", "a"]) == 0
    assert run(["tag", "legal@1", "a", "b", "--remove"]) == 0
    assert run(["alias", "legal@1", "champion"]) == 0
    assert run(["alias", "legal", "champion", "--remove"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "legal@1: a, b",
        "legal@1: no tags",
        "legal@champion: legal@1",
        "removed: legal@champion",
    ]


def test_what_an_adapter_says_never_reaches_the_terminal_as_it_is(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b[2Jb\rc\u202ed\x9be[bold]f"
    catalog.add_version(new_adapter(declared_base=hostile, license=hostile))
    assert run(["list"]) == 0
    assert run(["show", "legal"]) == 0
    out = capsys.readouterr().out
    assert out.count("a\\x1b[2Jb\\rc\\u202ed\\x9be[bold]f") == 4
    assert not set(out) & {"\x1b", "\r", "\u202e", "\x9b"}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain ä 漢字 é", "plain ä 漢字 é"),
        ("a\nb\tc", "a\\nb\\tc"),
        ("\x00\x7f\u200b\u2028\ud800\ufeff", "\\x00\\x7f\\u200b\\u2028\\ud800\\ufeff"),
    ],
)
def test_escape_leaves_what_can_be_seen(text: str, escaped: str) -> None:
    assert escape(text) == escaped


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (5 * 10**15, "5000.0 TB"),
    ],
)
def test_describe_bytes_has_one_decimal(size_bytes: int, text: str) -> None:
    assert describe_bytes(size_bytes) == text


def test_a_table_without_a_terminal_is_whole(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "organisation/" + "long-" * 17 + "name"
    catalog.add_version(new_adapter(declared_base=base, stated_base=base), tags=["t" * 96, "u" * 96])
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert base in out
    assert "t" * 96 + " " + "u" * 96 in out


def test_a_table_on_a_terminal_is_folded_and_whole(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter(declared_base="org/[red]base[/red]"), tags=["t" * 96])
    wide = in_terminal(["list"], home, columns=300)
    assert "org/[red]base[/red]" in wide
    narrow = in_terminal(["list"], home, columns=80)
    assert narrow.count("t") >= 96


def in_terminal(arguments: list[str], home: Home, *, columns: int, answer: bytes = b"") -> str:
    """What a command writes to a terminal of that width."""
    import pty

    program, terminal = pty.openpty()
    process = subprocess.Popen(
        [TOOL, *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=os.environ | {"COLUMNS": str(columns), "TERM": "xterm", "METEORA_HOME": str(home.folder)},
    )
    os.close(terminal)
    if answer:
        os.write(program, answer)
    chunks = []
    while True:
        try:
            chunk = os.read(program, 65536)
        except OSError:
            # What Linux says when the other end is closed.
            break
        if not chunk:
            break
        chunks.append(chunk)
    process.wait()
    os.close(program)
    return b"".join(chunks).decode()


@pytest.mark.parametrize(("answer", "versions"), [(b"n\n", (1,)), (b"y\n", ())], ids=["no", "yes"])
def test_remove_asks_on_a_terminal(
    home: Home, catalog: Catalog, answer: bytes, versions: tuple[int, ...]
) -> None:
    catalog.add_version(new_adapter())
    out = in_terminal(["remove", "legal"], home, columns=80, answer=answer)
    assert "Remove every version of legal? [y/N]" in out
    assert ("nothing was removed" in out) == bool(versions)
    assert catalog.versions_of("legal") == versions


def test_a_reader_that_leaves_is_no_failure_to_shout_about(home: Home, catalog: Catalog) -> None:
    catalog.add_version(new_adapter())
    process = subprocess.Popen([TOOL, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
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
        "from meteora_registry.registry.workflows import add\n"
        "add.inspect_adapter = lambda folder: os.kill(os.getpid(), signal.SIGINT)\n"
        f"main(['add', {str(adapter)!r}])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
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
        ["bash", "-c", f"ulimit -f 64; trap '' XFSZ; exec {TOOL} add {adapter}"],
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


LIGHT = """
import sys
from meteora_registry.registry.cli.main import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "sqlalchemy", "alembic", "rich", "huggingface_hub"}
print(code, *sorted(heavy.intersection(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], "0"),
        (["add", "--help"], "0"),
        (["fuse", "--help"], "0"),
        (["list"], "0 sqlalchemy"),
        (["show", "legal"], "0 sqlalchemy"),
        (["add", "{adapter}"], "0 sqlalchemy"),
    ],
    ids=["help", "add help", "fuse help", "list", "show", "add"],
)
def test_a_command_imports_no_more_than_it_needs(
    home: Home, adapter: Path, catalog: Catalog, arguments: list[str], loaded: str
) -> None:
    catalog.add_version(new_adapter())
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *(each.format(adapter=adapter) for each in arguments)],
        capture_output=True,
        text=True,
    )
    assert done.stderr.splitlines()[-1] == loaded
