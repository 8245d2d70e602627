"""Scenes: a home in some state, and the command that is disturbed there.

A trial puts the scene back, has the command killed at one of its calls, looks at what that left, and gives
the same command again, which must come to what an undisturbed run comes to.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meteora_registry.registry.cli.main import run

from .faults import Decide, Outcome, run_command
from .faults_home import Contents, look_at
from .small_adapters import make_adapter

_CARD = "---\nlicense: mit\n---\nA card.\n"
# The same inputs for every scene.
ADAPTERS: dict[str, dict[str, Any]] = {"legal": {"rank": 4}, "medical": {"rank": 8, "seed": 1, "card": _CARD}}


@dataclass(frozen=True, slots=True)
class Scene:
    """Commands by their words; ``{folder}`` is the scene's folder, ``{adapters}`` that of the adapters.

    ``before`` sets the scene, ``command`` is disturbed; ``midway`` are commands whose result an
    observer may also see, where the command is more than one transaction. ``codes`` are the exit codes that
    the same command may end with when it is given again after a death: nothing may be left to do. With
    ``litter`` it has leftovers of dead processes.
    """

    name: str
    before: tuple[str, ...]
    command: str
    midway: tuple[str, ...] = ()
    litter: bool = False
    codes: tuple[int, ...] = (0,)


_ADD_BOTH = ("add {adapters}/legal {adapters}/medical",)
_MEND = "doctor --fix --yes"
_FUSE = "fuse legal medical --out {folder}/team"
SCENES = (
    Scene("first add", (), "add {adapters}/legal", midway=("list",)),
    Scene("add", ("add {adapters}/legal",), "add {adapters}/medical --tag candidate --base org/stated"),
    Scene("fuse", _ADD_BOTH, _FUSE),
    Scene("fuse with experts", _ADD_BOTH, f"{_FUSE} --with-experts"),
    Scene("remove adapter", _ADD_BOTH, "remove medical --yes", codes=(0, 1)),
    Scene("fuse what stands", (*_ADD_BOTH, _FUSE, "remove team --yes"), _FUSE),
    Scene("remove bundle", (*_ADD_BOTH, _FUSE), "remove team --yes", codes=(0, 1)),
    Scene("remove for good", _ADD_BOTH, "remove medical --for-good --yes", codes=(0, 1)),
    Scene("restore", (*_ADD_BOTH, "remove medical --yes"), "restore medical", codes=(0, 1)),
    Scene(
        "restore bundle",
        (*_ADD_BOTH, _FUSE, "remove team --yes", "remove legal --yes"),
        "restore team",
        codes=(0, 1),
    ),
    Scene("rename", (*_ADD_BOTH, _FUSE, "tag legal good"), "rename legal law", codes=(0, 1)),
    Scene("gc", _ADD_BOTH, "store gc", litter=True),
    Scene("doctor", (*_ADD_BOTH, _FUSE), "doctor --fix --yes", litter=True),
)


# Runs a command to which nothing happens.
CarryOut = Callable[[Sequence[str | Path]], Outcome]


def run_in_this_process(arguments: Sequence[str | Path]) -> Outcome:
    """Run a command line to which nothing happens, for half of what a process of its own costs."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([*map(str, arguments)])
    return Outcome(code, out.getvalue(), err.getvalue(), (), 0.0)


class Stage:
    """A scene in its place, which can be put back to its beginning.

    ``carry_out`` runs the commands that set the scene, and those that mend it after a trial.
    """

    def __init__(self, scene: Scene, folder: Path, carry_out: CarryOut = run_command) -> None:
        self.scene = scene
        self._carry_out = carry_out
        self.folder = folder / "stage"
        self._beginning = folder / "beginning"
        self._adapters = folder / "adapters"
        for name, options in ADAPTERS.items():
            make_adapter(self._adapters / name, **options)
        self._beginning.mkdir()
        self.beginning = self._set()
        self.seen = [self.beginning]
        for command in scene.midway:
            self.put_back()
            self._do(command)
            self.seen.append(look_at(self.folder))
        self.put_back()
        self.undisturbed = self.disturb(None)
        assert self.undisturbed.code == 0, self.undisturbed
        self.expected = look_at(self.folder)
        self.seen.append(self.expected)

    @property
    def calls(self) -> int:
        """How many calls an undisturbed run makes."""
        return len(self.undisturbed.calls)

    def points(self, stride: int) -> range:
        """Return every ``stride``-th call, at least one, from a fixed first one for each scene."""
        stride = min(stride, self.calls)
        return range(1 + sum(map(ord, self.scene.name)) % stride, self.calls + 1, stride)

    @contextmanager
    def trial(self, number: int) -> Iterator[None]:
        """Run the block on the scene from its beginning; a failure names the call of the fault."""
        self.put_back()
        try:
            yield
        except AssertionError as error:
            call = self.undisturbed.calls[number - 1]
            error.add_note(f"{self.scene.name}: call {number} of {self.calls}, `{call}`")
            raise

    def put_back(self) -> None:
        """Restore the folder as it was before the command."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self._beginning, self.folder)

    def disturb(self, decide: Decide | None) -> Outcome:
        """Run the scene's command."""
        return run_command(self._words(self.scene.command), decide)

    def disturb_after(self, seconds: float) -> Outcome:
        """Run the scene's command, and kill it when so much time has passed."""
        return run_command(self._words(self.scene.command), kill_after_seconds=seconds)

    def check_nothing_is_half_done(self) -> Contents:
        """Check that the content is that before or after the command, or between two of its transactions."""
        found = look_at(self.folder)
        assert any(found.tables == each.tables for each in self.seen), found.tables
        return found

    def check_it_can_be_finished(self, *, mending_first: bool = False) -> None:
        """Give the same command again: it must come to what an undisturbed run comes to.

        What the death left, the doctor takes away: before that, or afterwards.
        """
        if mending_first:
            self._do(_MEND)
        again = self._carry_out(self._words(self.scene.command))
        assert again.code in self.scene.codes, again
        found = look_at(self.folder)
        assert found.tables == self.expected.tables
        assert found.bundles == self.expected.bundles
        if not mending_first:
            self._do(_MEND)
            found = look_at(self.folder)
        assert (found.blobs, found.strays) == (self.expected.blobs, ())

    def _set(self) -> Contents:
        self.put_back()
        for command in self.scene.before:
            self._do(command)
        if self.scene.litter:
            _leave_litter(self.folder)
        shutil.rmtree(self._beginning)
        shutil.copytree(self.folder, self._beginning)
        return look_at(self.folder)

    def _do(self, command: str) -> None:
        outcome = self._carry_out(self._words(command))
        assert outcome.code == 0, outcome

    def _words(self, command: str) -> list[str | Path]:
        words = command.format(folder=self.folder, adapters=self._adapters).split()
        return ["--home", self.folder / "home", *words]


def _leave_litter(folder: Path) -> None:
    store = folder / "home" / "blobs"
    for data in (b"first", b"second"):
        digest = hashlib.sha256(data).hexdigest()
        place = store / "sha256" / digest[:2] / digest[2:]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(data)
    left = [store / "incoming" / "dead" / "0", folder / "home" / "catalog.db.new"]
    if (folder / "team").exists():
        left.append(folder / ".team.partial" / "README.md")
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
