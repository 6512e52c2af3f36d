"""The prefix of a whole data set without dropout, computed once: for every epoch, seed, rate and cell that shares it.

With `frozen_dropout=False` everything below the first trained parameter is the same at every visit of an example.
Kept in the cache folder by the hash of all that it depends on.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lnflax import batches, evaluation, packing, step, tokens
from lnflax.batches import Asks
from lnflax.devices import Plan
from lnflax.packing import Layout, Shape
from lnflax.step import Recipe
from lnflax.tokens import Encoded

Tree = Any
FORM = 1  # of the kept files; raised when their content changes its meaning


class Features(NamedTuple):
    """The prefix by token `[tokens, hidden]`, or by target `[targets, hidden]` where only the head is above."""

    values: np.ndarray
    per_token: bool


def load(recipe: Recipe, plan: Plan, frozen: Tree, encoded: Encoded, model_sha256: str, knee: float) -> Features:
    """The features of a data set: from the cache folder, or computed and kept there.

    Args:
        recipe: what trains.
        plan: the devices that compute them.
        frozen: the frozen parameters, on the devices.
        encoded: the examples.
        model_sha256: of the body.
        knee: see `packing.cost`.
    """
    path = tokens.cache_folder() / f"features-{_key(recipe, encoded, model_sha256)}.npy"
    try:
        values = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        values = compute(recipe, plan, frozen, encoded, knee)
        tokens.keep(path, lambda file: np.save(file, values))
    return Features(values, step.prefix_has_tokens(recipe))


def _key(recipe: Recipe, encoded: Encoded, model_sha256: str) -> str:
    """sha256 of everything that the features depend on."""
    about = (FORM, model_sha256, recipe.cut, recipe.model, jax.__version__, jax.default_backend())
    sha = hashlib.sha256(repr(about).encode())
    for part in (*encoded[:3], *encoded.asked):
        sha.update(part.tobytes())
    return sha.hexdigest()


def compute(recipe: Recipe, plan: Plan, frozen: Tree, encoded: Encoded, knee: float) -> np.ndarray:
    """The prefix of every token, or of every target where only the head is above, float32."""
    found = evaluation.prepare(recipe, plan, frozen, encoded, packing.pack_all, knee)
    per_token, width = step.prefix_has_tokens(recipe), recipe.model.hidden_size
    values = np.empty((len(encoded.tokens if per_token else encoded.asked.label), width), np.float32)
    for call, given in evaluation.prefixes(recipe, plan, frozen, found):
        made = np.asarray(given[: plan.batch_parts], np.float32)[:, : len(call.order)]  # [parts, batches, …]
        if per_token:
            places = batches.places_of(encoded, call.order, call.layout, found.shape)
            values[places.source] = np.moveaxis(made, 0, 1).reshape(-1, width)[places.token]
        else:
            own = np.take_along_axis(made, call.part[None, ..., None], axis=0)[0]
            values[call.target[call.inside]] = own[call.inside]
    return values


def make(
    features: Features,
    dtype: str,
    encoded: Encoded,
    order: np.ndarray,
    asks: Asks,
    layout: Layout,
    shape: Shape,
    parts: int,
) -> np.ndarray:
    """The features of batches, as `batches.make_batches` makes their tokens; the arguments are the same.

    Returns:
        `[parts, …, rows / parts, length, hidden]` or `[parts, …, targets, hidden]`, of `dtype`.
    """
    lead, width = order.shape[:-1], features.values.shape[-1]
    if not features.per_token:
        own = features.values[np.where(asks.target == batches.NONE, 0, asks.target)].astype(jnp.dtype(dtype))
        return np.broadcast_to(own, (parts, *own.shape))
    places = batches.places_of(encoded, order, layout, shape)
    flat = np.zeros((int(np.prod(lead)) * shape.tokens, width), jnp.dtype(dtype))
    flat[places.token] = features.values[places.source]
    return np.moveaxis(flat.reshape(*lead, parts, shape.rows // parts, shape.length, width), len(lead), 0)


def bare(encoded: Encoded) -> Encoded:
    """Examples of one label each with one token each, for programs that read their features only."""
    first = encoded.offsets[:-1]
    every = np.arange(encoded.examples + 1)
    return Encoded.of_sentences(encoded.tokens[first], encoded.token_types[first], every, encoded.labels)
