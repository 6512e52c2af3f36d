"""The pictures of a study: parameters against score, Table 3's blocks, Table 4's sizes, and the course of every run.

They are drawn from the entries of the tables, so that their numbers are the tables' numbers. All are small multiples,
a panel a task or a cell; scores are in percent points.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lnflax import wording
from lnflax.analysis import figures
from lnflax.analysis.entries import Entry
from lnflax.analysis.figures import COLOURS, GREY, INK
from lnflax.analysis.grids import Matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BLUE, ORANGE, GREEN, PINK, RED, SKY, _ = COLOURS  # the last, yellow, is lost on white
Look = tuple[str, str, Any]  # colour, marker, dashes
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# What the rates of a cell are beside the selected one: colour, width in points, dashes.
COURSES = {
    "smaller rates": (GREEN, 0.6, "-"),
    "larger rates": (RED, 0.6, (0, (3, 1.5))),
    "selected rate": (BLUE, 1.3, "-"),
    "no rate is selected": (GREY, 0.6, "-"),
}
# Inches around the panels: the legend, the ticks and the labels.
_TOP, _BOTTOM, _LEFT = 0.6, 0.45, 0.55
_SIDE: Any = {"fontsize": 8, "color": INK}


@dataclass(frozen=True)
class Course:
    """A cell and the lines of its metrics.jsonl, by seed, rate and epoch."""

    matrix: Matrix
    lines: Sequence[Mapping[str, Any]]


@figures.style()
def ratio_and_score(entries: Sequence[Entry]) -> Canvas:
    """Score against the share of the body that trains, a panel a task and a mark a setting; bars are ± std.

    Every entry has a score. The axis of shares is logarithmic, with 0 apart at its left; a dashed line is at the score
    of `full`.
    """
    kinds = enumerate(dict.fromkeys(map(_kind, entries)))
    looks = {kind: (COLOURS[place % 6], MARKERS[place % 7], "") for place, kind in kinds}
    shares = [100 * entry.ratio for entry in entries if entry.ratio > 0] or [1.0]
    lowest = math.floor(math.log10(min(shares)) + 1e-9)
    nothing = 10.0 ** (lowest - 1)
    canvas, panels = _panels(_titles(entries))
    for axes, own in zip(panels, _by_task(entries).values(), strict=True):
        for entry, aside in zip(own, _aside(own), strict=True):
            colour, marker, _ = looks[_kind(entry)]
            _mark(axes, (100 * entry.ratio or nothing) * aside, entry, colour, marker)
            if entry.setting == "full":
                _level(axes, entry, GREY, "--")
        axes.set_xscale("log")
        step = math.ceil((3 - lowest) / 4)
        ticks = [10.0**power for power in range(2, lowest - 1, -step)]
        axes.set_xticks([nothing, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
        axes.xaxis.minorticks_off()
        axes.set_xlim(nothing / 2, 200)
    canvas.supxlabel("trained parameters, % of the body", **_SIDE)
    canvas.supylabel("points", x=0.01, **_SIDE)
    _legend(canvas, looks)
    return canvas


@figures.style()
def blocks(entries: Sequence[Entry]) -> Canvas:
    """Table 3: score by the block whose LayerNorms train, a panel a task; lines across are the reference settings."""
    canvas, panels = _panels(_titles(entries))
    lines = {"layernorms": (BLUE, "--"), "full": (INK, ":"), "frozen": (GREY, "-.")}
    for axes, own in zip(panels, _by_task(entries).values(), strict=True):
        _series(axes, own, "single_norm", ORANGE, "o")
        for entry in own:
            if entry.setting in lines:
                _level(axes, entry, *lines[entry.setting])
    canvas.supxlabel("block", **_SIDE)
    canvas.supylabel("points", x=0.01, **_SIDE)
    there = {entry.setting for entry in entries}
    levels = {name: (colour, "", dashes) for name, (colour, dashes) in lines.items() if name in there}
    _legend(canvas, {"one block's LayerNorms": (ORANGE, "o", "-"), **levels})
    return canvas


@figures.style()
def sizes(entries: Sequence[Entry]) -> Canvas:
    """Table 4: score by how many scalars of each LayerNorm train, outliers against random ones, a panel a task."""
    canvas, panels = _panels(_titles(entries))
    ticks = sorted({number for entry in entries if (number := _number(entry))})
    for axes, own in zip(panels, _by_task(entries).values(), strict=True):
        _series(axes, own, "outliers", BLUE, "o", aside=0.97)
        _series(axes, own, "random_norms", ORANGE, "s", "--", aside=1.03)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.minorticks_off()
    canvas.supxlabel("trained scalars of each LayerNorm", **_SIDE)
    canvas.supylabel("points", x=0.01, **_SIDE)
    _legend(canvas, {"outliers": (BLUE, "o", "-"), "random scalars, as many": (ORANGE, "s", "--")})
    return canvas


@figures.style()
def courses(cells: Sequence[Course]) -> Canvas:
    """The score of every run by epoch, a panel a cell of one task: a line a run, those of the selected rate thick.

    × is where a run ends early because it diverged.
    """
    canvas, panels = _panels([own.matrix.setting for own in cells], columns=4, height=1.25, share=True)
    canvas.supxlabel("epoch", **_SIDE)
    canvas.supylabel(f"{cells[0].matrix.metric}, points", x=0.01, **_SIDE)
    seen = [_course(axes, own) for axes, own in zip(panels, cells, strict=True)]
    looks = {name: look for name, look in COURSES.items() if any(name in names for names in seen)}
    _legend(canvas, {name: (colour, "", dashes) for name, (colour, _, dashes) in looks.items()})
    return canvas


def _course(axes: Axes, cell: Course) -> set[str]:
    """The lines of a cell; which of `COURSES` they are."""
    seen, metric = set(), cell.matrix.metric
    runs: dict[tuple[float, int], list[tuple[int, float]]] = {}
    for line in cell.lines:
        if (value := line.get(metric)) is not None:
            runs.setdefault((line["learning_rate"], line["seed"]), []).append((line["epoch"], 100 * value))
    last = max((line["epoch"] for line in cell.lines), default=0)
    # The selected rate comes last, to lie above the others.
    for (rate, seed), points in sorted(runs.items(), key=lambda run: run[0][0] == cell.matrix.selected):
        seen.add(look := _look(rate, cell.matrix.selected))
        colour, width, dashes = COURSES[look]
        epochs, values = zip(*points, strict=True)
        marker = "." if len(epochs) == 1 else ""  # a line of one point is not seen
        (drawn,) = axes.plot(epochs, values, color=colour, linewidth=width, linestyle=dashes, marker=marker)
        figures.hover(drawn, f"rate {rate:g}, seed {seed}: {values[-1]:.1f} at epoch {epochs[-1]}")
        if epochs[-1] < last:
            axes.plot(epochs[-1:], values[-1:], "x", color=colour, markersize=4)
    axes.locator_params(axis="x", integer=True, nbins=4, min_n_ticks=1)
    return seen


def _look(rate: float, selected: float | None) -> str:
    if selected is None:
        return "no rate is selected"
    return "selected rate" if rate == selected else "smaller rates" if rate < selected else "larger rates"


def _panels(
    titles: Sequence[str], columns: int = 3, height: float = 1.6, share: bool = False
) -> tuple[Canvas, list[Axes]]:
    """A canvas with a panel of so many inches for each title; x axes are shared, and y axes if so asked."""
    columns = min(columns, len(titles))
    rows, width = math.ceil(len(titles) / columns), figures.WIDTH * max(0.55, min(1, columns / 3))
    tall = rows * height + _TOP + _BOTTOM
    canvas = figures.new_canvas(width, tall, layout=None)
    panel, apart = (width - _LEFT - 0.1) / columns, 0.15 if share else 0.35
    canvas.subplots_adjust(
        left=_LEFT / width,
        right=1 - 0.1 / width,
        top=1 - _TOP / tall,
        bottom=_BOTTOM / tall,
        wspace=apart / (panel - apart),
        hspace=0.45 / (height - 0.45),
    )
    every = list(canvas.subplots(rows, columns, sharex=True, sharey=share, squeeze=False).flat)
    for axes, title in zip(every, titles, strict=False):
        axes.set_title(title, loc="left")
    for axes in every[len(titles) :]:
        axes.remove()
    for axes in every[max(len(titles) - columns, 0) : len(titles)]:
        axes.xaxis.set_tick_params(labelbottom=True)
    return canvas, every[: len(titles)]


def _legend(canvas: Canvas, looks: Mapping[str, Look]) -> None:
    """One legend above all panels."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle=dashes, markersize=4, label=name)
        for name, (colour, marker, dashes) in looks.items()
    ]
    columns = max(1, min(len(handles), int(canvas.get_figwidth() / 1.1)))
    canvas.legend(handles=handles, loc="upper left", ncols=columns, handlelength=1.8, borderaxespad=0.2)


