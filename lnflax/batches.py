"""Token ids to batches of a static shape, in the one form that the model reads.

A step holds exactly `batch_size` examples; the last of an epoch holds fewer, and the rest have weight 0. Which rows
they lie in is `packing`'s affair.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lnflax import streams
from lnflax.packing import Layout, Shape
from lnflax.tokens import Encoded

Array = Any  # numpy on the host, jax inside a program
NONE = -1  # stands for no example


class Targets(NamedTuple):
    """What a batch is asked: one entry a target, each `[targets]`."""

    row: Array
    position: Array  # the column in its row, not the position inside the example
    label: Array  # int32 class, or float32 score
    weight: Array  # float32; 0 for padding


class Batch(NamedTuple):
    """Rows of tokens, each int32 `[rows, length]`.

    Example 0 is padding; other ids number the examples of the whole batch from 1, whatever row or device they are
    on. Positions restart at each example.
    """

    tokens: Array
    token_types: Array
    positions: Array
    example_ids: Array
    targets: Targets

    @classmethod
    def example(cls) -> Batch:
        """The smallest batch, for shapes only."""
        one = np.ones((1, 1), np.int32)
        zero = np.zeros(1, np.int32)
        return cls(one, 0 * one, 0 * one, one, Targets(zero, zero, zero, np.ones(1, np.float32)))


def epoch_steps(examples: int, batch_size: int) -> int:
    """Steps of an epoch: ceil(n / batch)."""
    return -(-examples // batch_size)


def epoch_order(task: str, seed: int, epoch: int, examples: int, batch_size: int) -> np.ndarray:
    """Which examples each step holds, int64 `[steps, batch]`, `NONE` where the last step has no more."""
    order = streams.permutation(("order", task, seed, epoch), examples)
    return fill(order, batch_size)


def fill(order: np.ndarray, batch_size: int) -> np.ndarray:
    """An order of examples in steps `[steps, batch]`, the last filled with `NONE`."""
    steps = epoch_steps(len(order), batch_size)
    padded = np.full(steps * batch_size, NONE, np.int64)
    padded[: len(order)] = order
    return padded.reshape(steps, batch_size)


def deal(layout: Layout, count: int) -> tuple[np.ndarray, Layout]:
    """The rows of a whole set dealt in turn to `count` batches; `layout` is `[examples]`.

    Returns:
        The examples of each batch, int64 `[count, examples]`, `NONE` where it has no more; where they lie in it.
    """
    batch, row = layout.row % count, layout.row // count
    by_batch = np.argsort(batch, kind="stable")
    sizes = np.bincount(batch, minlength=count)
    place = (batch[by_batch], _inside(sizes))
    order = np.full((count, sizes.max()), NONE, np.int64)
    where = Layout(np.zeros(order.shape, np.int32), np.zeros(order.shape, np.int32))
    order[place] = by_batch
    where.row[place], where.start[place] = row[by_batch], layout.start[by_batch]
    return order, where


def group_stop(shapes: np.ndarray, start: int, most: int) -> int:
    """The end of the steps from `start` that share one shape, at most `most`; `shapes` is their numbers `[steps]`."""
    other = np.flatnonzero(shapes[start : start + most] != shapes[start])
    return start + int(other[0]) if len(other) else min(start + most, len(shapes))


def sizes(encoded: Encoded, order: np.ndarray) -> np.ndarray:
    """Tokens of the examples of an order, the same shape; 0 for none."""
    return np.where(order == NONE, 0, encoded.lengths[order])


def capacity(encoded: Encoded, examples: int, shape: Shape) -> int:
    """The most targets that a batch of so many examples has."""
    return min(examples * int(np.diff(encoded.asked.offsets).max(initial=1)), shape.tokens)


class Asks(NamedTuple):
    """What the examples of batches are asked, in their order, int64 `[…, targets]`."""

    target: np.ndarray  # its number among the examples' targets, `NONE` for none
    column: np.ndarray  # which of the batch's examples is asked


def asks_of(encoded: Encoded, order: np.ndarray, count: int) -> Asks:
    """The targets of batches, `count` of each; `order` is int64 `[…, examples]`.

    Raises:
        ValueError: a batch has more.
    """
    flat = order.reshape(-1, order.shape[-1])
    each = np.where(flat == NONE, 0, np.diff(encoded.asked.offsets)[flat])
    total = each.sum(axis=1)
    if total.max(initial=0) > count:
        raise ValueError(f"a batch has {total.max()} targets, not {count}")
    place = (np.repeat(np.arange(len(flat)), total), _inside(total))
    first = encoded.asked.offsets[np.where(flat == NONE, 0, flat)]
    asks = Asks(np.full((len(flat), count), NONE, np.int64), np.zeros((len(flat), count), np.int64))
    asks.target[place] = np.repeat(first, each.reshape(-1)) + _inside(each.reshape(-1))
    asks.column[place] = np.repeat(np.tile(np.arange(flat.shape[-1]), len(flat)), each.reshape(-1))
    return Asks(*(part.reshape(*order.shape[:-1], count) for part in asks))


def _inside(counts: np.ndarray) -> np.ndarray:
    """0, 1, … in each of some groups of so many, end to end."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def count_targets(encoded: Encoded, order: np.ndarray) -> np.ndarray:
    """How many targets the batches of an order have, int64 `[…]`."""
    return np.where(order == NONE, 0, np.diff(encoded.asked.offsets)[order]).sum(axis=-1)


