"""The tables of docs/kernels.md from a run: ``python -m benchmarks.run kernel-tables ROWS [--plots FOLDER]``.

Everything is a ratio within one pass. `best` is the fastest of all measured formulations that do the same
work, ours and others'; the plain LoRA and the base GEMM do less and stand beside for scale.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.kernel_points import Point

Row = dict[str, Any]
FLOORS = ("one_lora", "base_gemm", "meteora_", "meteora_even")
COLUMNS = ("meteora", "official_loop", "present_loop", "gathered_bmm", "dense", "one_lora", "base_gemm")


class Rows:
    """Measured rows by point, mode and provider; of a repeated measurement the last counts."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.measured = {(r["point"], r["mode"], r["provider"]): r for r in rows if "p50" in r}

    def points(self, mode: str) -> list[str]:
        """Return the points measured in a mode, in order."""
        return list(dict.fromkeys(point for point, found, _ in self.measured if found == mode))

    def time(self, point: str, mode: str, provider: str) -> float | None:
        """Return a median in milliseconds, None where it was not measured."""
        row = self.measured.get((point, mode, provider))
        return None if row is None else row["p50"]

    def ratio(self, point: str, mode: str, provider: str) -> float | None:
        """Return how many times ours another provider takes."""
        ours, other = self.time(point, mode, "meteora"), self.time(point, mode, provider)
        return None if ours is None or other is None else other / ours

    def best(self, point: str, mode: str) -> tuple[str, float]:
        """Return the fastest provider of the full work, and its median."""
        times = {
            provider: row["p50"]
            for (found, of_mode, provider), row in self.measured.items()
            if found == point and of_mode == mode and provider not in FLOORS
        }
        provider = min(times, key=lambda name: times[name])
        return provider, times[provider]

    def regrets(self, mode: str) -> dict[str, float]:
        """Return by point how many times the fastest provider's median ours takes."""
        times = {point: self.time(point, mode, "meteora") for point in self.points(mode)}
        return {point: ours / self.best(point, mode)[1] for point, ours in times.items() if ours is not None}


def main(arguments: list[str]) -> None:
    """Print the tables of one file of rows, and draw the plots where a folder is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run kernel-tables", description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--plots", type=Path, help="draw into this folder, as SVG; needs matplotlib")
    options = parser.parse_args(arguments)
    lines = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    sys.stdout.write("\n".join(document(lines)) + "\n")
    if options.plots:
        from benchmarks import kernel_plots

        kernel_plots.draw(Rows(lines), options.plots)


def document(lines: list[Row]) -> Iterator[str]:
    """Yield the lines of the report."""
    rows = Rows(lines)
    first = lines[0]
    yield f"Device: {first['device']}; threads {first['threads']}; torch {first['torch']}."
    yield ""
    for mode in ("forward", "forward+backward", "graph"):
        if rows.points(mode):
            yield from table(rows, mode)
    yield "Claims:"
    yield ""
    yield from (f"- {claim}" for claim in claims(rows))


def table(rows: Rows, mode: str) -> Iterator[str]:
    """Yield one mode's table, medians in milliseconds; `-` where a variant was not measured."""
    yield f"{mode}, p50 in ms"
    yield ""
    yield "| point | " + " | ".join(COLUMNS) + " | best |"
    yield "|---" * (len(COLUMNS) + 2) + "|"
    for point in rows.points(mode):
        times = [rows.time(point, mode, column) for column in COLUMNS]
        cells = ["-" if time is None else f"{time:.3g}" for time in times]
        provider, best = rows.best(point, mode)
        yield f"| {point} | " + " | ".join(cells) + f" | {provider} {best:.3g} |"
    yield ""


def claims(rows: Rows) -> Iterator[str]:
    """Yield what the measurements say of the library's promises."""
    yield from regret(rows)
    yield from never_slower(rows)
    for T, wanted in ((1, 8), (16, 4), (128, 3), (512, 2)):
        point = Point(T=T).name
        official, plain = (rows.ratio(point, "forward", p) for p in ("official_loop", "present_loop"))
        if official is not None and plain is not None:
            yield (
                f"{point}: {official:.1f}x the official-style loop (wanted {wanted}), {plain:.1f}x the loop "
                "over the members present (wanted 1)"
            )
        trained = rows.ratio(point, "forward+backward", "official_loop")
        if trained is not None:
            yield f"{point}, forward + backward: {trained:.1f}x the official-style loop (wanted 3)"
    point = Point(T=512).name
    gathered = rows.ratio(point, "forward", "gathered_bmm")
    if gathered is not None:
        yield f"{point}: {gathered:.0f}x the gathered bmm (wanted 20)"
    yield from ragged(rows)


def regret(rows: Rows) -> Iterator[str]:
    """Yield how far ours is from the best measured formulation."""
    for mode in ("forward", "forward+backward"):
        shares = rows.regrets(mode)
        if shares:
            mean = math.exp(sum(map(math.log, shares.values())) / len(shares))
            worst = max(shares, key=lambda point: shares[point])
            yield (
                f"{mode}: {mean:.3f} of the best of all formulations in geometric mean over {len(shares)} "
                f"points (wanted 1.1), at worst {shares[worst]:.2f} at {worst} (wanted 1.5)"
            )


def never_slower(rows: Rows) -> Iterator[str]:
    """Yield the worst ratio of ours to the plain loop over the members present."""
    for mode in ("forward", "forward+backward"):
        ratios = {point: rows.ratio(point, mode, "present_loop") for point in rows.points(mode)}
        known = {point: ratio for point, ratio in ratios.items() if ratio is not None}
        if known:
            least = min(known, key=lambda point: known[point])
            ratio = f"{known[least]:.2f}x the loop over the members present"
            yield f"{mode}: at least {ratio}, at {least} (wanted 1)"


def ragged(rows: Rows) -> Iterator[str]:
    """Yield what one member of rank 64 among 27 of 8 costs, beside the same routing of 28 of 8."""
    for mode in ("forward", "forward+backward"):
        for point in rows.points(mode):
            even = rows.measured.get((point, mode, "meteora_even"))
            if even is None:
                continue
            mine = rows.measured[point, mode, "meteora"]
            time, memory = mine["p50"] / even["p50"], mine["peak_mb"] / even["peak_mb"]
            yield f"{point}, {mode}: {time:.2f}x the time and {memory:.2f}x the memory of all-8 (wanted 1.3)"
