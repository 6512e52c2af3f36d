"""A task's examples as the model reads them: token ids, the shapes of their rows, and what they are by content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lnflax import batches, checkpoint, packing, tasks, tokens, work
from lnflax.bert import BertConfig
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.tasks import Task
from lnflax.tokens import Encoded
from lnflax.trainer import Rows

SHAPES = 8  # the most of a task: each is a compilation of seconds


@dataclasses.dataclass(frozen=True)
class Model:
    """A checkpoint's body: its values (float32, by path), and their hash."""

    body: dict[str, np.ndarray]
    sha256: str


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the tasks of a study get their model from: the shape for sentences, the tokenizer, and what a body is."""

    shape: BertConfig
    tokenizer: Any
    read: Callable[[BertConfig], Model]


@dataclasses.dataclass(frozen=True)
class TaskData:
    """A task's examples as token ids, the model with the task's head, and how examples are laid into rows."""

    task: Task
    shape: BertConfig
    model: Model
    train: Encoded
    evals: dict[str, Encoded]
    contents: dict[str, str]  # SHA-256 of each split's examples
    absent: tuple[str, ...]
    notes: tuple[str, ...]  # what a user should know of the data
    rows: Callable[[int, bool], Rows]  # for so many devices a batch, and whether the seeds of a step share a shape


def open_source(config: Config) -> Source:
    """The checkpoint of a study; a body is read once for all tasks of one pooling.

    Raises:
        InputError: there is none, or it has too few positions.
    """
    folder = checkpoint.find(config.model_name)
    shape = checkpoint.read_config(folder, pooling=config.pooling, num_outputs=1, dtype=config.dtype)
    if config.max_length > shape.max_position_embeddings:
        most = shape.max_position_embeddings
        raise InputError(f"max_length: {config.max_length}; the model has {most} positions")
    read = functools.cache(functools.partial(read_model, folder))
    return Source(shape, tokens.load_tokenizer(folder), read)


def read_model(folder: Path, shape: BertConfig) -> Model:
    """The body of a checkpoint that a task of this shape reads."""
    body = checkpoint.read_body(folder, shape)
    return Model(body, checkpoint.body_sha256(body))


def load(config: Config, source: Source, task: Task) -> TaskData:
    """Reads a task; shapes are chosen for the config's seeds and all its settings.

    Raises:
        InputError: the data is not there, does not fit the task or the model.
    """
    # A word's own token is read, whatever sentences do.
    shape = dataclasses.replace(source.shape, pooling="cls") if task.tagged else source.shape
    model, tokenizer = source.read(shape), source.tokenizer
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
    contents = {split: sha256(part) for split, part in {"train": train, **evals}.items()}
    return TaskData(task, shape, model, train, evals, contents, texts.absent, tuple(notes), rows)


def sha256(part: Encoded) -> str:
    """Of token ids, labels and which token answers for which: what a split is, wherever it lies."""
    found = hashlib.sha256()
    for values in (*part[:-1], *part.asked):
        found.update(f"{values.dtype.str}{values.shape}".encode())
        found.update(values.tobytes())
    return found.hexdigest()


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


def seen(data: TaskData) -> dict[str, np.ndarray]:
    """Which rows of the embedding tables the training examples read; the others get no gradient."""
    shape, train = data.shape, data.train
    words = np.zeros(shape.vocab_size, bool)
    words[train.tokens] = True
    types = np.zeros(shape.type_vocab_size, bool)
    types[train.token_types] = True
    positions = np.arange(shape.max_position_embeddings) < train.lengths.max()
    return {"word_embeddings": words, "position_embeddings": positions, "token_type_embeddings": types}
