"""A config to its cells: for each (task, setting) the data, the labels, the recipe and the plan, all checked first.

Nothing is trained or written here, so that bad input costs nothing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
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
    packing,
    rules,
    settings,
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
from lnflax.settings import Setting
from lnflax.step import Recipe
from lnflax.tasks import TASKS, Task
from lnflax.tokens import Encoded
from lnflax.trainer import Rows, Trainer

Tree = Any
SHARED_SHAPE = 1.1  # what seeds of one shape cost more by their padding
SHAPES = 6  # the most of a task: each is a compilation of seconds


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint's body: its values (float32, by path), and their hash."""

    body: dict[str, np.ndarray]
    sha256: str


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's examples as token ids, the model's shape with the task's head, and how examples are laid into rows."""

    task: Task
    shape: BertConfig
    train: Encoded
    evals: dict[str, Encoded]
    absent: tuple[str, ...]
    rows: Callable[[int, bool], Rows]  # for so many devices a batch, and whether the seeds of a step share a shape


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs of a cell that train together: by the places of their seeds and rates in the config's lists."""

    seeds: tuple[int, ...]
    rates: tuple[int, ...]
    plan: devices.Plan
    chunks: Chunks

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
    rows: Rows
    parts: tuple[Part, ...]
    report: dict[str, Any]  # what trains: the content of trained.json

    @property
    def name(self) -> str:
        """TASK/SETTING."""
        return f"{self.data.task.name}/{self.setting.name}"


def prepare(config: Config, device_count: int) -> tuple[Model, list[Cell]]:
    """The checkpoint and all cells of a study, in the order tasks, then settings.

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
    body = checkpoint.read_body(folder, shape)
    model = Model(body, checkpoint.body_sha256(body))
    tokenizer = tokens.load_tokenizer(folder)
    cells = []
    for name in config.tasks:
        data = _task_data(config, shape, tokenizer, TASKS[name])
        cells += [_cell(config, model, data, _setting(config, shape, own), device_count) for own in config.settings]
    return model, cells


def make_trainer(cell: Cell, part: Part, model: Model, config: Config) -> tuple[Trainer, dict[str, Evaluation]]:
    """What a part of a cell needs on its devices: for training, and for each development set."""
    own, data, knee = part.config(config), cell.data, work.knee(cell.data.shape)
    # Of all seeds, so that the arrays of all parts have one shape and share their programs.
    every = masks.gather(seed_masks(cell.setting, cell.recipe, model, config.seeds))
    made = trainer.make_trainer(
        own,
        cell.recipe,
        part.plan,
        part.chunks,
        task=data.task.name,
        train=data.train,
        rows=cell.rows,
        epochs=cell.epochs,
        body=model.body,
        seed_masks=[every[i] for i in part.seeds],
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
    return settings.make_setting(
        name,
        config.options,
        layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        user_rules=config.rules,
    )


def _params(shape: BertConfig, model: Model) -> Tree:
    """The full tree: values for the body, shapes for the head."""
    flat = rules.flatten(bert.parameter_shapes(shape))
    return rules.unflatten({path: model.body.get(path, leaf) for path, leaf in flat.items()})


def _task_data(config: Config, shape: BertConfig, tokenizer: Any, task: Task) -> TaskData:
    texts = tasks.load(task, config.data_path, config.eval_split, config.max_train_examples)
    train = tokens.encode(tokenizer, texts.train, config.max_length)
    evals = {split: tokens.encode(tokenizer, part, config.max_length) for split, part in texts.evals.items()}
    largest = max(int(part.tokens.max()) for part in (train, *evals.values()))
    if largest >= shape.vocab_size:
        raise InputError(f"model.name: the tokenizer gives token {largest}, the model knows {shape.vocab_size}")
    shape = dataclasses.replace(shape, num_outputs=task.num_outputs)
    steps = batches.sizes(train, all_orders(config, task, len(train.labels)))
    rows = functools.cache(functools.partial(lay_rows, config, shape, steps))
    return TaskData(task, shape, train, evals, texts.absent, rows)


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


def _cell(config: Config, model: Model, data: TaskData, setting: Setting, device_count: int) -> Cell:
    params = _params(data.shape, model)
    labels = rules.label(params, setting.rules, f"settings: {setting.name}")
    recipe = Recipe(data.shape, tuple(rules.flatten(labels).items()), config.optimizer, config.frozen_dropout)
    report = trained.report(
        data.task.name,
        setting,
        params,
        labels,
        seed_masks(setting, recipe, model, config.seeds),
        seeds=config.seeds,
        model_name=config.model_name,
        model_sha256=model.sha256,
        options=_mask_options(config, setting),
        seen=_seen(data),
    )
    epochs = config.epochs or tasks.paper_epochs(data.task, setting.name)
    parts = make_parts(config, recipe, int(config.batch_size * data.train.lengths.mean()), device_count)
    rows = data.rows(parts[0].plan.batch_parts, len(parts[0].seeds) > 1)
    return Cell(data, setting, recipe, epochs, rows, parts, report)


def make_parts(config: Config, recipe: Recipe, tokens: int, device_count: int) -> tuple[Part, ...]:
    """The parts of a cell, each with its plan and chunks; `tokens` are those of a step, about.

    Seeds that train one after another have shapes of their own, with less padding than shared ones: a CPU, which
    gains nothing from computing them together, does so unless cores would idle. An accelerator wants all the runs
    that it can hold.
    """
    cpu, rates = jax.default_backend() == "cpu", tuple(range(len(config.learning_rates)))
    seeds = tuple(range(len(config.seeds)))
    own = work.of_step(recipe, tokens)

    def plan_of(size: int) -> devices.Plan:
        return devices.make_plan(size, len(rates), device_count, own, split=cpu)

    one, every = plan_of(1), plan_of(len(seeds))
    alone = cpu and len(seeds) * devices.load(one, own) <= SHARED_SHAPE * devices.load(every, own)
    plan, groups = (one, [(seed,) for seed in seeds]) if alone else (every, [seeds])
    chunks = grid.default_chunks(jax.default_backend(), tokens // plan.batch_parts, len(plan.rates[0]))
    return tuple(Part(group, rates, plan, chunks) for group in groups)


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
