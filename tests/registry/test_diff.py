"""The command ``diff``: where a version may be, what is printed, and which exit code follows."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from meteora_registry.registry.cli.diff_tables import tables_of
from meteora_registry.registry.face import Registry
from meteora_registry.registry.home import Home
from meteora_registry.registry.workflows.difference import GitSource, parse_git_source
from meteora_registry.schemas.bundle import CONFIG_FILE, WEIGHTS_FILE
from meteora_registry.schemas.difference import (
    AdapterDifference,
    BundleDifference,
    BundleSide,
    DeltaChange,
    GateChange,
)
from meteora_registry.schemas.digest import Digest
from support.program import PROGRAM, Run
from support.repositories import GitRepository, inside
from support.small_adapters import make_adapter
from support.terminal import run_in_terminal

BUNDLES = Path(__file__).parents[1] / "golden" / "1" / "bundles"
HOSTILE = "</td>`**@team** #1 https://evil.example\\|\x1b[31m\n::error::x"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "before", layers=12)


@pytest.fixture
def after(tmp_path: Path) -> Path:
    folder = make_adapter(tmp_path / "after", layers=12, alpha=16)
    tensors = load_file(folder / WEIGHTS_FILE)
    tensors["base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"] *= 3
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    return folder


@pytest.fixture
def repository(tmp_path: Path, before: Path, after: Path) -> Iterator[GitRepository]:
    """A repository whose commit has the first version, and its work tree the second."""
    made = GitRepository(tmp_path / "repository")
    place = made.folder / "adapters" / "legal"
    shutil.copytree(before, place)
    made.commit()
    shutil.rmtree(place)
    shutil.copytree(after, place)
    with inside(made.folder):
        yield made


def test_text_has_the_sum_first_and_the_largest_change_next(
    run: Run, home: Home, before: Path, after: Path
) -> None:
    done = run("diff", before, after)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[:4] == [
        f"first: `{before}`, sound, fusable",
        f"second: `{after}`, sound, fusable",
        "modules: 24 changed",
        lines[3],
    ]
    assert lines[3].startswith("all deltas together: change 1")
    config = lines.index("CONFIG      FIRST  SECOND")
    assert lines[config + 1] == "lora_alpha  8      16"
    groups = next(number for number, line in enumerate(lines) if line.startswith("MODULES"))
    assert [line.split()[:2] for line in lines[groups + 1 : groups + 3]] == [
        ["model.layers.*.self_attn.q_proj", "12"],
        ["model.layers.*.self_attn.v_proj", "12"],
    ]
    assert lines[groups + 2].split()[2:] == ["100", "%", "1.0000", "4", "2", "->", "4"]
    largest = next(number for number, line in enumerate(lines) if line.startswith("LARGEST CHANGES"))
    assert lines[largest + 1].split() == ["model.layers.3.self_attn.q_proj", "500", "%", "1.0000"]
    assert lines[largest + 11 :] == ["", "14 more rows: `--all` shows them"]
    assert len(run("diff", before, after, "--all").stdout.splitlines()) == len(lines) + 12


def test_json_is_the_document_that_python_returns(run: Run, home: Home, before: Path, after: Path) -> None:
    printed = AdapterDifference.from_bytes(
        run("diff", before, after, "--format", "json").stdout.encode(), what="difference"
    )
    with Registry(home.folder) as registry:
        assert registry.diff(str(before), after) == printed
    assert printed.modules[0].path == "model.layers.3.self_attn.q_proj"


def test_terminal_of_80_columns_shows_every_number(home: Home, before: Path, after: Path) -> None:
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    with inside(before.parent):
        code, shown = run_in_terminal(
            [PROGRAM, "diff", before.name, after.name], environment=environment, columns=80
        )
    assert code == 0
    assert max(map(len, shown.splitlines())) <= 80
    assert "500 %" in shown


def test_terminal_shows_both_sides_where_one_has_none_of_the_keys(
    home: Home, before: Path, tmp_path: Path
) -> None:
    other = make_adapter(tmp_path / "other", layers=12, megatron_core="a", alora_tokens=[1])
    environment = os.environ | {"NO_COLOR": "1", "TERM": "dumb"}
    command = [PROGRAM, "diff", str(before), str(other)]
    shown = run_in_terminal(command, environment=environment, columns=80)[1]
    assert re.search(r"^CONFIG +FIRST +SECOND\s*$", shown, re.MULTILINE)


def test_same_version_is_one_line(run: Run, home: Home, before: Path) -> None:
    lines = run("diff", before, before).stdout.splitlines()
    assert lines[2:] == ["both have the same bytes"]


def test_versions_of_the_catalog_are_compared(run: Run, home: Home, before: Path, after: Path) -> None:
    for folder in (before, after):
        assert run("add", folder, "--name", "legal").returncode == 0
    done = run("diff", "legal@1", "legal", "--format", "json")
    found = json.loads(done.stdout)
    assert (found["first"]["name"], found["second"]["name"]) == ("`legal@1`", "`legal@2`")
    assert [change["key"] for change in found["config"]] == ["lora_alpha"]


@pytest.mark.parametrize(
    ("source", "place"),
    [
        ("HEAD:adapters/legal", "."),
        ("main:adapters/legal/", "."),
        ("HEAD:./legal", "adapters"),
        ("HEAD:../legal", "adapters/legal"),
        ("HEAD:.", "adapters/legal"),
    ],
)
def test_folder_of_a_commit_is_compared(
    run: Run, home: Home, repository: GitRepository, source: str, place: str
) -> None:
    work_tree = repository.folder / "adapters" / "legal"
    with inside(repository.folder / place):
        done = run("diff", source, work_tree, "--format", "json")
    found = json.loads(done.stdout)
    assert found["first"]["name"] == f"`{source.partition(':')[0]}:adapters/legal`"
    assert [change["key"] for change in found["config"]] == ["lora_alpha"]


def test_adapter_at_the_root_of_a_repository_is_compared(
    run: Run, home: Home, tmp_path: Path, before: Path, after: Path
) -> None:
    GitRepository(before).commit()
    with inside(before):
        assert "500 %" in run("diff", "HEAD:", after).stdout


def test_weights_in_git_lfs_are_read_where_lfs_keeps_them(
    run: Run, home: Home, repository: GitRepository, before: Path, after: Path
) -> None:
    folder = repository.folder / "adapters" / "large"
    shutil.copytree(before, folder)
    data = (before / WEIGHTS_FILE).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n"
    (folder / WEIGHTS_FILE).write_text(pointer)
    repository.commit()
    done = run("diff", "HEAD:adapters/large", after)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: `{WEIGHTS_FILE}` of `HEAD:adapters/large` is kept by Git LFS, and its bytes are not in this "
        "clone\nhint: `git lfs fetch --all` fetches them\n"
    )
    kept = repository.folder / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
    kept.parent.mkdir(parents=True)
    kept.write_bytes(data)
    assert "500 %" in run("diff", "HEAD:adapters/large", after).stdout
    kept.write_bytes(data[:-1] + b"\0")
    assert run("diff", "HEAD:adapters/large", after).returncode == 2


def test_nothing_of_a_repository_runs(
    run: Run, home: Home, repository: GitRepository, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    for setting in ("core.fsmonitor", "core.pager", "diff.external", "filter.x.smudge", "core.sshCommand"):
        repository.git("config", setting, str(script))
    (repository.folder / ".gitattributes").write_text("* filter=x diff=x\n")
    assert run("diff", "HEAD:adapters/legal", "adapters/legal").returncode == 0
    assert not ran.exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("--upload-pack=x:a/b", "`--upload-pack=x` cannot name a commit"),
        ("main..x:a/b", "`main..x` cannot name a commit"),
        ("gone:a/b", "`gone` is not a commit of this repository"),
        ("HEAD:a/b", "has no folder `a/b`"),
        ("HEAD:../x", "`../x` leads out of the repository"),
        ("HEAD:adapters/../../x", "`adapters/../../x` leads out of the repository"),
        ("HEAD:adapters/", "`HEAD:adapters` has no `adapter_config.json`"),
        ("HEAD:adapters/legal/adapter_config.json", "has no folder `adapters/legal/adapter_config.json`"),
    ],
)
def test_what_is_not_in_the_repository_is_a_matter_of_usage(
    run: Run, home: Home, repository: GitRepository, source: str, message: str
) -> None:
    done = run("diff", "--", source, "adapters/legal")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[0]


def test_link_in_a_commit_is_not_followed(
    run: Run, home: Home, repository: GitRepository, before: Path
) -> None:
    folder = repository.folder / "adapters" / "linked"
    folder.mkdir()
    (folder / CONFIG_FILE).symlink_to("/etc/passwd")
    shutil.copy(before / WEIGHTS_FILE, folder)
    repository.commit()
    done = run("diff", "HEAD:adapters/linked", before)
    assert done.returncode == 2
    assert f"`HEAD:adapters/linked` has no `{CONFIG_FILE}`" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("origin/main:adapters/x", GitSource("origin/main", "adapters/x")),
        ("HEAD~1:x", GitSource("HEAD~1", "x")),
        ("main:./x", GitSource("main", "./x")),
        ("main:", GitSource("main", "")),
        # A member of a catalogued bundle.
        ("bundle:member", None),
        ("bundle:member@2", None),
        ("hf://org/name@main", None),
        ("https://huggingface.co/org/name", None),
        ("./a:b/c", None),
        ("org/name@v1", None),
    ],
)
def test_source_of_git_is_told_from_every_other(text: str, expected: GitSource | None) -> None:
    assert parse_git_source(text) == expected


def test_folder_with_a_colon_is_a_folder(run: Run, home: Home, before: Path) -> None:
    with inside(before.parent):
        before.rename("main:x")
        assert run("diff", "main:x", "main:x").stdout.splitlines()[2] == "both have the same bytes"


def test_bundles_are_compared(run: Run, home: Home) -> None:
    done = run("diff", BUNDLES / "normal", BUNDLES / "fitted-token")
    assert done.returncode == 0
    assert "members: all 3 are the same" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["GATES", "COUNT", "CHANGE", "COSINE"] in lines
    assert "evaluation: not in both; `meteora-registry eval compare`" in done.stdout
    found = json.loads(run("diff", BUNDLES / "normal", BUNDLES / "bfloat16", "--format", "json").stdout)
    assert found["kind"] == "bundles"
    assert {member["change"] for member in found["members"]} == {"removed", "added"}


def test_adapter_and_bundle_are_not_compared(run: Run, home: Home, before: Path) -> None:
    for first, second in ((before, BUNDLES / "normal"), (BUNDLES / "normal", before)):
        done = run("diff", first, second)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[0] == (
            f"error: `{before}` is an adapter, and `{BUNDLES / 'normal'}` a bundle"
        )


def test_other_base_is_reported(run: Run, home: Home, before: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", layers=12, base="org/else")
    done = run("diff", before, other)
    assert done.returncode == 0
    assert "the bases differ: `org/base` and `org/else`" in done.stdout


def test_scaling_that_is_not_known_is_inconclusive(
    run: Run, home: Home, before: Path, tmp_path: Path
) -> None:
    other = make_adapter(tmp_path / "other", layers=12, lora_alpha=0)
    done = run("diff", before, other)
    assert done.returncode == 3
    assert f"not compared: modules, ranks and scalings of `{other}` cannot be worked out" in done.stdout


@pytest.mark.parametrize("damage", ["truncated", "no config", "not json", "pickle", "a link"])
def test_damaged_files_are_refused_in_words(
    run: Run, home: Home, before: Path, tmp_path: Path, damage: str
) -> None:
    other = make_adapter(tmp_path / "other", layers=12)
    weights = other / WEIGHTS_FILE
    match damage:
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-5])
        case "no config":
            (other / CONFIG_FILE).unlink()
        case "not json":
            (other / CONFIG_FILE).write_text("{" * 1000)
        case "pickle":
            weights.write_bytes(b"PK\x03\x04" + b"\0" * 600)
        case "a link":
            weights.unlink()
            weights.symlink_to(before / WEIGHTS_FILE)
    done = run("diff", before, other)
    assert done.returncode == (2 if damage == "a link" else 1)
    assert done.stderr.startswith("error: ")
    assert "defect" not in done.stderr


@pytest.mark.parametrize("output_format", ["text", "json", "markdown"])
def test_hostile_names_break_no_format(
    run: Run, home: Home, before: Path, tmp_path: Path, output_format: str
) -> None:
    fields = {HOSTILE: HOSTILE, "y" * 10_000: "z" * 10_000}
    other = make_adapter(tmp_path / "other", layers=12, **fields)
    tensors = load_file(other / WEIGHTS_FILE)
    save_file(tensors | {HOSTILE: np.ones(2, "float32")}, other / WEIGHTS_FILE, {"format": "pt"})
    done = run("diff", before, other, "--format", output_format)
    assert done.returncode == 0
    lines = done.stdout.split("\n")
    assert all(line.isprintable() for line in lines)
    if output_format == "markdown":
        plain = [re.sub(r"`[^`]*`|<code>.*?</code>", "", line) for line in lines]
        assert all("@" not in line and "evil" not in line for line in plain)
        table = [line.count("|") for line in plain if line.startswith("|")]
        assert set(table) <= {4, 7}


def test_long_lists_are_compared_and_shortened(run: Run, home: Home, before: Path, tmp_path: Path) -> None:
    names = [f"module_{number}" for number in range(20_000)]
    fields = {f"key_{number:03}": number for number in range(150)}
    first = make_adapter(tmp_path / "first", layers=1, target_modules=names, **fields)
    second = make_adapter(tmp_path / "second", layers=1, target_modules=[*names[1:], "another"])
    lines = run("diff", first, second).stdout.splitlines()
    assert "51 more rows: `--all` shows them" in lines
    every = run("diff", first, second, "--all").stdout
    assert '20000 items, here alone: "module_0"  20000 items, here alone: "another"' in every
    assert sum(line.startswith("key_") for line in every.splitlines()) == 150


def test_password_of_a_url_is_not_shown(run: Run, home: Home, before: Path, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", layers=12, base="https://user:hunter22@host/mo|del")
    for output_format in ("text", "json", "markdown"):
        assert "hunter22" not in run("diff", before, other, "--format", output_format).stdout


def test_gates_in_one_row_have_the_same_change() -> None:
    delta = DeltaChange(first_norm=1.0, second_norm=1.0, difference_norm=0.5, relative=0.5, cosine=0.875)
    gates = [
        GateChange(path=f"layers.{number}.q_proj", kind="gate", change=change, delta=measured)
        for number, (change, measured) in enumerate(
            [("added", None), ("changed", delta), ("changed", None), ("changed", delta)]
        )
    ]
    side = {"base": "org/base", "manifest_sha256": Digest.of_bytes(b"first")}
    found = BundleDifference(
        first=BundleSide(name="first", **side),
        second=BundleSide(name="second", **side | {"manifest_sha256": Digest.of_bytes(b"second")}),
        same_base=True,
        config=(),
        members=(),
        gates=tuple(gates),
        held_out=(),
    )
    section = next(each for each in tables_of(found, most=None) if each.columns[:1] == ("gates",))
    assert section.rows == (
        ("layers.*.q_proj", "1", "added", "-"),
        ("layers.*.q_proj", "2", "50 %", "0.8750"),
        ("layers.*.q_proj", "1", "not measured", "-"),
    )


def test_numbers_that_are_not_finite_are_not_measured(
    run: Run, home: Home, before: Path, tmp_path: Path
) -> None:
    other = make_adapter(tmp_path / "other", layers=12)
    tensors = load_file(other / WEIGHTS_FILE)
    tensors["base_model.model.model.layers.3.self_attn.q_proj.lora_B.weight"][0] = np.nan
    save_file(tensors, other / WEIGHTS_FILE, {"format": "pt"})
    lines = [line.split() for line in run("diff", before, other).stdout.splitlines()]
    assert ["model.layers.*.self_attn.q_proj", "1", "not", "measured", "-", "4", "2"] in lines
