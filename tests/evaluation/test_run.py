"""Runs that last: kept as they go, continued after a kill, divided among processes; others are refused."""

from __future__ import annotations

import json
import pickle
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import meteora_registry as meteora
from meteora_registry.registry.cli import main
from meteora_registry.registry.workflows.inference import loader_for_processes
from meteora_registry.runtime import LoadedBundle, load_bundle
from meteora_registry.runtime.evaluation import (
    EvaluationOptions,
    ModelAnswerer,
    Task,
    evaluate_tasks,
    make_tasks,
    opened_run,
    run_file,
)
from meteora_registry.runtime.evaluation.answering import Answered, Batch
from meteora_registry.runtime.fitting import open_base, read_task_data
from meteora_registry.schemas.digest import Digest
from meteora_registry.schemas.errors import InvalidDocument, SourceUnreadable, UsageError
from meteora_registry.schemas.evaluation import Evaluation
from support import warm
from support.answering import MEMBERS, Workplace, make_workplace
from support.models import LOADS_UNFITTED, LOADS_WITH_PEFT
from support.patience import PATIENCE_SECONDS
from support.program import Run
from support.task_data import write_task_data

pytestmark = [LOADS_UNFITTED, LOADS_WITH_PEFT]
OPTIONS = EvaluationOptions(modes=("member", "routed", "prompt"), max_new_tokens=2, batch_size=2)
BATCHES = 3 * 3 * 2
MANIFEST = Digest("1" * 64)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("run")
    write_task_data(folder / "data", MEMBERS, samples=4)
    return make_workplace(folder)


@pytest.fixture(scope="module")
def loaded(workplace: Workplace) -> LoadedBundle:
    return load_bundle(workplace.bundle, workplace.base)


def tasks_of(
    workplace: Workplace, loaded: LoadedBundle, options: EvaluationOptions = OPTIONS
) -> tuple[Task, ...]:
    folder = workplace.bundle.parent / "data"
    data = read_task_data(folder, MEMBERS, tokenizer=loaded.tokenizer, context_tokens=64)
    return make_tasks(data, MEMBERS, loaded.tokenizer, options, context_tokens=64)


class EndingAnswerer(ModelAnswerer):
    """A model whose process ends after some batches; with endless ones it counts what it was asked."""

    def __init__(self, loaded: LoadedBundle, tasks: Sequence[Task], batches: int = 1000) -> None:
        super().__init__(loaded, tasks)
        self.left, self.asked = batches, 0

    def answer(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, Answered]]:
        for each in super().answer(batches):
            if self.asked == self.left:
                raise KeyboardInterrupt
            self.asked += 1
            yield each


def ask(
    path: Path | None, answerer: ModelAnswerer, tasks: Sequence[Task], options: EvaluationOptions = OPTIONS
) -> Evaluation:
    score = partial(
        evaluate_tasks,
        answerer,
        answerer.loaded.config,
        tasks,
        options,
        bundle="tiny",
        manifest_sha256=MANIFEST,
    )
    if path is None:
        return score()
    with opened_run(path) as run:
        return score(run=run)


