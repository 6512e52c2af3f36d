"""The fresh head of a seed: a function of (seed, task, parameter path) alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lnflax import rules, streams
from lnflax.bert import BertConfig, parameter_shapes

INITS = ("normal", "truncated_normal", "zeros")


def make_head(config: BertConfig, *, init: str, seed: int, task: str) -> dict[str, np.ndarray]:
    """The classifier's parameters by path, float32: a drawn kernel of the checkpoint's `initializer_range`, zero bias.

    `truncated_normal` (the TensorFlow BERT's) is cut at two standard deviations.
    """
    shapes = {p: s.shape for p, s in rules.flatten(parameter_shapes(config)).items() if p.startswith("classifier/")}
    head = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    if init != "zeros":
        path = "classifier/kernel"
        head[path] = _draw(init, path, shapes[path], config.initializer_range, seed, task)
    return head


def _draw(init: str, path: str, shape: tuple[int, ...], deviation: float, seed: int, task: str) -> np.ndarray:
    words = streams.words(("head", path, task, seed), 1).view(np.uint32)
    key = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    if init == "truncated_normal":
        values = jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
    else:
        values = jax.random.normal(key, shape, jnp.float32)
    return np.asarray(values) * np.float32(deviation)
