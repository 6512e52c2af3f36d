"""Token ids to batches of a static shape, in the one form that the model reads.

A step holds exactly `batch_size` examples; the last of an epoch holds fewer, and the rest have weight 0. Steps have
one of few lengths, each a compilation; all seeds of a step share it.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np

from lnflax import streams
from lnflax.tokens import Encoded

Array = Any  # numpy on the host, jax inside a program
NONE = -1  # stands for no example
MULTIPLE = 8  # lengths are multiples of it


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


def longest(lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The longest example of each step, over all seeds: `[steps]` for an order `[seeds, steps, batch]`."""
    return np.where(order == NONE, 0, lengths[order]).max(axis=(0, 2))


def choose_lengths(step_lengths: np.ndarray, most: int = 3, worth: float = 0.05) -> tuple[int, ...]:
    """The lengths that a task's rows may have, ascending; the last holds the longest step.

    Of up to `most` multiples of 8, those that compute the fewest tokens; one more length must save the share
    `worth` of all tokens, since each is a compilation of seconds.
    """
    need = -(-step_lengths // MULTIPLE) * MULTIPLE
    top = int(need.max())
    below = sorted(set(need.tolist()) - {top})
    best, cost = (top,), float(top * len(need))
    for count in range(1, most):
        choices = [(*rest, top) for rest in itertools.combinations(below, count)]
        costs = [float(np.asarray(lengths)[np.searchsorted(lengths, need)].sum()) for lengths in choices]
        if costs and min(costs) <= cost - worth * top * len(need):
            cost = min(costs)
            best = choices[costs.index(cost)]
    return best


def row_lengths(step_lengths: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """The shortest of `lengths` that holds each step, `[steps]`."""
    return np.asarray(lengths)[np.searchsorted(lengths, step_lengths)]


def group_stop(rows: np.ndarray, start: int, most: int) -> int:
    """The end of the steps from `start` that share one row length, at most `most`."""
    other = np.flatnonzero(rows[start : start + most] != rows[start])
    return start + int(other[0]) if len(other) else min(start + most, len(rows))


def make_batches(encoded: Encoded, order: np.ndarray, length: int, parts: int) -> Batch:
    """Batches of one example a row, for any leading axes of steps and seeds.

    Args:
        encoded: the examples.
        order: which examples, int64 `[…, batch]`, `NONE` for none.
        length: tokens a row.
        parts: into how many parts the rows are cut, for devices that share a batch.

    Returns:
        Leaves `[parts, …, batch / parts, length]` and targets `[parts, …, batch / parts]`.
    """
    present = order != NONE
    starts = np.where(present, encoded.offsets[order], 0)
    sizes = np.where(present, encoded.lengths[order], 0)
    column = np.arange(length)
    inside = column < sizes[..., None]
    where = np.where(inside, starts[..., None] + column, 0)

    def read(flat: np.ndarray) -> np.ndarray:
        return np.where(inside, flat[where], 0).astype(np.int32)

    ids = np.arange(1, order.shape[-1] + 1, dtype=np.int32)[:, None]
    rows = (
        read(encoded.tokens),
        read(encoded.token_types),
        np.where(inside, column, 0).astype(np.int32),
        np.where(inside, ids, 0).astype(np.int32),
    )
    width = order.shape[-1] // parts
    row = np.broadcast_to(np.arange(order.shape[-1], dtype=np.int32) % width, order.shape)
    label = np.where(present, encoded.labels[order], 0).astype(encoded.labels.dtype)
    targets = (row, np.zeros_like(row), label, present.astype(np.float32))
    axis = order.ndim - 1
    tokens, types, positions, example_ids = (_cut(value, axis, parts) for value in rows)
    return Batch(tokens, types, positions, example_ids, Targets(*(_cut(value, axis, parts) for value in targets)))


def _cut(value: np.ndarray, axis: int, parts: int) -> np.ndarray:
    """The axis in `parts` parts, which come first."""
    shape = (*value.shape[:axis], parts, value.shape[axis] // parts, *value.shape[axis + 1 :])
    return np.moveaxis(value.reshape(shape), axis, 0)
