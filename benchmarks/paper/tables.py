"""The tables of docs/reproduction.md, from the committed rows and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.pages import Row, line, percent, table, with_section
from meteora_registry.schemas.gate_choices import DEFAULT_ABSTAIN
from meteora_registry.scores.proportions import area_under_curve, wilson_interval

from .composite_answers import IN_ORDER, ORACLE
from .decisions import FORMS
from .figures import ROC, write_figures
from .rows import RowsFile, last_by, of_kind
from .summary import (
    Tasks,
    compared_set,
    confidences_of,
    largest_of,
    last_decisions,
    scores_of,
    sets_of,
    shown_set,
    summaries_of,
)
from .tasks import MISSING, TASKS
from .training import JOINT_RECIPES
from .ways import BASE, CANDIDATES, LIKELIHOOD, MAJORITY, MEMBER, PROMPT, PROMPT_MORE, WAYS

ROWS = Path(__file__).parents[1] / "results" / "paper.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "reproduction.md"
README = Path(__file__).parents[2] / "README.md"
START, END = "<!-- rows: {} -->", "<!-- end of {} -->"
NOT_MEASURED = "Not measured yet."

# Set before anything was measured: the part of the mean of the member forced.
GOALS = {"prompt": 0.99, PROMPT_MORE.name: 0.99, "token": 0.95, "trained gates top-1": 0.97}
# The same of composites of three questions: of the oracle.
COMPOSITE_GOALS = {"paper": 0.90, "restated": 0.95}
_GROUPS = {"own": "of a member's task", "foreign": "of other tasks", "general": "general questions"}

NEEDS = (
    ("a prompt is one task, and decoding should cost what one LoRA costs", "prompt"),
    ("a prompt is one task, and the answer may move into another", "prompt+token"),
    ("one prompt has several tasks", "segment"),
    ("nothing may be read ahead: every token decides by itself", "token"),
    ("there are no texts of the tasks at all", "arrow"),
    ("no gates: one adapter for all tasks, trained again for each new one", "LoRA-B"),
)
"""Needs of a user, and the way of ``WAYS`` for each."""


def write_page() -> None:
    """Write every generated section of the page and of the README, and every figure, anew."""
    read = RowsFile(ROWS).read()
    for path, text_of in ((PAGE, page_of), (README, readme_of)):
        path.write_text(text_of(read, path.read_text(encoding="utf-8")), encoding="utf-8")
    write_figures(read)


def readme_of(rows: Sequence[Row], readme: str) -> str:
    """Return the README with its sentence made from these rows.

    Raises:
        ValueError: the README does not have the sentence's marks once.
    """
    text = "\n".join(_claim(rows, compared_set(rows, PROMPT.name))) + "\n"
    return with_section(readme, START.format("paper"), END.format("paper"), text)


def _claim(rows: Sequence[Row], members: str | None) -> list[str]:
    found = summaries_of(rows, members)
    if MEMBER not in found or PROMPT.name not in found:
        return [NOT_MEASURED]
    tasks = scores_of(rows, members)[PROMPT.name]
    asked = sum(row["items"] for row in tasks.values())
    routed, named = found[PROMPT.name], found[MEMBER]
    return [
        f"With an adapter for each of {len(tasks)} of the paper's tasks, and {asked} test questions,",
        f"one decision for a prompt scores {_mean(routed)};",
        f"naming the right adapter each time {_mean(named)}.",
        f"The difference is {_difference(routed)}, and {_decided(tasks)} of the decisions were right.",
        "In brackets are 95 % intervals.",
    ]


def page_of(rows: Sequence[Row], page: str) -> str:
    """Return a page with its sections made from these rows.

    Raises:
        ValueError: the page does not have each section's marks once.
    """
    for name, lines in sections(rows).items():
        text = "\n".join(lines) + "\n"
        page = with_section(page, START.format(name), END.format(name), text)
    return page


def sections(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the lines of each section by its name."""
    members = shown_set(rows)
    of_all: dict[str, Callable[[Sequence[Row]], list[str]]] = {
        "state": _state,
        "sets": _sets,
        "needs": _needs,
        "goals": _goals,
        "confusions": _confusions,
        "parts": _parts,
        "changes": _changes,
        "killed": _killed,
        "xlora": _xlora,
        "composites": _composites,
        "validation": _choices,
    }
    of_one: dict[str, Callable[[Sequence[Row], str | None], list[str]]] = {
        "test": _ways,
        "tasks": _tasks,
        "decisions": _decisions,
        "adapters": _adapters,
        "fits": _fits,
    }
    return {name: lines_of(rows) for name, lines_of in of_all.items()} | {
        name: lines_of(rows, members) for name, lines_of in of_one.items()
    }


