"""The outliers as pictures: which dimensions recur over LayerNorms, where they lie, and how far tuning moves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lnflax.analysis import outlier_choice, outlier_moves
from lnflax.analysis.figures import COLOURS, GREY, INK, WIDTH, Figure, new_canvas, style
from lnflax.analysis.outlier_choice import KINDS, LEAVES, SIGMAS, Outliers
from lnflax.analysis.outlier_moves import Move

# The rules of each panel; scale and bias alone are much like the two halves of each.
PANELS = {"pooled": ("pooled",), "each": ("each",), "3σ, scale and bias apart": ("3σ scale", "3σ bias")}
DIMENSIONS = 20
FOLLOWED = 3  # dimensions drawn as lines
BLANK = "#F2F2F2"
SCALE, BIAS, BOTH = COLOURS[0], COLOURS[1], COLOURS[2]


@style()
def draw(outliers: Outliers, moves: Sequence[Move], about: str) -> list[Figure]:
    """All figures; of the moves none where no ratio is known. `about` says of which model, and with which command."""
    drawn = [_recurrence(outliers, about), _values(outliers, about)]
    shown = [move for move in moves if move.ratio]  # a logarithm of 0 has no place
    return [*drawn, _movement(shown, about)] if shown else drawn


def _recurrence(outliers: Outliers, about: str) -> Figure:
    """LayerNorms against the dimensions that are chosen most, a panel a rule."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    dims, order = outlier_choice.top(outliers, DIMENSIONS), _by_kind(outliers)
    names = [outliers.norms[i].name for i in order]
    canvas = new_canvas(WIDTH, 1.3 + 0.13 * len(names))
    panels = canvas.subplots(1, len(PANELS), sharey=True)
    colours = ListedColormap([BLANK, SCALE, BIAS, BOTH])
    for panel, (title, own) in zip(panels, PANELS.items(), strict=True):
        chosen = np.any([outliers.chosen[rule] for rule in own], axis=0)
        scale, bias = np.moveaxis(chosen[order][:, :, dims], 1, 0)
        panel.pcolormesh(scale + 2 * bias, cmap=colours, vmin=0, vmax=3, edgecolors="white", linewidth=0.6)
        panel.set_xticks(np.arange(len(dims)) + 0.5, [str(d) for d in dims], rotation=90, fontsize=6)
        panel.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6)
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
        panel.axhline(sum(outliers.norms[i].kind == "a" for i in order), color=INK, linewidth=0.6)
        panel.set_title(title)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("LayerNorm")
    canvas.supxlabel("dimension, most often chosen first", fontsize=8)
    keys = [Patch(color=colour, label=label) for colour, label in ((SCALE, "scale"), (BIAS, "bias"), (BOTH, "both"))]
    canvas.legend(handles=keys, loc="outside upper center", ncols=len(keys))
    caption = (
        f"The {len(dims)} dimensions that are outliers of most LayerNorms, summed over all rules, and where each rule "
        "chooses them: by their scale, by their bias, or both. Above, the attention's LayerNorms, by block; below, the "
        "feed-forward's. pooled: the scalars farthest from the mean of scale and bias together; each: half of them of "
        "scale and half of bias, by a mean of their own; 3σ: all farther than 3 standard deviations from the mean of "
        f"their own kind. {about}"
    )
    return Figure("outliers-recurrence", canvas, caption)


def _by_kind(outliers: Outliers) -> list[int]:
    """The places of the attention's LayerNorms, then of the feed-forward's: what the two have is unlike."""
    return sorted(range(len(outliers.norms)), key=lambda i: (outliers.norms[i].kind, i))


