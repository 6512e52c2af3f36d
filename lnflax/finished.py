"""A finished cell as models again: the deltas that it kept, and the config and data that they were trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lnflax import config, deltas, results, task_data
from lnflax.config import Config
from lnflax.deltas import Delta
from lnflax.errors import InputError, check_choice
from lnflax.task_data import TaskData
from lnflax.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Finished:
    """Runs of one cell and rate whose deltas are there."""

    workdir: Path
    cell: Mapping[str, Any]  # its results.json
    config: Config
    data: TaskData
    learning_rate: float
    seeds: tuple[int, ...]
    deltas: tuple[Delta, ...]  # one a seed
    files: tuple[Path, ...]

    def tuned(self, number: int) -> dict[str, np.ndarray]:
        """Every parameter of one of the models by path; what it has not changed are the base's own arrays."""
        model, delta = self.data.model, self.deltas[number]
        changed = deltas.changes(delta, model.body, model.sha256, str(self.files[number]))
        return {**model.body, **dict(changed), **deltas.head(delta)}


def read(paths: Sequence[Path], field: str) -> Finished:
    """The cell that some deltas belong to.

    Args:
        paths: the deltas of one cell and rate, or the folder that they lie in, of which the selected rate's are taken.
        field: what the user gave them as, for messages.

    Raises:
        InputError: a path is no delta of a run folder, or they are of several cells or rates, or the model or the data
            is another one than they were trained with.
    """
    workdir, cell, files = _find(paths, field)
    own = tuple(deltas.read(path) for path in files)
    runs = [deltas.run_of(delta.about) for delta in own]
    for delta in own:
        if (delta.about.task, delta.about.setting) != (cell["task"], cell["setting"]):
            raise InputError(f"{field}: one of {delta.about.task}/{delta.about.setting} lies there: was it moved?")
    if len(rates := {run.learning_rate for run in runs}) > 1:
        raise InputError(f"{field}: they are of the rates {', '.join(f'{x:g}' for x in sorted(rates))}; give one's")
    given = config.of_record(results.read_json(workdir / results.CONFIG))
    data = _data(workdir, given, cell["task"], field)
    seeds = tuple(run.seed for run in runs)
    return Finished(workdir, cell, given, data, runs[0].learning_rate, seeds, own, tuple(files))


def _find(paths: Sequence[Path], field: str) -> tuple[Path, dict[str, Any], list[Path]]:
    """The workdir, the cell's results.json, and the deltas."""
    folders = {path if path.is_dir() else path.parent for path in (path.resolve() for path in paths)}
    folder = min(folders)
    if len(folders) > 1:
        raise InputError(f"{field}: they are of several cells: {', '.join(map(str, sorted(folders)))}")
    if folder.name != results.DELTAS or not results.is_done(folder.parent):
        raise InputError(f"{field}: {folder} is not WORKDIR/TASK/SETTING/{results.DELTAS} of a finished cell")
    workdir, task, setting = folder.parents[2], folder.parent.parent.name, folder.parent.name
    cell = results.read_results(workdir, task, setting)
    given = [path for path in paths if not path.is_dir()]
    return workdir, cell, given or results.chosen_deltas(workdir, cell)


def _data(workdir: Path, given: Config, task: str, field: str) -> TaskData:
    """The task, with the examples that the study had."""
    check_choice(field, task, TASKS)
    data = task_data.load(given, task_data.open_source(given), TASKS[task])
    there = results.read_json(workdir / results.CONFIG)[results.CONTENTS]["data"][task]
    for split, sha256 in data.contents.items():
        if there[split] != sha256:
            raise InputError(f"data.path: {task} {split} is {sha256} here and {there[split]} in {workdir}")
    return data
