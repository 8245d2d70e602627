"""Values that are closed at the end of a ``with`` block: catalogs, workspaces, temporary folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Closing:
    """A value that is closed at the end of its ``with`` block."""

    def close(self) -> None:
        """Release what the value holds."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
