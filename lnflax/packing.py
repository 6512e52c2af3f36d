"""Which row and column each example of a step starts at, and the few shapes that a task's steps have.

Packing lays the examples of a step into rows, several a row, without changing which examples the step holds. All
seeds of a step share one shape, and each shape is a compilation of seconds. Lengths are tokens, 0 for no example.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

MULTIPLE = 8  # row lengths are multiples of it
LENGTHS = 24  # the most row lengths that are tried: each lays the sample once
SAMPLE = 2000  # steps that the shapes are chosen from
HEAVIEST = 16  # steps of the most tokens, always among them: they decide the shape that holds every step


class Shape(NamedTuple):
    """Of a batch over all its devices."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens it computes, padding included."""
        return self.rows * self.length


class Layout(NamedTuple):
    """Where each example begins: int32, the shape of the lengths. Both are 0 where there is no example."""

    row: np.ndarray
    start: np.ndarray


# Lengths `[…, batch]` and tokens a row to a layout and the rows it takes, `[…]`.
Lay = Callable[[np.ndarray, int], tuple[Layout, np.ndarray]]
LayAll = Callable[[np.ndarray, int], tuple[Layout, int]]  # the same for a whole set, lengths `[examples]`


def plain(lengths: np.ndarray, length: int) -> tuple[Layout, np.ndarray]:
    """One example a row, in order; each step takes `batch` rows, examples or not.

    Raises:
        ValueError: an example is longer than a row.
    """
    _check(lengths, length)
    batch = lengths.shape[-1]
    row = np.where(lengths > 0, np.arange(batch), 0).astype(np.int32)
    return Layout(row, np.zeros_like(row)), np.full(lengths.shape[:-1], batch)


def first_fit(lengths: np.ndarray, length: int) -> tuple[Layout, np.ndarray]:
    """Each example, longest first, in the first row that has room; equal lengths in their order.

    Args:
        lengths: tokens, int `[…, batch]`.
        length: tokens a row.

    Returns:
        The layout, and the rows it takes, int `[…]`.

    Raises:
        ValueError: an example is longer than a row.
    """
    _check(lengths, length)
    flat = lengths.reshape(-1, lengths.shape[-1])
    order = np.argsort(-flat, axis=-1, kind="stable")
    sizes = np.take_along_axis(flat, order, axis=-1).astype(np.int32)
    free = np.full_like(sizes, length)  # of each row; as many rows as examples always suffice
    row, start = np.zeros_like(sizes), np.zeros_like(sizes)
    step, used = np.arange(len(flat)), 0
    for number, size in enumerate(sizes.T):
        found = (free[:, : used + 1] >= size[:, None]).argmax(axis=-1)
        row[:, number] = found
        start[:, number] = np.where(size > 0, length - free[step, found], 0)
        free[step, found] -= size
        used = max(used, int(found.max(initial=-1)) + 1)
    layout = Layout(np.empty_like(row), np.empty_like(start))
    np.put_along_axis(layout.row, order, row, axis=-1)
    np.put_along_axis(layout.start, order, start, axis=-1)
    rows = (free < length).sum(axis=-1)
    return Layout(*(part.reshape(lengths.shape) for part in layout)), rows.reshape(lengths.shape[:-1])


