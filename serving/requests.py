"""Requests of `/v1/chat/completions` and `/v1/completions`, read strictly.

A field that would change the answer and that is not supported is refused by its name: the
answer would otherwise not be what was asked for. Fields that change nothing, such as `user`, are ignored.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from .errors import ApiError, shown
from .limits import Limits
from .names import ModelNames, Target

# Known fields that change nothing here.
_IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
# The values of unsupported fields that ask for nothing, beside null.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "suffix": ("",),
}
_MAX_LOGPROBS = 5
_MAX_STOPS = 16
_MAX_STOP_CHARACTERS = 256

# Beyond every vocabulary and context; a number of thousands of digits would fill an error.
_MAX_NUMBER = 2**31 - 1

Positive = Annotated[StrictInt, Field(ge=1, le=_MAX_NUMBER)]
NotNegative = Annotated[StrictInt, Field(ge=0, le=_MAX_NUMBER)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Stop = Annotated[StrictStr, Field(min_length=1, max_length=_MAX_STOP_CHARACTERS)]
Item = TypeVar("Item")
# Only the first fault is reported, and a body of 1 MiB has room for 300,000, which take seconds to collect.
_ListOf = Annotated[list[Item], Field(fail_fast=True)]
_NonEmpty = Annotated[list[Item], Field(fail_fast=True, min_length=1)]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _with_one_unknown(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        unknown = next((name for name in value if name not in cls.model_fields), None)
        return {name: each for name, each in value.items() if name in cls.model_fields or name == unknown}


class StreamOptions(_Form):
    """The parts of a stream beside the answer."""

    include_usage: StrictBool = False


class SamplingForm(_Form):
    """The fields that both routes have."""

    model: StrictStr
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    seed: Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[_ListOf[Stop], Field(max_length=_MAX_STOPS)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(_Form):
    """A part of a message."""

    type: Literal["text"]
    text: StrictStr


class Message(_Form):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | _ListOf[TextPart]
    name: StrictStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        # Clients send an answer back as a turn, with what it did not have as null.
        return (
            {key: each for key, each in value.items() if each is not None}
            if isinstance(value, dict)
            else value
        )

    @property
    def turn(self) -> dict[str, str]:
        """The turn in the words of chat templates, which do not know `developer`."""
        content = self.content
        text = content if isinstance(content, str) else "\n".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatForm(SamplingForm):
    """The body of `/v1/chat/completions`."""

    messages: _NonEmpty[Message]
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None

    @property
    def answer_tokens(self) -> int | None:
        """The longest answer; None for as long as it may be."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def bound(self) -> str:
        """The field that bounds the answer."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"


class CompletionForm(SamplingForm):
    """The body of `/v1/completions`."""

    prompt: StrictStr | _NonEmpty[StrictStr] | _NonEmpty[NotNegative] | _NonEmpty[_NonEmpty[NotNegative]]
    max_tokens: NotNegative | None = None
    echo: StrictBool | None = None
    logprobs: Annotated[StrictInt, Field(ge=0, le=_MAX_LOGPROBS)] | None = None

    @property
    def answer_tokens(self) -> int:
        """The longest answer: OpenAI's default is 16 tokens."""
        return 16 if self.max_tokens is None else self.max_tokens

    @property
    def bound(self) -> str:
        """The field that bounds the answer."""
        return "max_tokens"

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """Each prompt, as a text or as tokens."""
        found: Any = self.prompt
        is_one = isinstance(found, str) or isinstance(found[0], int)
        return [found] if is_one else found


