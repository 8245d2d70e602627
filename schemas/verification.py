"""``verification.json``: what was checked of a bundle, by which backends, and how exact it came out.

The record is bound to one manifest by its digest, and to itself: ``record_sha256`` is the digest of
the record without that field, so a changed byte anywhere in the file shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, Literal, Self

from .digest import Digest
from .document import Count, Document, canonical_json
from .errors import InvalidDocument, UsageError

# The largest errors that pass, by the element type of the computation; those of `kernels/reference.py`.
TOLERANCES: Final = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
# It runs one module as a sample; every other backend runs all of them.
SAMPLING_BACKEND: Final = "triton"
# What a verification may establish, in the words of docs/verification.md; every output uses these.
INTACT: Final = "intact"
FROM_MEMBERS: Final = "from its members"
ATTACHED: Final = "attached to its base"
# Those that run every module.
FULL_BACKENDS: Final = frozenset({"cpu", "cuda"})


class Level(StrEnum):
    """The reach of a verification, and so what it proves.

    ``INTEGRITY`` establishes that a bundle is *intact*: it agrees with its manifest, and the kernels agree
    with a float64 reference on the bundle's own tensors. ``SOURCE`` also establishes that it is *from its
    members*: it agrees with member files that were obtained independently of the bundle.
    """

    INTEGRITY = "integrity"
    SOURCE = "source"

    @property
    def establishes(self) -> tuple[str, ...]:
        """Return what a pass at this level establishes."""
        return (INTACT, FROM_MEMBERS) if self is Level.SOURCE else (INTACT,)


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

    def contradictions(self, modules: Iterable[str] | None = None, dtype: str = "float32") -> list[str]:
        """Return why the record cannot be what a verification wrote; empty if it can be.

        The maker of a bundle also writes its record: its seal and the word `pass` prove nothing, so
        everything else in it must lead to that word.

        Args:
            modules: the modules of the bundle's config, where it is at hand.
            dtype: the element type of its factors.
        """
        return [*self._contradictions(None if modules is None else set(modules), dtype)]

    def _contradictions(self, modules: set[str] | None, dtype: str) -> Iterator[str]:
        if self.outcome is not self._outcome_of_findings:
            counts = f"{len(self.problems)} problems and {len(self.unchecked)} unchecked parts"
            yield f"it states the outcome `{self.outcome}` with {counts}"
        if not _is_moment(self.created_at):
            yield f"it was made at `{self.created_at[:40]}`, expected a date and time with its offset"
        if self.outcome is not Outcome.PASS:
            return
        if modules is not None and modules != self.modules.keys():
            yield (
                f"it covers {len(self.modules)} modules, and they are not the {len(modules)} of the config"
            )
        yield from self._impossible_runs(dtype)
        largest = max((run.tolerance for run in self.backends_run), default=0.0)
        wrong = {
            path: errors
            for path, errors in self.modules.items()
            if not (_is_within(errors.routed, largest) and _is_within(errors.forced, largest))
        }
        for path, errors in [*wrong.items()][:1]:
            yield f"it passes `{path[:200]}` with the errors {errors.routed} and {errors.forced}"

    @property
    def established(self) -> tuple[str, ...]:
        """Return what the verification established where it was made; anywhere else that is a claim."""
        if self.outcome is not Outcome.PASS:
            return ()
        attached = (ATTACHED,) if any(note.startswith(ATTACHED) for note in self.notes) else ()
        return self.level.establishes + attached

    @property
    def not_established(self) -> tuple[str, ...]:
        """Return the rest of what a verification may establish."""
        return tuple(word for word in (INTACT, FROM_MEMBERS, ATTACHED) if word not in self.established)

    @property
    def _outcome_of_findings(self) -> Outcome:
        return Outcome.FAIL if self.problems else Outcome.INCONCLUSIVE if self.unchecked else Outcome.PASS

    def _impossible_runs(self, dtype: str) -> Iterator[str]:
        if not self.modules:
            yield "it passes without a module"
        ran = {run.compute_dtype for run in self.backends_run if run.backend in FULL_BACKENDS}
        for missing in sorted({"float32", dtype} - ran):
            yield f"it passes without a backend that ran in {missing}"
        for run in self.backends_run:
            name = f"`{run.backend}` in `{run.compute_dtype}`"
            if run.tolerance != TOLERANCES.get(run.compute_dtype):
                yield f"it holds {name} to {run.tolerance:g}, expected {TOLERANCES.get(run.compute_dtype)}"
            if not _is_within(run.max_error, run.tolerance):
                yield f"it passes {name} with the error {run.max_error}, tolerance {run.tolerance:g}"
            expected = 1 if run.backend == SAMPLING_BACKEND else len(self.modules)
            if run.modules != expected:
                yield f"it states that {name} ran {run.modules} modules, expected {expected}"

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


def _is_within(error: float | None, tolerance: float) -> bool:
    return error is not None and 0 <= error <= tolerance


def _is_moment(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).utcoffset() is not None
    except ValueError:
        return False


def _digest_of(body: dict[str, Any]) -> str:
    return str(Digest.of_bytes(canonical_json(body)))
