"""The adapters that the action checks on a pull request: nothing in it hides one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.ci_jobs import CHECK, Runner, check
from support.github_api import WRITER, Api
from support.repositories import GitRepository
from support.small_adapters import make_adapter


def test_repository_that_the_pull_request_brings_does_not_say_what_changed(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9, lora_alpha=0)
    team.plant_bare_copy(team.folder / "adapters", "main")
    team.commit()
    done = check(machine, team, api, paths="adapters")
    assert done.code == 1
    assert "adapters/new: refused" in done.out


def test_submodule_does_not_say_what_changed(machine: Runner, team: GitRepository, api: Api) -> None:
    """A submodule may be a clone of the repository itself, at a commit from before the base."""
    team.git("checkout", "--quiet", "-B", "main")
    make_adapter(team.folder / "adapters" / "legal", seed=1, lora_alpha=0)
    broken = team.commit("broken for a while")
    make_adapter(team.folder / "adapters" / "legal", seed=1)
    team.commit("mended")
    team.git("checkout", "--quiet", "-B", "feature")
    team.git("rm", "-r", "--quiet", "adapters")
    local = ("-c", "protocol.file.allow=always")
    team.git(*local, "submodule", "add", "--quiet", f"file://{team.folder}", "adapters")
    team.git("-C", "adapters", "checkout", "--quiet", broken)
    team.commit()
    environment = machine.pull_request(team, api_url=api.url)
    GitRepository(machine.workspace).git(*local, "submodule", "update", "--quiet", "--init")
    done = machine.check(environment, token=WRITER, paths="adapters")
    assert done.code == 1, done.err
    assert "adapters/adapters/legal: refused" in done.out


@pytest.mark.parametrize("changed_only", ["true", "false"])
@pytest.mark.parametrize(
    "place",
    [".hidden/new", "adapters/legal/nested", "/".join("abcdefghijklmnop")],
    ids=["hidden", "nested", "deep"],
)
def test_adapter_in_an_unusual_place_is_found(
    machine: Runner, team: GitRepository, api: Api, place: str, changed_only: str
) -> None:
    make_adapter(team.folder / place, seed=9, lora_alpha=0)
    team.commit()
    done = check(machine, team, api, changed_only=changed_only)
    assert done.code == 1
    assert f"{place}: refused" in done.out


def test_attributes_that_break_an_unchanged_adapter_are_a_change_of_it(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    attributes = team.folder / "adapters" / ".gitattributes"
    attributes.write_text("legal/adapter_config.json working-tree-encoding=UTF-16\n")
    team.git("add", "adapters/.gitattributes")
    team.git("commit", "--quiet", "--message", "other bytes in every checkout")
    done = check(machine, team, api)
    assert done.code == 1
    assert "adapters/legal: refused" in done.out


@pytest.mark.parametrize("changed_only", ["true", "false"])
def test_submodule_that_is_not_checked_out_is_refused(
    machine: Runner, team: GitRepository, api: Api, tmp_path: Path, changed_only: str
) -> None:
    inner = GitRepository(tmp_path / "inner")
    make_adapter(inner.folder, seed=7, lora_alpha=0)
    inner.commit()
    local = ("-c", "protocol.file.allow=always")
    team.git(*local, "submodule", "add", "--quiet", str(inner.folder), "adapters/new")
    team.commit()
    done = check(machine, team, api, paths="adapters", changed_only=changed_only)
    assert done.code == 2
    assert "`adapters/new` changed and is not in this checkout" in done.err
    done = check(machine, team, api, paths="adapters/legal", changed_only=changed_only)
    assert done.code == 0, done.err


def test_adapter_that_a_sparse_checkout_lacks_is_refused(
    machine: Runner, team: GitRepository, api: Api
) -> None:
    make_adapter(team.folder / "other" / "new", seed=7, lora_alpha=0)
    make_adapter(team.folder / "adapters" / "new", seed=7)
    team.commit()
    environment = machine.pull_request(team, api_url=api.url)
    GitRepository(machine.workspace).git("sparse-checkout", "set", "adapters")
    done = machine.check(environment, token=WRITER)
    assert done.code == 2
    assert "`other/new/adapter_config.json` changed and is not in this checkout" in done.err
    assert machine.check(environment, token=WRITER, paths="adapters").code == 0


@pytest.mark.parametrize("changed_only", ["true", "false"])
def test_adapter_behind_a_link_of_a_folder_is_looked_at(
    machine: Runner, team: GitRepository, api: Api, changed_only: str
) -> None:
    team.git("checkout", "--quiet", "-B", "main")
    make_adapter(team.folder / "archive" / "broken", seed=9, lora_alpha=0)
    team.commit("outside of what is checked")
    team.git("checkout", "--quiet", "-B", "feature")
    links = {"one": "../archive/broken", "two": "one", "more": "../archive", "all": "..", "itself": "itself"}
    for name, target in {**links, "outside": "/usr"}.items():
        (team.folder / "adapters" / name).symlink_to(target)
    team.commit()
    done = check(machine, team, api, paths="adapters", changed_only=changed_only)
    assert done.code == 1
    outcomes = {each["name"]: each["outcome"] for each in done.report["adapters"]}
    assert [name for name in outcomes if outcomes[name] == "refused"] == [
        *(["adapters/old"] if changed_only == "false" else []),
        *(f"adapters/{name}" for name in ("more/broken", "one", "two")),
    ]


@pytest.mark.parametrize("changed_only", ["true", "false"])
def test_link_to_nothing_is_not_an_adapter_that_is_gone(
    machine: Runner, team: GitRepository, api: Api, changed_only: str
) -> None:
    """Where the adapter is used, the link may lead to something."""
    new = team.folder / "adapters" / "new"
    new.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (new / name).symlink_to(f"/nowhere/{name}")
    team.commit()
    done = check(machine, team, api, paths="adapters/new", changed_only=changed_only)
    assert done.code == 2
    assert "adapters/new: unreadable" in done.out
    assert "adapters/new" not in done.err


def test_clone_without_the_base_is_explained(machine: Runner, team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    done = machine.check(machine.pull_request(team, api_url=api.url, depth=1), token=WRITER)
    assert done.code == 2
    assert "is not a commit of this repository" in done.err
    assert "fetch-depth: 0" in done.err


def test_changes_of_any_revision_can_be_asked_for(machine: Runner, team: GitRepository, api: Api) -> None:
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    done = check(machine, team, api, changed_only="false")
    assert len(done.report["adapters"]) == 4
    done = check(machine, team, api, base="HEAD")
    assert "; 4 unchanged" in done.summary


def test_checkout_of_another_account_is_read(machine: Runner, team: GitRepository, api: Api) -> None:
    """As in a container, where the runner checks out and the job is root, or the other way round."""
    make_adapter(team.folder / "adapters" / "new", seed=9)
    team.commit()
    environment = machine.pull_request(team, api_url=api.url)
    done = machine.run_step(CHECK, environment, owns_checkout=False, token=WRITER)
    assert done.code == 0, done.err
    assert "; 3 unchanged" in done.summary
