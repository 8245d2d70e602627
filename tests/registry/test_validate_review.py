"""``validate`` beside what a team has reviewed: a baseline of known findings, and a lock of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.program import Run
from support.small_adapters import make_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def team(tmp_path: Path, run: Run) -> Path:
    """A folder with a good and a broken adapter."""
    make_adapter(tmp_path / "adapters" / "good", seed=1, card="---\nlicense: mit\n---\n")
    make_adapter(tmp_path / "adapters" / "broken", seed=2, lora_alpha=0)
    return tmp_path


def outcomes(text: str) -> dict[str, str]:
    return {Path(each["name"]).name: each["outcome"] for each in json.loads(text)["adapters"]}


def test_known_findings_do_not_fail_and_new_ones_do(team: Path, run: Run) -> None:
    command = ("validate", "adapters", "--baseline", "known.json")
    assert run("validate", "adapters").returncode == 1
    assert run(*command, "--write-baseline").returncode == 0
    assert json.loads((team / "known.json").read_text()) == {
        "meteora_baseline": 1,
        "adapters": {
            "adapters/broken": [
                {
                    "code": "MR112",
                    "file": "adapter_config.json",
                    "tensor": None,
                    "field": "lora_alpha",
                    "found": "`0`",
                }
            ]
        },
        "together": [],
    }
    done = run(*command, "--format", "json")
    assert done.returncode == 0
    assert outcomes(done.stdout) == {"broken": "accepted", "good": "accepted"}
    (known,) = json.loads(done.stdout)["adapters"][0]["known"]
    assert known["code"] == "MR112"
    assert json.loads(done.stdout)["adapters"][0]["verdict"] == {"sound": False, "fusable": False}

    # Another value at the same place, another rule there, and another adapter.
    config = team / "adapters" / "broken" / "adapter_config.json"
    before = config.read_text()
    config.write_text(before.replace('"lora_alpha": 0', '"lora_alpha": "x"'))
    assert run(*command).returncode == 1
    config.write_text(before.replace('"r": 4', '"r": 0'))
    assert run(*command).returncode == 1
    config.write_text(before)
    assert run(*command).returncode == 0
    make_adapter(team / "adapters" / "new", seed=3, lora_alpha=0)
    assert run(*command).returncode == 1


def test_known_adapter_is_known_from_any_folder(
    team: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("validate", "adapters", "--baseline", "known.json", "--write-baseline")
    monkeypatch.chdir(team / "adapters")
    assert run("validate", "./broken", "--baseline", "../known.json").returncode == 0
    assert run("validate", team / "adapters" / "broken", "--baseline", team / "known.json").returncode == 0


def test_what_several_adapters_disagree_about_can_be_known(team: Path, run: Run) -> None:
    make_adapter(team / "shipped", seed=5, base="org/elsewhere")
    command = ("validate", "adapters/good", "--for", "fuse", "--with", "shipped", "--baseline", "known.json")
    assert run(*command, "--write-baseline").returncode == 0
    done = run(*command, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["together"] == []
    assert [each["code"] for each in json.loads(done.stdout)["known_together"]] == ["MR602"]
    (team / "known.json").write_text('{"meteora_baseline": 1}')
    assert run(*command).returncode == 1


def test_baseline_keeps_what_was_not_looked_at_and_forgets_what_is_gone(team: Path, run: Run) -> None:
    for name in ("first", "second"):
        make_adapter(team / "adapters" / name, seed=9, lora_alpha=0)
    write = ("--baseline", "known.json", "--write-baseline")
    run("validate", "adapters", *write)
    (team / "adapters" / "second").rename(team / "elsewhere")
    make_adapter(team / "adapters" / "first", seed=9)
    run("validate", "adapters/first", *write)
    assert list(json.loads((team / "known.json").read_text())["adapters"]) == ["adapters/broken"]


def test_lock_has_digests_verdict_and_base_of_what_was_accepted(team: Path, run: Run) -> None:
    make_adapter(team / "adapters" / "pinned", seed=3, bias="all", revision=COMMIT)
    done = run("validate", "adapters", "--write-lock")
    assert done.returncode == 1, "the broken one is refused, and not locked"
    assert "wrote 2 reviewed adapters: adapters.lock" in done.stderr
    lock = json.loads((team / "adapters.lock").read_text())
    assert list(lock["adapters"]) == ["adapters/good", "adapters/pinned"]
    good, pinned = lock["adapters"].values()
    assert set(good["files"]) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert (good["verdict"], good["base"], good["base_commit"]) == (
        {"sound": True, "fusable": True},
        "org/base",
        None,
    )
    assert (pinned["verdict"]["fusable"], pinned["base_commit"]) == (False, COMMIT)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("adapter_config.json", None),
        ("adapter_model.safetensors", None),
        ("README.md", "---\nlicense: apache-2.0\n---\n"),
        ("extra.py", "print()"),
        ("below/tokenizer.json", "{}"),
    ],
)
def test_bytes_that_were_not_reviewed_are_refused(team: Path, run: Run, name: str, text: str | None) -> None:
    run("validate", "adapters/good", "--write-lock")
    assert run("validate", "adapters/good", "--locked").returncode == 0
    path = team / "adapters" / "good" / name
    if text is None:
        other = make_adapter(team / "other", seed=8, task_type="SEQ_2_SEQ_LM")
        path.write_bytes((other / name).read_bytes())
    else:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    done = run("validate", "adapters/good", "--locked", "--format", "json")
    assert done.returncode == 1
    found = [each for each in json.loads(done.stdout)["adapters"][0]["findings"] if each["code"] == "MR708"]
    assert [each["place"]["file"] for each in found] == [name]
    assert run("validate", "adapters/good").returncode == 0
    assert run("validate", "adapters/good", "--write-lock").returncode == 0
    assert run("validate", "adapters/good", "--locked").returncode == 0


def test_link_to_a_reviewed_adapter_is_not_the_adapter_that_was_reviewed(team: Path, run: Run) -> None:
    make_adapter(team / "adapters" / "other", seed=8)
    run("validate", "adapters", "--write-lock")
    (team / "adapters" / "good").rename(team / "elsewhere")
    (team / "adapters" / "good").symlink_to("other")
    done = run("validate", "adapters/good", "--locked")
    assert done.returncode == 1
    assert "MR708 refuse" in done.stdout
    (team / "adapters" / "new").symlink_to("other")
    assert "MR707 refuse" in run("validate", "adapters/new", "--locked").stdout


def test_missing_file_and_missing_entry_are_refused(team: Path, run: Run) -> None:
    run("validate", "adapters/good", "--lock", "reviewed.lock", "--write-lock")
    (team / "adapters" / "good" / "README.md").unlink()
    make_adapter(team / "adapters" / "new", seed=4)
    done = run("validate", "adapters/good", "adapters/new", "--lock", "reviewed.lock", "--locked")
    assert done.returncode == 1
    assert "MR708 refuse: A file is not the one that was reviewed (README.md)" in done.stdout
    assert "MR707 refuse: The lock does not have this adapter" in done.stdout


def test_link_of_a_folder_in_a_reviewed_adapter_is_refused(team: Path, run: Run) -> None:
    run("validate", team / "adapters", "--write-lock", "--lock", team / "adapters.lock")
    good = team / "adapters" / "good"
    (good / "more").symlink_to("..")
    done = run("validate", good, "--locked", "--lock", team / "adapters.lock")
    assert done.returncode == 2
    assert "more' is a symbolic link, so a lock cannot have its bytes" in done.stdout


def test_hidden_files_and_the_lock_itself_are_not_part_of_an_adapter(team: Path, run: Run) -> None:
    make_adapter(team, seed=6)
    command = ("validate", ".", "--baseline", "known.json")
    (team / "known.json").write_text('{"meteora_baseline": 1}')
    assert run(*command, "--write-lock").returncode == 0
    assert "." in json.loads((team / "adapters.lock").read_text())["adapters"]
    (team / ".cache").mkdir()
    (team / ".cache" / "record").write_text("x")
    assert run(*command, "--locked").returncode == 0


def test_lock_keeps_what_was_not_looked_at_and_drops_what_is_refused_now(team: Path, run: Run) -> None:
    for name in ("first", "second", "third"):
        make_adapter(team / "adapters" / name, seed=9)
    run("validate", "adapters", "--write-lock")
    (team / "adapters" / "second").rename(team / "elsewhere")
    make_adapter(team / "adapters" / "first", seed=9, lora_alpha=0)
    run("validate", "adapters/first", "--write-lock")
    assert list(json.loads((team / "adapters.lock").read_text())["adapters"]) == [
        "adapters/good",
        "adapters/third",
    ]


def test_links_are_locked_only_where_they_are_followed(team: Path, run: Run) -> None:
    (team / "adapters" / "good" / "notes.txt").symlink_to("/etc/hostname")
    done = run("validate", "adapters/good", "--write-lock")
    assert done.returncode == 2
    assert "is a symbolic link, so a lock cannot have its bytes" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write-baseline"], "`--write-baseline` needs the file"),
        (["--locked", "--write-lock"], "expected one of them"),
        (["--lock", "x.lock"], "names a file and not what to do with it"),
        (["--locked"], "adapters.lock` cannot be read"),
        (["--baseline", "absent.json"], "absent.json` cannot be read"),
        (["--lock", "adapters/below.lock", "--write-lock"], "cannot be named in `adapters/below.lock`"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_words(
    team: Path, run: Run, options: list[str], message: str
) -> None:
    make_adapter(team / "outside", seed=3)
    done = run("validate", "outside", *options)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    "text", ["{}", '{"meteora_lock": 2}', '{"meteora_lock": 1, "adapters": {"../x": {}}}', "[", "\xff"]
)
def test_damaged_lock_is_refused(team: Path, run: Run, text: str) -> None:
    (team / "adapters.lock").write_text(text, encoding="latin-1")
    assert run("validate", "adapters/good", "--locked").returncode == 1
