"""A config to its cells: for each (task, setting) the data, the labels, the recipe and the plan, all checked first.

Nothing is trained or written here, so that bad input costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lnflax import (
    batches,
    bert,
    checkpoint,
    devices,
    evaluation,
    features,
    grid,
    masks,
    memory,
    packing,
    rules,
    settings,
    shapes,
    tasks,
    tokens,
    trained,
    trainer,
    work,
)
from lnflax.bert import BertConfig
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.evaluation import Evaluation
from lnflax.grid import Chunks
from lnflax.memory import Cut, Size
from lnflax.packing import Shape
from lnflax.settings import Setting
from lnflax.step import Recipe
from lnflax.tasks import TASKS, Task
from lnflax.tokens import Encoded
from lnflax.trainer import Rows, Trainer

Tree = Any
SHARED_SHAPE = 1.1  # what seeds of one shape cost more by their padding
SHAPES = 8  # the most of a task: each is a compilation of seconds


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint's body: its values (float32, by path), and their hash."""

    body: dict[str, np.ndarray]
    sha256: str


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's examples as token ids, the model with the task's head, and how examples are laid into rows."""

    task: Task
    shape: BertConfig
    model: Model
    train: Encoded
    evals: dict[str, Encoded]
    absent: tuple[str, ...]
    notes: tuple[str, ...]  # what a user should know of the data
    rows: Callable[[int, bool], Rows]  # for so many devices a batch, and whether the seeds of a step share a shape


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs of a cell that train together: by the places of their seeds and rates in the config's lists."""

    seeds: tuple[int, ...]
    rates: tuple[int, ...]
    plan: devices.Plan
    chunks: Chunks
    rows: Rows

    def config(self, config: Config) -> Config:
        """The config of these runs alone."""
        return dataclasses.replace(
            config,
            seeds=tuple(config.seeds[i] for i in self.seeds),
            learning_rates=tuple(config.learning_rates[i] for i in self.rates),
        )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number ± deviation of a table: all runs of one task and setting, in parts that train one after another."""

    data: TaskData
    setting: Setting
    recipe: Recipe
    epochs: int
    cut: Cut
    parts: tuple[Part, ...]
    report: dict[str, Any]  # what trains: the content of trained.json

    @property
    def name(self) -> str:
        """TASK/SETTING."""
        return f"{self.data.task.name}/{self.setting.name}"


def prepare(config: Config, device_count: int) -> list[Cell]:
    """All cells of a study, in the order tasks, then settings.

    Raises:
        InputError: anything of the config does not fit the model, the data or the devices.
    """
    folder = checkpoint.find(config.model_name)
    shape = checkpoint.read_config(folder, pooling=config.pooling, num_outputs=1, dtype=config.dtype)
    for name in config.settings:
        _setting(config, shape, name)
    if config.max_length > shape.max_position_embeddings:
        most = shape.max_position_embeddings
        raise InputError(f"max_length: {config.max_length}; the model has {most} positions")
    tokenizer = tokens.load_tokenizer(folder)
    read = functools.cache(functools.partial(_read_model, folder))
    cells = []
    for name in config.tasks:
        # A word's own token is read, whatever sentences do.
        own = dataclasses.replace(shape, pooling="cls") if TASKS[name].tagged else shape
        data = _task_data(config, own, read(own), tokenizer, TASKS[name])
        cells += [_cell(config, data, _setting(config, own, setting), device_count) for setting in config.settings]
    return cells


def _read_model(folder: Path, shape: BertConfig) -> Model:
    body = checkpoint.read_body(folder, shape)
    return Model(body, checkpoint.body_sha256(body))


def make_trainer(cell: Cell, part: Part, config: Config) -> tuple[Trainer, dict[str, Evaluation]]:
    """What a part of a cell needs on its devices: for training, and for each development set."""
    own, data, knee = part.config(config), cell.data, work.knee(cell.data.shape)
    model = data.model
    made = trainer.make_trainer(
        own,
        cell.recipe,
        part.plan,
        part.chunks,
        task=data.task.name,
        train=data.train,
        rows=part.rows,
        epochs=cell.epochs,
        body=model.body,
        seed_masks=seed_masks(cell.setting, cell.recipe, model, own.seeds),
    )
    if not config.frozen_dropout and cell.recipe.cut:
        known = features.load(cell.recipe, part.plan, made.frozen, data.train, model.sha256, knee)
        made = trainer.with_features(made, known)
    lay = packing.pack_all if config.packing else packing.plain_all
    evals = {
        split: evaluation.prepare(cell.recipe, part.plan, made.frozen, examples, lay, knee)
        for split, examples in data.evals.items()
    }
    return made, evals


def seed_masks(setting: Setting, recipe: Recipe, model: Model, seeds: tuple[int, ...]) -> list[Tree]:
    """One elementwise mask a seed."""
    params = _params(recipe.model, model)
    return [masks.choose(setting.mask, params, recipe.label_tree, seed) for seed in seeds]


def _setting(config: Config, shape: BertConfig, name: str) -> Setting:
    options = config.options
    if shape.pooling != "pooler":
        options = dataclasses.replace(options, train_pooler=False)
    return settings.make_setting(
        name,
        options,
        layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        user_rules=config.rules,
    )


def _params(shape: BertConfig, model: Model) -> Tree:
    """The full tree: values for the body, shapes for the head."""
    flat = rules.flatten(bert.parameter_shapes(shape))
    return rules.unflatten({path: model.body.get(path, leaf) for path, leaf in flat.items()})


def _task_data(config: Config, shape: BertConfig, model: Model, tokenizer: Any, task: Task) -> TaskData:
    texts = tasks.load(task, config.data_path, config.eval_split, config.max_train_examples)
    train = tokens.encode(tokenizer, texts.train, config.max_length)
    evals = {split: tokens.encode(tokenizer, part, config.max_length) for split, part in texts.evals.items()}
    task = texts.task
    for split, part in {"train": train, **evals}.items():
        if not len(part.asked.label):
            raise InputError(f"data.path: {task.name} {split}: no word has a token")
    largest = max(int(part.tokens.max()) for part in (train, *evals.values()))
    if largest >= shape.vocab_size:
        raise InputError(f"model.name: the tokenizer gives token {largest}, the model knows {shape.vocab_size}")
    shape = dataclasses.replace(shape, num_outputs=task.num_outputs)
    steps = batches.sizes(train, all_orders(config, task, train.examples))
    rows = functools.cache(functools.partial(lay_rows, config, shape, steps))
    notes = [note for split, part in {"train": train, **evals}.items() for note in _notes(task, split, part)]
    return TaskData(task, shape, model, train, evals, texts.absent, tuple(notes), rows)


def _notes(task: Task, split: str, part: Encoded) -> list[str]:
    """Words without a token of their own, and words whose tag the training set lacks."""
    notes, total = [], len(part.labels)
    ending = "are not learned from" if split == "train" else "count as wrong"
    if lost := total - len(part.asked.label):
        notes.append(f"{task.name} {split}: {lost} of {total} words have no token within max_length, and {ending}")
    if other := int((part.labels >= task.num_outputs).sum()) if task.unseen else 0:
        tags = ", ".join(task.unseen)
        notes.append(f"{task.name} {split}: {other} of {total} words have tags that train lacks, and {ending}: {tags}")
    return notes


def all_orders(config: Config, task: Task, examples: int) -> np.ndarray:
    """The orders of every epoch, int64 `[steps, seeds, batch]`, for as many as the longest setting has."""
    epochs = max(config.epochs or tasks.paper_epochs(task, setting) for setting in config.settings)
    orders = [
        [batches.epoch_order(task.name, seed, epoch + 1, examples, config.batch_size) for epoch in range(epochs)]
        for seed in config.seeds
    ]
    return np.stack([np.concatenate(own) for own in orders], axis=1)


def lay_rows(config: Config, shape: BertConfig, steps: np.ndarray, parts: int, together: bool) -> Rows:
    """The shapes that hold every step.

    Args:
        config: the study's.
        shape: the model's.
        steps: tokens of the examples, int `[steps, seeds, batch]`.
        parts: how many devices share a batch.
        together: whether the seeds of a step share its shape.
    """
    if not together:
        steps = steps.reshape(-1, 1, config.batch_size)
    if not config.packing:
        return Rows(packing.plain, packing.plain_shapes(steps, parts=parts))
    worth = work.least_saving(jax.default_backend(), int(steps.sum()) * len(config.learning_rates))
    shapes = packing.choose_shapes(steps, knee=work.knee(shape), parts=parts, most=SHAPES, worth=worth)
    return Rows(packing.first_fit, shapes)


def _cell(config: Config, data: TaskData, setting: Setting, device_count: int) -> Cell:
    model, params = data.model, _params(data.shape, data.model)
    recipe, drawn = make_recipe(config, setting, data.shape, params)
    report = trained.report(
        data.task.name,
        setting,
        params,
        recipe.label_tree,
        drawn,
        seeds=config.seeds,
        model_name=config.model_name,
        model_sha256=model.sha256,
        options=_mask_options(config, setting),
        seen=_seen(data),
    )
    epochs = config.epochs or tasks.paper_epochs(data.task, setting.name)
    name = f"{data.task.name}/{setting.name}"
    cut, parts = make_parts(name, config, recipe, data, device_count)
    return Cell(data, setting, dataclasses.replace(recipe, recompute=cut.recompute), epochs, cut, parts, report)


def make_recipe(config: Config, setting: Setting, shape: BertConfig, params: Tree) -> tuple[Recipe, list[Tree]]:
    """What trains, and one elementwise mask a seed; `params` needs values only for outliers (`masks.choose`)."""
    labels = rules.label(params, setting.rules, f"settings: {setting.name}")
    drawn = [masks.choose(setting.mask, params, labels, seed) for seed in config.seeds]
    flat = tuple(rules.flatten(labels).items())
    return Recipe(shape, flat, config.optimizer, config.frozen_dropout, gathered=masks.sizes(drawn)), drawn


def recut(cell: Cell, config: Config, cut: Cut) -> Cell:
    """The cell with its runs cut in another way, on as many devices."""
    recipe = dataclasses.replace(cell.recipe, recompute=cut.recompute)
    _, parts = make_parts(cell.name, config, recipe, cell.data, jax.local_device_count(), cut)
    return dataclasses.replace(cell, recipe=recipe, cut=cut, parts=parts)


def make_parts(
    name: str, config: Config, recipe: Recipe, data: TaskData, device_count: int, cut: Cut | None = None
) -> tuple[Cut, tuple[Part, ...]]:
    """How the runs of a cell are cut to fit the memory, unless it is given, and the parts with their plans.

    Seeds that train one after another have shapes of their own, with less padding than shared ones: a CPU, which
    gains nothing from computing them together, does so unless cores would idle. An accelerator wants all the runs
    that it can hold.

    Raises:
        InputError: not even one run fits; the message names the cell.
    """
    platform, whole = jax.default_backend(), Size(len(config.seeds), len(config.learning_rates))
    tokens = int(config.batch_size * data.train.lengths.mean())
    own = work.of_step(recipe, tokens)

    def spread(size: Size) -> devices.Plan:
        return devices.make_plan(size.seeds, size.rates, device_count, own, split=platform == "cpu")

    def rows_of(size: Size) -> Rows:
        return data.rows(spread(size).batch_parts, size.seeds > 1)

    single = Size(1, whole.rates)
    one, every = (devices.load(spread(size), own) for size in (single, whole))
    first = single if platform == "cpu" and whole.seeds * one <= SHARED_SHAPE * every else whole
    if cut is None:
        plan = spread(first)
        want = grid.default_chunks(platform, tokens // plan.batch_parts, len(plan.rates[0]))
        there = memory.budget(plan.devices) - evaluation.reserve(recipe, plan, data.evals.values())
        rows = rows_of(first)
        largest = max(rows.shapes, key=lambda shape: shape.tokens)
        targets = batches.capacity(data.train, config.batch_size, largest)
        cut = _cut(name, recipe, first, spread, want, largest, targets, there)
    parts = []
    for seeds, rates in memory.parts(whole, cut.part):
        size = Size(len(seeds), len(rates))
        parts.append(Part(tuple(seeds), tuple(rates), spread(size), cut.chunks, rows_of(size)))
    return cut, tuple(parts)


def _cut(
    name: str,
    recipe: Recipe,
    runs: Size,
    spread: memory.Spread,
    want: Chunks,
    largest: Shape,
    targets: int,
    there: int,
) -> Cut:
    """The cut that fits; programs are compiled only where a bound from shapes does not settle it."""
    plan = spread(runs)
    tokens, held = largest.tokens // plan.batch_parts, memory.rectangle(plan)
    most = memory.bound(recipe, held, want, tokens, largest.length, trainer.STEPS)
    if most <= there:
        return Cut(runs, Chunks(min(want.seeds, held.seeds), min(want.rates, held.rates)), False, most)

    def batches_of(plan: devices.Plan) -> batches.Batch:
        lead = (trainer.STEPS, len(plan.seeds[0]))
        return shapes.batch_shapes(recipe, lead, largest.rows // plan.batch_parts, largest.length, targets)

    return memory.cut_to_fit(name, runs, spread, want, memory.training(recipe, batches_of), there)


def _mask_options(config: Config, setting: Setting) -> dict[str, Any]:
    """The fields of the config that chose the mask."""
    outliers, random = config.record["outliers"], config.record["random"]
    kinds = {"random": random, "outliers": outliers, "random_norms": {**outliers, "per_seed": random["per_seed"]}}
    return kinds[setting.mask.kind] if setting.mask else {}


def _seen(data: TaskData) -> dict[str, np.ndarray]:
    """Which rows of the embedding tables the training examples read; the others get no gradient."""
    shape, train = data.shape, data.train
    words = np.zeros(shape.vocab_size, bool)
    words[train.tokens] = True
    types = np.zeros(shape.type_vocab_size, bool)
    types[train.token_types] = True
    positions = np.arange(shape.max_position_embeddings) < train.lengths.max()
    return {"word_embeddings": words, "position_embeddings": positions, "token_type_embeddings": types}
