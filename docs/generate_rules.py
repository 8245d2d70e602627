"""The writer of ``docs/rules.md``, from the rules themselves: ``python docs/generate_rules.py``.

The counts come from the committed tables of what real adapters are expected to give.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from meteora_registry.inspection.rules.all_rules import all_rules
from meteora_registry.inspection.rules.rule import Rule

TARGET = Path(__file__).with_name("rules.md")
TABLES = Path(__file__).resolve().parent.parent / "tests" / "inspection" / "expected"
PREFACE = """# Rules

Written by `docs/generate_rules.py` from the rules themselves; change them, not this file.
`meteora-registry validate --explain CODE` prints the same. The refusal *broken* means that every use goes
wrong; *not fusable* that the adapter is sound and a bundle cannot hold it. Warnings and notes
change no verdict, and a [policy](formats/policy.md) may change their severity. Only `--for vllm` asks the
rules about [vLLM](vllm.md), and *not served by vLLM* refuses for that purpose alone.
"""
CHAPTERS = {
    "0": "Files",
    "1": "Config",
    "2": "Weights file",
    "3": "Tensors",
    "4": "Numbers",
    "5": "Against a base",
    "6": "Against others",
    "7": "Policy",
    "8": "vLLM",
}
COUNTS_PREFACE = """## How often real adapters meet them

Adapters (or configs alone) with at least one finding of a rule, among public ones from other authors:
{sizes}.
"""


def render() -> str:
    """Return the whole page."""
    parts = [PREFACE]
    for digit, title in CHAPTERS.items():
        parts.append(f"## {title}\n")
        parts += [_section(rule) for rule in all_rules() if rule.code[2] == digit]
    return "\n".join([*parts, *_counts()])


def _section(rule: Rule) -> str:
    outcome = f"{rule.severity}, {rule.effect}" if not rule.is_adjustable else str(rule.severity)
    place = f"`{rule.file}`" if rule.file else "named by the finding"
    return (
        f"### {rule.code} {rule.name}\n\n{rule.title}.\n\n"
        f"- outcome: {outcome}\n- place: {place}\n- why: {rule.why}\n- way out: {rule.remedy}\n"
    )


def _counts() -> Iterator[str]:
    names = sorted(path.stem for path in TABLES.glob("*.csv"))
    tables = {}
    for name in names:
        with (TABLES / f"{name}.csv").open(newline="") as file:
            tables[name] = list(csv.DictReader(file))
    counts = {
        name: Counter(code for row in rows for code in row["codes"].split()) for name, rows in tables.items()
    }
    sizes = ", ".join(f"{len(tables[name])} in `{name}`" for name in names)
    yield COUNTS_PREFACE.format(sizes=sizes)
    yield "| rule | " + " | ".join(names) + " |\n|---|" + "---|" * len(names)
    for rule in all_rules():
        row = [counts[name][rule.code] for name in names]
        if any(row):
            yield f"| {rule.code} {rule.name} | " + " | ".join(str(count or "") for count in row) + " |"
    yield ""


def main() -> None:
    """Write the page."""
    TARGET.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
