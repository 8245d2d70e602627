"""Summaries of a way over all tasks: its mean, and its distance from each task's own member.

A summary is worked out once, when a way has answered all tasks, and is a row like any other: intervals take
a while, and pages are made from rows alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.gates.rows import digest_of
from benchmarks.pages import Row
from meteora_registry.scores.intervals import interval_of, mean_of_tasks

from .rows import last_by, of_kind
from .ways import LIKELIHOOD, MEMBER

Tasks = dict[str, Row]


def sets_of(rows: Iterable[Row]) -> list[str]:
    """Return the sets of members that have answered test items, the one with the most tasks last.

    Of equally many tasks the one that was asked last is behind.
    """
    asked = {row["members"]: (row["tasks"], place) for place, row in enumerate(of_kind(rows, "score"))}
    return sorted(asked, key=asked.__getitem__)


def shown_set(rows: Sequence[Row]) -> str | None:
    """Return the set of members for which most ways have answered every task, of equal ones the largest."""
    found = sets_of(rows)
    return max(reversed(found), key=lambda members: len(summaries_of(rows, members)), default=None)


def compared_set(rows: Sequence[Row], way: str) -> str | None:
    """Return the largest set of which both the members and a way have answered every task."""
    found = [own for own in sets_of(rows) if {MEMBER, way} <= {*summaries_of(rows, own)}]
    return found[-1] if found else None


def largest_of(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the rows of a kind that are of the largest set of members that has any."""
    found = [of_kind(rows, kind, members=members) for members in sets_of(rows)]
    return next((own for own in reversed(found) if own), [])


def scores_of(rows: Iterable[Row], members: str | None) -> dict[str, Tasks]:
    """Return the score rows of a set of members by way and task, of repeated ones the last."""
    found: dict[str, Tasks] = {}
    last = last_by(of_kind(rows, "score", members=members), ("way", "task"))
    for row in last.values():
        found.setdefault(row["way"], {})[row["task"]] = row
    return found


def summaries_of(rows: Iterable[Row], members: str | None) -> dict[str, Row]:
    """Return the last summary of each way of a set of members."""
    return {row["way"]: row for row in of_kind(rows, "summary", members=members)}


def confidences_of(rows: Iterable[Row], members: str | None) -> dict[tuple[str, str], list[float]]:
    """Return the confidences of all decisions about prompts alone, by group and form."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in last_decisions(rows, members):
        found.setdefault((row["group"], row["form"]), []).extend(row["confidences"])
    return found


def last_decisions(rows: Iterable[Row], members: str | None) -> list[Row]:
    """Return the rows of decisions about prompts alone that are of one recipe, that of the last."""
    found = of_kind(rows, "decisions", members=members)
    same = of_kind(found, "decisions", recipe_sha256=found[-1]["recipe_sha256"]) if found else []
    return [*last_by(same, ("way", "task", "form")).values()]


def is_complete(tasks: Tasks) -> bool:
    """Return whether a way has answered every task; by likelihood, those of which all items have choices."""
    (wanted,) = {row["tasks"] for row in tasks.values()}
    return len(tasks) == wanted or LIKELIHOOD in {row["way"] for row in tasks.values()}


def summaries(rows: Sequence[Row], members: str) -> list[Row]:
    """Return a row for each way that has answered every task, unless its last one is of the same scores."""
    found = scores_of(rows, members)
    last = last_by(of_kind(rows, "summary", members=members), ("way",))
    made = []
    for way, tasks in found.items():
        if is_complete(tasks):
            digest = _digest_of_scores(tasks, found.get(MEMBER))
            if last.get((way,), {}).get("scores_sha256") != digest:
                made.append(_summary(way, tasks, found.get(MEMBER)) | {"scores_sha256": digest})
    return made


def _digest_of_scores(*both: Tasks | None) -> str:
    return digest_of([{task: row["scores"] for task, row in (own or {}).items()} for own in both])


def means_of(tasks: Tasks, member: Tasks | None) -> tuple[float, float | None]:
    """Return the mean of the tasks' means, and that of the differences from the tasks' own members."""
    mean = mean_of_tasks([row["scores"] for row in tasks.values()])
    differences = _differences(tasks, member)
    return round(mean, 6), None if differences is None else round(mean_of_tasks(differences), 6)


def _summary(way: str, tasks: Tasks, member: Tasks | None) -> Row:
    mean, difference = means_of(tasks, member)
    differences = _differences(tasks, member)
    return {
        "kind": "summary",
        "way": way,
        "mean": mean,
        "interval": interval([row["scores"] for row in tasks.values()]),
        "difference": difference,
        "difference_interval": None if differences is None else interval(differences),
    }


def _differences(tasks: Tasks, member: Tasks | None) -> list[list[float]] | None:
    """Return for each task the items' scores minus its own member's; None where that was asked others."""
    if member is None or not all(
        task in member and row["items_sha256"] == member[task]["items_sha256"] for task, row in tasks.items()
    ):
        return None
    return [
        [score - own for score, own in zip(row["scores"], member[task]["scores"], strict=True)]
        for task, row in tasks.items()
    ]


def interval(tasks: Sequence[Sequence[float]]) -> list[float] | None:
    """Return the two ends of the 95 % interval of the mean of the tasks' means, whatever their order."""
    # The bootstrap takes its random numbers in the order of the tasks, which is that of their answers.
    found = interval_of(sorted(tasks))
    return None if found is None else [round(found.low, 6), round(found.high, 6)]
