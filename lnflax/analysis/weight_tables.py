"""Tables of how weights are distributed and what tuning has changed: over all blocks, by block, and single scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lnflax import wording
from lnflax.analysis import formats, weights
from lnflax.analysis.formats import Grid
from lnflax.analysis.weights import Change, Place, Summary
from lnflax.deltas import About
from lnflax.trained import GROUPS

Summaries = Mapping[Place, Summary]

CSV_FIELDS = (
    *("weights", "module", "part", "block", "scalars", "mean", "std", "min", "max"),
    *("kurtosis", "modes", "modes_at", "beyond_3_sigma", "relative_change"),
)
LARGEST_FIELDS = ("task", "setting", "seed", "learning_rate", "path", "index", "before", "after", "change")

# A column each in what is shown by block: of a dense layer both leaves together, of a LayerNorm also apart.
DENSE = ("query", "key", "value", "attention_output", "intermediate", "ffn_output")
NORMS = ("ln_a", "ln_f")
COLUMNS = (
    *(Place(kind) for kind in DENSE),
    *(Place(kind, part) for kind in NORMS for part in ("scale", "bias", None)),
)

NOTE = (
    f"A module's weights are all its scalars in all blocks; *both* pools its two leaves. Standard deviations are of "
    f"the population, kurtosis is excess kurtosis (Fisher: 0 of a normal distribution), beyond 3 σ is the share of "
    f"scalars more than three standard deviations from the mean (0.27 % of a normal distribution). Modes are peaks of "
    f"a histogram (bins of 1/{round(1 / weights.WIDTH)}) smoothed by a Gaussian of Silverman's width, that stand out "
    f"by at least {weights.PROMINENCE:.0%} of the highest peak; in brackets where they are."
)
CHANGE_NOTE = "Relative change is ‖after − before‖ / ‖before‖ (Frobenius norms) in percent. Blocks count from 1."
LARGEST_NOTE = "Kernels are `[in, out]`; indices count from 0."


@dataclass(frozen=True)
class Tuned:
    """A run, the distribution of its weights, and what it changed of the checkpoint's."""

    about: About
    summaries: Summaries
    change: Change

    @property
    def name(self) -> str:
        """`rte/full, seed 0, rate 1e-05`."""
        own = self.about
        return f"{own.task}/{own.setting}, seed {own.seed}, rate {own.learning_rate:g}"


def markdown(before: Summaries, runs: Sequence[Tuned]) -> str:
    """All tables: by module, by block, and what each run changed."""
    sources = _sources(before, runs)
    parts = ["## Weights by module\n", formats.markdown(_modules(before, sources)), f"{NOTE}\n"]
    for title, text in MEASURES.items():
        for name, summaries in sources.items():
            grid = by_block(summaries, text)
            parts += [f"## {title} by block: {name}\n", formats.markdown(grid)]
    if runs:
        parts += ["## Relative change by module\n", formats.markdown(_changes(before, runs)), f"{CHANGE_NOTE}\n"]
    for run in runs:
        grid = by_block(run.change.relative, _percent)
        parts += [f"## Relative change by block: {run.name}\n", formats.markdown(grid)]
        parts += [f"## The scalars that moved farthest: {run.name}\n", formats.markdown(largest(run.change))]
        parts += [f"{LARGEST_NOTE}\n"]
    return "\n".join(parts)


def _sources(before: Summaries, runs: Sequence[Tuned]) -> dict[str, Summaries]:
    return {"checkpoint": before, **{run.name: run.summaries for run in runs}}


def over_blocks(places: Iterable[Place]) -> list[Place]:
    """Those over all blocks, in the order of `GROUPS`, a module's leaves before both together."""
    order = list(GROUPS)
    own = [where for where in places if where.block is None]
    # Of a module with one leaf the pool is that leaf.
    leaves = [where.kind for where in own if where.part]
    own = [where for where in own if where.part or leaves.count(where.kind) > 1]
    return sorted(own, key=lambda where: (order.index(where.kind), where.part is None, _part_order(where.part)))


def _part_order(part: str | None) -> tuple[bool, str]:
    """The bias last."""
    return (part == "bias", part or "")


def blocks(places: Iterable[Place]) -> list[int]:
    """The blocks that there are, ascending."""
    return sorted({where.block for where in places if where.block is not None})


