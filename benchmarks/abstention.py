"""Prompts that no member was made for: which of them request gates leave to the base, at which cost.

``python -m benchmarks.run abstention --cache FOLDER --bigbench FOLDER --rows FILE`` measures on
SmolLM2-135M with tasks of BIG-bench, whose source package (``bigbench`` 1.0.0 on PyPI) was unpacked into a
folder; none of its items is kept. No adapter is involved: a decision reads the plain base. Each stage has
its own tasks, whose first 32 prompts are fitted, the next 32 held out and up to 48 more asked; the
development stage is the one that the detector was chosen on. Without ``--cache`` the tables of
docs/gates-tables.md are written anew from the committed rows.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from meteora_registry.files.progress import silent
from meteora_registry.runtime.fitting.chat_template import ChatTemplate
from meteora_registry.runtime.fitting.forms import template_tokens
from meteora_registry.runtime.fitting.inputs import ModuleInput, find_inputs
from meteora_registry.runtime.fitting.request_gates import (
    RequestReader,
    candidate_inputs,
    fit_request_gates,
)
from meteora_registry.runtime.fitting.task_data import Sample

from .abstention_tables import FORMS, PAGE, ROWS, write_table
from .gates.base import load_tokenizer, prepare_base
from .gates.out_of_domain import QUESTIONS
from .pages import Row

OWN = {
    "development": (
        "epistemic_reasoning",
        "formal_fallacies_syllogisms_negation",
        "language_identification",
        "object_counting",
        "strategyqa",
        "winowhy",
    ),
    "test": (
        "abstract_narrative_understanding/4_distractors",
        "contextual_parametric_knowledge_conflicts",
        "cs_algorithms/lcs",
        "elementary_math_qa/question_only",
        "goal_step_wikihow/goal_inference",
        "play_dialog_same_or_different",
        "reasoning_about_colored_objects",
        "topical_chat",
        "unit_conversion/unit_identification",
        "vitaminc_fact_verification",
    ),
}
# The foreign tasks that the detector was chosen on; those of the test are drawn from all others.
DEVELOPMENT_FOREIGN = (
    "hindi_question_answering",
    "simple_text_editing",
    "chinese_remainder_theorem",
    "moral_permissibility",
    "presuppositions_as_nli",
    "geometric_shapes",
    "intent_recognition",
    "polish_sequence_labeling",
    "cryobiology_spanish",
    "which_wiki_edit",
    "nonsense_words_grammar",
    "word_sorting",
    "empirical_judgments",
    "novel_concepts",
    "implicit_relations",
    "word_unscrambling",
    "disfl_qa",
    "ascii_word_recognition",
    "dyck_languages",
    "movie_recommendation",
)
FITTED, HELD_OUT, ASKED = 32, 32, 48
FOREIGN_TASKS, FOREIGN_PROMPTS = 20, 8
MAX_LETTERS, MAX_FILE_BYTES = 330, 40_000_000
MAX_TOKENS = 220
EPS = 1e-6
# Nothing behind the last input that request gates may read of these 30 layers.
LAYERS = 15


def main(arguments: list[str]) -> None:
    """Measure, or write the tables from the committed rows."""
    parser = argparse.ArgumentParser(prog="abstention", description=__doc__)
    parser.add_argument("--cache", type=Path, help="holds the base, made there once")
    parser.add_argument("--bigbench", type=Path, help="the unpacked source package")
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args(arguments)
    if options.cache is not None:
        if options.bigbench is None:
            parser.error("--cache measures, which needs --bigbench too")
        with options.rows.open("w", encoding="utf-8") as file:
            for row in measure(options.cache, options.bigbench / "bigbench" / "benchmark_tasks"):
                file.write(json.dumps(row, sort_keys=True) + "\n")
                file.flush()
    write_table(options.rows, PAGE)


def measure(cache: Path, tasks: Path) -> Iterator[Row]:
    """Yield the rows of both stages."""
    folder = prepare_base(cache)
    tokenizer = load_tokenizer(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    paths = [f"model.layers.{layer}.self_attn.q_proj" for layer in range(len(base.model.layers))]
    inputs = candidate_inputs(find_inputs(base, paths), base.config)
    base.model.layers = base.model.layers[:LAYERS]
    foreign = foreign_tasks(tasks)
    # One process for all the prompts, as in a fit.
    with ChatTemplate(tokenizer):
        for stage, names in OWN.items():
            own = {name: samples_of(tasks, name, FITTED + HELD_OUT + ASKED) for name in names}
            yield from measure_stage(stage, base, tokenizer, inputs, own, foreign[stage])


def measure_stage(
    stage: str,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: tuple[ModuleInput, ...],
    own: dict[str, list[Sample]],
    foreign: dict[str, list[Sample]],
) -> Iterator[Row]:
    """Yield a row about the fit, and one for each task and form: what request gates read of every prompt."""
    reader = RequestReader(
        base,
        tokenizer,
        inputs,
        observed={},
        kind="normalised",
        eps=EPS,
        form="both",
        template=template_tokens(tokenizer),
        max_tokens=MAX_TOKENS,
    )
    fitted = {name: samples[:FITTED] for name, samples in own.items()}
    held_out = {name: samples[FITTED : FITTED + HELD_OUT] for name, samples in own.items()}
    prompts = reader.moments(list(fitted.values()), silent)
    judged = {
        name: {form: reader.encode(samples, form) for form in reader.forms}
        for name, samples in held_out.items()
    }
    found = fit_request_gates(reader, prompts, judged, shrinkage=0.1, abstain=0.05)
    gates = {path: reader.gate(tensors) for path, tensors in found.values.items()}
    yield {"stage": stage, "group": "fit", "modules": found.description.modules, "members": list(own)}
    groups: dict[str, dict[str, list[Sample]]] = {
        "held out": held_out,
        "own": {name: samples[FITTED + HELD_OUT :] for name, samples in own.items()},
        "foreign": foreign,
        "general": {"questions": [Sample(each, None, 1, question=each) for each in QUESTIONS]},
    }
    for group, tasks in groups.items():
        for name, samples in tasks.items():
            for form in FORMS:
                evidence = reader.evidence(reader.encode(samples, form), gates).mean(dim=0)
                yield row_of(stage, group, name, form, evidence, list(own))


def row_of(
    stage: str, group: str, task: str, form: str, evidence: torch.Tensor, members: Sequence[str]
) -> Row:
    """Return one row: per prompt the familiarity, the ratio to the background, and the best member."""
    own, background = evidence[:, : len(members)], evidence[:, len(members) : -1]
    ratio = own.amax(dim=1) - background.logsumexp(dim=1)
    among = torch.log_softmax(own, dim=1).amax(dim=1)
    return {
        "stage": stage,
        "group": group,
        "task": task,
        "form": form,
        "decided": [members[place] for place in own.argmax(dim=1).tolist()],
        "familiarity": _rounded(evidence[:, -1]),
        "ratio": _rounded(ratio),
        "among_members": _rounded(among),
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def foreign_tasks(tasks: Path) -> dict[str, dict[str, list[Sample]]]:
    """Return the tasks that are not one of a stage's own, with prompts, by stage."""
    own = {name.partition("/")[0] for names in OWN.values() for name in names}
    others = {path.relative_to(tasks).parts[0] for path in tasks.glob("**/task.json")} - own
    unseen = sorted(others - set(DEVELOPMENT_FOREIGN))
    random.Random(0).shuffle(unseen)
    found = ((name, samples_of(tasks, name, FOREIGN_PROMPTS)) for name in unseen)
    full = ((name, samples) for name, samples in found if len(samples) == FOREIGN_PROMPTS)
    return {
        "development": {name: samples_of(tasks, name, FOREIGN_PROMPTS) for name in DEVELOPMENT_FOREIGN},
        "test": dict(islice(full, FOREIGN_TASKS)),
    }


def samples_of(tasks: Path, name: str, count: int) -> list[Sample]:
    """Return prompts of a task, none of more than ``MAX_LETTERS``, with their answers, drawn by chance."""
    paths = sorted(tasks.glob(f"{name}/task.json")) or sorted(tasks.glob(f"{name}/*/task.json"))
    if not paths or paths[0].stat().st_size > MAX_FILE_BYTES:
        return []
    examples: list[dict[str, Any]] = json.loads(paths[0].read_bytes()).get("examples", [])
    items = {
        each["input"]: _answer(each)
        for each in examples
        if isinstance(each.get("input"), str) and 8 <= len(each["input"]) <= MAX_LETTERS
    }
    drawn = list(items.items())
    random.Random(name).shuffle(drawn)
    return [
        Sample(text, answer, line, question=text)
        for line, (text, answer) in enumerate(drawn[:count], start=1)
    ]


def _answer(example: dict[str, Any]) -> str:
    target = example.get("target")
    if target is None and example.get("target_scores"):
        target = max(example["target_scores"], key=example["target_scores"].get)
    if isinstance(target, list):
        target = target[0] if target else None
    return " " + str(target or "")