def _state(rows: Sequence[Row]) -> list[str]:
    """Return which tasks and ways have rows, with any set of members, and which have none."""
    asked = [scores_of(rows, members) for members in sets_of(rows)]
    tasks = {task for found in asked for own in found.values() for task in own}
    ways = {way for found in asked for way in found}
    return [
        f"- Tasks on the test items: {_listed([task.name for task in TASKS if task.name in tasks])}.",
        f"- Tasks without rows: {_listed([task.name for task in TASKS if task.name not in tasks])}.",
        f"- Tasks of the paper that cannot be measured here: {_listed(list(MISSING))}.",
        f"- Ways without rows: {_listed([way.name for way in WAYS if way.name not in ways])}.",
    ]


def _sets(rows: Sequence[Row]) -> list[str]:
    """Return the mean of each way with each set of members of which it has answered every task."""
    asked = {members: summaries_of(rows, members) for members in sets_of(rows)}
    asked = {members: found for members, found in asked.items() if MEMBER in found}
    if not asked:
        return [NOT_MEASURED]
    heads = [
        head
        for members, found in asked.items()
        for head in (f"{found[MEMBER]['tasks']} members, {_items_of(rows, members)} items", "minus forced")
    ]
    lines = table("served by", *heads)
    for way in WAYS:
        both = [found.get(way.name) for found in asked.values()]
        if any(both):
            cells = [cell for row in both for cell in (("", "") if row is None else _scored(row))]
            lines.append(line(way.name, *cells))
    return lines


def _items_of(rows: Sequence[Row], members: str | None) -> int:
    return sum(row["items"] for row in scores_of(rows, members)[MEMBER].values())


def _scored(row: Row) -> tuple[str, str]:
    return _mean(row), _difference(row)


def _needs(rows: Sequence[Row]) -> list[str]:
    lines = table(
        "need", "gate or adapter", "score on the paper's tasks", "minus the member forced", "members"
    )
    for need, way in NEEDS:
        members = compared_set(rows, way)
        cells = [NOT_MEASURED, "", ""]
        if members is not None:
            row = summaries_of(rows, members)[way]
            cells = [*_scored(row), str(row["tasks"])]
        lines.append(line(need, f"`{way}`", *cells))
    return lines


def _goals(rows: Sequence[Row]) -> list[str]:
    lines = table("gates", "goal", "measured", "members")
    for way, goal in GOALS.items():
        measured, count = NOT_MEASURED, ""
        members = compared_set(rows, way)
        found = summaries_of(rows, members)
        if members is not None and found[MEMBER]["mean"] > 0:
            measured = percent(found[way]["mean"] / found[MEMBER]["mean"])
            count = str(found[way]["tasks"])
        lines.append(line(f"`{way}`", f"at least {100 * goal:.0f} % of the member forced", measured, count))
    for form, goal in COMPOSITE_GOALS.items():
        asked = {
            row["way"]: row
            for row in last_by(of_kind(rows, "composite", size=3, form=form), ("way",)).values()
        }
        measured = _of_oracle(asked.get(IN_ORDER), asked.get(ORACLE)) or NOT_MEASURED
        lines.append(
            line(
                f"`{IN_ORDER}`",
                f"at least {100 * goal:.0f} % of the oracle, composites of 3, {form}",
                measured,
                "",
            )
        )
    return lines


