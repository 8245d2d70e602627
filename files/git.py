"""The history of a git repository, read through the program `git`, running nothing that the repository names.

A repository may come from a stranger. Only commands that compare trees, the index and file times are used,
with its hooks, filters, monitors and transports switched off; time and output are bounded, and no ref can be
taken for an option.
"""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Self

from ..schemas.errors import MissingDependency, SourceUnreadable, UsageError
from ..schemas.quotation import escape, quote_name
from .scratch import temporary_file

TIMEOUT_SECONDS = 120
MAX_CHANGES_BYTES = 64 << 20
_MAX_LINE_BYTES = 1 << 20
_MAX_REF_CHARACTERS = 256
# No option, no range, no search for a message, no path: what is left names one commit.
_REF = re.compile(r"(?!-)(?!.*(\.\.|\{/))[^\s:?*\[\\]+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# Of a tag and a branch of one name git takes the tag, and a protected branch does not protect that.
_AMBIGUOUS = re.compile(r"^warning: refname '(.*)' is ambiguous", re.MULTILINE)
_SKIPPED, _SUBMODULE = "S", "160000"
_REGULAR = ("100644", "100755")
# Settings of the repository that would run a program, each without effect.
_SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.alternateRefsCommand=",
    "core.quotePath=false",
    "core.warnAmbiguousRefs=true",
    "protocol.allow=never",
    "safe.bareRepository=explicit",
    "submodule.recurse=false",
)
_ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    # Made-up parents, which replace those of commits.
    "GIT_GRAFT_FILE": os.devnull,
    "GIT_LITERAL_PATHSPECS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "LC_ALL": "C",
}


