"""What a task is, and its texts: GLUE's eight and two of tagged words; from the hub, from a folder, or generated."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import corpora, hub, sources, streams, synthetic, synthetic_tags
from lnflax.corpora import Tagged
from lnflax.errors import InputError

GLUE = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of sentences, or of `tagged` words. The first metric is the reported one.

    `labels` empty is regression; tagged words have the tags of their training set (`TaskTexts`), and `unseen` are those
    of other sets that it lacks. `spans` says that tags mark entities. `source` is where the data is by itself.
    `splits` are the development sets: the first gives the metrics by their own names, a second one by the names
    with its own ending (`accuracy_mismatched`). `epochs` is the paper's number for all settings but `full`.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    splits: tuple[str, ...] = ("validation",)
    epochs: int = 20
    source: str = GLUE
    tagged: bool = False
    spans: bool = False
    unseen: tuple[str, ...] = ()

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
        Task("pos", (), (), source="nltk", tagged=True),
        Task("ner", (), (), ("f1", "precision", "recall"), source="lhoestq/conll2003", tagged=True, spans=True),
    )
}
FULL_EPOCHS = 5


def paper_epochs(task: Task, setting: str) -> int:
    """The paper's number of epochs (section 2.1)."""
    return FULL_EPOCHS if setting == "full" else task.epochs


class Texts(NamedTuple):
    """Examples in data order.

    One or two columns of strings, and int32 classes or float32 scores `[examples]`; or one column of lists of words,
    and the int32 tag of every word, end to end.
    """

    columns: tuple[list, ...]
    labels: np.ndarray

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.columns[0])

    @property
    def tagged(self) -> bool:
        """Whether they are lists of words."""
        return not isinstance(self.columns[0][0], str)

    def part(self, chosen: np.ndarray) -> Texts:
        """The chosen examples."""
        columns = tuple([column[i] for i in chosen] for column in self.columns)
        if not self.tagged:
            return Texts(columns, self.labels[chosen])
        ends = np.cumsum([len(words) for words in self.columns[0]])
        own = [self.labels[ends[i] - len(self.columns[0][i]) : ends[i]] for i in chosen]
        return Texts(columns, np.concatenate(own))


class TaskTexts(NamedTuple):
    """The task with its labels, its training texts, development texts by split, and the splits that there are not."""

    task: Task
    train: Texts
    evals: dict[str, Texts]
    absent: tuple[str, ...]


def load(task: Task, path: str, eval_split: str, max_train_examples: int) -> TaskTexts:
    """The texts of a task from `data.path`: a hub id, a folder, `synthetic`, `nltk`, or empty: the task's own source.

    `max_train_examples` keeps a random part of the training set, the same for all seeds.

    Raises:
        InputError: the data is not there, lacks the training or the first development split, or a column or label
            is not what the task says.
    """
    splits, path = (eval_split,) if eval_split else task.splits, _source(task, path)
    read: Callable[..., dict[str, Any]] = _tagged if task.tagged else _sentences
    tables = read(task, path, ("train", *splits))
    for split in ("train", splits[0]):
        if split not in tables:
            field = "data.eval_split" if split == eval_split else "data.path"
            raise InputError(
                f"{field}: {path!r} has no {split!r} of {task.name}; it has {', '.join(tables) or 'nothing'}"
            )
    if task.tagged:
        task = _with_tags(task, tables["train"], [tables[split] for split in splits if split in tables])
    make: Callable[..., Texts] = _words if task.tagged else _texts
    train = make(task, "train", tables["train"])
    if 0 < max_train_examples < train.examples:
        train = train.part(streams.subset(("max_train_examples", task.name), max_train_examples, train.examples))
    evals = {split: make(task, split, tables[split]) for split in splits if split in tables}
    return TaskTexts(task, train, evals, tuple(split for split in splits if split not in tables))


def locate(task: Task, path: str, eval_split: str) -> Path | hub.Found | str:
    """Where `load` reads from: a folder, the hub's files (fetched where they are not cached), `synthetic` or `nltk`.

    Raises:
        InputError: as of `load`, but for what is inside the files.
    """
    path, splits = _source(task, path), ("train", *((eval_split,) if eval_split else task.splits))
    if path == "synthetic":
        return path
    if path == "nltk":
        corpora.read_treebank()
        return path
    return corpora.locate(task.name, path, splits) if task.tagged else _locate(task.name, path, splits)


