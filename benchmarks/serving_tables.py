"""The tables of docs/serving.md, from the committed rows and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.pages import Row, read_rows, with_section

ROWS = Path(__file__).parent / "results" / "serving.jsonl"
PAGE = Path(__file__).parent.parent / "docs" / "serving.md"
START, END = "<!-- rows: written by benchmarks.serving -->", "<!-- end of rows -->"
ONE_LORA = "transformers serve, one LoRA"
NAMED = "vLLM, the member named"
# What each way's tokens a second are a ratio to.
BESIDE = {
    "serve, forced": ONE_LORA,
    "serve, routed": ONE_LORA,
    "router and vLLM, forced": NAMED,
    "router and vLLM, routed": NAMED,
}


def write_page() -> None:
    """Write the tables into the page."""
    PAGE.write_text(page_of(read_rows(ROWS)), encoding="utf-8")


def page_of(rows: list[Row]) -> str:
    """Return the page with its section made from these rows."""
    return with_section(PAGE.read_text(encoding="utf-8"), START, END, section(rows))


def section(rows: list[Row]) -> str:
    """Return the tables in markdown, the newest row of each where there are several."""
    made: dict[str, Callable[[list[Row]], list[str]]] = {
        "agreement": _agreement_lines,
        "load": _load_lines,
        "memory": _memory_lines,
        "throughput": _throughput_lines,
    }
    lines: list[str] = []
    for stage, lines_of in made.items():
        found = [row for row in rows if row["stage"] == stage]
        if found:
            machine = found[-1]["machine"]
            lines += [*lines_of(found), "", f"{machine['device']}, {machine['cores']} cores.", ""]
    return "\n".join(lines)


def _agreement_lines(rows: list[Row]) -> list[str]:
    lines = [
        f"| {len(rows)} prompts, beside the runtime | the same member | the same text |",
        "|---|---|---|",
    ]
    for way in ("serve", "vllm"):
        found = [row for row in rows if way in row]
        if found:
            same = [sum(row[way][key] == row["runtime"][key] for row in found) for key in ("member", "text")]
            lines.append(f"| {way} | {same[0]} | {same[1]} |")
    apart = [row for row in rows if "difference" in row]
    if apart:
        lines += [
            "",
            "| prompt | first other token | ours | vLLM's | our two best logits apart by |",
            "|---" * 5 + "|",
        ]
    for row in apart:
        found = row["difference"]
        ours, theirs = (repr(token) for token in found["tokens"])
        question = row["prompt"].splitlines()[0]
        lines.append(f"| {question} | {found['token']} | `{ours}` | `{theirs}` | {found['margin']:.2g} |")
    return lines


def _load_lines(rows: list[Row]) -> list[str]:
    lines = [
        "| server | requests | what became of them | seconds | half begun after | half, 95 % answered after |"
    ]
    lines.append("|---" * 6 + "|")
    for row in {row["server"]: row for row in rows}.values():
        outcomes = ", ".join(f"{count} {status}" for status, count in row["outcomes"].items())
        answered = f"{row['answered_p50']} s, {row['answered_p95']} s"
        lines.append(
            f"| {row['server']} | {row['requests']} | {outcomes} | {row['seconds']} "
            f"| {row['first_piece_p50']} s | {answered} |"
        )
    return lines


def _memory_lines(rows: list[Row]) -> list[str]:
    samples = rows[-1]["samples"]
    return [
        "| requests so far | " + " | ".join(str(each["requests"]) for each in samples) + " |",
        "|---" * (len(samples) + 1) + "|",
        "| memory, MiB | " + " | ".join(str(round(each["megabytes"])) for each in samples) + " |",
    ]


def _throughput_lines(rows: list[Row]) -> list[str]:
    middle = {(row["way"], row["at_once"]): median(row["tokens_per_second"]) for row in rows}
    ways = list(dict.fromkeys(row["way"] for row in rows))
    counts = sorted({row["at_once"] for row in rows})
    heads = [f"{count} at once" for count in counts]
    lines = ["| tokens a second | " + " | ".join(heads) + " |", "|---" * (len(counts) + 1) + "|"]
    for way in ways:
        beside = BESIDE.get(way)
        cells = []
        for count in counts:
            other = middle.get((beside, count))
            cells.append(f"{middle[way, count]}" + (f" ({middle[way, count] / other:.2f})" if other else ""))
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines
