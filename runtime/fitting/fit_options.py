"""The options of a fit."""

from __future__ import annotations

from dataclasses import dataclass

from ...schemas.errors import UsageError
from ...schemas.gate_choices import DEFAULT_SAMPLES, FittedKind, PromptForm
from ...schemas.statistics import TokenSettings
from .solve import Method

# Second moments that are held at once: 16 inputs of 8192 features. More of them take another pass.
MAX_MEMORY_BYTES = 4 << 30
# Of every fitted gate.
EPS = 1e-6


@dataclass(frozen=True, slots=True)
class FitOptions:
    """The options of a fit.

    Attributes:
        method: the classifier.
        kind: ``normalised`` divides every input by its length, as the gate then does.
        shrinkage: above 0, at most 1; how much of the covariance is replaced by a multiple of the identity.
        max_samples: of each member, spread evenly over its file.
        max_tokens: where a sample is cut off, at the latest where the base's context ends.
        skip_tokens: at the beginning of every sample, that are not counted.
        concatenated: also read samples behind those of other members.
        form: of the prompts; by default half of the lines in the base's chat template, if it has one.
        requests: also fit request gates, and hold a part of every member's samples out of the fit to judge
            them.
        segments: also choose the gates that segments are decided by, on samples held out in the same way.
        abstain: the share of own prompts that request gates may leave to the base; None for no abstention.
        max_memory_bytes: of second moments held at once; more of them take another pass.
    """

    method: Method = "lda"
    kind: FittedKind = "normalised"
    shrinkage: float = 0.1
    max_samples: int = DEFAULT_SAMPLES
    max_tokens: int = 1024
    skip_tokens: int = 0
    concatenated: bool = False
    form: PromptForm | None = None
    requests: bool = False
    segments: bool = False
    abstain: float | None = None
    max_memory_bytes: int = MAX_MEMORY_BYTES

    def __post_init__(self) -> None:
        if not 0 < self.shrinkage <= 1:
            raise UsageError(f"the shrinkage is {self.shrinkage}, expected above 0 and at most 1")
        for name in ("max_samples", "max_tokens", "max_memory_bytes"):
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}, expected at least 1")
        if self.abstain is not None and not 0 < self.abstain < 1:
            raise UsageError(f"`abstain` is {self.abstain}, expected above 0 and below 1")
        if not 0 <= self.skip_tokens < self.max_tokens:
            raise UsageError(f"`skip_tokens` is {self.skip_tokens}, expected 0 to {self.max_tokens - 1}")

    @property
    def holds_out(self) -> bool:
        """Whether a part of every member's samples is held out of the fit."""
        return self.requests or self.segments

    @property
    def settings(self) -> TokenSettings:
        """The settings that statistics must share to be added."""
        return TokenSettings(
            kind=self.kind,
            eps=EPS,
            max_tokens=self.max_tokens,
            skip_tokens=self.skip_tokens,
            concatenated=self.concatenated,
            form=self.form or "given",
            holds_out=self.holds_out,
            max_samples=self.max_samples,
        )
