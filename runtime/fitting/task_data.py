"""Task data: one JSONL file per member, from which a gate learns which member a text is for.

A line is ``{"prompt": ..., "response": ...}``, ``{"messages": [...]}`` (written out by the base's chat
template) or ``{"text": ...}``. An evaluation also reads ``references``, further right answers, and
``choices``, what there is to choose from; other keys are ignored. Everything that is wrong in the whole
folder is found before a model is loaded, and reported with file and line.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ...files.reading import open_folder, read_start
from ...schemas.digest import Digest
from ...schemas.document import load_json
from ...schemas.errors import DataRefused, MeteoraError, SourceUnreadable
from ...schemas.quotation import quote_name
from .chat_template import ChatTemplate, without_first_token

MAX_FILE_BYTES = 64 << 20
MAX_LINE_BYTES = 1 << 20
MAX_SAMPLES = 100_000
SUFFIX = ".jsonl"
_MAX_MESSAGES = 1000
_MAX_ANSWERS = 1000
_SHOWN_PROBLEMS = 50
_SHOWN_NAMES = 5
# Prompts whose tokens are in memory at once.
_COUNTED_TOGETHER = 64
_SHAPES = {
    "prompt": '{"prompt": ..., "response": ...}',
    "messages": '{"messages": [...]}',
    "text": '{"text": ...}',
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line: the prompt and, unless the line is a plain text, the expected response.

    A prompt made from messages is written out by the chat template, the cue to answer included, and
    without the token that the tokenizer itself puts first.

    Attributes:
        prompt: as the base reads it.
        response: the expected answer.
        line: the number of the line.
        question: what a user wrote, without a template; None for a conversation of several messages.
        in_chat: whether the prompt is in the base's chat template.
        references: further right answers.
        choices: the answers that the item offers.
    """

    prompt: str
    response: str | None
    line: int
    question: str | None = None
    in_chat: bool = False
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskData:
    """The data of one member: ``sha256`` is that of the whole file."""

    member: str
    path: Path
    sha256: Digest
    samples: tuple[Sample, ...]


def read_task_data(
    folder: Path,
    members: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    context_tokens: int | None,
    kept: Collection[str] | None = None,
) -> dict[str, TaskData]:
    """Read the data of every member, in the members' order; those that are ``kept`` may have none.

    Args:
        folder: has a file ``MEMBER.jsonl`` for each member; those of other names are not read.
        members: their names.
        tokenizer: of the base; it writes messages out and measures prompts.
        context_tokens: the longest prompt that the base takes, in tokens; None without a bound.
        kept: the members whose part statistics have; None where none are taken from there.

    Raises:
        SourceUnreadable: the folder cannot be read.
        DataRefused: with every problem: a file that is missing, empty, too large, not regular or not UTF-8; a
            line that is too long, not JSON, of another shape or longer than the context.
    """
    if not folder.is_dir():
        raise SourceUnreadable(
            f"`{folder}` is not a folder", hint=f"expected one with a file `MEMBER{SUFFIX}` for every member"
        )
    problems: list[str] = []
    with open_folder(folder) as descriptor, ChatTemplate(tokenizer) as template:
        present = _data_files(descriptor)
        files = {member: f"{member}{SUFFIX}" for member in members}
        problems += _missing(present, files, kept or ())
        data = {
            member: _read_file(folder / name, descriptor, member, template, context_tokens, problems)
            for member, name in files.items()
            if name in present
        }
    if problems:
        raise refusal_of(
            f"the data in `{folder}` cannot be used",
            problems,
            hint=f"every member has a file `MEMBER{SUFFIX}`, each line one of {', '.join(_SHAPES.values())}"
            + ("" if kept is None else ", or its part in the folder of `--statistics`"),
        )
    return data


def read_member_data(
    path: Path, member: str, *, tokenizer: PreTrainedTokenizerBase, context_tokens: int | None
) -> TaskData:
    """Read the data of one member from a file of any name.

    Raises:
        SourceUnreadable: its folder cannot be read.
        DataRefused: with every problem, as ``read_task_data``.
    """
    problems: list[str] = []
    with open_folder(path.parent) as descriptor, ChatTemplate(tokenizer) as template:
        data = _read_file(path, descriptor, member, template, context_tokens, problems)
    if problems:
        raise refusal_of(
            f"the data of `{member}` cannot be used",
            problems,
            hint=f"each line of `{path.name}` is one of {', '.join(_SHAPES.values())}",
        )
    return data