def read_test(name: str, split: str, columns: Sequence[str], path: str) -> tuple[list[str], ...]:
    """The texts of a test set, which has no labels, in the order of its `idx`: a list a column.

    Args:
        name: the folder of GLUE's: a task, or `ax`.
        split: of it.
        columns: the texts that are wanted.
        path: a hub id, or a folder in the hub's layout.

    Raises:
        InputError: the set is not there, or lacks a column or a text.
    """
    where, table = f"data.path: {name} {split}", _read(name, path, (split,))[split]
    for column in (*columns, "idx"):
        if column not in table:
            raise InputError(f"{where}: no column {column!r}; there are {', '.join(table)}")
    place = np.argsort(np.asarray(list(table["idx"])), kind="stable")
    found = tuple([own[i] for i in place] for own in (list(table[column]) for column in columns))
    if any(not isinstance(text, str) for own in found for text in own):
        raise InputError(f"{where}: a text is missing")
    return found


def _source(task: Task, path: str) -> str:
    if path == "nltk" and task.name != "pos":
        raise InputError(f"data.path: nltk has pos alone, not {task.name}")
    return path or task.source


def _tagged(task: Task, path: str, splits: tuple[str, ...]) -> dict[str, Tagged]:
    if path == "synthetic":
        return synthetic_tags.generate(task.name)
    return corpora.read(task.name, path, splits, spans=task.spans)


def _with_tags(task: Task, train: Tagged, others: list[Tagged]) -> Task:
    """The task with the tags of the training set, by name, and those of the other sets that it lacks."""
    known, *rest = ({tag for tags in part.tags for tag in tags} for part in (train, *others))
    if len(known) < 2:
        raise InputError(f"data.path: {task.name} train has one tag alone: {', '.join(known)}")
    return dataclasses.replace(task, labels=tuple(sorted(known)), unseen=tuple(sorted(set().union(*rest) - known)))


def _words(task: Task, split: str, tagged: Tagged) -> Texts:
    number = {tag: i for i, tag in enumerate((*task.labels, *task.unseen))}
    return Texts((tagged.words,), np.array([number[tag] for tags in tagged.tags for tag in tags], np.int32))


def _sentences(task: Task, path: str, splits: tuple[str, ...]) -> dict[str, Any]:
    return synthetic.generate(task.name) if path == "synthetic" else _read(task.name, path, splits)


def _locate(task: str, path: str, splits: tuple[str, ...]) -> Path | hub.Found:
    """The folder of a path, or the hub's: the training set and the first development set must be there.

    All sets must be of GLUE's own repository: an absent one is no lack of the hub's but of the cache.
    """
    if folder := sources.folder("data.path", path, "a hub id, a folder in the hub's layout, or synthetic"):
        return folder

    def choose(names: Sequence[str]) -> dict[str, list[str]]:
        return {_pattern(task, split): sorted(fnmatch.filter(names, _pattern(task, split))) for split in splits}

    needed = splits if path == GLUE else splits[:2]
    wanted = hub.Wanted("dataset", path, choose, tuple(_pattern(task, split) for split in needed))
    return hub.fetch(f"data.path: {path!r}, {task}", wanted)


def _pattern(task: str, split: str) -> str:
    """The files of a split in the hub's layout."""
    return f"{task}/{split}-*.parquet"


def _read(task: str, path: str, splits: tuple[str, ...]) -> dict[str, Any]:
    """Split name to a table of columns, for those of `splits` that are there."""
    found = _locate(task, path, splits)
    folder = found if isinstance(found, Path) else found.folder
    files = {split: sorted(map(str, folder.glob(_pattern(task, split)))) for split in splits}
    files = {split: names for split, names in files.items() if names}
    if not files:
        raise InputError(f"data.path: {path!r} has no {task}/SPLIT-*.parquet")
    read = functools.partial(sources.load, f"{path!r}, {task}")
    tables = read(lambda datasets: datasets.load_dataset("parquet", data_files=files))
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
