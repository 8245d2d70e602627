"""The file of a run: opened, checked against what is asked now, and continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...files.lines import GrowingLines, growing_lines
from ...schemas.document import Document
from ...schemas.errors import UsageError
from ...schemas.evaluation import EvaluatedTask, Mode
from ...schemas.evaluation_run import (
    MAX_RUN_LINE_BYTES,
    RUN_BEGINS,
    AnsweredBatch,
    RunLine,
    RunSettings,
    to_line,
)
from ...scores.comparison import difference_of_tasks

_ANEW = "name a new file with `--run`, or ask as that run did"
_NAMES = {
    "manifest_sha256": "the bundle's manifest has the sha256",
    "base_sha256": "the base has the digest",
    "batch_size": "the batch size is",
    "device": "the device is",
    "dtype": "the element type is",
    "versions": "the versions are",
}


class RunFile:
    """The open file of a run.

    Attributes:
        settings: None in a new file.
        batches: what was answered, by ``AnsweredBatch.key``.
    """

    def __init__(self, file: GrowingLines) -> None:
        """Read the lines of an open file.

        Raises:
            InvalidDocument: a line is malformed.
        """
        self._file = file
        self._tasks: dict[str, EvaluatedTask] = {}
        self.settings: RunSettings | None = None
        self.batches: dict[tuple[Mode, str, int], AnsweredBatch] = {}
        for number, line in enumerate(file.lines, start=1):
            self._read(line, f"{file.path.name}:{number}", is_first=number == 1)

    def _read(self, line: bytes, what: str, *, is_first: bool) -> None:
        if is_first:
            self.settings = RunSettings.from_bytes(line, what=what)
            return
        found = RunLine.from_bytes(line, what=what, max_bytes=MAX_RUN_LINE_BYTES)
        if found.task is not None:
            self._tasks[found.task.member] = found.task
        if found.batch is not None:
            self.batches.setdefault(found.batch.key, found.batch)

    def check(self, tasks: Sequence[EvaluatedTask], settings: Mapping[str, Any]) -> None:
        """Pass if the run asked the same, as far as it asked these tasks.

        Args:
            tasks: what is asked now.
            settings: those of ``RunSettings`` that are known.

        Raises:
            UsageError: it did not.
        """
        if self.settings is None:
            return
        for name, value in settings.items():
            found = getattr(self.settings, name)
            if found != value:
                raise UsageError(
                    f"`{self._file.path}` has answers of another run: {_NAMES[name]} `{_text(found)}` there "
                    f"and `{_text(value)}` here",
                    hint=_ANEW,
                )
        for task in tasks:
            earlier = self._tasks.get(task.member)
            if earlier is not None and (difference := difference_of_tasks(earlier, task)):
                raise UsageError(
                    f"`{self._file.path}` has answers of another run. The first is that file, the second "
                    f"what is asked now: the task `{task.member}` has {difference}",
                    hint=_ANEW,
                )

    def begin(self, tasks: Sequence[EvaluatedTask], settings: RunSettings) -> None:
        """Write what this run asks, as far as the file does not have it; it must pass ``check`` first.

        Raises:
            UsageError: as ``check``.
            SourceUnreadable: the file cannot be written.
        """
        self.check(tasks, {name: getattr(settings, name) for name in _NAMES})
        if self.settings is None:
            self.settings = settings
            self._append(settings)
        for task in tasks:
            if task.member not in self._tasks:
                self._tasks[task.member] = task
                self._append(RunLine(task=task))

    def keep(self, batch: AnsweredBatch) -> None:
        """Append a batch of answers.

        Raises:
            SourceUnreadable: the file cannot be written.
        """
        self._append(RunLine(batch=batch))
        self.batches[batch.key] = batch

    def _append(self, document: Document) -> None:
        self._file.append(to_line(document))


@contextmanager
def opened_run(path: Path) -> Iterator[RunFile]:
    """Open the file of a run, or begin one, for this process alone within the block.

    Raises:
        UsageError: another process writes it, or it is another kind of file.
        InvalidDocument: a line is malformed.
        SourceUnreadable: it cannot be read or written.
    """
    with growing_lines(path, begins=RUN_BEGINS) as file:
        yield RunFile(file)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in sorted(value.items()))
    return str(value)
