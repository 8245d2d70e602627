"""The parts of GitHub's documents that a job reads: the event that started it, and comments."""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field

from .document import Document, PositiveCount
from .lock import CommitId

MAX_EVENT_BYTES = 32 << 20
# GitHub refuses a longer body.
MAX_COMMENT_CHARACTERS = 65_536
MAX_SUMMARY_BYTES = 1 << 20


class _Part(Document):
    # GitHub's documents have hundreds of other fields.
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")


class Side(_Part):
    """One side of a pull request: the commit of a branch when the event happened."""

    sha: CommitId


class PullRequest(_Part):
    """A pull request: its number, and the branch that it is for."""

    number: PositiveCount
    base: Side


class MergeGroup(_Part):
    """Pull requests in a merge queue, and the commit that they are put on."""

    base_sha: CommitId


class Event(_Part):
    """The event that started a job; ``before`` is the commit that a pushed branch had."""

    pull_request: PullRequest | None = None
    merge_group: MergeGroup | None = None
    before: str | None = None


class User(_Part):
    """The author of a comment."""

    login: str


class Comment(_Part):
    """A comment of a pull request; the account of its author may be deleted."""

    id: PositiveCount
    body: str | None = None
    user: User | None = None


class Comments(_Part):
    """One page of comments."""

    comments: tuple[Comment, ...] = Field(max_length=100)
