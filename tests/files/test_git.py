"""The history of a repository that may be hostile, read by the real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from meteora_registry.files import git as git_module
from meteora_registry.files.git import Repository
from meteora_registry.schemas.errors import MissingDependency, SourceUnreadable, UsageError
from support.repositories import GitRepository


@pytest.fixture
def made(tmp_path: Path) -> GitRepository:
    made = GitRepository(tmp_path / "made")
    for name in ("kept.txt", "changed.txt", "staged.txt", "moved.txt", "removed.txt"):
        (made.folder / name).write_text(name)
    made.commit("first")
    return made


def test_every_kind_of_change_is_a_path(made: GitRepository) -> None:
    first = made.git("rev-parse", "HEAD")
    made.git("checkout", "--quiet", "-b", "feature")
    made.git("mv", "moved.txt", "renamed.txt")
    made.git("rm", "--quiet", "removed.txt")
    (made.folder / "with\nline and ü.txt").write_text("committed")
    made.commit()
    (made.folder / "staged.txt").write_text("staged")
    made.git("add", "staged.txt")
    (made.folder / "changed.txt").write_text("in the work tree")
    (made.folder / "new.txt").write_text("not tracked")
    (made.folder / ".gitignore").write_text("*.log\n")
    (made.folder / "ignored.log").write_text("ignored")
    # What main did meanwhile is not a change of the branch.
    made.git("stash", "--quiet", "--include-untracked")
    made.git("checkout", "--quiet", "main")
    (made.folder / "kept.txt").write_text("main went on")
    made.commit()
    made.git("checkout", "--quiet", "feature")
    made.git("stash", "pop", "--quiet", "--index")

    found = Repository.find(made.folder)
    assert found.merge_base("main") == first
    assert set(found.changes_since(first)) == {
        "moved.txt",
        "renamed.txt",
        "removed.txt",
        "with\nline and ü.txt",
        "staged.txt",
        "changed.txt",
        "new.txt",
        ".gitignore",
    }


def test_repository_is_found_from_a_folder_in_it(made: GitRepository, tmp_path: Path) -> None:
    below = made.folder / "a" / "b"
    below.mkdir(parents=True)
    assert Repository.find(below).root == made.folder
    with pytest.raises(UsageError, match="is not in a git repository"):
        Repository.find(tmp_path)


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "-n",
        "--output=/tmp/x",
        "main..other",
        "main...other",
        "HEAD:file",
        ":/message",
        "HEAD^{/message}",
        "a b",
        "a\nb",
        "main*",
        "x" * 300,
    ],
)
def test_what_cannot_name_a_commit_never_reaches_git(made: GitRepository, ref: str) -> None:
    with pytest.raises(UsageError, match="cannot name a commit"):
        Repository.find(made.folder).commit_of(ref)


@pytest.mark.parametrize("ref", ["main", "HEAD", "HEAD~0", "v1", "refs/heads/main"])
def test_usual_names_name_a_commit(made: GitRepository, ref: str) -> None:
    made.git("tag", "v1")
    assert Repository.find(made.folder).commit_of(ref) == made.git("rev-parse", "HEAD")


def test_tag_with_the_name_of_a_branch_is_never_taken_for_it(made: GitRepository) -> None:
    first = made.git("rev-parse", "HEAD")
    made.git("update-ref", "refs/remotes/origin/main", first)
    latest = made.commit("later")
    made.git("tag", "origin/main", latest)
    made.git("tag", first, latest)
    made.git("config", "core.warnAmbiguousRefs", "false")
    found = Repository.find(made.folder)
    with pytest.raises(UsageError, match="`origin/main` is the name of more than one branch or tag"):
        found.commit_of("origin/main")
    assert found.commit_of("refs/remotes/origin/main") == first
    assert found.commit_of(first) == first


def test_parents_are_those_of_the_commits(made: GitRepository) -> None:
    first = made.git("rev-parse", "HEAD")
    second = made.commit("second")
    made.git("checkout", "--quiet", "-b", "feature", first)
    third = made.commit("third")
    (made.folder / ".git" / "info" / "grafts").write_text(f"{third} {second}\n")
    made.git("replace", "--graft", third, second)
    assert Repository.find(made.folder).merge_base("main") == first


def test_unknown_ref_is_refused_in_words(made: GitRepository) -> None:
    with pytest.raises(UsageError, match="`absent` is not a commit of this repository"):
        Repository.find(made.folder).merge_base("absent")


def test_shallow_clone_is_named_as_the_reason(made: GitRepository, tmp_path: Path) -> None:
    first = made.git("rev-parse", "HEAD")
    made.commit("second")
    subprocess.run(
        ["git", "clone", "--quiet", "--depth=1", f"file://{made.folder}", str(tmp_path / "clone")], check=True
    )
    with pytest.raises(UsageError) as caught:
        Repository.find(tmp_path / "clone").merge_base(first)
    assert "fetch-depth: 0" in (caught.value.hint or "")


def test_nothing_that_the_repository_names_is_run(made: GitRepository, tmp_path: Path) -> None:
    """Hooks, filters, text conversions, external diffs and monitors leave a mark where they run."""
    mark, program = tmp_path / "was-run", tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    first = made.git("rev-parse", "HEAD")
    (made.folder / ".gitattributes").write_text("* filter=evil diff=evil\n")
    made.commit()
    for hook in ("post-index-change", "reference-transaction", "fsmonitor-watchman", "post-checkout"):
        (made.folder / ".git" / "hooks" / hook).write_bytes(program.read_bytes())
        (made.folder / ".git" / "hooks" / hook).chmod(0o755)
    for setting in (
        "core.fsmonitor",
        "core.pager",
        "core.sshCommand",
        "diff.external",
        "diff.evil.textconv",
        "diff.evil.command",
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "core.alternateRefsCommand",
    ):
        made.git("config", setting, str(program))
    (made.folder / "changed.txt").write_text("changed since, of another length")
    assert not mark.exists()

    found = Repository.find(made.folder)
    assert "changed.txt" in set(found.changes_since(found.merge_base("main~1")))
    assert found.read_file(first, "changed.txt", 100) == b"changed.txt"
    assert not mark.exists()
    # git by itself runs them.
    subprocess.run(["git", "status"], cwd=made.folder, capture_output=True, check=False)
    assert mark.exists()


def test_ordinary_files_are_never_a_repository(made: GitRepository, tmp_path: Path) -> None:
    planted = made.folder / "planted"
    made.plant_bare_copy(planted, "main")
    with pytest.raises(UsageError, match="is not in a git repository"):
        Repository.find(planted)


def test_root_without_its_record_is_not_a_repository(tmp_path: Path, stand_in: Path) -> None:
    """A git that is too old to leave planted repositories alone answers with their folder."""
    stand_in.write_text(f"#!/bin/sh\necho {tmp_path}\n")
    stand_in.chmod(0o755)
    with pytest.raises(UsageError, match="is not in a git repository") as caught:
        Repository.find(tmp_path)
    assert caught.value.hint == f"`{tmp_path}` has no `.git`"


def test_file_of_a_commit_is_a_regular_file_within_bounds(made: GitRepository) -> None:
    (made.folder / "link.txt").symlink_to("/etc/passwd")
    (made.folder / "a folder").mkdir()
    (made.folder / "a folder" / "*.toml").write_text("odd")
    commit = made.commit()
    found = Repository.find(made.folder)
    assert found.read_file(commit, "a folder/*.toml", 3) == b"odd"
    assert found.read_file(commit, "a folder/none.toml", 3) is None
    with pytest.raises(UsageError, match="cannot be found"):
        found.read_file(commit, "../outside.txt", 100)
    for path, reason in (
        ("link.txt", "not a regular"),
        ("a folder", "not a regular"),
        ("kept.txt", "more than 3"),
    ):
        with pytest.raises(SourceUnreadable, match=reason):
            found.read_file(commit, path, 3)


def test_repository_of_another_user_is_explained(made: GitRepository) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    for folder, _, names in os.walk(made.folder):
        os.chown(folder, 65534, 65534)
        for name in names:
            os.chown(Path(folder, name), 65534, 65534)
    with pytest.raises(UsageError, match="because another user owns it") as caught:
        Repository.find(made.folder)
    assert caught.value.hint == (f"if you do: `git config --global --add safe.directory {made.folder}`")
    trusted = Repository.find(made.folder, is_trusted=True)
    assert trusted.commit_of("main")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a program `git` that a test writes, the first on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "git"


def test_git_that_prints_for_ever_is_stopped(tmp_path: Path, stand_in: Path) -> None:
    stand_in.write_text("#!/bin/sh\nexec yes\n")
    stand_in.chmod(0o755)
    with pytest.raises(SourceUnreadable, match="printed more than"):
        Repository.find(tmp_path)


def test_git_that_never_ends_is_stopped(
    tmp_path: Path, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_module, "TIMEOUT_SECONDS", 0.1)
    stand_in.write_text("#!/bin/sh\nexec sleep 100000\n")
    stand_in.chmod(0o755)
    with pytest.raises(SourceUnreadable, match="did not answer within"):
        Repository.find(tmp_path)


def test_machine_without_git_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match="which is not installed"):
        Repository.find(tmp_path)