def _ways(rows: Sequence[Row], members: str | None) -> list[str]:
    found = summaries_of(rows, members)
    if not found:
        return [NOT_MEASURED]
    asked = scores_of(rows, members)
    lines = table(
        "served by",
        "tasks",
        "mean of the tasks",
        "minus the member forced",
        "prompts decided rightly",
        "tokens rightly",
        "seconds an item",
        "peak memory",
    )
    for way, row in sorted(found.items(), key=lambda each: -each[1]["mean"]):
        tasks = asked[way]
        cells = (_mean(row), _difference(row), _decided(tasks), _tokens(tasks), _seconds(tasks), _peak(tasks))
        lines.append(line(way, len(tasks), *cells))
    return lines


def _tasks(rows: Sequence[Row], members: str | None) -> list[str]:
    asked = scores_of(rows, members)
    routed = [way.name for way in WAYS if way.is_routed or way.kind == "adapter"]
    shown = [name for name in (MAJORITY, BASE, LIKELIHOOD, MEMBER, *routed) if name in asked]
    names = [task.name for task in TASKS if any(task.name in asked[way] for way in shown)]
    if not names:
        return [NOT_MEASURED]
    lines = table("task", "judged by", "items", *shown)
    for name in names:
        found = {way: asked[way][name] for way in shown if name in asked[way]}
        any_row = next(iter(found.values()))
        cells = [percent(float(np.mean(found[way]["scores"]))) if way in found else "" for way in shown]
        lines.append(line(name, any_row["metric"], any_row["items"], *cells))
    return lines


def _confusions(rows: Sequence[Row]) -> list[str]:
    members = compared_set(rows, PROMPT.name)
    if members is None:
        return [NOT_MEASURED]
    tasks = scores_of(rows, members)[PROMPT.name]
    lines = table("task", "prompts", "decided rightly", "taken for")
    for name in [task.name for task in TASKS if task.name in tasks]:
        row = tasks[name]
        others = [f"{other} ({count})" for other, count in row["decided"].items() if other != name]
        right = row["decided"].get(name, 0)
        lines.append(line(name, row["items"], right, ", ".join(others)))
    return lines


def _adapters(rows: Sequence[Row], members: str | None) -> list[str]:
    found = last_by(of_kind(rows, "adapter", members=members), ("name",)).values()
    if not found:
        return [NOT_MEASURED]
    lines = table(
        "adapter", "rank", "scaling", "target modules", "items", "steps", "tokens", "processor time", "sha256"
    )
    for row in sorted(found, key=lambda each: (each["name"] in JOINT_RECIPES, each["name"])):
        recipe = row["recipe"]
        targets = ", ".join(target.removesuffix("_proj") for target in recipe["targets"])
        scaling = "rsLoRA" if recipe["rslora"] else "alpha / r"
        cells = (row["name"], recipe["rank"], scaling, targets, sum(row["items"].values()), row["steps"])
        cost = (row["tokens"], f"{row['processor_seconds']:.0f} s", f"`{row['weights_sha256'][:16]}`")
        lines.append(line(*cells, *cost))
    return lines


def _fits(rows: Sequence[Row], members: str | None) -> list[str]:
    found = last_by(of_kind(rows, "fit", members=members), ("bundle",)).values()
    if not found:
        return [NOT_MEASURED]
    lines = table("bundle", "scope", "members", "wall", "processor time", "peak memory of the process")
    for row in found:
        cost = [f"{row[key]:.0f} s" for key in ("wall_seconds", "processor_seconds")]
        cost.append(f"{row['peak_bytes'] / 1e9:.2f} GB")
        lines.append(line(row["bundle"], row["scope"], row["adapters"], *cost))
    return lines


