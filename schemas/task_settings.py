"""``tasks.toml`` in a folder of task data: how each task is asked, and how its answers are judged.

Keys at the top are for every task; a table of a task comes before them.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from .document import Document, PositiveCount
from .evaluation import Metric
from .names import Name
from .toml import TomlDocument

TASK_SETTINGS_FILE = "tasks.toml"


class OneTask(Document):
    """The settings of one task; None leaves one to the keys at the top, or to the default.

    Attributes:
        metric: how answers are judged.
        header: a text before every prompt, such as worked examples.
        stop: the text before which an answer ends.
        max_new_tokens: the longest answer.
    """

    metric: Metric | None = None
    header: str | None = Field(default=None, min_length=1)
    stop: str | None = Field(default=None, min_length=1)
    max_new_tokens: PositiveCount | None = None


class TaskSettings(OneTask, TomlDocument):
    """The settings of all tasks, and of single ones by name."""

    example: ClassVar[str] = 'for example: [tasks.sums] and below it metric = "contains"'

    tasks: dict[Name, OneTask] = Field(default_factory=dict)

    def of(self, task: str) -> OneTask:
        """Return the settings of a task."""
        general = self.model_dump(exclude={"tasks"}, exclude_none=True)
        own = self.tasks.get(task, OneTask()).model_dump(exclude_none=True)
        return OneTask(**(general | own))