def _values(outliers: Outliers, about: str) -> Figure:
    """Every scalar over depth, those that are chosen, and the dimensions that recur most as lines."""
    dims, order = outlier_choice.top(outliers, FOLLOWED), _by_kind(outliers)
    second = np.array([outliers.norms[i].kind == "f" for i in order])
    canvas, places = new_canvas(WIDTH, 4.2), np.arange(len(order)) + 0.6 * second
    panels = canvas.subplots(len(LEAVES), 1, sharex=True)
    spread = np.linspace(-0.25, 0.25, outliers.width)
    for leaf, (panel, name) in enumerate(zip(panels, LEAVES, strict=True)):
        values, chosen = outliers.values[order, leaf], outliers.chosen["pooled"][order, leaf]
        at = places[:, None] + spread
        # Thousands of dots are one picture inside the vectors.
        panel.scatter(at[~chosen], values[~chosen], s=2, color=GREY, alpha=0.35, linewidths=0, rasterized=True)
        panel.scatter(at[chosen], values[chosen], s=7, color=INK, linewidths=0, label="chosen (pooled)")
        mean, std = values.mean(axis=1), values.std(axis=1)
        for place, middle, far in zip(places, mean, SIGMAS * std, strict=True):
            panel.hlines([middle - far, middle + far], place - 0.35, place + 0.35, color=GREY, linewidth=0.7)
        for dimension, colour in zip(dims, COLOURS, strict=False):
            own, label = places + spread[dimension], f"dimension {dimension}"
            for part, shown in ((~second, label), (second, None)):
                panel.plot(own[part], values[part, dimension], color=colour, linewidth=0.9, label=shown)
        panel.set_ylabel(name)
    panels[-1].set_xticks(places, [outliers.norms[i].name for i in order])
    panels[-1].set_xlabel("LayerNorm: of the attention (a) and of the feed-forward (f) of each block")
    handles, labels = panels[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    caption = (
        f"Every scale and bias of the LayerNorms, by dimension from left to right; black those that the pooled rule "
        f"chooses, between the short lines those within 3 standard deviations of the mean of their own kind, and as "
        f"lines the {len(dims)} dimensions that all rules together choose most often. {about}"
    )
    return Figure("outliers-values", canvas, caption)


def _movement(moves: Sequence[Move], about: str) -> Figure:
    """How many times as far the outliers of each cell moved as the others, a panel a rule."""
    from matplotlib.lines import Line2D

    cells = list(dict.fromkeys(f"{move.task}  {move.setting}" for move in moves))
    rules = list(dict.fromkeys(move.rule for move in moves))
    canvas = new_canvas(WIDTH, 1.3 + 0.28 * len(cells))
    panels: Any = canvas.subplots(1, len(rules), sharex=True, sharey=True, squeeze=False)[0]
    for (task, setting, rule, kind), own in outlier_moves.by_cell(moves).items():
        panel, colour = panels[rules.index(rule)], COLOURS[list(KINDS).index(kind)]
        place = cells.index(f"{task}  {setting}") + 0.2 * (2 * list(KINDS).index(kind) - 1)
        for values, shift, inside in (
            ([move.ratio for move in own], -0.08, colour),
            ([move.relative_ratio for move in own], 0.08, "white"),
        ):
            known = [value for value in values if value]
            if known:
                panel.hlines(place + shift, min(known), max(known), color=colour, linewidth=0.9)
                panel.plot(np.mean(known), place + shift, "o", markersize=3.6, color=colour, markerfacecolor=inside)
    for panel, rule in zip(panels, rules, strict=True):
        panel.axvline(1, color=GREY, linewidth=0.7, zorder=0)
        for between in np.arange(len(cells) - 1) + 0.5:
            panel.axhline(between, color=BLANK, linewidth=0.8, zorder=0)
        panel.tick_params(axis="y", length=0)
        panel.set_title(rule)
    _log_ticks(panels[0], [value for move in moves for value in (move.ratio, move.relative_ratio) if value])
    panels[0].set_yticks(range(len(cells)), cells)
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    canvas.supxlabel("distance moved, outliers over others", fontsize=8)
    names = {"a": "attention's norms", "f": "feed-forward's norms"}
    keys = [Line2D([], [], color=colour, marker="o", markersize=3.6, label=names[kind])
            for kind, colour in zip(KINDS, COLOURS, strict=False)]  # fmt: skip
    hollow = Line2D([], [], color=INK, marker="o", markersize=3.6, markerfacecolor="white", linewidth=0.9)
    hollow.set_label("relative to the size before")
    canvas.legend(handles=[*keys, hollow], loc="outside upper center", ncols=len(keys) + 1)
    runs = sorted({(move.task, move.setting, move.learning_rate, move.epoch, move.seed) for move in moves})
    told = "; ".join(dict.fromkeys(_told(run, runs) for run in runs))
    caption = (
        "How many times as far training moved the outliers as the other scalars that the rule chose them among: mean "
        "|after - before| of those that the setting trains; hollow: of distances over the mean |before| of the same "
        f"scalars. Dots are means over seeds, lines reach from smallest to largest; what has no ratio is left out. "
        f"Runs: {told}. {about}"
    )
    return Figure("outliers-movement", canvas, caption)


def _log_ticks(panel: Any, values: Sequence[float]) -> None:
    """A logarithmic axis around 1 with plain numbers, few enough to be read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(0.3, *values), max(3, *values)
    panel.set_xscale("log")
    panel.set_xlim(low / 1.3, high * 1.3)
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high < 1000 * low else (1.0,)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


def _told(run: tuple[Any, ...], runs: Sequence[tuple[Any, ...]]) -> str:
    """A cell's runs: `rte/full at 0.001, epoch 5, seeds 0, 1, 2`."""
    task, setting, rate, epoch, _ = run
    seeds = ", ".join(str(seed) for *own, seed in runs if own == list(run[:-1]))
    return f"{task}/{setting} at {rate:g}, epoch {epoch}, seeds {seeds}"
