"""A cell on its devices: what lies there, an epoch of training, an evaluation. It writes nothing."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lnflax import batches, devices, grid, heads, optimizer, rules, streams
from lnflax.config import Config
from lnflax.devices import Plan
from lnflax.grid import Chunks
from lnflax.step import Recipe, RunState, Update
from lnflax.tokens import Encoded

Tree = Any
STEPS = 8  # the most that one call of a program does: it keeps the prefix and the dropout masks of each
CALL_SECONDS = 2.0  # what a call should last: long enough that dispatch is nothing, short enough to be told of
EVAL_BATCH = 64  # examples


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything of a cell that stays the same while it trains."""

    recipe: Recipe
    plan: Plan
    chunks: Chunks
    config: Config
    task: str
    train: Encoded
    epochs: int
    frozen: Tree  # on the devices, one copy each
    masks: Tree  # on the devices, by seed
    streams: jax.Array  # on the devices, by seed
    trained: Tree  # the body's trained values, on the host
    heads: list[Tree]  # a seed's fresh head, on the host

    @property
    def steps(self) -> int:
        """Updates of a run, T."""
        return self.epochs * batches.epoch_steps(len(self.train.labels), self.config.batch_size)

    @functools.cached_property
    def schedule(self) -> np.ndarray:
        """What the rate is multiplied by at each update, float64 `[steps]`."""
        return optimizer.schedule(self.config.schedule, self.steps, self.config.warmup_ratio)


def make_trainer(
    config: Config,
    recipe: Recipe,
    plan: Plan,
    *,
    task: str,
    train: Encoded,
    epochs: int,
    body: dict[str, np.ndarray],
    seed_masks: list[Tree],
) -> Trainer:
    """Puts on the devices what a cell's runs share; `seed_masks` holds one elementwise mask a seed."""
    labels = recipe.label_tree
    own = [heads.make_head(recipe.model, init=config.head_init, seed=seed, task=task) for seed in config.seeds]
    full = rules.unflatten({path: body.get(path) for path in rules.flatten(labels)})
    trained, frozen = rules.split(full, labels)
    words = np.stack([streams.words(("dropout", task, seed), 1).astype(np.uint32)[0] for seed in config.seeds])
    return Trainer(
        recipe=recipe,
        plan=plan,
        chunks=grid.default_chunks(jax.default_backend()),
        config=config,
        task=task,
        train=train,
        epochs=epochs,
        frozen=devices.put_copies(frozen, plan.devices),
        masks=_by_seed(seed_masks, plan),
        streams=_by_seed(list(words), plan),
        trained=trained,
        heads=[rules.unflatten({path: head.get(path) for path in rules.flatten(labels)}) for head in own],
    )


def _by_seed(values: list[Tree], plan: Plan) -> Tree:
    """One tree a seed, to the devices that have the seed: leaves `[devices, seeds, …]`."""
    stacked = [jax.tree.map(lambda *x: np.stack(x), *[values[i] for i in seeds]) for seeds in plan.seeds]
    return devices.put(jax.tree.map(lambda *x: np.stack(x), *stacked), plan.devices)


def start(trainer: Trainer) -> RunState:
    """The states of all runs before the first update, on the devices."""
    plan = trainer.plan
    program = grid.initial_program(trainer.recipe, len(plan.rates[0]), plan.devices)
    return program(*_initial_values(trainer), trainer.masks)


def _initial_values(trainer: Trainer) -> tuple[Tree, Tree]:
    """The body's trained values and the heads, on the devices."""
    plan = trainer.plan
    return devices.put_copies(trainer.trained, plan.devices), _by_seed(trainer.heads, plan)


def unmoved(trainer: Trainer, states: RunState) -> list[str]:
    """The trained leaves that no update has changed in some run, by path.

    Of masked leaves only seeds that drew a scalar there count, and embeddings not at all: rows of tokens and
    positions that the data does not have are never reached.
    """
    change = grid.moved_program(trainer.plan.devices)(states.values, *_initial_values(trainer))
    drawn = rules.flatten(trainer.masks)
    still = []
    for path, runs in rules.flatten(change).items():
        if runs is None or (drawn[path] is not None and path.startswith("bert/embeddings/")):
            continue
        given = True if drawn[path] is None else np.asarray(drawn[path]).any(axis=tuple(range(2, drawn[path].ndim)))
        if not np.where(np.expand_dims(given, -1), np.asarray(runs), True).all():
            still.append(path)
    return still