@dataclass(frozen=True, slots=True)
class CommittedFile:
    """A file in a commit, by the id of its bytes."""

    blob: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository with a work tree at ``root``; ``is_trusted`` where its owner may be another user."""

    root: Path
    is_trusted: bool = False

    @classmethod
    def find(cls, folder: Path, *, is_trusted: bool = False) -> Self:
        """Return the repository that a folder is in.

        Raises:
            UsageError: it is in none, or git does not trust the owner of the repository.
            MissingDependency: git is not installed.
        """
        place = cls(folder, is_trusted=is_trusted)
        what = f"`{folder}` is not in a git repository"
        found = place._ask("rev-parse", "--show-toplevel", what=what)
        root = Path(os.fsdecode(found.removesuffix(b"\n")))
        # Ordinary files can be a bare repository, with any history; a `.git` cannot be committed.
        if not (root / ".git").exists():
            raise UsageError(what, hint=f"`{root}` has no `.git`")
        return cls(root, is_trusted=is_trusted)

    def commit_of(self, ref: str) -> str:
        """Return the id of the commit that a branch, a tag or an id names.

        Raises:
            UsageError: it names none, or more than one.
        """
        _check_ref(ref)
        what = f"`{escape(ref)}` is not a commit of this repository"
        arguments = ("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
        # Of a whole id git takes the object, whatever a tag is called.
        refusing = None if _COMMIT.fullmatch(ref) else _AMBIGUOUS
        return _check_commit(self._ask(*arguments, what=what, refusing=refusing))

    def merge_base(self, ref: str) -> str:
        """Return the commit at which the present one left a branch.

        Raises:
            UsageError: the two have none in common, as far as this clone goes back.
        """
        commit = self.commit_of(ref)
        what = f"`{escape(ref)}` and the present commit have no common ancestor in this clone"
        return _check_commit(self._ask("merge-base", commit, "HEAD", what=what))

    def changes_since(self, commit: str, *, with_work_tree: bool = True) -> Iterator[str]:
        """Yield every path that differs from a commit: committed since, or staged.

        ``with_work_tree`` adds files that were changed and not staged, and those that are not tracked. A
        renamed file is two paths.
        """
        _check_commit(commit.encode())
        yield from self._paths("diff-index", "--cached", "--no-renames", "--name-only", "-z", commit, "--")
        if with_work_tree:
            # A file that was written in the same second as the index is read, and would pass a filter.
            yield from self._paths(
                "diff-files",
                "--no-renames",
                "--ignore-submodules=all",
                "--name-only",
                "-z",
                settings=self._without_filters(),
            )
            yield from self._paths("ls-files", "--others", "--exclude-standard", "-z")

    def left_out(self) -> Iterator[str]:
        """Yield what the index has and the work tree not: by a sparse checkout, or a submodule's contents."""
        for entry in self._paths("ls-files", "--stage", "-t", "-z"):
            facts, _, name = entry.partition("\t")
            tag, mode, *_ = facts.split()
            if tag == _SKIPPED or (mode == _SUBMODULE and not (self.root / name / ".git").exists()):
                yield name

    def _paths(self, *arguments: str, settings: Sequence[str] = ()) -> Iterator[str]:
        what = "the changes cannot be read"
        found = self._ask(*arguments, what=what, max_bytes=MAX_CHANGES_BYTES, settings=settings)
        yield from (os.fsdecode(name) for name in found.split(b"\0") if name)

    def _without_filters(self) -> list[str]:
        """Return settings by which the filters of every configuration do nothing."""
        # Exit code 1 means that there is none.
        found = self._ask(
            *("config", "-z", "--name-only", "--get-regexp", r"^filter\."),
            what="the settings cannot be read",
            accepted=(0, 1),
        )
        names = {os.fsdecode(name).rpartition(".")[0] for name in found.split(b"\0") if name}
        if odd := [name for name in names if "=" in name]:
            raise UsageError(f"the repository's settings name the filter `{escape(odd[0])}`, with a `=`")
        return [
            f"{name}.{setting}"
            for name in sorted(names)
            for setting in ("clean=", "smudge=", "process=", "required=false")
        ]

    def read_file(self, commit: str, path: str, max_bytes: int) -> bytes | None:
        """Return a file as it is in a commit; None if there is none.

        Raises:
            SourceUnreadable: it is not a regular file there, or too large.
        """
        _check_commit(commit.encode())
        where = f"{quote_name(path)} of the commit `{commit}`"
        found = self._ask(
            "ls-tree", "-z", "-l", "--full-tree", commit, "--", path, what=f"{where} cannot be found"
        )
        if not found:
            return None
        facts, _, name = found.removesuffix(b"\0").partition(b"\t")
        mode, _kind, blob, size = facts.decode("ascii").split()
        if os.fsdecode(name) != path or mode not in _REGULAR:
            raise SourceUnreadable(f"{where} is not a regular file")
        if int(size) > max_bytes:
            raise SourceUnreadable(f"{where} has more than {max_bytes} bytes")
        return self._ask("cat-file", "blob", blob, what=f"{where} cannot be read", max_bytes=max_bytes)

    def files_in(self, commit: str, folder: str) -> dict[str, CommittedFile]:
        """Return the regular files of a folder as it is in a commit, by name; ``""`` is the root.

        Raises:
            UsageError: there is no such folder.
        """
        _check_commit(commit.encode())
        what = f"the commit `{commit}` has no folder {quote_name(folder)}"
        found = self._ask("ls-tree", "-z", "-l", f"{commit}:{folder}", what=what, max_bytes=MAX_CHANGES_BYTES)
        files = {}
        for line in found.removesuffix(b"\0").split(b"\0") if found else ():
            facts, _, name = line.partition(b"\t")
            mode, _kind, blob, size = facts.decode("ascii").split()
            if mode in _REGULAR:
                files[os.fsdecode(name)] = CommittedFile(blob, int(size))
        return files

    def copy_file(self, file: CommittedFile, target: Path) -> None:
        """Write a committed file to a new file.

        Raises:
            SourceUnreadable: it cannot be read.
        """
        with target.open("xb") as sink:
            self._ask(
                *("cat-file", "blob", file.blob),
                what=f"the file `{file.blob}` cannot be read",
                max_bytes=file.size_bytes,
                sink=sink,
            )

    def lfs_object(self, digest: str) -> Path:
        """Return where Git LFS keeps the file of a digest, whether it was fetched or not."""
        found = self._ask("rev-parse", "--git-common-dir", what="the repository cannot be found")
        common = self.root / os.fsdecode(found.removesuffix(b"\n"))
        return common / "lfs" / "objects" / digest[:2] / digest[2:4] / digest

    def _ask(
        self,
        *arguments: str,
        what: str,
        max_bytes: int = _MAX_LINE_BYTES,
        settings: Sequence[str] = (),
        accepted: Sequence[int] = (0,),
        refusing: re.Pattern[str] | None = None,
        sink: BinaryIO | None = None,
    ) -> bytes:
        trust = ("safe.directory=*",) if self.is_trusted else ()
        options = [part for each in (*_SETTINGS, *trust, *settings) for part in ("-c", each)]
        kept = BytesIO()
        code, message = _run(["git", "--no-pager", *options, *arguments], self.root, max_bytes, sink or kept)
        if code not in accepted:
            raise _refused(what, message, self.root)
        if refusing and (warned := refusing.search(message)):
            raise UsageError(
                f"`{escape(warned[1])}` is the name of more than one branch or tag",
                hint="write all of it, such as `refs/remotes/origin/main` or `refs/tags/v1`",
            )
        return kept.getvalue()


