"""The description inside a file of gate statistics: of which base, of whose data, and in which units.

The file has one member's part. It is a safetensors file; this document is stored as JSON in its metadata. Per
distinct input it has ``SOURCE.mean``, F64 ``[h]``, the mean over the member's tokens, and
``SOURCE.second_moment``, F32 ``[h (h + 1) / 2]``, the mean of x x^T, its upper triangle row by row. A fit
needs sums over members, so members are added to it and taken out of it without the others' data.
Inputs of request gates also have ``SOURCE.prompt_mean`` and ``SOURCE.prompt_second_moment``, the same of the
prompts without their answers; those of modules that no member touches have these alone.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .bundle import MAX_MODULES, Eps, ModulePath
from .digest import Digest
from .document import Count, Document, PositiveCount, leaving_out
from .gate_choices import DEFAULT_SAMPLES, FittedKind, PromptForm
from .names import Name

STATISTICS_KEY = "meteora_statistics"
TENSOR_MEAN = "mean"
TENSOR_SECOND_MOMENT = "second_moment"
TENSOR_PROMPT_MEAN = "prompt_mean"
TENSOR_PROMPT_SECOND_MOMENT = "prompt_second_moment"
# A square matrix of this many columns has 4.3 GB; the widest inputs in use have about 30 000.
MAX_FEATURES = 1 << 15
# Samples of a member that are held out, and the tokens of one: more than any fit keeps.
_MAX_PROMPTS = 1 << 12
_MAX_PROMPT_TOKENS = 1 << 16


class StatisticsMember(Document):
    """A member's data, and how much of it was read."""

    member: Name
    sha256: Digest
    samples: PositiveCount
    tokens: PositiveCount


class StatisticsInput(Document):
    """One distinct input: the modules that read it, of which ``source`` is called first."""

    source: ModulePath
    modules: tuple[ModulePath, ...] = Field(min_length=1)
    features: int = Field(ge=1, le=MAX_FEATURES)

    @model_validator(mode="after")
    def _check_source_is_a_module(self) -> Self:
        if self.source not in self.modules:
            raise ValueError(f"the source `{self.source}` is none of the input's modules")
        return self


class TokenSettings(Document):
    """The tokens that were counted, and their units.

    ``normalised`` inputs were divided by their length plus ``eps``. ``skip_tokens`` at the beginning of
    every sample were not counted; tokens beyond ``max_tokens`` were cut off. ``concatenated`` means that
    samples were also read behind those of other members. ``form`` is that of the prompts;
    with ``holds_out`` a part of each member's samples was not read, to judge the gates by. At most
    ``max_samples`` of a member were read.
    """

    kind: FittedKind
    eps: Eps
    max_tokens: PositiveCount
    skip_tokens: Count
    concatenated: bool
    form: PromptForm = "given"
    holds_out: bool = False
    max_samples: PositiveCount = DEFAULT_SAMPLES

    # Statistics of the default keep the bytes that they had before there was a choice.
    _leave_out = leaving_out("max_samples")


class HeldOutPrompt(Document):
    """A prompt that no fit reads, as tokens; those from ``start`` to ``end`` are not the chat template's."""

    ids: tuple[Count, ...] = Field(max_length=_MAX_PROMPT_TOKENS)
    start: Count
    end: Count

    @model_validator(mode="after")
    def _check_span(self) -> Self:
        if not self.start <= self.end <= len(self.ids):
            raise ValueError(f"tokens {self.start} to {self.end} of a prompt of {len(self.ids)} cannot count")
        return self


class HeldOutPrompts(Document):
    """The prompts of a member that no fit reads, in one form."""

    form: PromptForm
    prompts: tuple[HeldOutPrompt, ...] = Field(max_length=_MAX_PROMPTS)


class StatisticsDescription(Document):
    """The description of the whole file; inputs differ among themselves.

    ``prompts`` are the sources of the inputs that have the moments of prompts alone too; ``observed`` are the
    inputs that have no others. ``held_out`` has the prompts by which request gates are judged: no sum can
    replace them, since a decision is made for each prompt.
    """

    meteora_statistics: Literal[2]
    base_sha256: Digest
    settings: TokenSettings
    part: StatisticsMember
    inputs: tuple[StatisticsInput, ...] = Field(min_length=1, max_length=MAX_MODULES)
    prompts: tuple[ModulePath, ...] = Field(default=(), max_length=MAX_MODULES)
    observed: tuple[StatisticsInput, ...] = Field(default=(), max_length=MAX_MODULES)
    held_out: tuple[HeldOutPrompts, ...] = Field(default=(), max_length=2)

    @model_validator(mode="after")
    def _check_names_differ(self) -> Self:
        modules = [path for each in (*self.inputs, *self.observed) for path in each.modules]
        if len(set(modules)) < len(modules):
            raise ValueError("a module is in it twice")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("an input of prompts is in it twice")
        if strangers := sorted(set(self.prompts) - {each.source for each in (*self.inputs, *self.observed)}):
            raise ValueError(f"the prompts' input `{strangers[0]}` is none of the inputs")
        if unread := [each.source for each in self.observed if each.source not in self.prompts]:
            raise ValueError(f"the observed input `{unread[0]}` is none of the prompts' inputs")
        return self


def statistics_tensor(source: str, tensor: str) -> str:
    """Return the name in the file of one of an input's tensors."""
    return f"{source}.{tensor}"
