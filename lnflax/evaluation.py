"""A development set on the devices, packed and laid there once, and the runs' predictions on it.

Without dropout the prefix is the same for every run and epoch: it is computed once where there is room to keep it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lnflax import batches, devices, grid, packing
from lnflax.devices import Plan
from lnflax.packing import Layout, Shape
from lnflax.step import Recipe, prefix_has_tokens
from lnflax.tokens import Encoded

Tree = Any
STEPS = 8  # batches of one call
TOKENS = 2048  # of a batch on one device
KEPT_BYTES = 2**29  # the most that is kept of a development set's prefix, on each device
PADDED = 1.2  # a prefix as it lies in rows, at most, to its tokens


class Call(NamedTuple):
    """Some batches on the devices."""

    batch: batches.Batch  # leaves [devices, STEPS, …]
    features: Any  # their prefix, or None where it is not kept
    number: jax.Array  # how many batches are computed, [devices]
    order: np.ndarray  # which examples, int64 [batches, examples]
    layout: Layout  # where they begin, [batches, examples]
    target: np.ndarray  # which targets of the set, int64 [batches, targets]
    part: np.ndarray  # which part of the batch has them, [batches, targets]

    @property
    def inside(self) -> np.ndarray:
        """Which targets there are, bool `[batches, targets]`."""
        return self.target != batches.NONE


class Evaluation(NamedTuple):
    """A development set, ready for the runs of a plan."""

    calls: list[Call]
    shape: Shape  # of a batch
    label: np.ndarray  # which label each target is, int64 [targets]
    labels: int  # how many there are


def prepare(recipe: Recipe, plan: Plan, frozen: Tree, encoded: Encoded, lay: packing.LayAll, knee: float) -> Evaluation:
    """Packs a development set, puts it on the devices, and computes its prefix where it can be kept."""
    shape = packing.whole_shape(encoded.lengths, knee, lay)
    layout, total = lay(encoded.lengths, shape.length)
    order, step_layout, own = batches_of(layout, total, shape.length, plan.batch_parts)
    room = int(batches.count_targets(encoded, order).max())
    calls = []
    for begin in range(0, len(order), STEPS):
        here, where = order[begin : begin + STEPS], Layout(*(part[begin : begin + STEPS] for part in step_layout))
        asks = batches.asks_of(encoded, here, room)
        made: Any = batches.make_batches(encoded, here, asks, where, own, plan.batch_parts)
        filled = jax.tree.map(lambda x: np.pad(x, [(0, 0), (0, STEPS - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]), made)
        batch = devices.put(plan.to_parts(filled), plan.devices)
        count = devices.put(np.full(plan.devices, len(here), np.int32), plan.devices)
        part = np.take_along_axis(where.row // (own.rows // plan.batch_parts), asks.column, axis=-1)
        calls.append(Call(batch, None, count, here, where, asks.target, part))
    calls = _with_features(recipe, plan, frozen, calls)
    return Evaluation(calls, own, encoded.asked.label, len(encoded.labels))


def batches_of(layout: Layout, rows: int, length: int, parts: int) -> tuple[np.ndarray, Layout, Shape]:
    """The rows of a whole set dealt to batches, so that each has about as many examples.

    Returns:
        The examples of each batch, int64 `[batches, targets]`; where they lie in it; its shape.
    """
    most = max(TOKENS // length, 1) * parts
    count = -(-rows // most)
    own = -(-rows // (count * parts)) * parts
    return *batches.deal(layout, count), Shape(own, length)


def reserve(recipe: Recipe, plan: Plan, evals: Iterable[Encoded]) -> int:
    """Bytes on each device to leave for what is kept of the development sets, from their sizes alone."""
    if recipe.cut == 0:
        return 0
    each = recipe.model.hidden_size * jnp.dtype(recipe.model.dtype).itemsize
    whole = prefix_has_tokens(recipe)
    counts = [PADDED * len(encoded.tokens) if whole else len(encoded.asked.label) for encoded in evals]
    return sum(int(min(each * count / plan.batch_parts, KEPT_BYTES)) for count in counts)


def _with_features(recipe: Recipe, plan: Plan, frozen: Tree, calls: list[Call]) -> list[Call]:
    """The calls with their prefix, unless there is none or it is too large."""
    if recipe.cut == 0:
        return calls
    program = grid.prefix_program(recipe, plan.devices)
    first = jax.eval_shape(program, frozen, calls[0].batch, calls[0].number)
    if first.size * first.dtype.itemsize // plan.devices * len(calls) > KEPT_BYTES:
        return calls
    return [call._replace(features=program(frozen, call.batch, call.number)) for call in calls]


def prefixes(recipe: Recipe, plan: Plan, frozen: Tree, evaluation: Evaluation) -> Iterator[tuple[Call, Any]]:
    """The calls, each with its prefix on the devices, or None where there is none."""
    for call in evaluation.calls:
        known = call.features
        if known is None and recipe.cut:
            known = grid.prefix_program(recipe, plan.devices)(frozen, call.batch, call.number)
        yield call, known


def evaluate(
    recipe: Recipe, plan: Plan, chunks: grid.Chunks, frozen: Tree, values: Tree, chosen: Tree, evaluation: Evaluation
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions `[seeds, rates, labels]` and losses `[seeds, rates, targets]` of all runs, in data order, float32.

    A label that no target asks for is answered by -1. `values` are the runs', `chosen` says where their gathered
    scalars are; both on the devices.
    """
    program = grid.eval_program(recipe, chunks, plan.devices)
    kept: list[list[np.ndarray]] = [[], []]
    for call, known in prefixes(recipe, plan, frozen, evaluation):
        results = program(values, chosen, frozen, call.batch, known, call.number)
        for group, result in zip(kept, results, strict=True):
            own = plan.gather_targets(np.asarray(result)[:, : len(call.order)], call.part)
            group.append(np.moveaxis(own, 0, 2)[..., call.inside])
    place = np.concatenate([call.target[call.inside] for call in evaluation.calls])
    predictions, losses = (np.concatenate(group, axis=-1) for group in kept)
    answers = np.full((*predictions.shape[:-1], evaluation.labels), -1, np.float32)
    answers[..., evaluation.label[place]] = predictions
    return answers, losses[..., np.argsort(place)]
