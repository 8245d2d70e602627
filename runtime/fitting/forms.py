"""The forms of a prompt: as its line gives it, as a user types it, and in the base's chat template.

A routed model that was fitted on one form decides badly in the other: the template's own thirty tokens
outvote a short question (docs/gate-fitting.md, "The form of the prompt"). So a fit reads half of
the lines in each form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from transformers import PreTrainedTokenizerBase

from ...schemas.bundle import TemplateTokens
from ...schemas.errors import DataRefused, UsageError
from ...schemas.gate_choices import PromptForm
from .chat_template import ChatTemplate, without_first_token
from .task_data import Sample

_QUESTION = "Hello"


def form_of_fit(tokenizer: PreTrainedTokenizerBase, form: PromptForm | None) -> PromptForm:
    """Return the form that a fit reads: by default both, where the tokenizer has a template for a question.

    Raises:
        UsageError: a form was asked for that needs a template, and the tokenizer has none.
    """
    if form is None:
        return "both" if writes_questions(tokenizer) else "given"
    return check_form(tokenizer, form)


def check_form(tokenizer: PreTrainedTokenizerBase, form: PromptForm) -> PromptForm:
    """Return the form if prompts can be written in it.

    Raises:
        UsageError: it needs a chat template, and the tokenizer has none that takes a question.
    """
    if form in ("chat", "both") and not writes_questions(tokenizer):
        raise UsageError(
            f"the prompts are to be read as `{form}`, but the base's tokenizer has no chat template that "
            "takes a single question",
            hint="use `--as given`",
        )
    return form


def writes_questions(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template, and that writes out one message of a user."""
    if tokenizer.chat_template is None:
        return False
    with ChatTemplate(tokenizer) as template:
        try:
            text = template.render(_turns(_QUESTION))
        except DataRefused:
            return False
    return _QUESTION in text


def template_tokens(tokenizer: PreTrainedTokenizerBase) -> TemplateTokens | None:
    """Return the tokens that the chat template puts around a question; None without one for questions."""
    if not writes_questions(tokenizer):
        return None
    (sample,) = write_as([Sample(_QUESTION, None, 1, question=_QUESTION)], "chat", tokenizer)
    before, _, behind = sample.prompt.partition(_QUESTION)
    whole = list(tokenizer(sample.prompt, verbose=False)["input_ids"])
    # A token may reach from the template into the question, and differ from question to question.
    start = _common(whole, list(tokenizer(before, verbose=False)["input_ids"]))
    last = tokenizer(behind, add_special_tokens=False, verbose=False)["input_ids"]
    end = _common(whole[len(start) :][::-1], list(last)[::-1])[::-1]
    return TemplateTokens(before=tuple(start), behind=tuple(end))


def _common(first: Sequence[int], second: Sequence[int]) -> list[int]:
    pairs = takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))
    return [token for token, _ in pairs]


def write_as(
    samples: Sequence[Sample], form: PromptForm, tokenizer: PreTrainedTokenizerBase
) -> tuple[Sample, ...]:
    """Return the samples in a form; as ``both``, every second one is in the template.

    A conversation of several messages has no plain form and stays as it is.

    Raises:
        DataRefused: the template refuses a prompt.
    """
    if form == "given":
        return tuple(samples)
    with ChatTemplate(tokenizer) as template:
        return tuple(
            _in_chat(sample, template) if _is_in_chat(place, form) else _plain(sample)
            for place, sample in enumerate(samples)
        )


def write_behind(
    header: str, samples: Sequence[Sample], tokenizer: PreTrainedTokenizerBase
) -> tuple[Sample, ...]:
    """Return the samples with a text before each question, inside the template where they are in it.

    Raises:
        DataRefused: a sample is a conversation of several messages, or the template refuses a prompt.
    """
    with ChatTemplate(tokenizer) as template:
        return tuple(_behind(header, sample, template) for sample in samples)


def _behind(header: str, sample: Sample, template: ChatTemplate) -> Sample:
    if sample.question is None:
        raise DataRefused(
            f"line {sample.line} is a conversation of several messages, which takes no `header`",
            hint="write the worked examples into its first message",
        )
    question = header + sample.question
    plain = replace(sample, prompt=question, question=question, in_chat=False)
    return _in_chat(plain, template) if sample.in_chat else plain


def _is_in_chat(place: int, form: PromptForm) -> bool:
    return form == "chat" or (form == "both" and place % 2 == 1)


def _plain(sample: Sample) -> Sample:
    return sample if sample.question is None else replace(sample, prompt=sample.question, in_chat=False)


def _in_chat(sample: Sample, template: ChatTemplate) -> Sample:
    if sample.in_chat or sample.question is None:
        return sample
    try:
        text = template.render(_turns(sample.question))
    except DataRefused as error:
        raise DataRefused(f"the prompt in line {sample.line} {error}", hint="use `--as given`") from error
    return replace(sample, prompt=without_first_token(text, template.tokenizer), in_chat=True)


def _turns(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]
