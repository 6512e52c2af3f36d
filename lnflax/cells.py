"""A config to its cells: for each (task, setting) the data, the labels, the recipe and the plan, all checked first.

Nothing is trained or written here, so that bad input costs nothing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lnflax import batches, bert, checkpoint, devices, masks, rules, settings, tasks, tokens, trained
from lnflax.bert import BertConfig
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.settings import Setting
from lnflax.step import Recipe
from lnflax.tasks import TASKS, Task
from lnflax.tokens import Encoded

Tree = Any


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint's body: its values (float32, by path), and their hash."""

    body: dict[str, np.ndarray]
    sha256: str


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's examples as token ids, the model's shape with the task's head, and the rows' lengths."""

    task: Task
    shape: BertConfig
    train: Encoded
    evals: dict[str, Encoded]
    absent: tuple[str, ...]
    row_lengths: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number ± deviation of a table: all runs of one task and setting."""

    data: TaskData
    setting: Setting
    recipe: Recipe
    epochs: int
    plan: devices.Plan
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
    plan = devices.make_plan(len(config.seeds), len(config.learning_rates), device_count, config.batch_size)
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
        cells += [_cell(config, model, data, _setting(config, shape, setting), plan) for setting in config.settings]
    return model, cells


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
    order = [batches.epoch_order(task.name, seed, 1, len(train.labels), config.batch_size) for seed in config.seeds]
    lengths = batches.choose_lengths(batches.longest(train.lengths, np.stack(order)))
    shape = dataclasses.replace(shape, num_outputs=task.num_outputs)
    return TaskData(task, shape, train, evals, texts.absent, lengths)


def _cell(config: Config, model: Model, data: TaskData, setting: Setting, plan: devices.Plan) -> Cell:
    params = _params(data.shape, model)
    labels = rules.label(params, setting.rules, f"settings: {setting.name}")
    recipe = Recipe(data.shape, tuple(rules.flatten(labels).items()), config.optimizer)
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
    return Cell(data, setting, recipe, epochs, plan, report)


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