def _decisions(rows: Sequence[Row], members: str | None) -> list[str]:
    found = last_decisions(rows, members)
    if not found:
        return [NOT_MEASURED]
    lines = table("prompts", "asked", "tasks", "prompts", "decided rightly", "left to the base", "AUROC")
    confidences = confidences_of(found, members)
    for (group, form), values in confidences.items():
        own = of_kind(found, "decisions", group=group, form=form)
        left = sum(value < DEFAULT_ABSTAIN for value in values)
        share = _share(left, len(values))
        right, area = "", f"{area_under_curve(confidences['own', form], values):.3f}"
        if group == "own":
            right, area = percent(sum(row["decided"].get(row["task"], 0) for row in own) / len(values)), ""
        lines.append(line(_GROUPS[group], FORMS[form], len(own), len(values), right, share, area))
    return [*lines, "", f"![ROC: own prompts lost, and others left to the base](images/{ROC.name})"]


def _changes(rows: Sequence[Row]) -> list[str]:
    found = last_by(largest_of(rows, "change"), ("scope", "member")).values()
    if not found:
        return [NOT_MEASURED]
    lines = table(
        "scope",
        "members",
        "the others' factors bit for bit",
        "gates kept when replaced",
        "farthest after it came again",
        "decisions kept while it was away",
        "seconds to remove",
        "to add",
        "to replace",
    )
    for scope in dict.fromkeys(row["scope"] for row in found):
        own = [row for row in found if row["scope"] == scope]
        kept, asked = (sum(row[key] for row in own) for key in ("decisions_kept", "decisions"))
        cells = [
            f"{sum(row['factors_kept'] for row in own)} of {len(own)}",
            f"{sum(row['gates_kept_by_replace'] for row in own)} of {len(own)}",
            f"{max(row['farthest_after_add'] for row in own):.1e}",
            f"{kept} of {asked}" if asked else "",
            *(_median_seconds(own, change) for change in ("remove", "add", "replace")),
        ]
        lines.append(line(scope, len(own), *cells))
    return lines


def _parts(rows: Sequence[Row]) -> list[str]:
    """Return for each scope whether the members' parts alone give the gates of the joint fit."""
    found = last_by(largest_of(rows, "parts"), ("scope",)).values()
    if not found:
        return [NOT_MEASURED]
    lines = table("scope", "members", "rows and numbers of gates", "as in the joint fit")
    for row in found:
        same = "bit for bit" if row["same_gates"] else "not the same"
        lines.append(line(row["scope"], row["tasks"], row["gates"], same))
    return lines


def _composites(rows: Sequence[Row]) -> list[str]:
    """Return the composites of the set of members that was asked last."""
    asked = of_kind(rows, "composite")
    if not asked:
        return [NOT_MEASURED]
    last = last_by(of_kind(asked, "composite", members=asked[-1]["members"]), ("size", "form", "way"))
    lines = table(
        "questions", "form", "served by", "prompts", "score", "of the oracle", "answers", "seconds a prompt"
    )
    ranked = sorted(last.values(), key=lambda row: (row["size"], row["form"], -_score(row)))
    for row in ranked:
        oracle = last.get((row["size"], row["form"], ORACLE))
        cells = (
            _with_interval(percent(_score(row)), row["interval"]),
            "" if row["way"] == ORACLE else _of_oracle(row, oracle),
            percent(row["answered"] / (row["size"] * row["prompts"])),
            f"{row['seconds'] / row['prompts']:.1f} s",
        )
        lines.append(line(row["size"], row["form"], row["way"], row["prompts"], *cells))
    return lines


def _of_oracle(row: Row | None, oracle: Row | None) -> str:
    """Return the part of the oracle's score, or nothing where there is none."""
    if row is None or oracle is None or _score(oracle) == 0:
        return ""
    return percent(_score(row) / _score(oracle))


def _score(row: Row) -> float:
    return float(np.mean(row["scores"]))


