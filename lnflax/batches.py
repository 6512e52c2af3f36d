"""Token ids to batches of a static shape, in the one form that the model reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax inside a program


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
