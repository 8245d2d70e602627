"""Goals of a run on a GPU, beside the figures of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from benchmarks import kernel_costs
from benchmarks.kernel_points import RAGGED, Point
from benchmarks.pages import Row

# They do less than the full work.
FLOORS = ("one_lora", "base_gemm", "meteora_", "meteora_even")


class Found:
    """The measured rows of a run; those of tuned block sizes replace the first ones."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)
        self.times = {
            (r["point"], r["mode"], r["provider"]): r["p50"]
            for r in self.rows
            if r.get("subject") == "kernels" and "p50" in r
        }

    def of(self, subject: str) -> list[Row]:
        """Return the rows of one subject."""
        return [row for row in self.rows if row.get("subject") == subject]

    def ratio(self, point: Point, mine: tuple[str, str], other: tuple[str, str]) -> float | None:
        """Return one time over another at a point, each named by its mode and provider."""
        first, second = (self.times.get((point.name, *key)) for key in (mine, other))
        return None if first is None or second is None else first / second

    def over_best_other(self, point: Point) -> float | None:
        """Return our time over that of the fastest other formulation of the same work, in graphs."""
        others = [
            time
            for (name, mode, provider), time in self.times.items()
            if name == point.name and mode == "graph" and provider not in (*FLOORS, "meteora")
        ]
        mine = self.times.get((point.name, "graph", "meteora"))
        return None if mine is None or not others else mine / min(others)

    def over_floor(self, point: Point) -> float | None:
        """Return our time over the floor of the model of costs, in a graph."""
        mine = self.times.get((point.name, "graph", "meteora_"))
        least = kernel_costs.floor(point).us - kernel_costs.LAUNCH_US
        return None if mine is None else 1e3 * mine / least

    def decode(self) -> float | None:
        """Return the milliseconds that gates and members add to a decoding step of one token, in a graph."""
        steps = [r for r in self.of("decode") if r["T"] == 1 and r["mode"] == "graph"]
        return steps[-1]["gated"] - steps[-1]["base"] if steps else None

    def all_hold(self, subject: str, key: str) -> float | None:
        """Return the share of a subject's rows in which `key` holds; skipped ones are not counted."""
        rows = [row for row in self.of(subject) if key in row]
        return sum(bool(row[key]) for row in rows) / len(rows) if rows else None


def _point(tokens: int, ranks: int | str = 8) -> Point:
    return Point(T=tokens, ranks=ranks, dtype="bf16")


# What is looked at, how it is found, and the most that it may be; shares must be the whole.
MOST: tuple[tuple[str, Callable[[Found], float | None], float], ...] = (
    ("ms that 224 gated linears add to a token, in one graph", Found.decode, 0.6),
    ("T = 64, over the best other formulation", lambda f: f.over_best_other(_point(64)), 1.2),
    ("T = 4096, rank 8, over the floor", lambda f: f.over_floor(_point(4096)), 1.3),
    ("T = 4096, rank 64, uniform, over the floor", lambda f: f.over_floor(_point(4096, 64)), 2.0),
    (
        "T = 16, one of 64 among 8s, over all of 8",
        lambda f: f.ratio(_point(16, RAGGED), ("graph", "meteora"), ("graph", "meteora_even")),
        1.3,
    ),
    (
        "T = 4096, one of 64 among 8s, over all of 8",
        lambda f: f.ratio(_point(4096, RAGGED), ("graph", "meteora"), ("graph", "meteora_even")),
        1.3,
    ),
    (
        "T = 4096, forward + backward over forward",
        lambda f: f.ratio(_point(4096), ("forward+backward", "meteora"), ("forward", "meteora")),
        2.5,
    ),
)
WHOLE: tuple[tuple[str, str, str], ...] = (
    ("calls within the tolerance of float64", "errors", "right"),
    ("calls with the same bits when repeated", "errors", "repeated"),
    ("kernel tests", "tests", "passed"),
    ("calls compiled whole", "compiled", "passed"),
    ("tools of the sanitizer without a finding", "sanitizer", "passed"),
    ("steps that came to their end", "step", "passed"),
)


def goals(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield each goal with what was found; `met` is None where nothing was."""
    found = Found(rows)
    for name, measure, most in MOST:
        value = measure(found)
        met = None if value is None else value <= most
        yield {"subject": "goal", "goal": name, "found": value, "at_most": most, "met": met}
    for name, subject, key in WHOLE:
        share = found.all_hold(subject, key)
        met = None if share is None else share == 1.0
        yield {"subject": "goal", "goal": name, "found": share, "at_least": 1.0, "met": met}


def line(row: Row) -> str:
    """Return a goal as a line for people."""
    found = "not measured" if row["found"] is None else f"{row['found']:.3g}"
    wanted = f"at most {row['at_most']}" if "at_most" in row else "all"
    return f"{ {True: 'met', False: 'MISSED', None: '-'}[row['met']] }: {row['goal']}: {found} ({wanted})"
