"""Git repositories with adapters, made by the real program."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

_AUTHOR = {
    "GIT_AUTHOR_NAME": "tester",
    "GIT_AUTHOR_EMAIL": "tester@localhost",
    "GIT_COMMITTER_NAME": "tester",
    "GIT_COMMITTER_EMAIL": "tester@localhost",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


class GitRepository:
    """A repository in a folder, on its branch ``main``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.git("-c", "init.defaultBranch=main", "init", "--quiet")

    @classmethod
    def copied(cls, template: GitRepository, folder: Path) -> Self:
        """Return a copy of a repository, which takes none of the processes that made it."""
        shutil.copytree(template.folder, folder, symlinks=True)
        copy = cls.__new__(cls)
        copy.folder = folder
        return copy

    def git(self, *arguments: str) -> str:
        """Run git here, and return what it prints."""
        done = subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=os.environ | _AUTHOR,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def commit(self, message: str = "a change") -> str:
        """Commit everything in the folder; return the commit's id."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)
        return self.git("rev-parse", "HEAD")

    def plant_bare_copy(self, folder: Path, ref: str) -> None:
        """Make a folder a bare repository of ordinary files, in which nothing changed since ``ref``."""
        self.git("repack", "-a", "-d", "--quiet")
        shutil.copytree(self.folder / ".git" / "objects", folder / "objects", dirs_exist_ok=True)
        (folder / "refs" / "heads").mkdir(parents=True)
        (folder / "refs" / "heads" / "main").write_text(self.git("rev-parse", ref))
        (folder / "HEAD").write_text("ref: refs/heads/main\n")
        (folder / "config").write_text("[core]\nrepositoryformatversion = 0\nbare = false\nworktree = .\n")
        self.git("read-tree", f"--index-output={self.folder}/.git/planted", ref)
        shutil.move(self.folder / ".git" / "planted", folder / "index")


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Run the block with a folder as the current one."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
