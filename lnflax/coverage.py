"""Which runs a cell shall have, and which of them it lacks: a cell grows by seeds and rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
Rectangle = tuple[tuple[int, ...], tuple[int, ...]]  # the places of its seeds and of its rates


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The seeds and rates of a whole cell, every pair of them a run, and the rectangles of runs that it lacks."""

    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    lacking: tuple[Rectangle, ...]

    @property
    def runs(self) -> int:
        """How many runs the cell lacks."""
        return sum(len(seeds) * len(rates) for seeds, rates in self.lacking)

    def of(self, part: Rectangle) -> tuple[tuple[int, ...], tuple[float, ...]]:
        """The seeds and rates of a rectangle themselves."""
        seeds, rates = part
        return tuple(self.seeds[i] for i in seeds), tuple(self.rates[i] for i in rates)


def merge(there: Sequence[T], asked: Sequence[T]) -> tuple[T, ...]:
    """Both, each once: in the order asked for where all that is there is asked for, else what is there first."""
    first, then = (asked, ()) if set(there) <= set(asked) else (there, asked)
    return tuple(dict.fromkeys([*first, *then]))


def cover(
    seeds: Sequence[int], rates: Sequence[float], there: tuple[Sequence[int], Sequence[float]] = ((), ())
) -> Coverage:
    """What a cell lacks of the runs that are asked for, when it has all pairs of some seeds and rates.

    A cell is always all pairs: one that has seed 0 at one rate, and is asked for seed 1 at another, gets three more.

    Args:
        seeds: asked for.
        rates: asked for.
        there: the seeds and the rates that the cell has.
    """
    every_seed, every_rate = merge(there[0], seeds), merge(there[1], rates)
    old_seeds, new_seeds = _split(every_seed, there[0])
    _, new_rates = _split(every_rate, there[1])
    rectangles = ((new_seeds, tuple(range(len(every_rate)))), (old_seeds, new_rates))
    return Coverage(every_seed, every_rate, tuple((s, r) for s, r in rectangles if s and r))


def _split(every: Sequence, there: Sequence) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The places of what is there, and of what is not."""
    old = tuple(place for place, value in enumerate(every) if value in there)
    return old, tuple(place for place in range(len(every)) if place not in old)
