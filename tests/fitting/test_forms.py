"""The forms of a prompt: as given, plain, in the base's chat template, and a fit on both."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from meteora_registry.runtime.evaluation import EvaluationOptions, make_tasks
from meteora_registry.runtime.fitting import FitOptions, FittedGates, fit_gates, read_task_data
from meteora_registry.runtime.fitting.chat_template import ChatTemplate
from meteora_registry.runtime.fitting.forms import check_form, write_as
from meteora_registry.runtime.fitting.task_data import TaskData
from meteora_registry.schemas.bundle import BundleConfig
from meteora_registry.schemas.errors import DataRefused, UsageError
from meteora_registry.schemas.gate_choices import PromptForm
from support.bundles import make_config
from support.models import tiny_llama
from support.task_data import TEMPLATE, tiny_tokenizer, write_lines, write_task_data

NAMES = ("legal", "medical", "sports")
# Takes a question only behind a message of the system.
STRICT = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE


def question(text: str, answer: str | None = None) -> dict[str, object]:
    turns = [{"role": "user", "content": text}]
    return {"messages": turns if answer is None else [*turns, {"role": "assistant", "content": answer}]}


LINES = [
    {"prompt": "w1", "response": "w2"},
    {"prompt": "w3", "response": "w4"},
    question("w5", "w6"),
    question("w7"),
    {"messages": [{"role": "system", "content": "w8"}, {"role": "user", "content": "w9"}]},
    {"text": "w10"},
]
CHAT = ["<user> w1 <assistant> ", "<user> w3 <assistant> ", "<user> w5 <assistant> "]
TWO_TURNS = "<system> w8 <user> w9 <assistant> "


@cache
def tokenizer_with(template: str | None) -> PreTrainedTokenizerBase:
    return tiny_tokenizer(chat_template=template)


@pytest.fixture(scope="module", autouse=True)
def _one_process_renders_for_all() -> Iterator[None]:
    with ChatTemplate(tokenizer_with(TEMPLATE)):
        yield


def read(folder: Path, *names: str) -> dict[str, TaskData]:
    return read_task_data(folder, names, tokenizer=tokenizer_with(TEMPLATE), context_tokens=64)


@pytest.mark.parametrize(
    ("form", "prompts"),
    [
        ("given", ["w1", "w3", CHAT[2], "<user> w7 <assistant> ", TWO_TURNS, "w10"]),
        ("plain", ["w1", "w3", "w5", "w7", TWO_TURNS, "w10"]),
        ("chat", [*CHAT, "<user> w7 <assistant> ", TWO_TURNS, "<user> w10 <assistant> "]),
        ("both", ["w1", CHAT[1], "w5", "<user> w7 <assistant> ", TWO_TURNS, "<user> w10 <assistant> "]),
    ],
)
def test_samples_are_written_in_a_form(tmp_path: Path, form: PromptForm, prompts: list[str]) -> None:
    write_lines(tmp_path / "legal.jsonl", LINES)
    samples = read(tmp_path, "legal")["legal"].samples
    found = write_as(samples, form, tokenizer_with(TEMPLATE))
    assert [sample.prompt for sample in found] == prompts
    assert [(sample.response, sample.line) for sample in found] == [
        (sample.response, sample.line) for sample in samples
    ]


def test_prompt_that_the_template_refuses_is_named_by_its_line(tmp_path: Path) -> None:
    write_lines(tmp_path / "legal.jsonl", LINES[:2])
    samples = read(tmp_path, "legal")["legal"].samples
    with pytest.raises(DataRefused) as caught:
        write_as(samples, "chat", tokenizer_with(STRICT))
    assert str(caught.value).startswith("the prompt in line 1 is refused by the base's chat template:")


@pytest.mark.parametrize("template", [None, STRICT], ids=["no-template", "no-question-alone"])
@pytest.mark.parametrize("form", ["chat", "both"])
def test_form_without_a_template_for_it_is_refused(form: PromptForm, template: str | None) -> None:
    with pytest.raises(UsageError) as caught:
        check_form(tokenizer_with(template), form)
    assert f"read as `{form}`, but the base's tokenizer has no chat template" in str(caught.value)
    assert caught.value.hint == "use `--as given`"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> BundleConfig:
    return make_config(tmp_path_factory.mktemp("bundle"), NAMES, modules=["q_proj"])


def fit(
    config: BundleConfig,
    data: dict[str, TaskData],
    form: PromptForm | None = None,
    *,
    template: str | None = TEMPLATE,
    statistics: Path | None = None,
) -> FittedGates:
    tokenizer, options = tokenizer_with(template), FitOptions(form=form)
    return fit_gates(tiny_llama(), tokenizer, config, data, options=options, statistics=statistics)


def test_a_fit_reads_half_of_the_lines_in_the_chat_template(config: BundleConfig, tmp_path: Path) -> None:
    data = read(write_task_data(tmp_path / "plain", NAMES), *NAMES)
    for name, own in data.items():
        mixed = [
            {"prompt": sample.prompt, "response": sample.response}
            if place % 2 == 0
            else question(sample.prompt, sample.response)
            for place, sample in enumerate(own.samples)
        ]
        (tmp_path / "mixed").mkdir(exist_ok=True)
        write_lines(tmp_path / "mixed" / f"{name}.jsonl", mixed)
    by_default, by_hand = fit(config, data), fit(config, read(tmp_path / "mixed", *NAMES), "given")
    for path, (rows, bias) in by_default.values.items():
        assert torch.equal(rows, by_hand.values[path][0])
        assert torch.equal(bias, by_hand.values[path][1])
    assert by_default.fitting.method.endswith(", on prompts both plain and in the chat template")


@pytest.mark.parametrize("template", [None, STRICT], ids=["no-template", "no-question-alone"])
def test_without_a_template_for_questions_a_fit_reads_the_lines_as_they_are(
    config: BundleConfig, tmp_path: Path, template: str | None
) -> None:
    data = read(write_task_data(tmp_path, NAMES), *NAMES)
    assert fit(config, data, template=template).fitting.method == "lda, shrinkage 0.1, on the plain base"


def test_statistics_keep_their_form_and_refuse_another(config: BundleConfig, tmp_path: Path) -> None:
    data = read(write_task_data(tmp_path / "data", NAMES), *NAMES)
    file = tmp_path / "statistics"
    fit(config, data, "given", statistics=file)
    assert "chat template" not in fit(config, data, statistics=file).fitting.method
    with pytest.raises(DataRefused, match="were made with form `given`, this fit asks for `both`"):
        fit(config, data, "both", statistics=file)


def test_an_evaluation_of_both_forms_asks_every_line_twice(tmp_path: Path) -> None:
    write_lines(tmp_path / "legal.jsonl", LINES[:2])
    data = read(tmp_path, "legal")
    options = EvaluationOptions(form="both")
    (task,) = make_tasks(data, ["legal"], tokenizer_with(TEMPLATE), options, context_tokens=None)
    assert task.prompts == ("w1", "w3", *CHAT[:2])
    assert (task.description.lines, task.description.forms) == ((1, 2, 1, 2), ("plain", "chat"))
    assert [each.answers for each in task.expected] == [("w2",), ("w4",)] * 2
