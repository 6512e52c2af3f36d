"""The arguments of a cell's programs as shapes: programs are compiled, and asked what they need, without a weight."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from lnflax import bert, grid, rules
from lnflax.batches import Batch, Targets
from lnflax.gathered import Index
from lnflax.masks import Mask
from lnflax.step import Recipe, Update

Tree = Any


def train_arguments(recipe: Recipe, seeds: int, rates: int, batches: Batch) -> tuple:
    """Those of `grid.train_steps` from `states` on, for the rectangle of one device.

    `batches` is `batch_shapes(…)` of as many seeds.
    """
    body, own, frozen, masks = _parameters(recipe, seeds)
    states = jax.eval_shape(functools.partial(grid.initial_states, recipe, rates), body, own, masks)
    steps = batches.tokens.shape[0]
    rate = _shape(np.float32, steps, rates)
    updates = Update(rate, rate, _shape(np.int32, steps))
    return states, frozen, masks, _shape(np.uint32, seeds), batches, None, updates, _shape(np.int32)


def batch_shapes(recipe: Recipe, lead: tuple[int, ...], rows: int, length: int, targets: int) -> Batch:
    """Batches with the leading axes `lead`, one device's part of the rows and of the targets."""
    tokens, target = (_shape(np.int32, *lead, *own) for own in ((rows, length), (targets,)))
    weight = _shape(np.float32, *lead, targets)
    label = weight if recipe.model.num_outputs == 1 else target
    return Batch(tokens, tokens, tokens, tokens, Targets(target, target, label, weight))


def _parameters(recipe: Recipe, seeds: int) -> tuple[Tree, Tree, Tree, Mask]:
    """The body's trained leaves; heads and gathered scalars, by seed; the frozen leaves; the masks, by seed."""
    flat, labels = rules.flatten(bert.parameter_shapes(recipe.model)), dict(recipe.labels)
    slots = {path: counts for path, *counts in recipe.gathered}
    body: dict[str, Any] = dict.fromkeys(flat)
    own, frozen, inside, chosen = (body.copy() for _ in range(4))
    for path, x in flat.items():
        if path in slots:
            count, width = slots[path]
            chosen[path] = Index(_shape(np.int32, seeds, count), _shape(np.int32, seeds, x.shape[0], width))
            frozen[path], own[path], inside[path] = x, _shape(x.dtype, seeds, count), _shape(bool, seeds, count)
        elif path.startswith("classifier/"):
            own[path] = _shape(x.dtype, seeds, *x.shape)
        elif labels[path] == "frozen":
            frozen[path] = x
        else:
            body[path] = x
            inside[path] = _shape(bool, seeds, *x.shape) if labels[path] == "masked" else None
    mask = Mask(rules.unflatten(inside), rules.unflatten(chosen))
    return rules.unflatten(body), rules.unflatten(own), rules.unflatten(frozen), mask


def _shape(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
