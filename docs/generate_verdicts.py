"""Writes ``docs/verdicts.md`` from the committed rows of the matrix: ``python docs/generate_verdicts.py``."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).with_name("verdicts.md")
ROWS = Path(__file__).resolve().parent.parent / "tests" / "matrix"
TRAINED = "as trained"
UNMADE = "cannot be made"
PREFACE = """# Verdicts beside PEFT

Written by `docs/generate_verdicts.py` from the rows in `tests/matrix/`, which
`PYTHONPATH=tests python tests/matrix/write.py` makes and the tests make again, cell by cell. PEFT 0.21.2
saves an adapter of every option of its `LoraConfig` on tiny models of every kind, all trained numbers
random, and loads it again on a fresh base; `validate --base` judges the same files.

What PEFT loads with effect must never be *broken*; what PEFT answers with the base's output or an exception
must never be *sound*; what PEFT loads with another output than it was trained to give must never be
*fusable*. A fusable adapter is fused, and its forced member must answer as PEFT does.
"""
OPTIONS_PREFACE = """## Options of LoraConfig

{made} adapters; {effect} load as trained, {fused} are fused and checked as a member, {wrong} verdicts
disagree with PEFT (they would be marked **!**). A code is that of the first rule that refuses; a text in
brackets is what PEFT does if it does not load the adapter as trained; `-` is what PEFT refuses to make.
"""
FILES_PREFACE = """## Files that PEFT did not save

One change to files that PEFT saved: {rows} cases, {wrong} of which disagree with PEFT. Columns 3
to 5 are the outcomes of `validate` for use without a base, with it, and for fuse; the last is what the
forced member of a bundle gives.
"""
Row = dict[str, str]


def render() -> str:
    """Return the whole page."""
    return "\n".join([PREFACE, *_options(_read("options")), *_files(_read("files"))])


def _read(name: str) -> list[Row]:
    with (ROWS / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _options(rows: list[Row]) -> Iterator[str]:
    made = [row for row in rows if not row["peft"].startswith(UNMADE)]
    yield OPTIONS_PREFACE.format(
        made=len(made),
        effect=sum(row["peft"] == TRAINED for row in made),
        fused=sum(row["member"] != "" for row in made),
        wrong=sum(row["disagrees"] != "" for row in made),
    )
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    cells = {(row["case"], row["kind"]): _cell(row) for row in rows}
    # Two tables, so that neither is too wide: kinds that meet most options, and those that meet a few.
    cases = list(dict.fromkeys(row["case"] for row in rows))
    for title, shown in (("Common options", kinds[:6]), ("Other models", kinds[6:])):
        yield f"### {title}\n\n| option | {' | '.join(shown)} |\n|---|{'---|' * len(shown)}"
        for case in cases:
            listed = [cells.get((case, kind), "") for kind in shown]
            if any(listed):
                yield f"| {case} | {' | '.join(listed)} |"
        yield ""


def _cell(row: Row) -> str:
    if row["peft"].startswith(UNMADE):
        return "-"
    verdict = row["based"].removeprefix("sound, ") if row["based"].startswith("sound") else "broken"
    code = row["based_codes"].partition(" ")[0]
    peft = "" if row["peft"] == TRAINED else f" ({row['peft']})"
    mark = _mark(row)
    return f"{verdict}{f' {code}' if code else ''}{peft}{mark}"


def _mark(row: Row) -> str:
    return " **!**" if row["disagrees"] else ""


def _files(rows: list[Row]) -> Iterator[str]:
    yield FILES_PREFACE.format(rows=len(rows), wrong=sum(row["disagrees"] != "" for row in rows))
    yield "| change | PEFT | use | use, with base | fuse | member |\n|---|---|---|---|---|---|"
    for row in rows:
        listed = [f"{row['case']} ({row['kind']}){_mark(row)}", row["peft"]]
        listed += [f"{row[name]} {row[f'{name}_codes']}".strip() for name in ("alone", "based")]
        yield f"| {' | '.join([*listed, row['fuse'], row['member'] or '-'])} |"
    yield ""


def main() -> None:
    """Write the page."""
    TARGET.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
