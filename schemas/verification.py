"""``verification.json``: what was checked of a bundle, by which backends, and how exact it came out.

The record is bound to one manifest by its digest, and to itself: ``record_sha256`` is the digest of
the record without that field, so a changed byte anywhere in the file shows.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, Self

from .digest import Digest
from .document import Count, Document, canonical_json
from .errors import InvalidDocument, UsageError


class Level(StrEnum):
    """The reach of a verification, and so what it proves.

    ``INTEGRITY`` establishes that a bundle is *intact*: it agrees with its manifest, and the kernels agree
    with a float64 reference on the bundle's own tensors. ``SOURCE`` also establishes that it is *from its
    members*: it agrees with member files that were obtained independently of the bundle.
    """

    INTEGRITY = "integrity"
    SOURCE = "source"


class Outcome(StrEnum):
    """The outcome of a verification."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


def level_of(level: Level | str) -> Level:
    """Return the level of a verification by its name.

    Raises:
        UsageError: there is no such level.
    """
    try:
        return Level(level)
    except ValueError:
        known = ", ".join(f"`{each}`" for each in Level)
        raise UsageError(f"the level is `{level}`, expected one of {known}") from None


class BackendRun(Document):
    """One backend's worst error, as max|e| / max|reference|, and the tolerance it was held to.

    ``max_error`` is None where the output was not finite.
    """

    backend: str
    device: str
    compute_dtype: str
    modules: Count
    max_error: float | None
    tolerance: float


class BackendNotRun(Document):
    """A backend that was not run, and why."""

    backend: str
    reason: str


class ModuleError(Document):
    """The worst errors of one module over all backends; None where the output was not finite."""

    routed: float | None
    forced: float | None


class VerificationRecord(Document):
    """One verification of one bundle.

    ``problems`` fail it and ``unchecked`` leaves it inconclusive; ``notes`` name what the verdict rests
    on, such as a witness that came with the bundle itself.
    """

    meteora_verification: Literal[1]
    manifest_sha256: Digest
    level: Level
    outcome: Outcome
    problems: tuple[str, ...]
    unchecked: tuple[str, ...]
    notes: tuple[str, ...]
    backends_run: tuple[BackendRun, ...]
    backends_not_run: tuple[BackendNotRun, ...]
    modules: dict[str, ModuleError]
    versions: dict[str, str]
    created_at: str

    def seal(self) -> bytes:
        """Return the text of the record with its own digest in it."""
        body = self.model_dump(mode="json")
        return canonical_json(body | {"record_sha256": _digest_of(body)})

    @classmethod
    def unseal(cls, value: Any, data: bytes, *, what: str) -> Self:
        """Read a sealed record.

        Raises:
            InvalidDocument: a byte differs from what was sealed, or the record breaks its schema.
        """
        if not isinstance(value, dict) or "record_sha256" not in value:
            raise InvalidDocument(f"`{what}` is not a sealed verification record: it has no `record_sha256`")
        body = {key: content for key, content in value.items() if key != "record_sha256"}
        if value["record_sha256"] != _digest_of(body) or canonical_json(value) != data:
            raise InvalidDocument(
                f"`{what}` was changed after it was written: its digest does not match its content",
                hint="run `meteora-registry verify` again",
            )
        return cls.from_value(body, what=what)


def _digest_of(body: dict[str, Any]) -> str:
    return str(Digest.of_bytes(canonical_json(body)))
