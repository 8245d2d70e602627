"""Evaluations of a real model: every mode is what the same call of the model is."""

from __future__ import annotations

import json
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tokenizers.normalizers import BertNormalizer

from meteora_registry.fuser.gates import arrow_gate
from meteora_registry.runtime import (
    LoadedBundle,
    force_adapter,
    generate,
    load_bundle,
    route_as,
    routing,
    uniform,
)
from meteora_registry.runtime.evaluation import EvaluationOptions, evaluate, make_tasks, read_task_settings
from meteora_registry.runtime.evaluation.likelihood import likeliest, log_probabilities, read_prompt
from meteora_registry.runtime.evaluation.modes import arrow
from meteora_registry.runtime.fitting import TaskData, context_of, read_task_data
from meteora_registry.schemas.errors import DataRefused, SourceUnreadable, UsageError
from meteora_registry.schemas.evaluation import Evaluation, Metric, Mode
from meteora_registry.schemas.gate_choices import Scope
from meteora_registry.schemas.task_settings import TaskSettings
from support.answering import MEMBERS, make_workplace
from support.bundles import read_factors
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT, some_tokens
from support.task_data import tiny_tokenizer, write_lines

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
NEW_TOKENS = 4
# Of unlike lengths, so that a batch of them is padded.
PROMPTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "w10 w11", "w12 w13 w14 w15")
ALL_MODES: tuple[Mode, ...] = (
    *("base", "member", "routed", "token", "layer", "prompt", "prompt+token"),
    *("segment", "arrow", "uniform"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedBundle:
    workplace = make_workplace(folder)
    return load_bundle(workplace.bundle, workplace.base)


@pytest.fixture(scope="module")
def data(folder: Path, loaded: LoadedBundle) -> dict[str, TaskData]:
    """Prompts whose expected answers are what each member alone answers."""
    (folder / "data").mkdir()
    for member in MEMBERS:
        with force_adapter(loaded.model, member):
            answers = [generate(loaded, [prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in PROMPTS]
        lines = [{"prompt": p, "response": a} for p, a in zip(PROMPTS, answers, strict=True)]
        write_lines(folder / "data" / f"{member}.jsonl", lines)
    return read(folder / "data", loaded)


def read(folder: Path, loaded: LoadedBundle) -> dict[str, TaskData]:
    context = context_of(loaded.model.config)
    return read_task_data(folder, MEMBERS, tokenizer=loaded.tokenizer, context_tokens=context)


def run(loaded: LoadedBundle, data: dict[str, TaskData], *modes: Mode, **options: Any) -> Evaluation:
    defaults = {"max_new_tokens": NEW_TOKENS, "batch_size": 2}
    return evaluate(loaded, data, EvaluationOptions(modes=modes, **(defaults | options)), bundle="tiny")


@pytest.fixture(scope="module")
def evaluation(loaded: LoadedBundle, data: dict[str, TaskData]) -> Evaluation:
    return run(loaded, data, *ALL_MODES)


def block_of(model: PeftModel, mode: str, member: str) -> AbstractContextManager[Any]:
    """Return the context of a mode, built from the public functions."""
    match mode:
        case "base":
            return model.disable_adapter()  # type: ignore[no-any-return]
        case "member":
            return force_adapter(model, member)
        case "uniform":
            return uniform(model)
        case "arrow":
            return arrow(model)
        case "routed":
            return nullcontext()
        case _:
            return route_as(model, scope=mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ALL_MODES)
def test_mode_answers_what_the_model_answers_to_each_prompt_alone(
    loaded: LoadedBundle, evaluation: Evaluation, mode: str
) -> None:
    found = evaluation.mode(mode)
    assert found is not None
    # Every task has the same prompts, and the member alone answers them in another way in each.
    alone: dict[str, list[str]] = {}
    for task in found.tasks:
        who = task.member if mode == "member" else ""
        if who not in alone:
            with block_of(loaded.model, mode, task.member):
                alone[who] = [generate(loaded, [each], max_new_tokens=NEW_TOKENS)[0] for each in PROMPTS]
        assert list(task.answers) == alone[who]
    assert len(found.tasks) == len(MEMBERS)


def test_member_alone_scores_what_it_was_expected_to_and_others_less(evaluation: Evaluation) -> None:
    scores = {mode.mode: mode.score for mode in evaluation.modes}
    assert scores.pop("member") == 1.0
    assert max(scores.values()) < 1.0


def test_routing_is_counted_where_there_is_any(evaluation: Evaluation) -> None:
    routed = {mode.mode for mode in evaluation.modes if mode.routing is not None}
    assert routed == set(ALL_MODES) - {"base", "member", "uniform"}


def test_accuracy_of_a_module_is_that_of_the_record(
    loaded: LoadedBundle, data: dict[str, TaskData], evaluation: Evaluation
) -> None:
    path = loaded.config.target_modules[0]
    shares = []
    for place in range(len(MEMBERS)):
        hits = []
        for prompt in PROMPTS:
            with routing(loaded.model) as record:
                generate(loaded, [prompt], max_new_tokens=NEW_TOKENS)
            hits += (record.modules[path].selection[0, :, 0] == place).tolist()
        shares.append(sum(hits) / len(hits))
    routed = evaluation.mode("routed")
    assert routed is not None
    assert routed.routing is not None
    assert routed.routing.modules[path] == pytest.approx(sum(shares) / len(MEMBERS), abs=1e-6)


def test_positions_count_prompt_and_answer(evaluation: Evaluation) -> None:
    routed = evaluation.mode("routed")
    assert routed is not None
    assert routed.routing is not None
    tokens = {(each.answer, each.position): each.tokens for each in routed.routing.positions}
    longer_than = [sum(len(prompt.split()) > place for prompt in PROMPTS) for place in range(5)]
    expected = {(False, place): 3 * count for place, count in enumerate(longer_than)}
    # The last token of an answer was never read.
    expected |= {(True, place): 3 * len(PROMPTS) for place in range(NEW_TOKENS - 1)}
    assert tokens == expected


def test_cost_counts_the_tokens(evaluation: Evaluation) -> None:
    for mode in evaluation.modes:
        assert mode.cost.prompt_tokens == 3 * sum(len(prompt.split()) for prompt in PROMPTS)
        assert mode.cost.new_tokens == 3 * len(PROMPTS) * NEW_TOKENS
        assert mode.cost.seconds > 0


def test_arrow_takes_the_gates_of_the_factors(folder: Path, loaded: LoadedBundle) -> None:
    path = "model.layers.1.self_attn.q_proj"
    pairs = [read_factors(folder / member)[path] for member in MEMBERS]
    layer = loaded.model.get_submodule(f"base_model.model.{path}")
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    with torch.no_grad(), arrow(loaded.model), routing(loaded.model) as record:
        loaded.model(some_tokens())
    handle.remove()
    scores = (inputs[0] @ arrow_gate(pairs, pairs[0][0].shape[1]).T).abs()
    assert torch.equal(record.modules[path].selection[..., 0], scores.argmax(dim=-1))


def test_arrow_ends_with_its_block(loaded: LoadedBundle) -> None:
    with torch.no_grad():
        before = loaded.model(some_tokens()).logits
        with arrow(loaded.model):
            assert not torch.equal(loaded.model(some_tokens()).logits, before)
        assert torch.equal(loaded.model(some_tokens()).logits, before)


def test_evaluation_is_read_as_it_was_written(evaluation: Evaluation) -> None:
    assert Evaluation.from_bytes(evaluation.to_bytes(), what="evaluation.json") == evaluation


def test_limit_spreads_the_items_over_the_file(loaded: LoadedBundle, data: dict[str, TaskData]) -> None:
    found = run(loaded, data, "base", limit=2)
    assert [(task.lines, task.samples) for task in found.tasks] == [((1, 3), 5)] * 3


def test_metric_is_that_of_the_member(loaded: LoadedBundle, data: dict[str, TaskData]) -> None:
    found = run(loaded, data, "member", metric="accuracy", metrics={"two": "exact"}, limit=2)
    assert [task.metric for task in found.tasks] == ["accuracy", "exact", "accuracy"]
    assert found.modes[0].score == 1.0


CHOICES = ("w20", "w21 w22 w23", "w24 w25")


@pytest.fixture(scope="module")
def with_choices(tmp_path_factory: pytest.TempPathFactory, loaded: LoadedBundle) -> dict[str, TaskData]:
    """Items with choices; the right one is always the first."""
    folder = tmp_path_factory.mktemp("choices")
    lines = [{"prompt": prompt, "response": CHOICES[0], "choices": CHOICES} for prompt in PROMPTS]
    for member in MEMBERS:
        write_lines(folder / f"{member}.jsonl", lines)
    return read(folder, loaded)


def log_probability_of(loaded: LoadedBundle, prompt: str, choice: str) -> float:
    """Return what one pass over prompt and choice together makes of the choice."""
    ids = loaded.encode(f"{prompt} {choice}")["input_ids"]
    with torch.no_grad():
        logs = torch.log_softmax(loaded.model(input_ids=ids).logits[0].double(), dim=-1)
    start = len(prompt.split())
    return sum(float(logs[place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))


@pytest.mark.parametrize("metric", ["likelihood", "likelihood-per-byte"])
def test_likeliest_choice_is_that_of_one_pass_over_prompt_and_choice(
    loaded: LoadedBundle, with_choices: dict[str, TaskData], metric: Metric
) -> None:
    (found,) = run(loaded, with_choices, "member", metric=metric).modes
    for task in found.tasks:
        for prompt, answer in zip(PROMPTS, task.answers, strict=True):
            with force_adapter(loaded.model, task.member):
                logs = [log_probability_of(loaded, prompt, choice) for choice in CHOICES]
            sizes = [len(choice) if metric == "likelihood-per-byte" else 1 for choice in CHOICES]
            shares = [each / size for each, size in zip(logs, sizes, strict=True)]
            assert answer == CHOICES[shares.index(max(shares))]
        assert task.items == tuple(float(answer == CHOICES[0]) for answer in task.answers)
    assert found.cost.new_tokens == 0


def test_choice_that_is_encoded_as_nothing_is_refused_with_its_line(
    loaded: LoadedBundle, tmp_path: Path
) -> None:
    for member, other in zip(MEMBERS, ("w21", "\u200b", "w22"), strict=True):
        line = {"prompt": PROMPTS[0], "response": "w20", "choices": ["w20", other]}
        write_lines(tmp_path / f"{member}.jsonl", [line])
    data = read(tmp_path, loaded)
    # BERT's normaliser drops characters without a width.
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = BertNormalizer()
    make = partial(make_tasks, data, MEMBERS, tokenizer, context_tokens=64)
    with pytest.raises(DataRefused) as caught:
        make(EvaluationOptions(metric="likelihood-per-byte"))
    assert caught.value.problems == (
        '`two.jsonl:1` has the choice `"\\u200b"`, which the base\'s tokenizer encodes as nothing',
    )
    assert len(make(EvaluationOptions(metric="accuracy"))) == 3


@pytest.mark.parametrize("metric", ["likelihood", "likelihood-per-byte"])
def test_probability_that_is_not_a_number_chooses_nothing(metric: Metric) -> None:
    for found in ([math.nan, -1.0], [-1.0, math.nan]):
        with pytest.raises(DataRefused, match="is not a number"):
            likeliest(["w1", "w2"], found, metric)
    assert likeliest(["w1", "w2"], [-math.inf, -1.0], metric) == "w2"


@pytest.mark.parametrize("scope", ["token", "prompt", "segment"])
def test_choice_is_read_by_the_decision_of_its_prompt(loaded: LoadedBundle, scope: Scope) -> None:
    prompt, choice = PROMPTS[2], CHOICES[1]
    with route_as(loaded.model, scope=scope):
        read = read_prompt(loaded, prompt)
        (found,) = log_probabilities(loaded, read, [choice])
        # As `generate` would write it: a token at a time behind the prompt's cache.
        with torch.no_grad():
            step = loaded.model(**loaded.encode(prompt), use_cache=True)
            expected = 0.0
            for token in loaded.encode(choice)["input_ids"][0]:
                expected += float(torch.log_softmax(step.logits[0, -1].double(), dim=-1)[token])
                step = loaded.model(
                    input_ids=token.reshape(1, 1), past_key_values=step.past_key_values, use_cache=True
                )
        again = log_probabilities(loaded, read, [choice])
    assert found == pytest.approx(expected, abs=1e-4)
    assert again == [found]


def test_routing_of_choices_is_counted_on_their_prompts(
    loaded: LoadedBundle, with_choices: dict[str, TaskData]
) -> None:
    (found,) = run(loaded, with_choices, "prompt", metric="likelihood").modes
    assert found.routing is not None
    assert {each.answer for each in found.routing.positions} == {False}
    assert found.routing.left == 0


def test_settings_of_the_tasks_hold_unless_an_option_says_otherwise(
    loaded: LoadedBundle, data: dict[str, TaskData], tmp_path: Path
) -> None:
    (tmp_path / "tasks.toml").write_text(
        'metric = "contains"\nstop = "w9"\n[tasks.two]\nmetric = "normalised"\nmax_new_tokens = 2\n'
        'header = "w30 w31 "\n[tasks.stranger]\nmetric = "bleu"\n'
    )
    settings = read_task_settings(tmp_path)
    found = run(loaded, data, "base", settings=settings, limit=2, max_new_tokens=None)
    assert [task.metric for task in found.tasks] == ["contains", "normalised", "contains"]
    assert [task.stop for task in found.tasks] == ["w9"] * 3
    assert found.tasks[1].max_new_tokens == 2
    assert [task.header_sha256 is None for task in found.tasks] == [True, False, True]
    stated = run(loaded, data, "base", settings=settings, limit=2, metric="exact", stop="w8")
    assert {(task.metric, task.stop) for task in stated.tasks} == {("exact", "w8")}


def test_settings_that_cannot_be_read_are_not_taken_for_none(tmp_path: Path) -> None:
    assert read_task_settings(tmp_path) == TaskSettings()
    settings = tmp_path / "tasks.toml"
    settings.symlink_to(tmp_path / "moved.toml")
    with pytest.raises(SourceUnreadable, match=r"tasks.toml` is a symbolic link"):
        read_task_settings(tmp_path)
    settings.unlink()
    settings.mkdir()
    with pytest.raises(SourceUnreadable, match=r"tasks.toml` is not a regular file"):
        read_task_settings(tmp_path)


def test_header_is_read_before_every_prompt(loaded: LoadedBundle, data: dict[str, TaskData]) -> None:
    settings = TaskSettings(header="w30 w31 ")
    (found,) = run(loaded, data, "base", settings=settings).modes
    with loaded.model.disable_adapter():
        alone = generate(loaded, [f"w30 w31 {prompt}" for prompt in PROMPTS], max_new_tokens=NEW_TOKENS)
    assert list(found.tasks[0].answers) == alone


def test_any_right_answer_counts(loaded: LoadedBundle, tmp_path: Path) -> None:
    with force_adapter(loaded.model, "one"):
        answer = generate(loaded, PROMPTS[0], max_new_tokens=NEW_TOKENS)
    for member in MEMBERS:
        line = {"prompt": PROMPTS[0], "response": "w1", "references": ["w2 w2", answer]}
        write_lines(tmp_path / f"{member}.jsonl", [line])
    (found,) = run(loaded, read(tmp_path, loaded), "member").modes
    assert found.tasks[0].score == 1.0


def test_items_that_a_metric_cannot_judge_are_refused_with_their_lines(
    loaded: LoadedBundle, data: dict[str, TaskData]
) -> None:
    with pytest.raises(DataRefused) as caught:
        run(loaded, data, "base", metric="likelihood", limit=1)
    assert caught.value.problems[0] == (
        "`one.jsonl:1` has no `choices`, which the metric `likelihood` compares: expected a list of two or "
        "more"
    )


def test_longest_answer_is_that_of_the_data_and_some_more(
    loaded: LoadedBundle, data: dict[str, TaskData]
) -> None:
    found = run(loaded, data, "base", limit=1, max_new_tokens=None)
    assert [task.max_new_tokens for task in found.tasks] == [NEW_TOKENS + 8] * 3


def test_answer_ends_before_the_stop_text_and_is_not_counted_beyond(
    loaded: LoadedBundle, evaluation: Evaluation, data: dict[str, TaskData]
) -> None:
    whole = [task.answers for task in evaluation.modes[1].tasks]
    stop = whole[0][0].split()[2]
    expected = [tuple(answer.partition(stop)[0] for answer in answers) for answers in whole]
    assert expected != whole
    found = run(loaded, data, "member", stop=stop).modes[0]
    assert [task.answers for task in found.tasks] == expected
    words = [answer.split() for answers in whole for answer in answers]
    ends = [next((n for n, word in enumerate(own, start=1) if stop in word), NEW_TOKENS) for own in words]
    assert found.cost.new_tokens == sum(ends) < len(words) * NEW_TOKENS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modes": ("oracle",)},
            "the mode is `oracle`, expected one of `base`, `member`, `routed`, `token`, ",
        ),
        ({"modes": ("base", "base")}, "a mode is named twice: `base`, `base`"),
        ({"modes": ()}, "there are no modes to evaluate"),
        ({"metric": "best"}, "the metric is `best`, expected one of `exact`, `normalised`, `contains`"),
        (
            {"metrics": {"four": "exact"}},
            "a metric is stated for `four`, the bundle has the members `one`, `two`, `three`",
        ),
        ({"stop": ""}, "the text that ends an answer is empty"),
        ({"limit": 0}, "limit is 0, expected at least 1"),
    ],
    ids=["mode", "twice", "no-modes", "metric", "metric-of-a-stranger", "stop", "limit"],
)
def test_option_that_makes_no_sense_is_refused(
    loaded: LoadedBundle, data: dict[str, TaskData], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        evaluate(loaded, data, EvaluationOptions(**options), bundle="tiny")
    assert str(caught.value).startswith(message)


def test_items_without_an_answer_or_room_for_one_are_refused_together(
    loaded: LoadedBundle, data: dict[str, TaskData], tmp_path: Path
) -> None:
    write_lines(tmp_path / "one.jsonl", [{"text": "w1 w2"}])
    write_lines(tmp_path / "two.jsonl", [{"prompt": "w1", "response": "w2"}])
    write_lines(tmp_path / "three.jsonl", [{"prompt": " ".join(["w1"] * 61), "response": "w2"}])
    with pytest.raises(DataRefused) as caught:
        run(loaded, read(tmp_path, loaded), "base")
    assert str(caught.value) == "the data cannot be evaluated: 2 problems"
    assert caught.value.problems == (
        "`one.jsonl:1` has no answer to compare with",
        "`three.jsonl:1` has a prompt of 61 tokens and its answer up to 4, the base takes 64 together",
    )


def test_progress_ends_with_all_items_of_every_mode(loaded: LoadedBundle, data: dict[str, TaskData]) -> None:
    told: list[tuple[str, int, int]] = []
    options = EvaluationOptions(modes=("base", "member"), max_new_tokens=1, batch_size=3)
    evaluate(loaded, data, options, bundle="tiny", progress=lambda *each: told.append(each))
    assert told[-1] == ("member", 15, 15)
    assert next(each for each in told if each[0] == "base") == ("base", 3, 15)


def test_document_is_plain_json(evaluation: Evaluation) -> None:
    value = json.loads(evaluation.to_bytes())
    assert (value["meteora_evaluation"], value["bundle"], value["gate_fitted"]) == (1, "tiny", False)
    assert set(value["versions"]) == {"meteora-registry", "peft", "torch", "transformers"}
