"""What a step costs, from shapes alone: by it runs are spread over devices and shapes are chosen."""

from __future__ import annotations

import functools

import numpy as np

from lnflax import bert, rules
from lnflax.bert import BertConfig
from lnflax.devices import Work
from lnflax.step import Recipe

# An update reads and writes a scalar, its gradient and its moments: it takes as long as so many operations of a
# product (measured on a CPU: full against layernorms, docs/performance.md).
UPDATE_FLOPS = 800
# Computing so many tokens of a 22-million-parameter model takes as long as compiling one more shape.
SHAPE_TOKENS = {"cpu": 3e4}
SHAPE_TOKENS_ELSEWHERE = 1e7


def knee(config: BertConfig) -> float:
    """The row length at which attention takes as long as all the rest, tokens (measured 410 at width 384)."""
    return config.hidden_size


def least_saving(platform: str, tokens: int) -> float:
    """The share of its cost that a cell of so many tokens must save by one more shape."""
    return max(0.005, SHAPE_TOKENS.get(platform, SHAPE_TOKENS_ELSEWHERE) / tokens)


@functools.cache
def _kernels(config: BertConfig) -> dict[str, tuple[int, int]]:
    """The stage and size of every kernel: what multiplies tokens."""
    shapes = rules.flatten(bert.parameter_shapes(config))
    return {
        path: (bert.stage_of(config, path), int(np.prod(leaf.shape)))
        for path, leaf in shapes.items()
        if path.endswith("/kernel")
    }


def of_step(recipe: Recipe, tokens: int) -> Work:
    """The work of a run's step of so many tokens: two operations a weight and token, and as many for each gradient."""
    labels, kernels = dict(recipe.labels), _kernels(recipe.model)
    sizes = {
        path: int(np.prod(leaf.shape)) for path, leaf in rules.flatten(bert.parameter_shapes(recipe.model)).items()
    }
    below = sum(size for stage, size in kernels.values() if stage < recipe.cut)
    above = sum(size for stage, size in kernels.values() if stage >= recipe.cut)
    trained = sum(size for path, (_, size) in kernels.items() if labels[path] == "trainable")
    updated = sum(sizes[path] for path, label in recipe.labels if label == "trainable")
    return Work(2.0 * tokens * below, 2.0 * tokens * (2 * above + trained), float(UPDATE_FLOPS * updated))
