"""``doctor``: what a crash or a manual change left, and repairing it."""

from __future__ import annotations

from pathlib import Path

import click

from ...schemas.errors import MeteoraError
from ..face import Registry
from ..workflows.examination import Examination
from ..workflows.problem import Problem
from .failures import DONE, REFUSED, report_failure, worst_code
from .groups import examples
from .json_output import print_json
from .output import print_line, print_remark
from .parameters import confirm, format_option, jobs_option, pass_registry
from .progress import progress_bar


@click.command("doctor", epilog=examples("doctor", "doctor --fix", "doctor --fix --yes --format json"))
@click.option("--fix", is_flag=True, help="Repair what can be repaired, after listing what will be done.")
@click.option("--yes", is_flag=True, help="With --fix, do not ask.")
@jobs_option
@format_option
@pass_registry
@click.pass_context
def command(
    context: click.Context, registry: Registry, *, fix: bool, yes: bool, jobs: int, as_json: bool
) -> None:
    """Find what a crash or a manual change left, and repair it.

    Looks at the catalog, at every byte of the content store, at the folders of bundles, and for what
    interrupted commands left, also in the current folder. Without --fix nothing is changed. What the
    catalog refers to is never deleted: damaged bytes are put aside, and adding the adapter again puts
    the right ones back.

    Exit code 1 if something is wrong and was not mended.
    """
    with progress_bar() as progress:
        examination = registry.doctor(beside=_current_folder(), jobs=jobs, progress=progress)
    if not as_json:
        _describe(examination)
    outcomes: dict[int, str] = {}
    codes = [REFUSED] if examination.problems else [DONE]
    if fix and _may_mend(examination, yes=yes):
        codes = _mend(examination, outcomes)
        if not as_json:
            _describe_outcomes(examination, outcomes)
    if as_json:
        print_json(_to_json(examination, outcomes))
    context.exit(worst_code(codes))


def _current_folder() -> list[Path]:
    """Return the current folder, as long as there is one: it may have been deleted since."""
    try:
        return [Path.cwd()]
    except FileNotFoundError:
        return []


def _describe(examination: Examination) -> None:
    for problem in examination.problems:
        print_line(problem.describe())
        print_line(f"    way out: {problem.way_out}")
        if problem.mending is not None:
            print_line(f"    --fix: {problem.mending.deed}")
    for reason in examination.not_examined:
        print_remark(f"note: not examined: {reason}")
    if not examination.problems and not examination.not_examined:
        print_remark("nothing is wrong")


def _may_mend(examination: Examination, *, yes: bool) -> bool:
    mendable = [each for each in examination.problems if each.mending is not None]
    if not mendable:
        return bool(examination.problems)
    for problem in mendable:
        print_remark(f"will: {problem.subject}: {problem.mending.deed if problem.mending else ''}")
    return confirm("Do this?", yes=yes)


def _mend(examination: Examination, outcomes: dict[int, str]) -> list[int]:
    codes = []
    for number, problem in enumerate(examination.problems):
        if problem.mending is None:
            codes.append(REFUSED)
            continue
        try:
            problem.mending.act()
        except (MeteoraError, OSError) as error:
            codes.append(report_failure(error))
            outcomes[number] = "failed"
        else:
            codes.append(DONE if problem.mending.heals else REFUSED)
            outcomes[number] = "mended" if problem.mending.heals else "half mended"
    return codes


def _describe_outcomes(examination: Examination, outcomes: dict[int, str]) -> None:
    for number, problem in enumerate(examination.problems):
        outcome = outcomes.get(number, "left")
        print_line(f"{outcome}: {problem.code}: {problem.subject}")
        if outcome != "mended":
            print_line(f"    way out: {problem.way_out}")


def _to_json(examination: Examination, outcomes: dict[int, str]) -> dict[str, object]:
    return {
        "problems": [
            _problem_to_json(problem, outcomes.get(number))
            for number, problem in enumerate(examination.problems)
        ],
        "not_examined": examination.not_examined,
    }


def _problem_to_json(problem: Problem, outcome: str | None) -> dict[str, object]:
    return {
        "code": problem.code,
        "subject": problem.subject,
        "found": problem.found,
        "way_out": problem.way_out,
        "fix": problem.mending.deed if problem.mending else None,
        "outcome": outcome,
    }
