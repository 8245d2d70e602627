"""Every error the project raises on purpose, with the facts as attributes.

One place (the command line's entry point) turns them into text and an exit code; everything else
raises. A message names the thing, what was found and what was expected; ``hint`` is the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from .finding import Finding


class MeteoraError(Exception):
    """Base of all errors; ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class UsageError(MeteoraError, ValueError):
    """The request itself is wrong: an option, a name, a selector."""

    exit_code = 2


class SourceUnreadable(MeteoraError, OSError):
    """A file or folder cannot be read or written: missing, not permitted, no space."""

    exit_code = 2


def way_to_install(extra: str) -> str:
    """Return how an optional part of the package is installed.

    No index has the package, and a name there may be anyone's: it is installed from its own source.
    """
    return f'in the source folder of meteora-registry: pip install ".[{extra}]"'


class MissingDependency(MeteoraError, ImportError):
    """An optional part of the package is needed and not installed; ``extra`` names what brings it."""

    exit_code = 2

    def __init__(self, message: str, *, extra: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=way_to_install(extra) if extra else hint)


class InvalidDocument(MeteoraError, ValueError):
    """A JSON or TOML document is malformed or breaks its schema; ``problems`` lists every place."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class AdapterRefused(MeteoraError, ValueError):
    """An adapter is broken, or cannot be fused; ``findings`` has the reasons."""

    def __init__(self, message: str, *, findings: Sequence[Finding] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.findings = tuple(findings)


class FuseRefused(MeteoraError, ValueError):
    """These members cannot become one bundle; ``conflicts`` lists which of them disagree about what."""

    def __init__(self, message: str, *, conflicts: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.conflicts = tuple(conflicts)


class BundleRefused(MeteoraError, ValueError):
    """A bundle breaks its format, or needs something that this reader does not know."""


class DataRefused(MeteoraError, ValueError):
    """Data to fit or judge a gate on is not what was expected; ``problems`` names file and line of each."""

    def __init__(self, message: str, *, problems: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class NotInCatalog(MeteoraError, LookupError):
    """No adapter, version, alias or bundle of that name is in the catalog."""


class AlreadyInCatalog(MeteoraError, ValueError):
    """The name is taken by something else."""


class StillInUse(MeteoraError, ValueError):
    """Something else depends on what was to be removed."""


class CatalogUnusable(MeteoraError, OSError):
    """The catalog cannot be opened: its schema is older or newer than this tool, or it is damaged."""

    exit_code = 2


class StoreDamaged(MeteoraError, OSError):
    """A blob of the content store is missing, or its bytes are not those of its digest."""

    exit_code = 2


class StoreUnavailable(MeteoraError, OSError):
    """The content store cannot be written, or is elsewhere and cannot be reached, forbids it, or failed."""

    exit_code = 2


class HubUnavailable(MeteoraError, OSError):
    """The Hub cannot be reached, is busy or failed, or offline mode is on and the cache lacks the file."""

    exit_code = 2


class HubRefused(MeteoraError, PermissionError):
    """The Hub answered with a refusal: not there, not permitted, gated, not acceptable."""


class HubNotFound(HubRefused):
    """The Hub has no such repository, or none that this user may see; its answer is the same."""


class HubConflict(HubRefused):
    """The repository was changed by another commit in between; nothing of ours was committed."""


class HubMismatch(MeteoraError, ValueError):
    """A file or a list from the Hub is not what was promised; it was not kept."""