def _run(command: list[str], folder: Path, max_bytes: int, sink: BinaryIO) -> tuple[int, str]:
    """Write what a program prints, and return its exit code and the beginning of its message."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    with temporary_file() as errors:
        try:
            process = subprocess.Popen(  # noqa: S603 - no shell, and no ref or path can be an option
                command,
                cwd=folder,
                env=inherited | _ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        except FileNotFoundError as error:
            raise _no_program(folder) from error
        except OSError as error:
            raise SourceUnreadable(f"`git` cannot be run in `{folder}`: {error.strerror}") from error
        size_bytes = _read_within(process, max_bytes, sink)
        errors.seek(0)
        message = errors.read(_MAX_LINE_BYTES).decode("utf-8", errors="replace")
    if size_bytes > max_bytes:
        raise SourceUnreadable(f"`git` printed more than {max_bytes} bytes, and was stopped")
    return process.returncode, message


def _read_within(process: subprocess.Popen[bytes], max_bytes: int, sink: BinaryIO) -> int:
    timer = threading.Timer(TIMEOUT_SECONDS, process.kill)
    timer.start()
    with process:
        try:
            size_bytes = 0
            while process.stdout and (data := process.stdout.read(_MAX_LINE_BYTES)):
                size_bytes += len(data)
                if size_bytes > max_bytes:
                    process.kill()
                    break
                sink.write(data)
        except BaseException:
            process.kill()
            raise
    if not timer.is_alive() and process.returncode < 0:
        raise SourceUnreadable(f"`git` did not answer within {TIMEOUT_SECONDS} seconds, and was stopped")
    timer.cancel()
    return size_bytes


def _no_program(folder: Path) -> MissingDependency | SourceUnreadable:
    if not folder.is_dir():
        return SourceUnreadable(f"`{folder}` is not a folder")
    return MissingDependency("changes are read with the program `git`, which is not installed")


def _refused(what: str, message: str, root: Path) -> UsageError:
    if "dubious ownership" in message:
        return UsageError(
            f"git does not trust the repository at `{root}`, because another user owns it",
            hint=f"if you do: `git config --global --add safe.directory {root}`",
        )
    lines = message.strip().splitlines() or ["it gave no reason"]
    reason = escape(lines[0].removeprefix("fatal: "), limit=200)
    shallow = "; a shallow clone lacks older commits: fetch all of them, such as with `fetch-depth: 0`"
    return UsageError(what, hint=f"git: {reason}{shallow if _is_shallow(root) else ''}")


def _is_shallow(root: Path) -> bool:
    return (root / ".git" / "shallow").is_file()


def _check_ref(ref: str) -> None:
    if len(ref) > _MAX_REF_CHARACTERS or not ref.isprintable() or not _REF.fullmatch(ref):
        raise UsageError(
            f"`{escape(ref)}` cannot name a commit", hint="such as `origin/main`, `v1.2` or a commit id"
        )


def _check_commit(text: bytes) -> str:
    commit = text.strip().decode("ascii", errors="replace")
    if not _COMMIT.fullmatch(commit):
        raise UsageError(f"git answered `{escape(commit)}`, expected the id of a commit")
    return commit
