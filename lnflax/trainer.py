"""Some runs of a cell on their devices: what lies there, and an epoch of training. It writes nothing."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lnflax import batches, devices, features, grid, heads, masks, optimizer, packing, rules, streams
from lnflax.config import Config
from lnflax.devices import Plan
from lnflax.features import Features
from lnflax.grid import Chunks
from lnflax.masks import Mask
from lnflax.packing import Lay, Layout, Shape
from lnflax.step import Recipe, RunState, Update
from lnflax.tokens import Encoded

Tree = Any
STEPS = 8  # the most that one call of a program does: it keeps the prefix and the dropout masks of each
HEAD_STEPS = 64  # the same where only the head is computed
CALL_SECONDS = 2.0  # what a call should last: long enough that dispatch is nothing, short enough to be told of


class Rows(NamedTuple):
    """How the examples of a task's steps are laid into rows."""

    lay: Lay
    shapes: tuple[Shape, ...]  # cheapest first; the cheapest that holds a step is taken


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Everything that stays the same while some runs of a cell train."""

    recipe: Recipe
    plan: Plan
    chunks: Chunks
    config: Config  # whose seeds and learning rates are those of the runs
    task: str
    train: Encoded
    rows: Rows
    epochs: int
    features: Features | None  # of the training examples, where the prefix is computed once for all
    frozen: Tree  # on the devices, one copy each
    masks: Mask  # on the devices, by seed
    seed_masks: list[Mask]  # the same on the host
    streams: jax.Array  # on the devices, by seed
    trained: Tree  # the body's trained values, on the host
    own: list[Tree]  # what a seed starts from, on the host: its fresh head, its gathered scalars

    @property
    def steps(self) -> int:
        """Updates of a run, T."""
        return self.epochs * batches.epoch_steps(self.train.examples, self.config.batch_size)

    @property
    def capacity(self) -> int:
        """The most steps of one call."""
        return HEAD_STEPS if self.features is not None and not self.features.per_token else STEPS

    @functools.cached_property
    def schedule(self) -> np.ndarray:
        """What the rate is multiplied by at each update, float64 `[steps]`."""
        return optimizer.schedule(self.config.schedule, self.steps, self.config.warmup_ratio)


def make_trainer(
    config: Config,
    recipe: Recipe,
    plan: Plan,
    chunks: Chunks,
    *,
    task: str,
    train: Encoded,
    rows: Rows,
    epochs: int,
    body: dict[str, np.ndarray],
    seed_masks: list[Tree],
) -> Trainer:
    """Puts on the devices what the runs share; `seed_masks` holds one elementwise mask a seed."""
    labels = recipe.label_tree
    full = rules.unflatten({path: body.get(path) for path in rules.flatten(labels)})
    trained, frozen = recipe.split(full)
    gathered = [masks.gather(mask, recipe.gathered) for mask in seed_masks]
    own = []
    for seed, mask in zip(config.seeds, gathered, strict=True):
        head = heads.make_head(recipe.model, init=config.head_init, seed=seed, task=task)
        tree = rules.unflatten({path: head.get(path) for path in rules.flatten(labels)})
        own.append(rules.merge(tree, masks.start(frozen, mask.chosen)))
    words = np.stack([streams.words(("dropout", task, seed), 1).astype(np.uint32)[0] for seed in config.seeds])
    return Trainer(
        recipe=recipe,
        plan=plan,
        chunks=chunks,
        config=config,
        task=task,
        train=train,
        rows=rows,
        epochs=epochs,
        features=None,
        frozen=devices.put_copies(frozen, plan.devices),
        masks=_by_seed(gathered, plan),
        seed_masks=gathered,
        streams=_by_seed(list(words), plan),
        trained=trained,
        own=own,
    )


def with_features(trainer: Trainer, known: Features) -> Trainer:
    """The trainer with its prefix computed before; where only a sentence's head is left, its rows have one token."""
    if known.per_token or trainer.train.asked.place.any():
        return dataclasses.replace(trainer, features=known)
    parts = trainer.plan.batch_parts
    shape = Shape(-(-trainer.config.batch_size // parts) * parts, 1)
    rows = Rows(packing.plain, (shape,))
    return dataclasses.replace(trainer, features=known, train=features.bare(trainer.train), rows=rows)


def _by_seed(values: list[Tree], plan: Plan) -> Tree:
    """One tree a seed, to the devices that have the seed: leaves `[devices, seeds, …]`."""
    stacked = [jax.tree.map(lambda *x: np.stack(x), *[values[i] for i in seeds]) for seeds in plan.seeds]
    return devices.put(plan.by_device(stacked), plan.devices)


def start(trainer: Trainer) -> RunState:
    """The states of all runs before the first update, on the devices."""
    plan = trainer.plan
    program = grid.initial_program(trainer.recipe, len(plan.rates[0]), plan.devices)
    return program(*_initial_values(trainer), trainer.masks)


def _initial_values(trainer: Trainer) -> tuple[Tree, Tree]:
    """The body's trained values and the seeds' own, on the devices."""
    plan = trainer.plan
    return devices.put_copies(trainer.trained, plan.devices), _by_seed(trainer.own, plan)


def unmoved(trainer: Trainer, states: RunState) -> list[str]:
    """The trained leaves that no update has changed in some run, by path.

    Of masked leaves only seeds that drew a scalar there count, and embeddings not at all: rows of tokens and
    positions that the data does not have are never reached.
    """
    change = grid.moved_program(trainer.plan.devices)(states.values, *_initial_values(trainer))
    drawn = rules.flatten(trainer.masks.inside)
    still = []
    for path, runs in rules.flatten(change).items():
        if runs is None or (drawn[path] is not None and path.startswith("bert/embeddings/")):
            continue
        given = True if drawn[path] is None else np.asarray(drawn[path]).any(axis=tuple(range(2, drawn[path].ndim)))
        if not np.where(np.expand_dims(given, -1), np.asarray(runs), True).all():
            still.append(path)
    return still


def owned(trainer: Trainer, states: RunState) -> tuple[Tree, list[Mask]]:
    """What the runs have trained, leaves `[seeds, rates, …]`, and the seeds' masks: on the host."""
    return trainer.plan.to_runs(states.values), trainer.seed_masks


class Epoch(NamedTuple):
    """The steps of an epoch: which examples, in which shape, and where."""

    order: np.ndarray  # int64 [steps, seeds, batch]
    shape: np.ndarray  # the number of each step's shape, [steps]
    layout: Layout  # [steps, seeds, batch]


class Totals(NamedTuple):
    """Of an epoch: how many targets each step has, `[steps, seeds]`, and tokens, each seed's counted once."""

    targets: np.ndarray
    real_tokens: int
    computed_tokens: int


def plan_epoch(trainer: Trainer, epoch: int) -> Epoch:
    """The epoch numbered from 1, for all seeds."""
    config, train = trainer.config, trainer.train
    orders = [
        batches.epoch_order(trainer.task, seed, epoch, train.examples, config.batch_size) for seed in config.seeds
    ]
    order = np.stack(orders, axis=1)
    shape, layout = packing.assign(batches.sizes(train, order), trainer.rows.shapes, trainer.rows.lay)
    return Epoch(order, shape, layout)


def totals(trainer: Trainer, epoch: Epoch) -> Totals:
    """What the steps of an epoch hold."""
    tokens = np.array([shape.tokens for shape in trainer.rows.shapes])[epoch.shape].sum() * epoch.order.shape[1]
    real = int(batches.sizes(trainer.train, epoch.order).sum())
    return Totals(batches.count_targets(trainer.train, epoch.order), real, int(tokens))


def train_steps(
    trainer: Trainer,
    states: RunState,
    epoch: Epoch,
    number: int,
    begin: int,
    advance: Callable[[int], None],
    pause: Callable[[], bool],
) -> tuple[RunState, np.ndarray]:
    """Steps of all runs from `begin` to the end of an epoch (its number from 1), or until `pause` says so.

    `advance` is told of steps done, and then `pause` asked. The batches of the next call are made while the devices
    work. Returns the states and the losses of the steps that were done, float32 `[steps, seeds, rates]`.
    """
    plan, steps, losses = trainer.plan, len(epoch.order), []
    program = grid.train_program(trainer.recipe, trainer.chunks, plan)
    before = (number - 1) * steps
    pending, most, clock = None, 1, time.monotonic()

    def fetch(result: jax.Array, count: int) -> None:
        losses.append(plan.gather(np.asarray(result))[:count])
        advance(count)

    while begin < steps:
        stop = batches.group_stop(epoch.shape, begin, most)
        batch, known = train_batches(trainer, epoch, begin, stop)
        update = make_updates(trainer, before + begin, stop - begin)
        count = devices.put(np.full(plan.devices, stop - begin, np.int32), plan.devices)
        states, result = program(states, trainer.frozen, trainer.masks, trainer.streams, batch, known, update, count)
        if pending is not None:
            fetch(*pending)
            now = time.monotonic()
            most = min(max(int(CALL_SECONDS * pending[1] / max(now - clock, 1e-9)), 1), trainer.capacity)
            clock = now
        pending, begin = (result, stop - begin), stop
        if pause():
            break
    assert pending is not None
    fetch(*pending)
    return states, np.concatenate(losses)


def train_batches(trainer: Trainer, epoch: Epoch, begin: int, stop: int) -> tuple[batches.Batch, Any]:
    """The batches of one call on the devices, and their features or None: leaves `[devices, capacity, seeds, …]`.

    Steps up to the capacity are filled with nothing and not computed.
    """
    plan, shape = trainer.plan, trainer.rows.shapes[epoch.shape[begin]]
    room = ((0, trainer.capacity - (stop - begin)), (0, 0), (0, 0))
    order = np.pad(epoch.order[begin:stop], room, constant_values=batches.NONE)
    layout = Layout(*(np.pad(part[begin:stop], room) for part in epoch.layout))
    room_for = batches.capacity(trainer.train, trainer.config.batch_size, shape)
    where = (batches.asks_of(trainer.train, order, room_for), layout, shape, plan.batch_parts)
    made: Any = batches.make_batches(trainer.train, order, *where)
    known = None
    if trainer.features is not None:
        dtype = trainer.recipe.model.dtype
        known = features.make(trainer.features, dtype, trainer.train, order, *where)
    return devices.put(plan.by_part((made, known)), plan.devices)


def make_updates(trainer: Trainer, begin: int, count: int) -> Update:
    """The learning rates of the updates from `begin`, on the devices: `[devices, capacity, rates]`."""
    config, plan = trainer.config, trainer.plan
    factor = np.zeros(trainer.capacity)
    factor[:count] = trainer.schedule[begin : begin + count]
    rates = np.asarray(config.learning_rates)
    head = np.full_like(rates, config.optimizer.head_learning_rate) if config.optimizer.head_learning_rate else rates

    def by_device(values: np.ndarray) -> np.ndarray:
        table = factor[:, None] * values
        return plan.by_device([table[:, list(own)].astype(np.float32) for own in plan.rates])

    number = np.tile(np.arange(begin, begin + trainer.capacity, dtype=np.int32), (plan.devices, 1))
    return devices.put(Update(by_device(rates), by_device(head), number), plan.devices)
