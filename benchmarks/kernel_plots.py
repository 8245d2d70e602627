"""The plots of docs/kernels.md, from rows: ``python -m benchmarks.run kernel-tables ROWS --plots FOLDER``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.kernel_points import DTYPES, TOKENS, Point

if TYPE_CHECKING:
    from benchmarks.kernel_tables import Rows

LABELS = {
    "meteora": "this library",
    "official_loop": "loop over all members, strided B",
    "present_loop": "loop over the members present",
    "gathered_bmm": "gather of A and B, batched products",
    "dense": "two products over all members",
    "one_lora": "one plain LoRA (less work)",
}
MODES = {"forward": "o", "forward+backward": "x"}


def draw(rows: Rows, folder: Path) -> None:
    """Write `kernels-tokens.svg` and `kernels-regret.svg` into `folder`, the same bytes for the same rows."""
    folder.mkdir(parents=True, exist_ok=True)
    style = {"svg.fonttype": "none", "svg.hashsalt": "kernels", "font.size": 8, "lines.linewidth": 1.2}
    with matplotlib.rc_context(style):
        for name, figure in (("tokens", over_tokens(rows)), ("regret", regrets(rows))):
            figure.savefig(folder / f"kernels-{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def over_tokens(rows: Rows) -> Figure:
    """Return the medians of a forward over T, one panel per dtype."""
    figure = Figure(figsize=(8.0, 3.4))
    panels: list[Axes] = list(figure.subplots(1, len(DTYPES), sharey=True))
    for panel, dtype in zip(panels, DTYPES, strict=True):
        for provider, label in LABELS.items():
            times = {T: rows.time(Point(T=T, dtype=dtype).name, "forward", provider) for T in TOKENS}
            known = {T: time for T, time in times.items() if time is not None}
            ours = provider == "meteora"
            panel.plot(
                list(known), list(known.values()), marker=".", label=label, linewidth=2.2 if ours else 1.0
            )
        limits = {"xlim": (0.7, 6000), "ylim": (0.03, 1000)}
        panel.set(xscale="log", yscale="log", xlabel="tokens", title=dtype, **limits)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.set_xticks(TOKENS, [str(T) for T in TOKENS], fontsize=7)
    panels[0].set_ylabel("forward, median in ms")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="upper center", ncol=3, bbox_to_anchor=(0.5, 1.07)
    )
    return figure


def regrets(rows: Rows) -> Figure:
    """Return, for every point, the time of ours over that of the fastest formulation measured, sorted."""
    figure = Figure(figsize=(8.0, 2.6))
    panel: Axes = figure.subplots()
    for mode, marker in MODES.items():
        shares = sorted(rows.regrets(mode).values())
        panel.plot(range(1, len(shares) + 1), shares, marker, markersize=3, label=mode)
    panel.axhline(1.0, color="grey", linewidth=0.8)
    panel.set(
        xlabel="points, best first",
        ylabel="ours / fastest measured",
    )
    panel.set_ylim(bottom=0.9)
    panel.grid(alpha=0.3)
    panel.legend()
    return figure
