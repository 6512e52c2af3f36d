"""What a reader must know of a study before its numbers: what is missing, broken or diverged, and which choices its
grid did not settle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import coverage, selection
from lnflax.analysis.entries import SECOND, Reading, metric_of
from lnflax.analysis.evidence import read_stored
from lnflax.analysis.grids import Matrix
from lnflax.errors import InputError
from lnflax.results import Study, cell_folder

Cell = Mapping[str, Any]


class Trouble(NamedTuple):
    """One kind of trouble, and a line for each place where it is."""

    kind: str
    lines: tuple[str, ...]


def find(
    workdir: Path | str, study: Study, matrices: Sequence[Matrix], reading: Reading, unread: Iterable[str]
) -> list[Trouble]:
    """The troubles of a study, the gravest kinds first; `unread` says what else of it could not be read."""
    cells = list(zip(study.cells, matrices, strict=True))
    constant, faults = [], [*study.damaged, *unread]
    for cell, matrix in cells:
        try:
            constant += _constant(workdir, cell, matrix)
        except InputError as error:
            faults.append(str(error))
    kinds = {
        "Diverged runs": [line for cell, _ in cells for line in _diverged(cell)],
        "Cells that have begun and are not done": _joined("/".join(own) for own in study.unfinished),
        "Cells that have not begun": _absent(study),
        "Damaged or missing files": _files(workdir, faults),
        "Runs of the config that are lacking": [line for cell, _ in cells for line in _lacking(cell, study.config)],
        "Seeds without a value at the selected rate": [line for own in cells for line in _fewer(*own)],
        "Predictions that are all the same, at the selected rate": constant,
        "Selected rate at the edge of the grid": _edges(matrices),
        "Development sets that are missing": [line for cell, _ in cells for line in _no_split(cell, reading)],
    }
    return [Trouble(kind, tuple(lines)) for kind, lines in kinds.items() if lines]


def _name(cell: Cell) -> str:
    return f"{cell['task']}/{cell['setting']}"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _joined(names: Iterable[str]) -> list[str]:
    """One line of all, or none."""
    text = ", ".join(names)
    return [f"{text}."] if text else []


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {_list(seeds)}"


def _diverged(cell: Cell) -> list[str]:
    """How many runs, and at which rates and seeds, with the steps."""
    stopped: dict[float, list[Mapping[str, Any]]] = {}
    for run in sorted(cell["runs"], key=lambda run: (run["learning_rate"], run["seed"])):
        if run["status"] == "diverged":
            stopped.setdefault(run["learning_rate"], []).append(run)
    if not stopped:
        return []
    where = []
    for rate, runs in stopped.items():
        steps = dict.fromkeys(run["diverged_step"] for run in runs if run["diverged_step"])
        where.append(
            f"rate {rate:g}, {_seeds([run['seed'] for run in runs])}" + f" (step {_list(steps)})" * bool(steps)
        )
    return [f"{_name(cell)}: {sum(map(len, stopped.values()))} of {len(cell['runs'])} runs: {'; '.join(where)}."]


def _absent(study: Study) -> list[str]:
    """The cells of the config without a folder of their own."""
    there = {(cell["task"], cell["setting"]) for cell in study.cells} | {*study.unfinished}
    damaged = "\n".join(study.damaged)
    return _joined("/".join(own) for own in study.asked if own not in there and f"/{'/'.join(own)}/" not in damaged)


def _files(workdir: Path | str, faults: Iterable[str]) -> list[str]:
    """What is wrong with files, told once of all the cells of which it is true."""
    found: dict[str, list[str]] = {}
    for fault in dict.fromkeys(fault.replace(f"{Path(workdir)}/", "") for fault in faults):
        own = re.fullmatch(r"([^/ ]+/[^/ ]+)/(\S+ .*)", fault)
        found.setdefault(own[2] if own else fault, []).append(own[1] if own else "")
    return [f"{', '.join(filter(None, cells))}{': ' * any(cells)}{fault}." for fault, cells in found.items()]


def _lacking(cell: Cell, config: Mapping[str, Any]) -> list[str]:
    """Seeds and rates that joined the config after the cell was done."""
    if not config:  # damaged
        return []
    there = [tuple(dict.fromkeys(run[field] for run in cell["runs"])) for field in ("seed", "learning_rate")]
    lacking = coverage.cover(config["seeds"], config["learning_rates"], (there[0], there[1])).runs
    return [f"{_name(cell)}: {lacking} runs; it has {_seeds(there[0])} at {_list(there[1])}."] if lacking else []


def _fewer(cell: Cell, matrix: Matrix) -> list[str]:
    if matrix.selected is None:
        return [f"{_name(cell)}: no run has a {matrix.metric}."]
    own = matrix.scores[matrix.rates.index(matrix.selected)]
    without = [seed for seed, score in zip(matrix.seeds, own, strict=True) if score is None]
    return [f"{_name(cell)}: {_seeds(without)} at rate {matrix.selected:g}."] if without else []


def _edges(matrices: Iterable[Matrix]) -> list[str]:
    """A line a rate: a rate beyond it may be better."""
    found: dict[str, list[str]] = {}
    for matrix in matrices:
        if matrix.at_edge:
            place = "smallest" if matrix.selected == matrix.rates[0] else "largest"
            found.setdefault(f"{matrix.selected:g}, the {place}", []).append(f"{matrix.task}/{matrix.setting}")
    return [f"{rate}: {', '.join(names)}." for rate, names in found.items()]


def _constant(workdir: Path | str, cell: Cell, matrix: Matrix) -> list[str]:
    """Runs at the selected rate that give every example of a development set one answer."""
    if matrix.selected is None:
        return []
    lines = []
    for split in cell["eval_examples"]:
        stored = read_stored(cell_folder(workdir, matrix.task, matrix.setting), matrix.epoch, split)
        given = dict(zip(stored.seeds, stored.predictions[:, stored.rates.index(matrix.selected)], strict=True))
        same = [seed for seed in matrix.seeds if seed in given and np.ptp(given[seed]) == 0]
        if same:
            answers = dict.fromkeys(_answer(given[seed][0], stored.names) for seed in same)
            lines.append(f"{_name(cell)}: {_seeds(same)} on {split}: {_list(answers)}.")
    return lines


def _answer(value: np.generic, names: Sequence[str]) -> str:
    if np.issubdtype(value.dtype, np.floating):
        return f"{value:.4g}"
    return f"“{names[int(value)]}”" if 0 <= int(value) < len(names) else str(value)


def _no_split(cell: Cell, reading: Reading) -> list[str]:
    second = SECOND.get((cell["task"], metric_of(cell, reading)))
    names = selection.metric_names(cell["runs"], cell["report_epoch"])
    if second is None or not names:
        return []
    scores = [selection.score(run, second, cell["report_epoch"]) for run in cell["runs"] if run["status"] == "finished"]
    return [f"{_name(cell)} has no {second}."] if scores and all(score is None for score in scores) else []
