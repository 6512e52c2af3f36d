"""A checkpoint and deltas over it, ready to be asked: the base is read once, whatever is tuned over it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lnflax import checkpoint, deltas, heads, results, tokens
from lnflax.bert import BertConfig
from lnflax.deltas import About
from lnflax.errors import InputError
from lnflax.tasks import TASKS, Task

NO_TASK = "base"  # whose name a fresh head is drawn by


@dataclasses.dataclass(frozen=True)
class Base:
    """A checkpoint: its folder, its body read whole (with a pooler where the file has one), its tokenizer."""

    name: str
    folder: Path
    leaves: Mapping[str, np.ndarray]
    sha256: Callable[[bool], str]  # of the body, with or without the pooler; each is made once
    tokenizer: Callable[[], Any]

    @property
    def has_pooler(self) -> bool:
        """Whether the file has one."""
        return "bert/pooler/dense/kernel" in self.leaves

    def body(self, pooling: str) -> dict[str, np.ndarray]:
        """The leaves that a head of this pooling reads."""
        return _body(self.leaves, pooling == "pooler")


@dataclasses.dataclass(frozen=True)
class Model:
    """A base with the values of one delta, or with none, and the head that answers.

    Leaves of `params` that no delta changed are the base's own arrays, so that many models over one base share them.
    """

    base: Base
    shape: BertConfig
    params: Mapping[str, np.ndarray]  # every parameter by path, float32
    labels: tuple[str, ...]  # of the outputs; none of a regression
    tagged: bool  # whether it answers for words
    task: Task | None  # None where no delta says
    about: About | None  # of the delta
    fresh: bool = False  # whether the head was drawn, and has learned nothing


def open_base(name: str) -> Base:
    """Reads a checkpoint: a folder or a hub id.

    Raises:
        InputError: there is none, or it is not whole.
    """
    folder = checkpoint.find(name)
    pooling = "pooler" if checkpoint.has_pooler(folder) else "cls"
    leaves = checkpoint.read_body(folder, _shape(folder, pooling, 1))
    sha256 = functools.cache(lambda pooled: checkpoint.body_sha256(_body(leaves, pooled)))
    tokenizer = functools.cache(lambda: tokens.load_tokenizer(folder))
    return Base(name, folder, leaves, sha256, tokenizer)


def load(base: Base) -> Model:
    """The base without any delta: its own head where it has one, else a fresh one of seed 0 and two outputs."""
    head, labels, tagged = checkpoint.read_head(base.folder)
    pooling = "pooler" if base.has_pooler and not tagged else "cls"
    fresh = not head
    labels = ("LABEL_0", "LABEL_1") if fresh else labels
    shape = _shape(base.folder, pooling, len(labels) or 1)
    head = heads.make_head(shape, init="normal", seed=0, task=NO_TASK) if fresh else head
    return Model(base, shape, {**base.body(pooling), **head}, labels, tagged, None, None, fresh)


def apply(base: Base, path: Path | str) -> Model:
    """The base with the values of a delta's file; the base stays as it is.

    Raises:
        InputError: no such file, no delta, or one of another base.
    """
    delta, where = deltas.read(Path(path)), str(path)
    about, head = delta.about, deltas.head(delta)
    if about.pooling == "pooler" and not base.has_pooler:
        raise InputError(f"{where} is of a body with a pooler; {base.folder} has none")
    body = base.body(about.pooling)
    changed = dict(deltas.changes(delta, body, base.sha256(about.pooling == "pooler"), where))
    shape = _shape(base.folder, about.pooling, len(about.labels) or 1)
    wanted = {"classifier/bias": (shape.num_outputs,), "classifier/kernel": (shape.hidden_size, shape.num_outputs)}
    if (found := {name: leaf.shape for name, leaf in head.items()}) != wanted:
        raise InputError(f"{where}: its head has the shapes {found}; {wanted} are wanted")
    task = TASKS.get(about.task)
    params = {**body, **changed, **head}
    return Model(base, shape, params, about.labels, task is not None and task.tagged, task, about)


def base_of(path: Path | str) -> str | None:
    """The checkpoint that the study of a delta names, where the delta lies in its run folder."""
    cell = results.cell_of_delta(Path(path))
    if cell is None or not (cell.parents[1] / results.CONFIG).is_file():
        return None
    name: str = results.read_json(cell.parents[1] / results.CONFIG)["model"]["name"]
    return name


def _shape(folder: Path, pooling: str, outputs: int) -> BertConfig:
    return checkpoint.read_config(folder, pooling=pooling, num_outputs=outputs, dtype="float32")


def _body(leaves: Mapping[str, np.ndarray], pooled: bool) -> dict[str, np.ndarray]:
    return {path: leaf for path, leaf in leaves.items() if pooled or not path.startswith("bert/pooler/")}