Form = ChatForm | CompletionForm
_FIELDS = frozenset(
    name
    for form in (ChatForm, CompletionForm, Message, TextPart, StreamOptions)
    for name in form.model_fields
)
# Of the fields that may be of several types, in words.
_EXPECTED = {
    "prompt": "a text, a list of texts, a list of tokens, or a list of lists of tokens, none of them empty",
    "stop": f"a text or a list of at most {_MAX_STOPS}, each of 1 to {_MAX_STOP_CHARACTERS} characters",
    "content": "a text, or a list of parts of type `text`",
}


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked request.

    Attributes:
        target: what was asked to answer.
        form: the fields.
        id: of the answer.
        created: when the request came, in seconds since 1970.
    """

    target: Target
    form: Form
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def is_chat(self) -> bool:
        """Whether the prompt is a conversation."""
        return isinstance(self.form, ChatForm)

    @property
    def is_stream(self) -> bool:
        """Whether the answer is to come in pieces."""
        return bool(self.form.stream)


def read_request(body: Any, form: type[Form], names: ModelNames, limits: Limits) -> GenerationRequest:
    """Return the request in a body of JSON.

    Raises:
        ApiError: it is malformed, names an unknown model, or asks for more than the limits allow.
    """
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_json")
    supported = form.model_fields
    found = _read_form(form, {name: value for name, value in body.items() if name in supported})
    target = names.find(found.model)
    for name, value in body.items():
        if name not in supported and name not in _IGNORED:
            _refuse_unless_neutral(name, value)
    if isinstance(found, CompletionForm):
        _check_scoring(found)
    _check_limits(found, limits)
    return GenerationRequest(target, found)


def _read_form(form: type[Form], values: Mapping[str, Any]) -> Form:
    try:
        return form.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    # A place in a union has the names of its types, too.
    is_unknown = first["type"] == "extra_forbidden"
    parts = [part for part in first["loc"] if isinstance(part, int) or part in _FIELDS or is_unknown]
    union = next((part for part in parts if part in _EXPECTED), None)
    if union is not None and first["type"] != "missing":
        parts = parts[: parts.index(union) + 1]
        reason = f"expected {_EXPECTED[str(union)]}"
    else:
        reason = first["msg"].lower()
    place = ".".join(map(str, parts or first["loc"]))
    raise ApiError(400, f"`{shown(place)}`: {reason}", param=str(first["loc"][0]))


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if value is None or any(_is_same(value, neutral) for neutral in _NEUTRAL.get(name, ())):
        return
    if name not in _NEUTRAL:
        raise ApiError(
            400, f"the field `{shown(name)}` is not known", param=shown(name), code="unknown_field"
        )
    raise ApiError(
        400,
        f"`{name}` is not supported, since it would change the answer; leave it out",
        param=name,
        code="unsupported_field",
    )


def _is_same(value: Any, other: Any) -> bool:
    # 0 is equal to False, and `logprobs` of 0 still asks for some.
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _check_scoring(form: CompletionForm) -> None:
    """Pass if the probability of tokens is asked for in the one way that is supported, or not at all.

    Raises:
        ApiError: it is asked for in another.
    """
    if form.echo and form.logprobs is not None and form.answer_tokens <= 1 and not form.stream:
        if form.temperature == 0:
            return
        raise ApiError(400, "`logprobs` with `echo` needs a `temperature` of 0", param="temperature")
    param = "echo" if form.echo else "logprobs" if form.logprobs is not None else None
    if param is not None:
        raise ApiError(
            400,
            f"`{param}` is supported to read a prompt alone: `echo` and `logprobs` together, with "
            "`max_tokens` of 0 or 1, `temperature` 0 and no `stream`",
            param=param,
            code="unsupported_field",
        )
    if form.answer_tokens == 0:
        raise ApiError(400, "`max_tokens` is 0, expected at least 1", param="max_tokens")


def _check_limits(form: Form, limits: Limits) -> None:
    asked = form.answer_tokens
    if asked is not None and asked > limits.max_new_tokens:
        raise ApiError(
            400,
            f"the longest answer is {asked} tokens, expected at most {limits.max_new_tokens}",
            param=form.bound,
        )
    if isinstance(form, CompletionForm) and len(form.prompts) > limits.max_prompts:
        raise ApiError(
            400,
            f"there are {len(form.prompts)} prompts, expected at most {limits.max_prompts}",
            param="prompt",
        )
