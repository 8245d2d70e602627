"""The evaluation on the card of a pushed bundle: a table for people, and `model-index` for the Hub.

It is what this catalog measured of the very manifest that is pushed, and to a reader a claim.
"""

from __future__ import annotations

import yaml

from ...schemas.evaluation import EvaluationSummary, Metric, Mode
from ..catalog.records import MeasuredEvaluation

_SHOWN: tuple[Mode, ...] = ("routed", "member", "base", "uniform", "arrow")
_TITLES = {"member": "member alone", "base": "base alone"}
# What the Hub calls them.
_METRICS: dict[Metric, str] = {
    "exact": "exact_match",
    "normalised": "exact_match",
    "contains": "contains",
    "yes-no": "accuracy",
    "accuracy": "accuracy",
    "likelihood": "accuracy",
    "likelihood-per-byte": "accuracy",
    "rouge": "rouge",
    "bleu": "sacrebleu",
}

_STATEMENT = """\
## Evaluation

On {date} its maker measured that it reaches {share:.1f} % of the score of its members, each alone on its own
task, when the gates choose ({items:,} items in {tasks}). To you that is a claim: `meteora-registry eval`
measures it on data of your own.
"""


def write_section(found: MeasuredEvaluation) -> str:
    """Return the section of the card, in Markdown."""
    summary = found.summary
    modes = [mode for name in _SHOWN if (mode := summary.mode(name)) is not None]
    titles = ["task", "metric", "items", *(_TITLES.get(mode.mode, mode.mode) for mode in modes), "data"]
    rows = [
        (
            f"`{task.member}`",
            task.metric,
            f"{task.items:,}",
            *(f"{100 * mode.tasks[task.member]:.1f}" for mode in modes),
            f"`{task.data_sha256.short}`",
        )
        for task in summary.tasks
    ]
    rows.append(("mean of the tasks", "", f"{found.items:,}", *(f"{100 * m.score:.1f}" for m in modes), ""))
    count = len(summary.tasks)
    statement = _STATEMENT.format(
        date=f"{found.created_at:%Y-%m-%d}",
        share=100 * (found.of_members or 0),
        items=found.items,
        tasks=f"{count} task{'s' * (count > 1)}",
    )
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    fitted = "" if summary.gate_fitted else "\nThe gate was not fitted.\n"
    return f"{statement}{fitted}\n" + "\n".join(lines) + "\n"


def write_model_index(summary: EvaluationSummary) -> str:
    """Return the scores of the routing as the Hub reads them, in YAML; empty if it was not measured."""
    routed = summary.mode("routed")
    if routed is None:
        return ""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"type": task.member, "name": task.member, "args": {"sha256": str(task.data_sha256)}},
            "metrics": [
                {
                    "type": _METRICS[task.metric],
                    "value": round(routed.tasks[task.member], 4),
                    "name": f"routed, {task.items} items",
                    "verified": False,
                }
            ],
        }
        for task in summary.tasks
    ]
    index = {"model-index": [{"name": "MeteoRA bundle", "results": results}]}
    return yaml.safe_dump(index, allow_unicode=False, sort_keys=False)