def _series(
    axes: Axes,
    entries: Iterable[Entry],
    family: str,
    colour: str,
    marker: str,
    dashes: str = "-",
    aside: float = 1.0,
) -> None:
    """The settings FAMILY_N of a task as a line over N, which stands so many times aside."""
    own = [entry for entry in entries if entry.setting.startswith(f"{family}_") and entry.values[0].mean is not None]
    places = {entry.setting: number for entry in own if (number := _number(entry)) is not None}
    own.sort(key=lambda entry: places[entry.setting])
    numbers = [aside * places[entry.setting] for entry in own]
    axes.plot(numbers, [100 * (entry.values[0].mean or 0) for entry in own], dashes, color=colour, linewidth=0.9)
    for x, entry in zip(numbers, own, strict=True):
        _mark(axes, x, entry, colour, marker)


def _aside(entries: Sequence[Entry]) -> list[float]:
    """Factors that set marks of the same share side by side, over at most half a decade."""
    ratios = [entry.ratio for entry in entries]
    factors = []
    for place, ratio in enumerate(ratios):
        count, before = ratios.count(ratio), ratios[:place].count(ratio)
        factors.append(10 ** (min(0.12, 0.5 / count) * (before - (count - 1) / 2)))
    return factors


def _mark(axes: Axes, x: float, entry: Entry, colour: str, marker: str) -> None:
    """An entry's mean as a mark, and its ± std as a bar."""
    mean, std = entry.values[0].mean, entry.values[0].std
    if mean is None:
        return
    if std is not None:
        axes.plot([x, x], [100 * (mean - std), 100 * (mean + std)], color=colour, linewidth=0.7)
    (drawn,) = axes.plot([x], [100 * mean], marker, color=colour, markersize=4.5, markeredgewidth=0)
    figures.hover(drawn, _told(entry))


def _level(axes: Axes, entry: Entry, colour: str, dashes: str) -> None:
    """An entry's mean as a line across."""
    if (mean := entry.values[0].mean) is not None:
        drawn = axes.axhline(100 * mean, color=colour, linestyle=dashes, linewidth=0.8, zorder=0)
        figures.hover(drawn, _told(entry))


def _told(entry: Entry) -> str:
    """`rte, layernorms: 75.0 ± 12.5; trains 0.034 %`, the numbers of the table."""
    return f"{entry.task}, {entry.setting}: {entry.text({})}; trains {wording.ratio_percent(entry.ratio)}"


def _by_task(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        found.setdefault(entry.task, []).append(entry)
    return found


def _titles(entries: Iterable[Entry]) -> list[str]:
    return [f"{task}, {own[0].values[0].metric}" for task, own in _by_task(entries).items()]


def _kind(entry: Entry) -> str:
    """The setting; of a family that goes on with numbers, the family."""
    return re.sub(r"^(single_norm|outliers|random_norms)_\d+$", r"\1_N", entry.setting)


def _number(entry: Entry) -> int | None:
    match = re.fullmatch(r"(?:single_norm|outliers|random_norms)_(\d+)", entry.setting)
    return int(match[1]) if match else None
