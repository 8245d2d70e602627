"""The description inside a file of gate statistics: of which base, of whose data, and in which units.

The file is a safetensors file; this document is stored as JSON in its metadata. Per distinct input it has
``SOURCE.means``, F64 ``[L, h]``, the mean over each member's tokens, and ``SOURCE.second_moment``,
F32 ``[h, h]``, the sum over the members of the mean of x x^T. Both are sums over members, so those of a
new member are added without the old members' data. Inputs of request gates also have
``SOURCE.prompt_means`` and ``SOURCE.prompt_second_moment``, the same of the prompts without their answers;
those of modules that no member touches have these alone.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from .bundle import MAX_MEMBERS, MAX_MODULES, Eps, ModulePath
from .digest import Digest
from .document import Count, Document, PositiveCount, leaving_out
from .gate_choices import FittedKind, PromptForm
from .names import Name

STATISTICS_KEY = "meteora_statistics"
TENSOR_MEANS = "means"
TENSOR_SECOND_MOMENT = "second_moment"
TENSOR_PROMPT_MEANS = "prompt_means"
TENSOR_PROMPT_SECOND_MOMENT = "prompt_second_moment"
# A square matrix of this many columns has 4.3 GB; the widest inputs in use have about 30 000.
MAX_FEATURES = 1 << 15


class StatisticsMember(Document):
    """One member's part: its data, and how much of it was read."""

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
    with ``holds_out`` a part of each member's samples was not read, to judge the gates by.
    """

    kind: FittedKind
    eps: Eps
    max_tokens: PositiveCount
    skip_tokens: Count
    concatenated: bool
    form: PromptForm = "given"
    holds_out: bool = False


class StatisticsDescription(Document):
    """The description of the whole file; members and inputs differ among themselves.

    ``prompts`` are the sources of the inputs that have the moments of prompts alone too; ``observed`` are the
    inputs that have no others.
    """

    meteora_statistics: Literal[1]
    base_sha256: Digest
    settings: TokenSettings
    members: tuple[StatisticsMember, ...] = Field(min_length=1, max_length=MAX_MEMBERS)
    inputs: tuple[StatisticsInput, ...] = Field(min_length=1, max_length=MAX_MODULES)
    prompts: tuple[ModulePath, ...] = Field(default=(), max_length=MAX_MODULES)
    observed: tuple[StatisticsInput, ...] = Field(default=(), max_length=MAX_MODULES)

    # Files without such inputs keep the bytes that earlier readers know.
    _leave_out = leaving_out("observed")

    @model_validator(mode="after")
    def _check_names_differ(self) -> Self:
        members = [member.member for member in self.members]
        modules = [path for each in (*self.inputs, *self.observed) for path in each.modules]
        for what, found in (("member", members), ("module", modules)):
            if len(set(found)) < len(found):
                raise ValueError(f"a {what} is in it twice")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("an input of prompts is in it twice")
        if strangers := sorted(set(self.prompts) - {each.source for each in (*self.inputs, *self.observed)}):
            raise ValueError(f"the prompts' input `{strangers[0]}` is none of the inputs")
        if unread := [each.source for each in self.observed if each.source not in self.prompts]:
            raise ValueError(f"the observed input `{unread[0]}` is none of the prompts' inputs")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names in the order of the rows of the means."""
        return tuple(member.member for member in self.members)


def statistics_tensor(source: str, tensor: str) -> str:
    """Return the name in the file of one of an input's tensors."""
    return f"{source}.{tensor}"