def _modules(before: Summaries, sources: Mapping[str, Summaries]) -> Grid:
    header = ("module", "part", "weights", "scalars", "mean", "std", "min", "max", "kurtosis", "modes", "beyond 3 σ, %")
    rows = [
        (where.kind, where.part or "both", name, *_row(summaries[where]))
        for where in over_blocks(before)
        for name, summaries in sources.items()
        if where in summaries
    ]
    return Grid(header, tuple(rows), names=3)


def _row(own: Summary) -> Iterator[str]:
    moments = own.moments
    yield f"{moments.count:,}"
    yield from (_number(value) for value in (moments.mean, moments.std, moments.low, moments.high))
    yield _kurtosis(own)
    at = weights.modes(own.counts)
    yield f"{len(at)} ({', '.join(_number(value, 2) for value in at)})"
    yield _beyond(own)


def _number(value: float, digits: int = 4) -> str:
    # Adding 0.0 turns the -0.0 of a small negative number into 0.0.
    return f"{round(value, digits) + 0.0:.{digits}f}"


def _kurtosis(own: Summary) -> str:
    return wording.MISSING if own.moments.kurtosis is None else _number(own.moments.kurtosis, 2)


def _beyond(own: Summary) -> str:
    return wording.percent(own.share_beyond, 2)


def _modes(own: Summary) -> str:
    return str(len(weights.modes(own.counts)))


def _percent(value: float | None) -> str:
    return wording.percent(value, 2)


MEASURES: dict[str, Callable[[Summary], str]] = {
    "Kurtosis": _kurtosis,
    "Modes": _modes,
    "Share beyond 3 σ, %,": _beyond,
}


def column_name(where: Place) -> str:
    """`ln_a scale`; the module alone of both leaves."""
    return f"{where.kind} {where.part}" if where.part else where.kind


def by_block(values: Mapping[Place, Any], text: Callable[[Any], str]) -> Grid:
    """A row a block, a column a module."""
    rows = [
        (str(block), *(text(values[Place(where.kind, where.part, block)]) for where in COLUMNS))
        for block in blocks(values)
    ]
    return Grid(("block", *map(column_name, COLUMNS)), tuple(rows))


def _changes(before: Summaries, runs: Sequence[Tuned]) -> Grid:
    rows = [
        (
            where.kind,
            where.part or "both",
            # A body without a pooler lacks a place.
            *(_percent(run.change.relative.get(where)) for run in runs),
        )
        for where in over_blocks(before)
    ]
    return Grid(("module", "part", *(run.name for run in runs)), tuple(rows), names=2)


def largest(change: Change) -> Grid:
    """The scalars that moved farthest, the farthest first."""
    rows = [
        (
            own.path,
            ", ".join(map(str, own.at)),
            *(_number(value) for value in (own.before, own.after, own.after - own.before)),
        )
        for own in change.largest
    ]
    return Grid(("path", "index", "before", "after", "change"), tuple(rows))


def records(before: Summaries, runs: Sequence[Tuned]) -> Iterator[tuple[Any, ...]]:
    """For CSV, of `CSV_FIELDS`: every module, leaf and block, of the checkpoint and of each run."""
    changes = {"checkpoint": {}, **{run.name: run.change.relative for run in runs}}
    for name, summaries in _sources(before, runs).items():
        for where in sorted(summaries, key=lambda own: (list(GROUPS).index(own.kind), own.block or 0, own.part or "")):
            own, at = summaries[where].moments, weights.modes(summaries[where].counts)
            yield (
                *(name, where.kind, where.part, where.block),
                *(own.count, own.mean, own.std, own.low, own.high, own.kurtosis, len(at)),
                *(" ".join(map(str, at)), summaries[where].share_beyond, changes[name].get(where)),
            )


def largest_records(runs: Sequence[Tuned]) -> Iterator[tuple[Any, ...]]:
    """For CSV, of `LARGEST_FIELDS`."""
    for run in runs:
        about = (run.about.task, run.about.setting, run.about.seed, run.about.learning_rate)
        for own in run.change.largest:
            yield (*about, own.path, " ".join(map(str, own.at)), own.before, own.after, own.after - own.before)