def strangers_in(folder: Path, members: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the data files in a folder that belong to none of the members, sorted.

    Raises:
        SourceUnreadable: the folder cannot be read.
    """
    with open_folder(folder) as descriptor:
        return tuple(name for name in _data_files(descriptor) if name.removesuffix(SUFFIX) not in members)


def _data_files(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))


def refusal_of(message: str, problems: Sequence[str], *, hint: str) -> DataRefused:
    """Return the refusal of data for all its problems; it lists the first ``_SHOWN_PROBLEMS``."""
    count, shown = len(problems), problems[:_SHOWN_PROBLEMS]
    more = [f"and {count - len(shown)} more"] if count > len(shown) else []
    return DataRefused(
        f"{message}: {count} problem{'s' if count > 1 else ''}", problems=[*shown, *more], hint=hint
    )


def _missing(present: Sequence[str], files: dict[str, str], kept: Collection[str]) -> Iterator[str]:
    lacking = [member for member, name in files.items() if name not in present and member not in kept]
    for member in lacking:
        yield f"`{files[member]}` is missing: there is no data for the member `{member}`"
    strangers = [quote_name(name) for name in present if name not in files.values()]
    if lacking and strangers:
        more = f" and {len(strangers) - _SHOWN_NAMES} more" if len(strangers) > _SHOWN_NAMES else ""
        yield f"of no member, and maybe misnamed: {', '.join(strangers[:_SHOWN_NAMES])}{more}"


def _read_file(
    path: Path,
    folder: int,
    member: str,
    template: ChatTemplate,
    context_tokens: int | None,
    problems: list[str],
) -> TaskData:
    samples: tuple[Sample, ...] = ()
    data = b""
    try:
        data = read_start(path.name, MAX_FILE_BYTES, folder=folder)
    except SourceUnreadable as error:
        problems.append(str(error))
    else:
        found = list(_file_problems(path.name, data))
        samples = () if found else tuple(_read_samples(path.name, data, template, problems))
        problems += [*found, *_overlong(path.name, samples, template.tokenizer, context_tokens)]
    return TaskData(member, path, Digest.of_bytes(data), samples)


def _file_problems(name: str, data: bytes) -> Iterator[str]:
    if len(data) > MAX_FILE_BYTES:
        yield f"`{name}` has more than {MAX_FILE_BYTES} bytes"
    elif not data.strip():
        yield f"`{name}` is empty, expected at least one line"


def _read_samples(name: str, data: bytes, template: ChatTemplate, problems: list[str]) -> Iterator[Sample]:
    count = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        count += 1
        if count > MAX_SAMPLES:
            problems.append(f"`{name}` has more than {MAX_SAMPLES} lines")
            return
        try:
            yield _parse_line(line, f"{name}:{number}", number, template)
        except MeteoraError as error:
            problems.append(str(error))


def _parse_line(line: bytes, place: str, number: int, template: ChatTemplate) -> Sample:
    value = load_json(line, what=place, max_bytes=MAX_LINE_BYTES)
    found = [key for key in _SHAPES if isinstance(value, dict) and key in value]
    if len(found) != 1:
        keys = ", ".join(f"`{key}`" for key in found) or "none of them"
        raise DataRefused(f"`{place}` is of no known shape: found {keys}, expected one of {_listed_shapes()}")
    if found == ["messages"]:
        sample = _from_messages(value["messages"], place, number, template)
    else:
        prompt = _text(value, found[0], place)
        response = None if found == ["text"] else _text(value, "response", place)
        sample = Sample(prompt, response, number, question=prompt)
    if sample.response is None:
        return sample
    references, choices = (_texts(value, key, place) for key in ("references", "choices"))
    return replace(sample, references=references, choices=choices)


def _listed_shapes() -> str:
    return ", ".join(f"`{shape}`" for shape in _SHAPES.values())


def _text(value: dict[str, Any], key: str, place: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text.strip():
        raise DataRefused(f"`{place}` has no text in `{key}`, expected a string that is not empty")
    return text


def _texts(value: dict[str, Any], key: str, place: str) -> tuple[str, ...]:
    texts = value.get(key, [])
    if not isinstance(texts, list) or len(texts) > _MAX_ANSWERS:
        raise DataRefused(f"`{place}` has no list of at most {_MAX_ANSWERS} texts in `{key}`")
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataRefused(f"`{place}` has an entry in `{key}` that is not a text, or an empty one")
    if len(set(texts)) < len(texts):
        raise DataRefused(f"`{place}` has a text in `{key}` twice")
    return tuple(texts)


def _from_messages(messages: Any, place: str, number: int, template: ChatTemplate) -> Sample:
    if not isinstance(messages, list) or not 0 < len(messages) <= _MAX_MESSAGES:
        raise DataRefused(f"`{place}` has no list of 1 to {_MAX_MESSAGES} entries in `messages`")
    turns = [_turn(message, place) for message in messages]
    answer = turns.pop()["content"] if turns[-1]["role"] == "assistant" else None
    if not turns:
        raise DataRefused(f"`{place}` has an answer and no question before it")
    try:
        text = template.render(turns)
    except DataRefused as error:
        raise DataRefused(f"`{place}` {error}") from error
    is_question = len(turns) == 1 and turns[0]["role"] == "user"
    return Sample(
        without_first_token(text, template.tokenizer),
        answer,
        number,
        question=turns[0]["content"] if is_question else None,
        in_chat=True,
    )


def _turn(message: Any, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise DataRefused(f"`{place}` has a message that is not an object with `role` and `content`")
    return {key: _text(message, key, place) for key in ("role", "content")}


def _overlong(
    name: str,
    samples: Sequence[Sample],
    tokenizer: PreTrainedTokenizerBase,
    context_tokens: int | None,
) -> Iterator[str]:
    if context_tokens is None or not samples:
        return
    for start in range(0, len(samples), _COUNTED_TOGETHER):
        some = samples[start : start + _COUNTED_TOGETHER]
        lengths = tokenizer([sample.prompt for sample in some], verbose=False)["input_ids"]
        for sample, ids in zip(some, lengths, strict=True):
            if len(ids) > context_tokens:
                yield (
                    f"`{name}:{sample.line}` has a prompt of {len(ids)} tokens, "
                    f"the base takes at most {context_tokens}"
                )