def without_cost(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation but for what depends on the machine's speed and the state of its memory."""
    value = evaluation.model_dump(mode="json")
    for mode in value["modes"]:
        cost = mode["cost"]
        del cost["seconds"], cost["new_tokens_per_second"], cost["peak_memory_bytes"]
    return value


@pytest.fixture(scope="module")
def whole(workplace: Workplace, loaded: LoadedBundle) -> Evaluation:
    tasks = tasks_of(workplace, loaded)
    return ask(None, ModelAnswerer(loaded, tasks), tasks)


@pytest.fixture(scope="module")
def kept(workplace: Workplace, loaded: LoadedBundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run whose process ended after four batches, in the middle of a line."""
    path = tmp_path_factory.mktemp("kept") / "run.jsonl"
    tasks = tasks_of(workplace, loaded)
    with pytest.raises(KeyboardInterrupt):
        ask(path, EndingAnswerer(loaded, tasks, batches=4), tasks)
    return path.read_bytes() + b'{"batch":{"mode":"mem'


def test_run_goes_on_where_it_ended(
    workplace: Workplace, loaded: LoadedBundle, kept: bytes, whole: Evaluation, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(kept)
    tasks = tasks_of(workplace, loaded)
    answerer = EndingAnswerer(loaded, tasks)
    assert without_cost(ask(path, answerer, tasks)) == without_cost(whole)
    assert answerer.asked == BATCHES - 4
    again = EndingAnswerer(loaded, tasks)
    assert without_cost(ask(path, again, tasks)) == without_cost(whole)
    assert again.asked == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["meteora_run", *["task"] * 3, *["batch"] * BATCHES]


def test_run_takes_more_tasks_and_modes(
    workplace: Workplace, loaded: LoadedBundle, whole: Evaluation, tmp_path: Path
) -> None:
    few = EvaluationOptions(modes=("routed",), tasks=("two",), max_new_tokens=2, batch_size=2)
    tasks = tasks_of(workplace, loaded, few)
    found = ask(tmp_path / "run.jsonl", ModelAnswerer(loaded, tasks), tasks, few)
    assert [task.member for task in found.tasks] == ["two"]
    every = tasks_of(workplace, loaded)
    answerer = EndingAnswerer(loaded, every)
    assert without_cost(ask(tmp_path / "run.jsonl", answerer, every)) == without_cost(whole)
    assert answerer.asked == BATCHES - 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "has answers of another run: the batch size is `2` there and `3` here"),
        ({"metric": "contains"}, "the task `one` has the metric `exact` in the first and `contains` in the"),
        ({"limit": 2}, "the task `one` has 4 items in the first and 2 in the second"),
        ({"max_new_tokens": 3}, "has answers of at most this many tokens: `2` in the first and `3` in"),
    ],
    ids=["batch-size", "metric", "items", "length"],
)
def test_answers_to_other_questions_are_refused(
    workplace: Workplace,
    loaded: LoadedBundle,
    kept: bytes,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(kept)
    options = EvaluationOptions(**({"modes": ("member",), "max_new_tokens": 2, "batch_size": 2} | changes))
    tasks = tasks_of(workplace, loaded, options)
    with pytest.raises(UsageError) as caught:
        ask(path, ModelAnswerer(loaded, tasks), tasks, options)
    assert message in str(caught.value)
    assert caught.value.hint is not None


@pytest.mark.parametrize("field", ["manifest_sha256", "base_sha256", "device", "dtype", "versions"])
def test_answers_of_another_bundle_base_or_machine_are_refused(
    workplace: Workplace, loaded: LoadedBundle, kept: bytes, tmp_path: Path, field: str
) -> None:
    first, _, rest = kept.partition(b"\n")
    settings = json.loads(first)
    other = {"versions": {"torch": "1.0"}, "device": "H200", "dtype": "bfloat16"}.get(field, "2" * 64)
    path = tmp_path / "run.jsonl"
    changed = json.dumps(settings | {field: other}, separators=(",", ":")).encode()
    path.write_bytes(changed + b"\n" + rest)
    tasks = tasks_of(workplace, loaded)
    with pytest.raises(UsageError, match="has answers of another run"):
        ask(path, ModelAnswerer(loaded, tasks), tasks)
    assert path.read_bytes().startswith(changed + b"\n")


ROUTED = EvaluationOptions(modes=("prompt",), tasks=("two",), max_new_tokens=2, batch_size=2)


@pytest.fixture(scope="module")
def routed(workplace: Workplace, loaded: LoadedBundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a run of two batches: the settings, a task, and the answers with their routing."""
    path = tmp_path_factory.mktemp("routed") / "run.jsonl"
    tasks = tasks_of(workplace, loaded, ROUTED)
    ask(path, ModelAnswerer(loaded, tasks), tasks, ROUTED)
    return path.read_bytes()


def with_last_batch(run: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the file of a run whose last batch of answers was changed."""
    *lines, last = run.splitlines()
    line = json.loads(last)
    change(line["batch"])
    return b"\n".join([*lines, json.dumps(line).encode(), b""])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: batch.update(items=batch["items"][::-1]), "other items"),
        (lambda batch: batch.update(prompt_tokens=1), r"prompts of 1 tokens, expected \d+"),
        (lambda batch: batch.update(new_tokens=5), "answers of 5 tokens, expected at most 4"),
        (lambda batch: batch.update(routing=None), "no routing, which the mode has"),
        (lambda batch: batch["routing"].update(tokens=10**6), r"routing of 1000000 tokens, expected \d+ to"),
        (lambda batch: batch["routing"]["weights"].pop(), "weights of 2 members, expected 3"),
        (
            lambda batch: batch["routing"].update(confidence=[0.5] * 3),
            "decisions about 3 prompts, expected at most 2",
        ),
        (lambda batch: batch["routing"]["hits"].popitem(), "other modules than the answers before it"),
    ],
    ids=["items", "prompts", "answers", "no-routing", "tokens", "weights", "decisions", "modules"],
)
def test_kept_answers_that_do_not_fit_the_plan_are_refused(
    workplace: Workplace,
    loaded: LoadedBundle,
    routed: bytes,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(with_last_batch(routed, change))
    tasks = tasks_of(workplace, loaded, ROUTED)
    expected = f"that do not fit what is asked: batch 1 of `two` in the mode `prompt` has {message}"
    with pytest.raises(UsageError, match=expected):
        ask(path, ModelAnswerer(loaded, tasks), tasks, ROUTED)


def test_routing_of_a_mode_that_does_not_route_is_refused(
    workplace: Workplace, loaded: LoadedBundle, routed: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(with_last_batch(routed, lambda batch: batch.update(mode="member")))
    options = replace(ROUTED, modes=("member",))
    tasks = tasks_of(workplace, loaded, options)
    with pytest.raises(UsageError, match="in the mode `member` has routing, which the mode has not"):
        ask(path, ModelAnswerer(loaded, tasks), tasks, options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "greater than or equal to 1"),
        ({"hits": {}}, "at least 1 item"),
        ({"hits": {"q": 10**6}}, "have hits in a module of 1000000, expected at most"),
        ({"weights": [1e300] * 3}, "have weight of 3e[+]300, expected at most"),
        ({"positions": [{"answer": False, "position": 128, "tokens": 1, "hits": 0}]}, "less than 128"),
        (
            {"positions": [{"answer": False, "position": 0, "tokens": 10**6, "hits": 0}]},
            "have tokens by position of 1000000, expected at most",
        ),
        (
            {"positions": [{"answer": False, "position": 0, "tokens": 1, "hits": 10**6}]},
            "have hits by position of 1000000, expected at most",
        ),
        ({"left": 3}, "have prompts left to the base of 3, expected at most 2"),
    ],
    ids=["tokens", "no-hits", "hits", "weights", "position", "position-tokens", "position-hits", "left"],
)
def test_routing_that_cannot_be_is_refused_with_its_line(
    routed: bytes, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(with_last_batch(routed, lambda batch: batch["routing"].update(change)))
    with (
        pytest.raises(InvalidDocument, match=rf"`run.jsonl:4` breaks its schema.*{message}"),
        opened_run(path),
    ):
        pass


def test_time_without_bounds_is_refused_and_of_no_length_has_no_speed(
    workplace: Workplace, loaded: LoadedBundle, routed: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(with_last_batch(routed, lambda batch: batch.update(seconds=1e308)))
    with pytest.raises(InvalidDocument, match=r"`run.jsonl:4` breaks its schema.*seconds"), opened_run(path):
        pass
    changed = routed.replace(b'"seconds":', b'"seconds":5e-324,"was":')
    path.write_bytes(re.sub(rb'"was":[0-9.e-]+,', b"", changed))
    tasks = tasks_of(workplace, loaded, ROUTED)
    (mode,) = ask(path, ModelAnswerer(loaded, tasks), tasks, ROUTED).modes
    assert (mode.cost.seconds, mode.cost.new_tokens_per_second) == (0, 0)


def test_answers_of_a_task_without_its_line_are_refused(routed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    settings, task, *answers = routed.splitlines(keepends=True)
    path.write_bytes(b"".join([settings, *answers]))
    expected = "`run.jsonl:2` has answers of the task `two`, which no line before it asks"
    with pytest.raises(InvalidDocument, match=expected), opened_run(path):
        pass
    path.write_bytes(b"".join([settings, task, task.replace(b'"exact"', b'"contains"')]))
    expected = "`run.jsonl:3` asks the task `two` otherwise than a line before it"
    with pytest.raises(InvalidDocument, match=expected), opened_run(path):
        pass


def test_line_that_could_not_be_read_again_is_not_written(
    workplace: Workplace, loaded: LoadedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_file, "MAX_RUN_LINE_BYTES", 600)
    path = tmp_path / "run.jsonl"
    tasks = tasks_of(workplace, loaded, ROUTED)
    with pytest.raises(SourceUnreadable, match="expected at most 600"):
        ask(path, ModelAnswerer(loaded, tasks), tasks, ROUTED)
    assert [next(iter(json.loads(line))) for line in path.read_text().splitlines()] == ["meteora_run", "task"]


def test_malformed_line_is_refused_with_its_number(kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(kept.replace(b'{"task":', b'{"tusk":', 1))
    with pytest.raises(InvalidDocument, match=r"`run.jsonl:2` breaks its schema"), opened_run(path):
        pass


def arguments_for(workplace: Workplace, run: Path, *more: object) -> list[object]:
    data = workplace.bundle.parent / "data"
    options = ["--modes", "member,routed,prompt", "--max-new-tokens", 2, "--batch-size", 2]
    return [
        "eval",
        "run",
        workplace.bundle,
        "--base",
        workplace.base,
        "--data",
        data,
        *options,
        "--run",
        run,
        *more,
    ]


def test_two_processes_answer_what_one_does(workplace: Workplace, whole: Evaluation, tmp_path: Path) -> None:
    with meteora.Registry(tmp_path / "home") as registry, warm.runtime_processes():
        found = registry.evaluate(
            workplace.bundle,
            base=workplace.base,
            data=workplace.bundle.parent / "data",
            options=OPTIONS,
            run=tmp_path / "run.jsonl",
            processes=2,
        )
    assert without_cost(found)["modes"] == without_cost(whole)["modes"]
    assert (tmp_path / "run.jsonl").read_bytes().count(b'{"batch":') == BATCHES


def test_processes_load_what_was_named_from_where_it_was_named(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace.bundle.parent)
    load = loader_for_processes(Path(workplace.bundle.name), open_base(workplace.base.name))
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(load))().config.names == MEMBERS


def test_killed_command_is_given_again(
    run: Run, workplace: Workplace, whole: Evaluation, tmp_path: Path
) -> None:
    kept, out = tmp_path / "run.jsonl", tmp_path / "out.json"
    arguments = arguments_for(workplace, kept)
    process = warm.warm_context().Process(target=main.run, args=([*map(str, arguments)],))
    with warm.runtime_processes():
        process.start()
    began = time.monotonic()
    # The settings, three tasks, and some batches.
    while not kept.exists() or kept.read_bytes().count(b"\n") < 6:
        assert process.is_alive()
        assert time.monotonic() - began < PATIENCE_SECONDS
        time.sleep(0.01)
    process.kill()
    process.join()
    result = run(*arguments, "--out", out)
    assert result.returncode == 0, result.stderr
    found = without_cost(Evaluation.from_bytes(out.read_bytes(), what="out.json"))
    assert found["modes"] == without_cost(whole)["modes"]
