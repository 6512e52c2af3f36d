"""An ablation as a table, as CSV, and as a figure of the score over the number of scalars."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lnflax import selection, wording
from lnflax.analysis import figures, formats
from lnflax.analysis.ablation import TREATMENTS, Ablation, Change, Effect, ablate
from lnflax.analysis.figures import Figure
from lnflax.analysis.formats import Grid
from lnflax.storage import durable_write

FIELDS = (
    *("task", "setting", "metric", "learning_rate", "seeds", "scalars_of_each_norm", "set_to", "tuned"),
    *(f"{part}{end}" for part in ("outliers", "random", "difference") for end in ("", "_low", "_high")),
    *("random_least", "random_greatest"),
)
_HEADER = (
    *("each norm", "set to", "outliers", "95 % interval", "random", "95 % interval"),
    *("draws", "outliers − random", "95 % interval"),
)


def make_ablation(paths: Sequence[Path], counts: Sequence[int], draws: int, out: Path | str | None = None) -> str:
    """The table as Markdown; with `out` also written there as `.md` and `.csv`, and its figure.

    Raises:
        InputError: bad input, on one line.
    """
    made = ablate(paths, counts, draws)
    given = {"deltas": paths, "counts": counts, "draws": [draws], "out": [out] if out is not None else []}
    words = [word for name, values in given.items() if values for word in (f"--{name}", *map(str, values))]
    text = markdown(made, shlex.join(["python", "analyze.py", "ablate", *words]))
    if out is None:
        return text
    name = f"ablation-{made.cell['task']}-{made.cell['setting']}"
    forms = {"md": text, "csv": formats.csv_text(FIELDS, rows(made))}
    written = [Path(out) / f"{name}.{suffix}" for suffix in forms]
    for path, form in zip(written, forms.values(), strict=True):
        durable_write(path, form.encode())
    written += figures.write_figures(out, [draw(name, made, text.splitlines()[-1])])
    return f"{text}\nWritten: {', '.join(map(str, written))}\n"


def rows(made: Ablation) -> Iterator[tuple[Any, ...]]:
    """The values of `FIELDS`, a row an effect; scores and changes are fractions."""
    cell = made.cell
    for effect in made.effects:
        parts = (effect.outliers, effect.random, effect.contrast)
        yield (
            *(cell["task"], cell["setting"], made.metric, made.learning_rate, len(made.seeds)),
            *(effect.count, effect.to, made.tuned),
            *(value for part in parts for value in (part.mean, *(part.interval or (None, None)))),
            *effect.draws,
        )


def markdown(made: Ablation, command: str) -> str:
    """Title, table, and on the last line what was measured and by which command."""
    lines = [
        (
            *(f"{effect.count:,}", effect.to, *_cells(effect.outliers), *_cells(effect.random)),
            f"{wording.signed(effect.draws[0])} … {wording.signed(effect.draws[1])}",
            *_cells(effect.contrast),
        )
        for effect in made.effects
    ]
    title = f"## {made.cell['task']}, {made.cell['setting']}: {made.metric} without outliers"
    return f"{title}\n\n{formats.markdown(Grid(_HEADER, tuple(lines), names=2))}\n{caption(made)} Command: {command}\n"


def _cells(change: Change) -> tuple[str, str]:
    return wording.signed(change.mean), wording.span(change.interval, wording.signed)


def caption(made: Ablation) -> str:
    """What was measured, and on what."""
    cell, seeds = made.cell, ", ".join(map(str, made.seeds))
    stored = selection.at_rate(cell["runs"], made.learning_rate, made.metric, cell["report_epoch"])["mean"]
    pool = "scale and bias pooled" if made.pool == "pooled" else made.pool
    return (
        f"Changes of {made.metric} in points, from {wording.percent(made.tuned, 2)} of the tuned models as they are"
        f" (results.json: {wording.percent(stored, 2)}): {cell['task']} {made.split}, {made.examples:,} examples;"
        f" {cell['setting']} at rate {made.learning_rate:g}, seeds {seeds}. So many scalars of each of {made.norms}"
        f" LayerNorms are set to their pretrained value or to zero: the outliers of the pretrained model ({pool}), or"
        f" as many random ones, mean over {made.draws} draws, the least and the greatest beside it. 95 % intervals:"
        f" bootstrap over seeds and examples together."
    )


@figures.style()
def draw(name: str, made: Ablation, told: str) -> Figure:
    """The score over the number of scalars of each norm, a panel a treatment; `told` is its caption."""
    canvas = figures.new_canvas(height=2.6)
    panels = canvas.subplots(1, len(TREATMENTS), sharey=True)
    for axes, to in zip(panels, TREATMENTS, strict=True):
        effects = [effect for effect in made.effects if effect.to == to]
        _panel(axes, effects, made.tuned)
        axes.set_title("reset to the pretrained value" if to == TREATMENTS[0] else "set to zero")
        axes.set_xlabel("scalars of each LayerNorm")
    panels[0].set_ylabel(f"{made.cell['task']}, {made.metric} (points)")
    panels[0].legend(loc="lower left")
    return Figure(name, canvas, told)


def _panel(axes: Any, effects: Sequence[Effect], tuned: float) -> None:
    places = range(len(effects))  # counts are evenly spaced, whatever they are

    def points(values: Any) -> list[float]:
        return [100 * (tuned + value) for value in values]

    axes.axhline(100 * tuned, color=figures.GREY, linewidth=0.8, linestyle=":", label="as tuned")
    draws = [points(effect.draws[side] for effect in effects) for side in (0, 1)]
    axes.fill_between(places, *draws, color=figures.COLOURS[0], alpha=0.2, linewidth=0)
    for colour, marker, label, own in (
        (figures.COLOURS[0], "o", "random scalars (draws shaded)", [effect.random for effect in effects]),
        (figures.COLOURS[4], "s", "outliers", [effect.outliers for effect in effects]),
    ):
        axes.plot(places, points(change.mean for change in own), color=colour, marker=marker, markersize=3, label=label)
        ends = [change.interval or (change.mean, change.mean) for change in own]
        axes.vlines(
            places, points(low for low, _ in ends), points(high for _, high in ends), color=colour, linewidth=0.8
        )
    axes.margins(x=0.08)
    axes.set_xticks(list(places), [f"{effect.count:,}" for effect in effects])
