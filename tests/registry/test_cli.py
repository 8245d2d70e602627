"""The command line: its help, what each command prints, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import meteora_registry
from meteora_registry.registry.catalog.catalog import Catalog
from meteora_registry.registry.catalog.revisions import HEAD_REVISION
from meteora_registry.registry.cli import show
from meteora_registry.registry.cli.main import cli, run
from meteora_registry.registry.cli.output import describe_bytes
from meteora_registry.registry.home import Home
from meteora_registry.schemas.facts import values_of
from meteora_registry.schemas.names import CatalogSource
from support import warm
from support.catalogued import new_adapter, new_bundle, some_verification
from support.program import PROGRAM
from support.small_adapters import make_adapter


def every_command() -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its full name, groups included."""

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
    first = capsys.readouterr().out.splitlines()[0]
    assert first == f"meteora-registry {meteora_registry.__version__}"


def test_a_session_with_one_adapter(home: Home, adapter: Path, tmp_path: Path) -> None:
    def call(*arguments: str, code: int = 0) -> tuple[str, str]:
        done = warm.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return done.stdout, done.stderr

    assert call("add", "summarise", "--tag", "good") == ("added: summarise@1 (sound, fusable)\n", "")
    assert call("add", "summarise") == ("already there: summarise@1 (sound, fusable)\n", "")
    assert call("alias", "summarise", "champion") == ("summarise@champion: summarise@1\n", "")
    header, row = call("list")[0].splitlines()
    assert " ".join(header.split()) == (
        "NAME KIND STATUS VERSION BASE RANK SIZE GATE ESTABLISHED OF MEMBERS DTYPE ALIASES TAGS OWNER"
    )
    assert " ".join(row.split()) == "summarise adapter fusable 1 org/base 4 4.6 kB - - - F32 champion good -"
    assert "q_proj" in call("show", "summarise@champion")[0]
    assert call("remove", "summarise@2", code=1) == (
        "",
        "error: `summarise` has no version 2, it has `1`\n",
    )
    assert call("remove", "summarise", "--for-good") == ("removed: summarise@1\n", "4.9 kB set free\n")
    assert call("list") == ("", "the catalog is empty; add an adapter with `meteora-registry add FOLDER`\n")


def _facts(text: str) -> dict[str, str]:
    """Return the values of printed facts by their labels."""
    return {label: value.strip() for label, _, value in (line.partition("  ") for line in text.splitlines())}


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
    wanted = {
        "adapter": "legal@1",
        "verdict": "sound, fusable",
        "base": "org/base (its config names mirror/base)",
        "rank": "4, at most 16",
        "scaling": "2",
        "size": describe_bytes(version.weights_bytes),
        "in store": describe_bytes(version.size_bytes),
        "dtype": "F32",
        "task": "CAUSAL_LM",
        "license": "mit",
        "source": "folder legal",
        "versions": "1",
        "added": f"{version.created_at:%Y-%m-%d %H:%M} UTC",
    }
    details = {
        "note": "-",
        "owner": "-",
        "commit": "-",
        "aliases": "-",
        "tags": "-",
        "base declared": "mirror/base",
        "base model": "org/base",
        "weights sha256": version.weights_sha256,
        "config sha256": version.config_sha256,
        "canonical config": version.canonical_config_sha256,
        "PEFT": "0.21.2",
        "base revision": "-",
        "shape signature": version.shape_signature,
    }
    assert run(["show", "legal"]) == 0
    facts, _, targets = capsys.readouterr().out.partition("\n\n")
    assert _facts(facts) == wanted
    assert list(_facts(facts)) == list(wanted)
    assert run(["show", "legal", "--verbose"]) == 0
    facts, _, targets = capsys.readouterr().out.partition("\n\n")
    assert _facts(facts) == wanted | details
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
    assert run(["show", "team", "--verbose"]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["legal", "legal@1", members[0].weights_sha256] in rows
    assert rows[-1][-6:] == ["source", "pass", "intact,", "from", "its", "members"]
    assert run(["list"]) == 0
    assert "intact, from its members" in capsys.readouterr().out


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


LIGHT = """
import sys
from meteora_registry.registry.cli.main import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "peft", "sqlalchemy", "alembic", "rich", "huggingface_hub"}
if sys.argv[1:] in (["--help"], ["db", "--help"]):
    heavy |= {"pydantic", "numpy", "platformdirs"}
if sys.argv[1:] == ["list"]:
    # They took a quarter of its processor time.
    heavy |= {"tomllib", "difflib"}
    heavy |= {"meteora_registry.bundle.opened", "meteora_registry.inspection"}
    unneeded = ("bundle", "evaluation", "manifest", "settings", "signers")
    heavy |= {f"meteora_registry.schemas.{name}" for name in unneeded}
print(code, *sorted(heavy.intersection(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["--help"], "0"),
        (["db", "--help"], "0"),
        (["add", "--help"], "0 sqlalchemy"),
        (["fuse", "--help"], "0"),
        (["list"], "0"),
        (["show", "legal"], "0 sqlalchemy"),
        (["add", "{adapter}"], "0 sqlalchemy"),
    ],
    ids=["help", "group help", "add help", "fuse help", "list", "show", "add"],
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


def test_show_has_a_line_for_every_fact(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = new_adapter(license="the-license", declared_base="the-base", base_revision="the-revision")
    bundle = new_bundle(catalog.add_version(adapter).version, base_revision="another-revision", top_k=17)
    catalog.register_bundle(bundle)
    for name, facts, inexact in (
        ("legal", adapter.facts, {"max_rank", "weights_bytes", "dtypes", "scaling"}),
        ("team", bundle.facts, {"size_bytes", "temperature"}),
    ):
        assert run(["show", name, "--verbose"]) == 0
        shown = capsys.readouterr().out
        missing = {key for key, value in values_of(facts).items() if str(value) not in shown}
        assert missing <= inexact


def test_show_of_a_fact_without_a_label_uses_its_name(
    home: Home, catalog: Catalog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.add_version(new_adapter(task_type="CAUSAL_LM"))
    monkeypatch.delitem(show._ADAPTER_LABELS, "task_type")
    assert run(["show", "legal", "--verbose"]) == 0
    assert "task type         CAUSAL_LM" in capsys.readouterr().out.splitlines()


def test_findings_of_several_adapters_are_printed_once(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders = [str(make_adapter(tmp_path / name, seed=seed, base="gpt2")) for seed, name in enumerate("abc")]
    assert run(["add", *folders]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"added: {name}@1 (sound, fusable)" for name in "abc"]
    *findings, summary = err.splitlines()
    (shown,) = (line for line in findings if "MR144" in line)
    assert shown.startswith("warning: 3 adapters, such as a@1: MR144 ")
    assert summary == "3 added; 3 can be fused"
