"""What a task is, and its texts: the eight GLUE tasks from the hub, from a folder in its layout, or generated."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import streams, synthetic
from lnflax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Task:
    """A sentence task. `labels` empty is regression. The first metric is the reported one.

    `splits` are the development sets: the first gives the metrics by their own names, a second one by the names
    with its own ending (`accuracy_mismatched`). `epochs` is the paper's number for all settings but `full`.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    splits: tuple[str, ...] = ("validation",)
    epochs: int = 20

    @property
    def num_outputs(self) -> int:
        """One score, or one logit a class."""
        return len(self.labels) or 1


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
NLI = ("entailment", "neutral", "contradiction")
MNLI_SPLITS = ("validation_matched", "validation_mismatched")

TASKS = {
    task.name: task
    for task in (
        Task("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy")),
        Task("sst2", ("sentence",), ("negative", "positive"), epochs=10),
        Task("mrpc", PAIR, ("not_equivalent", "equivalent"), ("f1", "accuracy")),
        Task("stsb", PAIR, (), ("pearson", "spearman")),
        Task("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"), epochs=10),
        Task("mnli", ("premise", "hypothesis"), NLI, splits=MNLI_SPLITS, epochs=10),
        Task("qnli", ("question", "sentence"), ENTAILMENT, epochs=10),
        Task("rte", PAIR, ENTAILMENT),
    )
}
FULL_EPOCHS = 5


def paper_epochs(task: Task, setting: str) -> int:
    """The paper's number of epochs (section 2.1)."""
    return FULL_EPOCHS if setting == "full" else task.epochs


class Texts(NamedTuple):
    """Examples in data order: one or two columns of strings, and int32 classes or float32 scores `[examples]`."""

    columns: tuple[list[str], ...]
    labels: np.ndarray


class TaskTexts(NamedTuple):
    """The training texts, the development texts by split, and the splits that the data does not have."""

    train: Texts
    evals: dict[str, Texts]
    absent: tuple[str, ...]


def load(task: Task, path: str, eval_split: str, max_train_examples: int) -> TaskTexts:
    """The texts of a task from `data.path`: a hub id, a folder in the hub's layout, or `synthetic`.

    `max_train_examples` keeps a random part of the training set, the same for all seeds.

    Raises:
        InputError: the data is not there, lacks the training or the first development split, or a column or label
            is not what the task says.
    """
    splits = (eval_split,) if eval_split else task.splits
    tables = synthetic.generate(task.name) if path == "synthetic" else _read(task.name, path, ("train", *splits))
    for split in ("train", splits[0]):
        if split not in tables:
            field = "data.eval_split" if split == eval_split else "data.path"
            raise InputError(
                f"{field}: {path!r} has no {split!r} of {task.name}; it has {', '.join(tables) or 'nothing'}"
            )
    train = _texts(task, "train", tables["train"])
    if 0 < max_train_examples < len(train.labels):
        chosen = streams.subset(("max_train_examples", task.name), max_train_examples, len(train.labels))
        train = Texts(tuple([column[i] for i in chosen] for column in train.columns), train.labels[chosen])
    evals = {split: _texts(task, split, tables[split]) for split in splits if split in tables}
    return TaskTexts(train, evals, tuple(split for split in splits if split not in tables))


def _read(task: str, path: str, splits: tuple[str, ...]) -> dict[str, Any]:
    """Split name to a table of columns, for those of `splits` that are there."""
    folder = Path(path).expanduser()
    if not folder.is_dir() and (path.startswith(("/", ".", "~")) or path.count("/") > 1):
        raise InputError(f"data.path: no folder {path!r}; give a hub id, a folder in the hub's layout, or synthetic")
    import datasets

    datasets.disable_progress_bars()
    try:
        if folder.is_dir():
            files = {split: sorted(map(str, (folder / task).glob(f"{split}-*.parquet"))) for split in splits}
            files = {split: names for split, names in files.items() if names}
            if not files:
                raise InputError(f"data.path: {path!r} has no {task}/SPLIT-*.parquet")
            tables = datasets.load_dataset("parquet", data_files=files)
        else:
            tables = datasets.load_dataset(path, task)
    except InputError:
        raise
    except Exception as error:  # datasets raises what its readers raise: one line for all of them
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(f"data.path: {path!r}, {task}: {reason[0] if reason else type(error).__name__}") from error
    return {split: {name: table[name] for name in table.column_names} for split, table in tables.items()}


def _texts(task: Task, split: str, table: dict[str, Any]) -> Texts:
    where = f"data.path: {task.name} {split}"
    for name in (*task.columns, "label"):
        if name not in table:
            raise InputError(f"{where}: no column {name!r}; there are {', '.join(table)}")
    columns = tuple(list(table[name]) for name in task.columns)
    labels = np.asarray(list(table["label"]))
    if not len(labels):
        raise InputError(f"{where}: no examples")
    if any(not isinstance(text, str) for column in columns for text in column):
        raise InputError(f"{where}: a text is missing")
    if task.labels:
        for label in labels.tolist():
            if type(label) is not int or not 0 <= label < len(task.labels):
                known = f"0 … {len(task.labels) - 1} ({', '.join(task.labels)})"
                raise InputError(f"{where}: label {label!r}; allowed are {known}")
        return Texts(columns, labels.astype(np.int32))
    if labels.dtype.kind not in "iuf" or not np.isfinite(labels).all() or labels.min() < 0 or labels.max() > 5:
        raise InputError(f"{where}: a label is not a score from 0 to 5")
    return Texts(columns, labels.astype(np.float32))