def _killed(rows: Sequence[Row]) -> list[str]:
    found = largest_of(rows, "killed")
    if not found:
        return [NOT_MEASURED]
    row = found[-1]
    same = "the same bit for bit as" if row["same_gates"] else "others than"
    return [
        f"A training of {row['settings']['steps']} steps with a checkpoint every {row['checkpoint_steps']}",
        f"was killed at step {row['killed_at']} and went on behind step {row['resumed_at']};",
        f"its gates are {same} those of the training that was not killed.",
    ]


def _choices(rows: Sequence[Row]) -> list[str]:
    """Return what the candidates decided."""
    asked = largest_of(rows, "choice")
    if not asked:
        return [NOT_MEASURED]
    lines = table("served by", "members", "validation prompts", "decided rightly")
    for way in CANDIDATES:
        found = last_by(of_kind(asked, "choice", way=way.name), ("task",)).values()
        if found:
            prompts = sum(sum(row["decided"].values()) for row in found)
            right = sum(row["decided"].get(row["task"], 0) for row in found)
            lines.append(line(way.name, len(found), prompts, _share(right, prompts)))
    return lines


def _xlora(rows: Sequence[Row]) -> list[str]:
    """Return what a few steps cost, and what all would if each cost the same."""
    found = largest_of(rows, "xlora")
    if not found:
        return [NOT_MEASURED]
    row = found[-1]
    training = row["step_seconds"] / row["step_tokens"] * row["learned_tokens"]
    lines = [
        f"With {row['adapters']} adapters a training step of {row['step_tokens']} tokens takes",
        f"{row['step_seconds']:.0f} processor seconds, and so",
        f"the {row['learned_tokens']:,} tokens of the gates' data {training / 3600:.1f} hours.",
        f"{row['new_tokens']} tokens of answers to {row['prompts']} prompts take",
    ]
    named = scores_of(rows, row["members"]).get(MEMBER, {})
    answered = sum(score["new_tokens"] for score in named.values())
    if not answered:
        return [*lines, f"{row['answer_seconds']:.0f} processor seconds."]
    asking = row["answer_seconds"] / row["new_tokens"] * answered
    seconds = sum(score["seconds"] for score in named.values())
    return [
        *lines,
        f"{row['answer_seconds']:.0f} processor seconds, and so",
        f"the {answered:,} that the members forced write",
        f"{asking / 3600:.0f} hours; the members forced took {seconds / 3600:.1f}.",
    ]


def _median_seconds(rows: Sequence[Row], change: str) -> str:
    return f"{np.median([row['seconds'][change] for row in rows]):.0f} s"


def _mean(row: Row) -> str:
    return _with_interval(percent(row["mean"]), row["interval"])


def _difference(row: Row) -> str:
    if row["difference"] is None or row["way"] == MEMBER:
        return ""
    return _with_interval(f"{100 * row['difference']:+.1f}", row["difference_interval"])


def _share(count: int, total: int) -> str:
    return _with_interval(percent(count / total), wilson_interval(count, total))


def _with_interval(text: str, ends: Sequence[float] | None) -> str:
    return text if ends is None else f"{text} ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})"


def _decided(tasks: Tasks) -> str:
    shares = [row["decided"].get(task, 0) / row["items"] for task, row in tasks.items() if "decided" in row]
    return percent(float(np.mean(shares))) if shares else ""


def _tokens(tasks: Tasks) -> str:
    shares = [row["tokens_rightly"] for row in tasks.values() if "tokens_rightly" in row]
    return percent(float(np.mean(shares))) if shares else ""


def _seconds(tasks: Tasks) -> str:
    if not all("seconds" in row for row in tasks.values()):
        return ""
    return f"{np.mean([row['seconds'] / row['items'] for row in tasks.values()]):.2f} s"


def _peak(tasks: Tasks) -> str:
    peaks = [row["peak_bytes"] for row in tasks.values() if row.get("peak_bytes")]
    return f"{max(peaks) / 1e9:.2f} GB" if peaks else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"