def make_batches(encoded: Encoded, order: np.ndarray, asks: Asks, layout: Layout, shape: Shape, parts: int) -> Batch:
    """Batches of one shape, for any leading axes of steps and seeds.

    Args:
        encoded: the examples.
        order: which examples, int64 `[…, examples]`, `NONE` for none.
        asks: what they are asked (`asks_of`).
        layout: where each example begins, `[…, examples]`.
        shape: rows and their length.
        parts: into how many parts the rows are cut, for devices that share a batch.

    Returns:
        Leaves `[parts, …, rows / parts, length]` and targets `[parts, …, targets]`: each part has them all, with
        weight 0 where the example lies in another.
    """
    lead = order.shape[:-1]
    places = places_of(encoded, order, layout, shape)
    number = np.broadcast_to(np.arange(1, order.shape[-1] + 1, dtype=np.int32), order.shape)

    def spread(values: np.ndarray) -> np.ndarray:
        flat = np.zeros(int(np.prod(lead)) * shape.tokens, np.int32)
        flat[places.token] = values
        rows = flat.reshape(*lead, parts, shape.rows // parts, shape.length)
        return np.moveaxis(rows, len(lead), 0)

    width, asked = shape.rows // parts, encoded.asked
    rows, starts = (np.take_along_axis(part, asks.column, axis=-1) for part in layout)
    here = rows // width == np.arange(parts).reshape(-1, *(1 for _ in order.shape))
    inside = (asks.target != NONE) & here
    label = np.where(inside, encoded.labels[asked.label[asks.target]], 0).astype(encoded.labels.dtype)
    places_in_row = starts + asked.place[asks.target]
    row, position = (np.where(inside, part, 0).astype(np.int32) for part in (rows % width, places_in_row))
    return Batch(
        spread(encoded.tokens[places.source]),
        spread(encoded.token_types[places.source]),
        spread(places.position),
        spread(np.repeat(number.reshape(-1), sizes(encoded, order).reshape(-1))),
        Targets(row, position, label, inside.astype(np.float32)),
    )


class Places(NamedTuple):
    """Where each token of a run of batches comes from and goes to, int64 `[tokens]`."""

    source: np.ndarray  # in the flat arrays of the examples
    token: np.ndarray  # in the rows of all batches, end to end
    position: np.ndarray  # inside its example


def places_of(encoded: Encoded, order: np.ndarray, layout: Layout, shape: Shape) -> Places:
    """The places of all tokens of batches of one shape; the arguments are those of `make_batches`."""
    count = sizes(encoded, order).reshape(-1)
    position = _inside(count)
    batch = np.arange(order.size) // order.shape[-1]
    begin = batch * shape.tokens + layout.row.reshape(-1).astype(np.int64) * shape.length + layout.start.reshape(-1)
    first = np.where(order == NONE, 0, encoded.offsets[order]).reshape(-1)
    return Places(np.repeat(first, count) + position, np.repeat(begin, count) + position, position)
