"""Pictures of how weights are distributed: by module over all blocks, by block, and what tuning has changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lnflax.analysis import weight_tables, weights
from lnflax.analysis.figures import COLOURS, GREY, INK, WIDTH, Figure, new_canvas, style
from lnflax.analysis.weight_tables import COLUMNS, DENSE, NORMS, Summaries, Tuned
from lnflax.analysis.weights import Change, Place, Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

MODULES = (*DENSE, *NORMS)
PARTS = ("scale", "bias", None)
TITLES = {
    **{name: name.replace("_", " ") for name in DENSE},
    "intermediate": "feed-forward, first",
    "ffn_output": "feed-forward, second",
    "ln_a": "LN_a",
    "ln_f": "LN_f",
}
TUNED = COLOURS[0]
PALE = "#d0d0d0"
FAINT = 0.03  # of the highest density
SHOWN = 240  # places of a curve, and ticks beside it
SMOOTHED = "Densities are histograms smoothed as the table's note says; each is as it counts modes."


@style()
def figures(before: Summaries, runs: Sequence[Tuned], about: str) -> list[Figure]:
    """Of the checkpoint, or, where there are runs, of each run with the checkpoint.

    Args:
        before: of the checkpoint.
        runs: of it.
        about: the caption's end: which checkpoint, by which command.
    """
    drawn = [figure for run in runs for figure in _of_run(before, run, about)]
    return drawn or list(_distributions(before, None, "", about))


def _of_run(before: Summaries, run: Tuned, about: str) -> Iterator[Figure]:
    own = run.about
    suffix = f"-{own.task}-{own.setting}-seed{own.seed}"
    told = f"Grey: the checkpoint; blue: {run.name}. {about}"
    yield from _distributions(before, run.summaries, suffix, told)
    caption = f"Relative change ‖after − before‖ / ‖before‖ in percent by module and block, {run.name}. {about}"
    yield Figure(f"distributions-change{suffix}", _change(run.change), caption)


def _distributions(before: Summaries, after: Summaries | None, suffix: str, about: str) -> Iterator[Figure]:
    yield Figure(
        f"distributions-modules{suffix}",
        _modules(before, after),
        "Weights of each kind of module over all blocks, both leaves together (a LayerNorm's scale and bias, a dense "
        f"layer's kernel and bias); the axis of the density is logarithmic. {SMOOTHED} {about}",
    )
    ridges = (
        f"Every ridge is drawn as high as the others; ticks are bins that hold weights beyond 3 σ. {SMOOTHED} {about}"
    )
    norms = [Place(kind, part) for kind in NORMS for part in PARTS]
    yield Figure(
        f"distributions-norms{suffix}",
        _ridges(before, after, norms),
        f"Scale and bias of both LayerNorms, apart and together, block by block. {ridges}",
    )
    yield Figure(
        f"distributions-matrices{suffix}",
        _ridges(before, after, [Place(kind) for kind in DENSE]),
        f"Weights of the dense layers block by block, kernel and bias together. {ridges}",
    )


def _modules(before: Summaries, after: Summaries | None) -> Canvas:
    canvas = new_canvas(WIDTH, 3.6)
    for number, (kind, axes) in enumerate(zip(MODULES, canvas.subplots(2, 4).flat, strict=True)):
        own = before[Place(kind)]
        x, y = _curve(own)
        axes.fill_between(x, y, facecolor=PALE, edgecolor=GREY, linewidth=0.3)
        if after is not None:
            axes.plot(*_curve(after[Place(kind)]), color=TUNED, linewidth=0.7)
        axes.set_yscale("log")
        # Below a single scalar's share of a bin there is only the smoothing's tail.
        axes.set_ylim(bottom=min(0.05 / (own.moments.count * weights.WIDTH), y.max() / 1e3))
        axes.set_title(TITLES[kind])
        if number % 4 == 0:
            axes.set_ylabel("density")
        if number >= 4:
            axes.set_xlabel("weight")
    if after is not None:
        _legend(canvas)
    return canvas


def _legend(canvas: Canvas) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=PALE, edgecolor=GREY, label="before"), Line2D([], [], color=TUNED, label="after")]
    canvas.legend(handles=handles, loc="outside upper right", ncols=2)


def _ridges(before: Summaries, after: Summaries | None, columns: Sequence[Place]) -> Canvas:
    rows = weight_tables.blocks(before)
    canvas = new_canvas(WIDTH, 1.1 + 2 * max(0.16 * len(rows), 1.2))
    for number, (column, axes) in enumerate(zip(columns, canvas.subplots(2, 3).flat, strict=True)):
        for block in rows:
            where = Place(column.kind, column.part, block)
            _ridge(axes, before[where], after[where] if after is not None else None, -block)
        axes.set_title(f"{TITLES[column.kind]} {_part(column)}".strip())
        axes.set_yticks([-block for block in rows], map(str, rows))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        if number % 3 == 0:
            axes.set_ylabel("block")
        if number >= 3:
            axes.set_xlabel("weight")
    if after is not None:
        _legend(canvas)
    return canvas


def _part(column: Place) -> str:
    return "scale and bias" if column.kind in NORMS and column.part is None else column.part or ""


def _ridge(axes: Any, before: Summary, after: Summary | None, base: float) -> None:
    x, y = _curve(before)
    tuned = _curve(after) if after is not None else None
    scale = 0.85 / max(y.max(), tuned[1].max() if tuned else 0)
    axes.fill_between(x, base, base + scale * y, color=PALE, linewidth=0)
    _ticks(axes, before, base, INK)
    if after is not None and tuned:
        # Along the base line an outline says nothing.
        shown = np.where(tuned[1] > FAINT * tuned[1].max(), base + scale * tuned[1], np.nan)
        axes.plot(tuned[0], shown, color=TUNED, linewidth=0.7)
        _ticks(axes, after, base - 0.12, TUNED)


def _curve(own: Summary) -> tuple[np.ndarray, np.ndarray]:
    """The density at no more places than a picture can show; a peak between two of them keeps its height."""
    x, y = weights.density(own.counts)
    size = -(-len(x) // SHOWN)
    edges = np.arange(0, len(x), size)
    return x[np.minimum(edges + size // 2, len(x) - 1)], np.maximum.reduceat(y, edges)


def _ticks(axes: Any, own: Summary, height: float, colour: str) -> None:
    far = weights.outside(own)
    step = (own.moments.high - own.moments.low) / SHOWN
    if len(far) and step:  # one of those that would lie over each other
        far = far[np.unique(np.floor(far / step), return_index=True)[1]]
    axes.plot(far, np.full(len(far), height), "|", color=colour, markersize=2.5, markeredgewidth=0.4)


def _change(change: Change) -> Canvas:
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    rows = weight_tables.blocks(change.relative)
    values = 100 * np.array([[_value(change.relative, column, block) for column in COLUMNS] for block in rows])
    moved = values[values > 0]
    norm = LogNorm(moved.min(), max(moved.max(), 1.01 * moved.min())) if len(moved) else LogNorm()
    canvas = new_canvas(WIDTH, 1.3 + 0.2 * len(rows))
    axes = canvas.subplots()
    image = axes.imshow(np.ma.masked_less_equal(values, 0), cmap="Blues", aspect="auto", norm=norm)
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = value > 0 and norm(value) > 0.55
            look: Any = {"ha": "center", "va": "center", "fontsize": 6, "color": "white" if dark else INK}
            axes.text(column, row, f"{value:.2g}" if value < 99.5 else f"{value:.0f}", **look)
    names = [f"{TITLES[column.kind]} {_part(column)}".strip() for column in COLUMNS]
    axes.set_xticks(range(len(COLUMNS)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), map(str, rows))
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_ylabel("block")
    if len(moved):
        bar = canvas.colorbar(
            image, ax=axes, label="relative change, %", fraction=0.04, ticks=LogLocator(subs=(1, 2, 5)), format="%g"
        )
        bar.minorticks_off()
        bar.outline.set_visible(False)
    return canvas


def _value(relative: Mapping[Place, float | None], column: Place, block: int) -> float:
    value = relative[Place(column.kind, column.part, block)]
    return float("nan") if value is None else value
