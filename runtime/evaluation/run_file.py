"""The file of a run: opened, checked against what is asked now, and continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...files.lines import GrowingLines, growing_lines
from ...schemas.document import Document
from ...schemas.errors import InvalidDocument, SourceUnreadable, UsageError
from ...schemas.evaluation import UNROUTED, EvaluatedTask, Mode
from ...schemas.evaluation_run import (
    MAX_RUN_LINE_BYTES,
    RUN_BEGINS,
    AnsweredBatch,
    RunLine,
    RunSettings,
    to_line,
)
from ...scores.comparison import difference_of_tasks
from ...scores.metrics import BY_LIKELIHOOD
from .answering import Batch
from .tasks import Task

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
    """

    def __init__(self, file: GrowingLines) -> None:
        """Read the lines of an open file.

        Raises:
            InvalidDocument: a line is malformed, or has answers of a task whose line is missing.
        """
        self._file = file
        self._tasks: dict[str, EvaluatedTask] = {}
        self.settings: RunSettings | None = None
        self._batches: dict[tuple[Mode, str, int], AnsweredBatch] = {}
        # The modules that routed in the first answers of each mode.
        self._modules: dict[Mode, Set[str]] = {}
        for number, line in enumerate(file.lines, start=1):
            self._read(line, f"{file.path.name}:{number}", is_first=number == 1)

    def _read(self, line: bytes, what: str, *, is_first: bool) -> None:
        if is_first:
            self.settings = RunSettings.from_bytes(line, what=what)
            return
        found = RunLine.from_bytes(line, what=what, max_bytes=MAX_RUN_LINE_BYTES)
        if found.task is not None and self._tasks.setdefault(found.task.member, found.task) != found.task:
            raise InvalidDocument(
                f"`{what}` asks the task `{found.task.member}` otherwise than a line before it"
            )
        if found.batch is not None:
            if found.batch.member not in self._tasks:
                raise InvalidDocument(
                    f"`{what}` has answers of the task `{found.batch.member}`, which no line before it asks"
                )
            self._batches.setdefault(found.batch.key, found.batch)

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

    def find(self, batch: Batch, task: Task, members: Sequence[str]) -> AnsweredBatch | None:
        """Return the answers to a planned batch, None if the file does not have them.

        Args:
            batch: of the plan.
            task: whose items it has.
            members: of the bundle.

        Raises:
            UsageError: the file has others than the plan asks for.
        """
        found = self._batches.get((batch.mode, task.member, batch.number))
        if found is None:
            return None
        if misfit := self._misfit_of(found, batch, task, members):
            raise UsageError(
                f"`{self._file.path}` has answers that do not fit what is asked: batch {found.number} of "
                f"`{found.member}` in the mode `{found.mode}` has {misfit}",
                hint="the file was changed or damaged: name a new one with `--run`",
            )
        return found

    def _misfit_of(
        self, found: AnsweredBatch, batch: Batch, task: Task, members: Sequence[str]
    ) -> str | None:
        if found.items != batch.items:
            return "other items"
        if found.prompt_tokens != (expected := task.prompt_tokens_of(batch.items)):
            return f"prompts of {found.prompt_tokens} tokens, expected {expected}"
        longest = 0 if task.description.metric in BY_LIKELIHOOD else task.description.max_new_tokens
        if found.new_tokens > (most := len(batch.items) * longest):
            return f"answers of {found.new_tokens} tokens, expected at most {most}"
        if batch.mode in UNROUTED:
            return None if found.routing is None else "routing, which the mode has not"
        if found.routing is None:
            return "no routing, which the mode has"
        routing, most = found.routing, found.prompt_tokens + found.new_tokens
        if not found.prompt_tokens <= routing.tokens <= most:
            return f"routing of {routing.tokens} tokens, expected {found.prompt_tokens} to {most}"
        if len(routing.weights) != len(members):
            return f"weights of {len(routing.weights)} members, expected {len(members)}"
        if len(routing.confidence) > len(batch.items):
            return f"decisions about {len(routing.confidence)} prompts, expected at most {len(batch.items)}"
        if self._modules.setdefault(found.mode, routing.hits.keys()) != routing.hits.keys():
            return "other modules than the answers before it"
        return None

    def keep(self, batch: AnsweredBatch) -> None:
        """Append a batch of answers.

        Raises:
            SourceUnreadable: the file cannot be written, or could not be read again with them.
        """
        self._append(RunLine(batch=batch))

    def _append(self, document: Document) -> None:
        line = to_line(document)
        if len(line) > MAX_RUN_LINE_BYTES:
            raise SourceUnreadable(
                f"a line of `{self._file.path}` would have {len(line)} bytes, expected at most "
                f"{MAX_RUN_LINE_BYTES}",
                hint="ask with a smaller `--batch-size`",
            )
        self._file.append(line)


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
