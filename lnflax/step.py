"""One run's step: prefix, suffix, loss, update; and its evaluation. Pure; nothing here knows of grids or devices."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lnflax import bert, dropout, gathered, masks, recompute, rules
from lnflax.batches import Batch, Targets
from lnflax.bert import BertConfig, Classifier
from lnflax.masks import Mask, Sizes
from lnflax.optimizer import OptimizerConfig, make_optimizer

Tree = Any
Sum = Callable[[Tree], Tree]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a cell trains and how; hashable, so that cells of the same recipe share their compiled programs."""

    model: BertConfig
    labels: tuple[tuple[str, str], ...]
    optimizer: OptimizerConfig
    frozen_dropout: bool = True  # whether the stages below the first trained parameter drop
    recompute: bool = False  # keep of each block only what enters it, and compute the rest again on the way back
    gathered: Sizes = ()  # the masked leaves of which the chosen scalars alone are stored, and in how many slots

    @property
    def label_tree(self) -> Tree:
        """The full tree of labels."""
        return rules.unflatten(dict(self.labels))

    def split(self, params: Tree) -> tuple[Tree, Tree]:
        """As `rules.split`; of a leaf of which scalars are gathered, the leaf itself is with the frozen ones."""
        return rules.split(params, rules.unflatten(dict(self.labels) | {path: "frozen" for path, *_ in self.gathered}))

    @functools.cached_property
    def cut(self) -> int:
        """The first stage that reads a trained parameter: all stages below are the prefix."""
        return min(bert.stage_of(self.model, path) for path, label in self.labels if label != "frozen")


class RunState(NamedTuple):
    """What a run owns: full trees with None at frozen leaves, so that it is as small as what trains.

    Of a leaf of which scalars are gathered it owns these, `[k]`; the leaf is in the frozen tree.
    """

    values: Tree
    opt_state: Any


class Update(NamedTuple):
    """The numbers of one update: the learning rates after the schedule, float32, and t = 0, 1, … int32."""

    rate: Any
    head_rate: Any
    step: Any


def initial_state(recipe: Recipe, values: Tree, mask: Mask) -> RunState:
    """The state before the first update."""
    optimizer = make_optimizer(recipe.optimizer, recipe.label_tree, mask.inside, rate=0.0, head_rate=0.0, step=0)
    return RunState(values, optimizer.init(values))


def prefix(recipe: Recipe, frozen: Tree, batch: Batch, noise: bert.Masks) -> jax.Array | None:
    """The stages below the first trained parameter: the same for all learning rates. None where there are none."""
    if recipe.cut == 0:
        return None
    return _apply(recipe, frozen, batch, noise, None, 0, recipe.cut)


def prefix_has_tokens(recipe: Recipe) -> bool:
    """Whether the prefix gives a vector a token, `[rows, length, hidden]`; else one a target."""
    frozen = bert.parameter_shapes(recipe.model)
    return len(jax.eval_shape(lambda tree: prefix(recipe, tree, Batch.example(), {}), frozen).shape) == 3


def suffix(
    recipe: Recipe,
    values: Tree,
    frozen: Tree,
    chosen: Tree,
    features: jax.Array | None,
    batch: Batch,
    noise: bert.Masks,
) -> jax.Array:
    """The stages from the first trained parameter up: logits, float32 `[targets, outputs]`."""

    def run(values: Tree, x: jax.Array | None, rest: tuple, start: int, stop: int | None = None) -> jax.Array:
        frozen, chosen, batch, noise = rest
        return _apply(recipe, gathered.parameters(values, frozen, chosen), batch, noise, x, start, stop)

    rest, start, x = (frozen, chosen, batch, noise), recipe.cut, features
    if recipe.recompute:
        for block in bert.blocks(recipe.model, start):
            again = recompute.recomputed(functools.partial(run, start=block.start, stop=block.stop))
            x = again(_of_stages(recipe, values, block), run(values, x, rest, start, block.start), rest)
            start = block.stop
    return run(values, x, rest, start)


def _of_stages(recipe: Recipe, values: Tree, stages: range) -> Tree:
    """The values that some stages read, None elsewhere."""
    flat = rules.flatten(values)
    return rules.unflatten({p: x if bert.stage_of(recipe.model, p) in stages else None for p, x in flat.items()})


def _apply(recipe: Recipe, params: Tree, *args: Any) -> jax.Array:
    logits: Any = Classifier(recipe.model).apply({"params": params}, *args)
    return logits


def noise(recipe: Recipe, batch: Batch, stream: jax.Array, step: jax.Array) -> tuple[bert.Masks, bert.Masks]:
    """The dropout masks of a seed's step, of the prefix and of the suffix; `stream` is the seed's uint32 word."""
    state = dropout.fold(stream, step)
    below = bert.dropout_masks(recipe.model, batch, state, 0, recipe.cut) if recipe.frozen_dropout else {}
    return below, bert.dropout_masks(recipe.model, batch, state, recipe.cut)


def losses(logits: jax.Array, targets: Targets) -> jax.Array:
    """The loss of each target, float32 `[targets]`: squared error for one output, else cross-entropy in nats."""
    if logits.shape[-1] == 1:
        return jnp.square(logits[:, 0] - targets.label)
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets.label)


def train_step(
    recipe: Recipe,
    frozen: Tree,
    state: RunState,
    mask: Mask,
    features: jax.Array | None,
    batch: Batch,
    noise: bert.Masks,
    update: Update,
    device_sum: Sum = lambda tree: tree,
) -> tuple[RunState, jax.Array]:
    """One update of one run, and its loss: the weighted mean over the targets of the whole batch.

    Only trained leaves are differentiated. `device_sum` adds over the devices that share a batch.
    """
    # A batch may ask nothing: sentences of words that have no token.
    total = jnp.maximum(device_sum(batch.targets.weight.sum()), 1.0)

    def loss_of(values: Tree) -> jax.Array:
        logits = suffix(recipe, values, frozen, mask.chosen, features, batch, noise)
        return jnp.sum(losses(logits, batch.targets) * batch.targets.weight) / total

    loss, grads = device_sum(jax.value_and_grad(loss_of)(state.values))
    optimizer = make_optimizer(recipe.optimizer, recipe.label_tree, mask.inside, **update._asdict())
    updates, opt_state = optimizer.update(grads, state.opt_state, state.values)
    # Selected once more: -0.0 + 0.0 is 0.0, and a masked scalar keeps its bits.
    values = masks.select(mask.inside, optax.apply_updates(state.values, updates), state.values)
    return RunState(values, opt_state), loss


def eval_step(
    recipe: Recipe, frozen: Tree, values: Tree, chosen: Tree, features: jax.Array | None, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """`(prediction, loss)` of each target without dropout: float32 class or score, and float32 loss, `[targets]`.

    A tag that the training set lacks has a number that no logit has: nobody can predict it, and its loss is 0.
    """
    logits = suffix(recipe, values, frozen, chosen, features, batch, {})
    if logits.shape[-1] == 1:
        return logits[:, 0], losses(logits, batch.targets)
    known = batch.targets.label < logits.shape[-1]
    targets = batch.targets._replace(label=jnp.where(known, batch.targets.label, 0))
    return jnp.argmax(logits, axis=-1).astype(jnp.float32), jnp.where(known, losses(logits, targets), 0.0)