def pack_all(lengths: np.ndarray, length: int) -> tuple[Layout, int]:
    """A whole set in as few rows as it goes: each example, longest first, in the fullest row that has room.

    Such a row stays the fullest while it has room, so examples of one length fill row after row, and rows of equal
    room are filled at once.

    Args:
        lengths: tokens, int `[examples]`.
        length: tokens a row.

    Returns:
        The layout, and the rows it takes.

    Raises:
        ValueError: an example is longer than a row.
    """
    _check(lengths, length)
    row, start = np.zeros(len(lengths), np.int32), np.zeros(len(lengths), np.int32)
    by_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens they have left
    rows = 0
    sizes, counts = (part[::-1] for part in np.unique(lengths[lengths > 0], return_counts=True))
    groups = np.split(np.argsort(-lengths, kind="stable"), np.cumsum(counts))[:-1]  # the last has no examples
    for size, items in zip(sizes.tolist(), groups, strict=True):
        for room in range(size, length + 1):
            if not len(items):
                break
            each = room // size
            wanted = -(-len(items) // each)
            if room == length:
                by_room[room] = list(range(rows, rows + wanted))
                rows += wanted
            taken, by_room[room] = by_room[room][:wanted], by_room[room][wanted:]
            if taken:
                now, items = np.split(items, [each * len(taken)])
                row[now] = np.repeat(taken, each)[: len(now)]
                start[now] = length - room + size * (np.arange(len(now)) % each)
                last = len(now) - each * (len(taken) - 1)  # examples in the last row
                by_room[room - each * size] += taken[:-1]
                by_room[room - last * size] += taken[-1:]
    return Layout(row, start), rows


def cost(shape: Shape, knee: float) -> float:
    """What a step of a shape takes, in tokens of a short row: attention grows with the row length.

    `knee` is the row length at which attention takes as long as all the rest.
    """
    return shape.tokens * (1 + shape.length / knee)


def waste(real: int, computed: int) -> float:
    """The share of the computed tokens that is padding."""
    return 1 - real / computed


def choose_shapes(
    lengths: np.ndarray, *, knee: float, parts: int, most: int = 4, worth: float = 0.03
) -> tuple[Shape, ...]:
    """The shapes of a task's packed steps: greedily, the cheapest that holds every step, then what saves most.

    Args:
        lengths: of all steps that will be trained, int `[steps, seeds, batch]`.
        knee: see `cost`.
        parts: rows are a multiple of it, for devices that share a batch.
        most: the most shapes.
        worth: the share of the cost so far that one more shape must save.

    Returns:
        The shapes, cheapest first; at least one holds every step.
    """
    sample = _sample(lengths)
    shapes, costs = [], []
    for length in _row_lengths(sample, parts):
        short = np.flatnonzero(sample.max(axis=(1, 2)) <= length)
        rows = _rows(sample[short], length, parts)
        for count in np.unique(rows).tolist():
            shapes.append(Shape(count, length))
            costs.append(np.full(len(sample), np.inf))
            costs[-1][short[rows <= count]] = cost(shapes[-1], knee)
    table = np.stack(costs)  # [shapes, steps]; infinite where the step does not fit
    chosen = [int(table.sum(axis=1).argmin())]
    while len(chosen) < most:
        totals = np.minimum(table, table[chosen].min(axis=0)).sum(axis=1)
        best, now = int(totals.argmin()), totals[chosen[0]]
        if totals[best] == now or now - totals[best] < worth * now:
            break
        chosen.append(best)
    universal, *others = (shapes[number] for number in chosen)
    chunks = np.array_split(lengths, -(-len(lengths) // SAMPLE))  # small ones stay in the processor's cache
    needed = max(int(_rows(chunk, universal.length, parts).max()) for chunk in chunks)
    universal = universal._replace(rows=max(universal.rows, needed))
    return tuple(sorted([universal, *others], key=lambda shape: cost(shape, knee)))


def plain_shapes(lengths: np.ndarray, *, parts: int, most: int = 3, worth: float = 0.05) -> tuple[Shape, ...]:
    """The shapes of a task's steps of one example a row.

    Of up to `most` multiples of 8, those that compute the fewest tokens.

    Args:
        lengths: of all steps, int `[steps, seeds, batch]`.
        parts: rows are a multiple of it, for devices that share a batch.
        most: the most shapes.
        worth: the share of all tokens, in rows of the one length that holds all, that one more length must save.

    Returns:
        The shapes, shortest first; the last holds every step.
    """
    need, steps = np.unique(_round_up(lengths.max(axis=(1, 2)), MULTIPLE), return_counts=True)
    *below, top = need.tolist()
    whole = top * int(steps.sum())
    best, least = (top,), whole
    for count in range(1, most):
        choices = [(*rest, top) for rest in itertools.combinations(below, count)]
        totals = [int(np.asarray(own)[np.searchsorted(own, need)] @ steps) for own in choices]
        if totals and min(totals) <= least - worth * whole:
            least = min(totals)
            best = choices[totals.index(least)]
    return tuple(Shape(_round_up(lengths.shape[-1], parts), length) for length in best)


def assign(lengths: np.ndarray, shapes: tuple[Shape, ...], lay: Lay = first_fit) -> tuple[np.ndarray, Layout]:
    """The first of `shapes`, which come cheapest first, that holds each step with all its seeds.

    Args:
        lengths: tokens, int `[steps, seeds, batch]`.
        shapes: as `choose_shapes` gives them, or `plain_shapes` with `plain`.
        lay: how examples are laid into rows.

    Returns:
        Which shape, int `[steps]`, and the layout in it, `[steps, seeds, batch]`.

    Raises:
        ValueError: a step fits none.
    """
    index = np.full(len(lengths), -1)
    layout = Layout(np.zeros(lengths.shape, np.int32), np.zeros(lengths.shape, np.int32))
    for number, shape in enumerate(shapes):
        tried = np.flatnonzero((index < 0) & (lengths.max(axis=(1, 2)) <= shape.length))
        own, rows = lay(lengths[tried], shape.length)
        holds = rows.max(axis=1) <= shape.rows
        index[tried[holds]] = number
        layout.row[tried[holds]] = own.row[holds]
        layout.start[tried[holds]] = own.start[holds]
    if (index < 0).any():
        step = int(index.argmin())
        raise ValueError(f"step {step} of {lengths[step].sum(axis=-1).max()} tokens fits none of {shapes}")
    return index, layout


def plain_all(lengths: np.ndarray, length: int) -> tuple[Layout, int]:
    """`pack_all` with one example a row, in order."""
    _check(lengths, length)
    return Layout(np.arange(len(lengths), dtype=np.int32), np.zeros(len(lengths), np.int32)), len(lengths)


def whole_shape(lengths: np.ndarray, knee: float, lay: LayAll = pack_all) -> Shape:
    """The cheapest rows for a whole set; `lengths` is int `[examples]`, `knee` as in `cost`."""
    top = max(_round_up(int(lengths.max()), MULTIPLE), MULTIPLE)
    tried = sorted({_round_up(top * eighths // 8, MULTIPLE) for eighths in range(8, 17)}) if lay is pack_all else [top]
    return min((Shape(lay(lengths, length)[1], length) for length in tried), key=lambda shape: cost(shape, knee))


def _check(lengths: np.ndarray, length: int) -> None:
    longest = int(lengths.max(initial=0))
    if longest > length:
        raise ValueError(f"an example of {longest} tokens is longer than a row of {length}")


def _round_up(value: Any, multiple: int) -> Any:
    return -(-value // multiple) * multiple


def _rows(lengths: np.ndarray, length: int, parts: int) -> np.ndarray:
    """The rows that each step takes with all its seeds, `[steps]`."""
    return np.maximum(_round_up(first_fit(lengths, length)[1].max(axis=1), parts), parts)


def _sample(lengths: np.ndarray) -> np.ndarray:
    """Evenly spaced steps, the heaviest and the longest, in their order."""
    steps = len(lengths)
    even = np.linspace(0, steps - 1, min(steps, SAMPLE)).astype(int)
    heaviest = np.argsort(-lengths.sum(axis=2).max(axis=1), kind="stable")[:HEAVIEST]
    longest = lengths.max(axis=(1, 2)).argmax()
    return lengths[np.unique([*even, *heaviest, longest])]


def _row_lengths(lengths: np.ndarray, parts: int) -> list[int]:
    """The row lengths to try, ascending.

    From what the step of the shortest examples needs to where the heaviest step takes one row a part, in equal
    ratios, and the least that holds the longest example.
    """
    longest = np.maximum(_round_up(lengths.max(axis=(1, 2)), MULTIPLE), MULTIPLE)
    top = int(longest.max())
    heaviest = _round_up(-(-int(lengths.sum(axis=2).max()) // parts), MULTIPLE)
    spaced = np.geomspace(longest.min(), max(top, heaviest), LENGTHS)
    return sorted({top, *(MULTIPLE * np.rint(spaced / MULTIPLE).astype(int)).tolist()})
