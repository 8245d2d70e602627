"""``adapters.lock``: the bytes of each adapter that were reviewed, and what was found about them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints

from .digest import Digest
from .document import Document
from .finding import Verdict
from .names import LocalPath

MAX_LOCK_BYTES = 64 << 20
MAX_LOCKED_FILES = 10_000
_MAX_VALUES = 2_000_000
_COMMIT_PATTERN = r"^([0-9a-f]{40}|[0-9a-f]{64})$"
CommitId = Annotated[str, StringConstraints(pattern=_COMMIT_PATTERN)]


class LockedAdapter(Document):
    """One adapter: the digest of every file in its folder, the verdict, and the base that it is for.

    ``base_commit`` is the commit of the base that it was compared with, or else the one that its config
    names; None if neither is known.
    """

    files: dict[LocalPath, Digest] = Field(max_length=MAX_LOCKED_FILES)
    verdict: Verdict
    base: str | None
    base_commit: CommitId | None


class AdapterLock(Document):
    """The reviewed adapters by their paths below the lock's own folder; ``.`` is that folder itself."""

    meteora_lock: Literal[1]
    adapters: dict[LocalPath, LockedAdapter] = Field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes, *, what: str) -> Self:
        """Read a lock.

        Raises:
            InvalidDocument: it is too large, not JSON, or not a lock.
        """
        return cls.from_bytes(data, what=what, max_bytes=MAX_LOCK_BYTES, max_values=_MAX_VALUES)


def is_commit(text: str) -> bool:
    """Return whether a text is the id of a commit, and not the name of a branch or a tag."""
    return re.fullmatch(_COMMIT_PATTERN, text) is not None
