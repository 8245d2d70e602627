"""Task data: what is read, and everything that is refused, with file and line."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from meteora_registry.files.digests import hash_file
from meteora_registry.runtime.fitting import read_member_data, read_task_data, strangers_in, write_behind
from meteora_registry.runtime.fitting import task_data as limits
from meteora_registry.runtime.fitting.task_data import TaskData
from meteora_registry.schemas.errors import DataRefused, SourceUnreadable
from support.task_data import TEMPLATE, tiny_tokenizer, write_lines

SHAPES = '`{"prompt": ..., "response": ...}`, `{"messages": [...]}`, `{"text": ...}`'


def read(folder: Path, *members: str, template: str | None = TEMPLATE, **tokens: str) -> dict[str, TaskData]:
    tokenizer = tiny_tokenizer(chat_template=template, **tokens)
    return read_task_data(folder, members, tokenizer=tokenizer, context_tokens=8)


def problems_of(folder: Path, *members: str, template: str | None = TEMPLATE) -> list[str]:
    with pytest.raises(DataRefused) as caught:
        read(folder, *members, template=template)
    return list(caught.value.problems)


def test_every_shape_is_read_with_its_line_and_the_digest_of_the_file(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "legal.jsonl",
        [
            {"prompt": "w1 w2", "response": "w3", "id": 7},
            {"text": "w4"},
            {"messages": [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]},
            {"messages": [{"role": "user", "content": "w7"}]},
        ],
    )
    path.write_text("\n" + path.read_text())
    data = read(tmp_path, "legal")["legal"]
    assert [(each.prompt, each.response, each.line) for each in data.samples] == [
        ("w1 w2", "w3", 2),
        ("w4", None, 3),
        ("<user> w5 <assistant> ", "w6", 4),
        ("<user> w7 <assistant> ", None, 5),
    ]
    assert data.sha256 == hash_file(path)


def test_further_answers_and_choices_are_read_beside_a_response(tmp_path: Path) -> None:
    more = {"references": ["w4", "w5"], "choices": ["w3", "w6"]}
    question = [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}]
    write_lines(
        tmp_path / "legal.jsonl",
        [{"prompt": "w1", "response": "w3", **more}, {"messages": question, **more}, {"text": "w4", **more}],
    )
    found = [(each.references, each.choices) for each in read(tmp_path, "legal")["legal"].samples]
    assert found == [(("w4", "w5"), ("w3", "w6"))] * 2 + [((), ())]


def test_a_header_is_before_the_question_in_either_form(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(chat_template=TEMPLATE)
    write_lines(
        tmp_path / "legal.jsonl",
        [{"prompt": "w1", "response": "w3"}, {"messages": [{"role": "user", "content": "w5"}]}],
    )
    samples = read(tmp_path, "legal")["legal"].samples
    found = write_behind("w9 ", samples, tokenizer)
    assert [each.prompt for each in found] == ["w9 w1", "<user> w9 w5 <assistant> "]
    conversation = replace(samples[0], question=None)
    with pytest.raises(DataRefused) as caught:
        write_behind("w9 ", [conversation], tokenizer)
    assert str(caught.value) == "line 1 is a conversation of several messages, which takes no `header`"


def test_a_template_does_not_put_the_first_token_there_twice(tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    write_lines(tmp_path / "legal.jsonl", [{"messages": [{"role": "user", "content": "w5"}]}])
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }} " + TEMPLATE, bos_token="<s>")
    first = ("<s>", tokenizer.convert_tokens_to_ids("<s>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[first])
    data = read_task_data(tmp_path, ["legal"], tokenizer=tokenizer, context_tokens=None)
    ids = tokenizer(data["legal"].samples[0].prompt)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "<user>", "w5", "<assistant>"]


def test_data_of_one_member_are_read_from_a_file_of_any_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "anything.txt", [{"text": "w1"}])
    found = read_member_data(path, "legal", tokenizer=tiny_tokenizer(), context_tokens=8)
    assert (found.member, found.sha256, len(found.samples)) == ("legal", hash_file(path), 1)
    write_lines(path, [{"text": "w1"}, {"question": "w1"}])
    with pytest.raises(DataRefused, match="the data of `legal` cannot be used: 1 problem") as caught:
        read_member_data(path, "legal", tokenizer=tiny_tokenizer(), context_tokens=8)
    assert caught.value.problems[0].startswith("`anything.txt:2` is of no known shape")


def test_data_that_are_missing_are_reported_with_their_name(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="the data of `legal` cannot be used") as caught:
        read_member_data(tmp_path / "x.jsonl", "legal", tokenizer=tiny_tokenizer(), context_tokens=8)
    assert "x.jsonl" in caught.value.problems[0]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            b"{",
            "`legal.jsonl:1` is not JSON: Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1)",
        ),
        (b"\xff{}", "`legal.jsonl:1` is not UTF-8 text: byte 0 cannot be decoded"),
        (b"[1]", f"`legal.jsonl:1` is of no known shape: found none of them, expected one of {SHAPES}"),
        (
            b'{"text": "w1", "prompt": "w2"}',
            f"`legal.jsonl:1` is of no known shape: found `prompt`, `text`, expected one of {SHAPES}",
        ),
        (
            b'{"prompt": "w1"}',
            "`legal.jsonl:1` has no text in `response`, expected a string that is not empty",
        ),
        (b'{"text": " "}', "`legal.jsonl:1` has no text in `text`, expected a string that is not empty"),
        (
            b'{"prompt": "w1", "response": "w2", "references": "w3"}',
            "`legal.jsonl:1` has no list of at most 1000 texts in `references`",
        ),
        (
            b'{"prompt": "w1", "response": "w2", "choices": ["w3", " "]}',
            "`legal.jsonl:1` has an entry in `choices` that is not a text, or an empty one",
        ),
        (
            b'{"prompt": "w1", "response": "w2", "choices": ["w3", "w3"]}',
            "`legal.jsonl:1` has a text in `choices` twice",
        ),
        (b'{"text": 5}', "`legal.jsonl:1` has no text in `text`, expected a string that is not empty"),
        (
            b'{"text": "\\ud800"}',
            "`legal.jsonl:1` has half a character: an escape such as `\\ud800` without its other half",
        ),
        (b'{"messages": []}', "`legal.jsonl:1` has no list of 1 to 1000 entries in `messages`"),
        (
            b'{"messages": [1]}',
            "`legal.jsonl:1` has a message that is not an object with `role` and `content`",
        ),
        (
            b'{"messages": [{"role": "user"}]}',
            "`legal.jsonl:1` has no text in `content`, expected a string that is not empty",
        ),
        (
            b'{"messages": [{"role": "assistant", "content": "w1"}]}',
            "`legal.jsonl:1` has an answer and no question before it",
        ),
        (
            b'{"text": "w1 w1 w1 w1 w1 w1 w1 w1 w1"}',
            "`legal.jsonl:1` has a prompt of 9 tokens, the base takes at most 8",
        ),
    ],
    ids=[
        "no-json",
        "no-utf8",
        "no-object",
        "two-shapes",
        "no-response",
        "blank",
        "references",
        "empty-choice",
        "choice-twice",
        "no-string",
        "surrogate",
        "no-messages",
        "no-message",
        "no-content",
        "answer-alone",
        "too-long",
    ],
)
def test_a_wrong_line_is_refused(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "legal.jsonl").write_bytes(line + b"\n")
    assert problems_of(tmp_path, "legal") == [problem]


def test_messages_without_a_template_and_what_the_template_refuses_are_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "legal.jsonl", [{"messages": [{"role": "user", "content": "w5"}]}])
    assert problems_of(tmp_path, "legal", template=None) == [
        "`legal.jsonl:1` has `messages`, and the base's tokenizer has no chat template for them"
    ]
    assert problems_of(tmp_path, "legal", template="{{ raise_exception('roles must alternate') }}") == [
        "`legal.jsonl:1` is refused by the base's chat template: roles must alternate"
    ]
    assert problems_of(tmp_path, "legal", template="{{ 'a' + 1 }}") == [
        '`legal.jsonl:1` is refused by the base\'s chat template: can only concatenate str (not "int") to str'
    ]


def test_a_prompt_that_is_too_long_is_found_wherever_it_stands(tmp_path: Path) -> None:
    lines = [{"text": "w1"}] * 130
    lines[64] = lines[129] = {"text": "w1 " * 9}
    write_lines(tmp_path / "legal.jsonl", lines)
    found = [problem.partition("`")[2].partition("`")[0] for problem in problems_of(tmp_path, "legal")]
    assert found == ["legal.jsonl:65", "legal.jsonl:130"]


def test_every_problem_of_the_folder_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    write_lines(tmp_path / "stranger.jsonl", [{"text": "w1"}])
    write_lines(tmp_path / "target.jsonl", [{"text": "w1"}])
    (tmp_path / "linked.jsonl").symlink_to("target.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "notes.txt").write_text("ignored")
    assert problems_of(tmp_path, "missing", "empty", "linked", "pipe", "target") == [
        "`missing.jsonl` is missing: there is no data for the member `missing`",
        "of no member, and maybe misnamed: `stranger.jsonl`",
        "`empty.jsonl` is empty, expected at least one line",
        "`linked.jsonl` is a symbolic link, which is never followed",
        "`pipe.jsonl` is not a regular file",
    ]


def test_sizes_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_LINE_BYTES", 20)
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr(limits, "MAX_SAMPLES", 3)
    write_lines(tmp_path / "line.jsonl", [{"text": "w1 w2 w3 w4"}])
    write_lines(tmp_path / "lines.jsonl", [{"text": "w1"}] * 4)
    write_lines(tmp_path / "file.jsonl", [{"text": "w1"}] * 8)
    assert problems_of(tmp_path, "line", "lines", "file") == [
        "`line.jsonl:1` has more than 20 bytes",
        "`lines.jsonl` has more than 3 lines",
        "`file.jsonl` has more than 100 bytes",
    ]


def test_files_of_no_member_are_not_read(tmp_path: Path) -> None:
    write_lines(tmp_path / "legal.jsonl", [{"text": "w1"}])
    (tmp_path / "stranger.jsonl").write_text("not JSON")
    assert list(read(tmp_path, "legal")) == ["legal"]
    assert strangers_in(tmp_path, ["legal"]) == ("stranger.jsonl",)


def test_no_more_problems_are_shown_than_a_person_reads(tmp_path: Path) -> None:
    write_lines(tmp_path / "legal.jsonl", [{}] * 60)
    problems = problems_of(tmp_path, "legal")
    assert (len(problems), problems[-1]) == (51, "and 10 more")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="is not a folder"):
        read(tmp_path / "nothing", "legal")
