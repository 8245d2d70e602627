"""``validate --since``: only the adapters that changed, in real repositories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from support.program import Run
from support.repositories import GitRepository
from support.small_adapters import make_adapter


@pytest.fixture
def team(tmp_path: Path, run: Run) -> GitRepository:
    """A repository with three adapters on main, and a branch that has left it."""
    team = GitRepository(tmp_path / "team")
    for seed, name in enumerate(("one", "two", "broken")):
        make_adapter(team.folder / "adapters" / name, seed=seed, lora_alpha=8 if name != "broken" else 0)
    (team.folder / "policy.toml").write_text("meteora_policy = 1\n")
    team.commit("three adapters")
    team.git("checkout", "--quiet", "-b", "feature")
    return team


def names(run: Run, *arguments: object, code: int = 0) -> list[str]:
    """Return the names of the adapters that a run reports on."""
    done = run("validate", *arguments, "--format", "json")
    assert done.returncode == code, done.stderr
    return [Path(each["name"]).name for each in json.loads(done.stdout)["adapters"]]


def test_unchanged_adapters_are_left_out(team: GitRepository, run: Run) -> None:
    assert names(run, team.folder, "--since", "main") == []
    make_adapter(team.folder / "adapters" / "two", seed=9)
    make_adapter(team.folder / "adapters" / "three", seed=3)
    (team.folder / "README.md").write_text("not of an adapter")
    for state in ("in the work tree", "staged", "committed"):
        if state == "staged":
            team.git("add", "--all")
        elif state == "committed":
            team.commit()
        assert names(run, team.folder, "--since", "main") == ["three", "two"], state
    assert names(run, team.folder, code=1) == ["broken", "one", "three", "two"]


def test_work_of_others_on_the_branch_does_not_count(team: GitRepository, run: Run) -> None:
    make_adapter(team.folder / "adapters" / "three", seed=3)
    team.commit()
    team.git("checkout", "--quiet", "main")
    make_adapter(team.folder / "adapters" / "one", seed=9)
    team.commit()
    team.git("checkout", "--quiet", "feature")
    assert names(run, team.folder, "--since", "main") == ["three"]


def test_deleted_and_renamed_folders_are_named(team: GitRepository, run: Run) -> None:
    team.git("mv", "adapters/one", "adapters/renamed")
    shutil.rmtree(team.folder / "adapters" / "two")
    done = run("validate", team.folder / "adapters", team.folder / "adapters" / "two", "--since", "main")
    assert done.returncode == 0
    assert "adapters/renamed: accepted" in done.stdout
    assert [line for line in done.stderr.splitlines() if "any more" in line] == [
        f"`{name}` has no adapter any more, since `{team.git('rev-parse', 'main')[:12]}`"
        for name in ("adapters/one", "adapters/two")
    ]
    selection = json.loads(run("validate", team.folder, "--since", "main", "--format", "json").stdout)[
        "selection"
    ]
    assert selection == {
        "commit": team.git("rev-parse", "main"),
        "unchanged": 1,
        "removed": ["adapters/one", "adapters/two"],
        "reason": None,
    }


@pytest.mark.parametrize("name", ["README.md", "tokenizer/special.json", "adapter_model-00001.bin"])
def test_any_file_below_an_adapter_is_a_change_of_it(team: GitRepository, run: Run, name: str) -> None:
    path = team.folder / "adapters" / "one" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    assert names(run, team.folder, "--since", "main") == ["one"]


@pytest.mark.parametrize("option", ["--policy", "--baseline", "--lock"])
def test_change_of_the_policy_the_baseline_or_the_lock_means_all(
    team: GitRepository, run: Run, option: str
) -> None:
    texts = {
        "--policy": "meteora_policy = 1\nmax_rank = 4\n",
        "--baseline": '{"meteora_baseline": 1}',
        "--lock": '{"meteora_lock": 1}',
    }
    path = team.folder / "settings"
    path.write_text(texts[option])
    more = ["--locked"] if option == "--lock" else []
    command = ("validate", team.folder, "--since", "main", option, path, *more)
    done = run(*command)
    assert done.returncode == 1
    assert f"`{path}` changed" in done.stdout
    assert "3 adapters: " in done.stdout
    team.commit()
    team.git("checkout", "--quiet", "-B", "main")
    assert run(*command).returncode == 0


def test_change_behind_a_link_counts(team: GitRepository, run: Run) -> None:
    shared = team.folder / "shared.safetensors"
    shutil.move(team.folder / "adapters" / "one" / "adapter_model.safetensors", shared)
    (team.folder / "adapters" / "one" / "adapter_model.safetensors").symlink_to("../../shared.safetensors")
    team.commit()
    team.git("checkout", "--quiet", "-B", "main")
    team.git("checkout", "--quiet", "-b", "other")
    shutil.copyfile(team.folder / "adapters" / "two" / "adapter_model.safetensors", shared)
    assert names(run, team.folder, "--since", "main", "--follow-links") == ["one"]


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        (".gitattributes", ["broken", "one", "two"]),
        ("adapters/.gitattributes", ["broken", "one", "two"]),
        ("adapters/one/.gitattributes", ["one"]),
        (".lfsconfig", ["broken", "one", "two"]),
        ("other/.gitattributes", []),
        ("other/.lfsconfig", []),
    ],
)
def test_adapter_changes_with_what_git_makes_of_it(
    team: GitRepository, run: Run, name: str, changed: list[str]
) -> None:
    """By attributes a checkout has other bytes than the commit, and by settings of git-lfs a pointer."""
    (team.folder / "other").mkdir()
    (team.folder / name).write_text("")
    team.commit()
    assert names(run, team.folder, "--since", "main", code=1 if "broken" in changed else 0) == changed


def test_folder_that_became_a_link_to_another_adapter_is_looked_at(team: GitRepository, run: Run) -> None:
    shutil.rmtree(team.folder / "adapters" / "one")
    (team.folder / "adapters" / "one").symlink_to("two")
    team.commit()
    assert names(run, team.folder, "--since", "main") == ["one"]


@pytest.mark.parametrize("changed", ["adapters", "between"])
def test_path_that_is_reached_by_a_changed_link_changed(team: GitRepository, run: Run, changed: str) -> None:
    team.git("mv", "adapters", "first")
    make_adapter(team.folder / "second" / "one", seed=8)
    (team.folder / "between").symlink_to("first")
    (team.folder / "adapters").symlink_to("between")
    team.commit()
    team.git("checkout", "--quiet", "-B", "main")
    team.git("checkout", "--quiet", "-B", "feature")
    assert names(run, team.folder / "adapters", "--since", "main") == []
    (team.folder / changed).unlink()
    (team.folder / changed).symlink_to("second")
    team.commit()
    assert names(run, team.folder / "adapters", "--since", "main") == ["one"]


def test_repository_within_the_repository_counts_as_its_commit(
    team: GitRepository, run: Run, tmp_path: Path
) -> None:
    inner = GitRepository(tmp_path / "inner")
    make_adapter(inner.folder / "adapter", seed=7)
    inner.commit()
    team.git("-c", "protocol.file.allow=always", "submodule", "add", "--quiet", str(inner.folder), "inner")
    team.commit()
    team.git("checkout", "--quiet", "-B", "main")
    assert names(run, team.folder, "--since", "main") == []
    make_adapter(team.folder / "inner" / "adapter", seed=8)
    GitRepository(team.folder / "inner").commit()
    team.commit()
    assert names(run, team.folder, "--since", "main~1") == ["adapter"]


def test_paths_of_another_repository_are_refused(team: GitRepository, run: Run, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other")
    done = run("validate", team.folder, other, "--since", "main")
    assert done.returncode == 2
    assert "is not in the repository at" in done.stderr
    done = run("validate", other, "--since", "main")
    assert done.returncode == 2
    assert "is not in a git repository" in done.stderr


def test_folder_without_adapters_is_not_taken_for_one(team: GitRepository, run: Run) -> None:
    shutil.rmtree(team.folder / "adapters")
    assert names(run, team.folder, "--since", "main") == []


def test_path_that_never_existed_is_a_matter_of_usage(team: GitRepository, run: Run) -> None:
    done = run("validate", team.folder / "absent", "--since", "main")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