def train_epoch(
    trainer: Trainer, states: RunState, epoch: int, lengths: tuple[int, ...], advance: Callable[[int], None]
) -> tuple[RunState, np.ndarray]:
    """One epoch (from 1) of all runs.

    The batches of the next call are made while the devices work. `advance` is told of steps done.

    Returns:
        The states, and the loss of every step, float32 `[steps, seeds, rates]`.
    """
    config, plan, train = trainer.config, trainer.plan, trainer.train
    count = len(train.labels)
    order = np.stack(
        [batches.epoch_order(trainer.task, seed, epoch, count, config.batch_size) for seed in config.seeds]
    )
    rows = batches.row_lengths(batches.longest(train.lengths, order), lengths)
    program = grid.train_program(trainer.recipe, trainer.chunks, plan)
    losses: list[np.ndarray] = []
    pending, most, begin, clock = None, 1, 0, time.monotonic()

    def fetch(result: jax.Array, number: int) -> None:
        losses.append(plan.gather(np.asarray(result))[:number])
        advance(number)

    while begin < len(rows):
        stop = batches.group_stop(rows, begin, most)
        batch = train_batches(trainer, order[:, begin:stop], int(rows[begin]))
        update = make_updates(trainer, (epoch - 1) * len(rows) + begin, stop - begin)
        number = devices.put(np.full(plan.devices, stop - begin, np.int32), plan.devices)
        states, result = program(states, trainer.frozen, trainer.masks, trainer.streams, batch, update, number)
        if pending is not None:
            fetch(*pending)
            now = time.monotonic()
            most = min(max(int(CALL_SECONDS * pending[1] / max(now - clock, 1e-9)), 1), STEPS)
            clock = now
        pending, begin = (result, stop - begin), stop
    assert pending is not None
    fetch(*pending)
    return states, np.concatenate(losses)


def train_batches(trainer: Trainer, order: np.ndarray, length: int) -> batches.Batch:
    """The batches of one call on the devices: leaves `[devices, STEPS, seeds, …]`.

    `order` is `[seeds, steps, batch]`; the steps up to STEPS are filled with nothing and not computed.
    """
    plan = trainer.plan
    padded = np.full((STEPS, order.shape[0], order.shape[2]), batches.NONE)
    padded[: order.shape[1]] = order.swapaxes(0, 1)
    made = batches.make_batches(trainer.train, padded, length, plan.batch_parts)
    if not plan.split_batch:
        made = jax.tree.map(lambda x: np.stack([x[0][:, list(seeds)] for seeds in plan.seeds]), made)
    return devices.put(made, plan.devices)


def make_updates(trainer: Trainer, begin: int, count: int) -> Update:
    """The learning rates of the updates from `begin`, on the devices: `[devices, STEPS, rates]`."""
    config, plan = trainer.config, trainer.plan
    factor = np.zeros(STEPS)
    factor[:count] = trainer.schedule[begin : begin + count]
    rates = np.asarray(config.learning_rates)
    head = np.full_like(rates, config.optimizer.head_learning_rate) if config.optimizer.head_learning_rate else rates

    def by_device(values: np.ndarray) -> np.ndarray:
        table = factor[:, None] * values
        return np.stack([table[:, list(own)] for own in plan.rates]).astype(np.float32)

    number = np.tile(np.arange(begin, begin + STEPS, dtype=np.int32), (plan.devices, 1))
    return devices.put(Update(by_device(rates), by_device(head), number), plan.devices)


def evaluate(trainer: Trainer, states: RunState, examples: Encoded) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and losses of all runs on a development set, in data order: float32 `[seeds, rates, examples]`."""
    plan, count = trainer.plan, len(examples.labels)
    size = -(-min(EVAL_BATCH, count) // plan.batch_parts) * plan.batch_parts
    by_length = np.argsort(-examples.lengths, kind="stable")
    order = batches.fill(by_length, size)
    step_lengths = batches.longest(examples.lengths, order[None])
    rows = batches.row_lengths(step_lengths, batches.choose_lengths(step_lengths))
    program = grid.eval_program(trainer.recipe, trainer.chunks, plan.devices)
    parts, begin = [], 0
    while begin < len(rows):
        stop = batches.group_stop(rows, begin, STEPS)
        padded = np.full((STEPS, size), batches.NONE)
        padded[: stop - begin] = order[begin:stop]
        made = batches.make_batches(examples, padded, int(rows[begin]), plan.batch_parts)
        batch = devices.put(made, plan.devices) if plan.split_batch else _copies(made, plan.devices)
        number = devices.put(np.full(plan.devices, stop - begin, np.int32), plan.devices)
        result = program(states.values, trainer.frozen, batch, number)
        parts.append([plan.gather(np.asarray(value))[: stop - begin] for value in result])
        begin = stop
    place = order.reshape(-1)[: len(by_length)]
    predictions, losses = (_in_order(np.concatenate(group), place) for group in zip(*parts, strict=True))
    return predictions, losses


def _copies(made: batches.Batch, count: int) -> batches.Batch:
    return devices.put_copies(jax.tree.map(lambda x: x[0], made), count)


def _in_order(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """`[steps, seeds, rates, batch]` to `[seeds, rates, examples]` in data order."""
    flat = np.moveaxis(values, 0, 2).reshape(*values.shape[1:3], -1)[..., : len(place)]
    ordered = np.empty_like(flat)
    ordered[..., place] = flat
    return ordered
