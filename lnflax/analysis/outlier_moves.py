"""How far training moves the outliers of each LayerNorm against its other scalars: from the deltas of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import deltas, results, settings
from lnflax.analysis.outlier_choice import KINDS, LEAVES, Outliers, pool_of
from lnflax.deltas import Delta
from lnflax.storage import Damaged
from lnflax.task_data import Model


class Distance(NamedTuple):
    """How many scalars, their mean |after - before|, and their mean |before|; None of no scalars."""

    scalars: int
    moved: float | None
    size: float | None

    @property
    def relative(self) -> float | None:
        """The first mean over the second; None where there is nothing to divide by."""
        return quotient(self.moved, self.size)


class Move(NamedTuple):
    """Of one run, one rule and one kind of LayerNorm: its outliers, and the others that the rule chose them among.

    Both are of the scalars that the run trained: what is frozen does not move, and tells nothing.
    """

    task: str
    setting: str
    seed: int
    learning_rate: float
    epoch: int
    rule: str
    kind: str
    outliers: Distance
    others: Distance

    @property
    def ratio(self) -> float | None:
        """How many times as far the outliers moved; None where there are no others, or they stayed."""
        return quotient(self.outliers.moved, self.others.moved)

    @property
    def relative_ratio(self) -> float | None:
        """The same of the distances relative to the sizes."""
        return quotient(self.outliers.relative, self.others.relative)


class Moves(NamedTuple):
    """What the deltas of some cells say, and a line for each kind of cell that says nothing."""

    found: tuple[Move, ...]
    notes: tuple[str, ...]


def quotient(above: float | None, below: float | None) -> float | None:
    """None where a part is lacking or the second is 0."""
    return None if above is None or not below else above / below


def of_run(outliers: Outliers, delta: Delta, model: Model, where: str) -> list[Move]:
    """A run's moves, by rule and kind of LayerNorm; none of a kind of which it trained nothing that the rule is over.

    Args:
        outliers: of the same body.
        delta: the run's.
        model: the body before.
        where: the delta's file, for messages.

    Raises:
        InputError: the delta is of another body, or does not fit this one.
    """
    places = {f"{norm.path}/{leaf}": (i, j) for i, norm in enumerate(outliers.norms) for j, leaf in enumerate(LEAVES)}
    after, trained = outliers.values.copy(), np.zeros(outliers.values.shape, bool)
    for path, tuned in deltas.changes(delta, model.body, model.sha256, where):
        if path in places:
            after[places[path]] = tuned
            trained[places[path]][slice(None) if path in delta.whole else delta.scalars[path].index] = True
    about, size, moved = delta.about, np.abs(outliers.values), np.abs(after - outliers.values)
    found = []
    for rule in settings.OUTLIER_POOLS:
        for kind in KINDS:
            among = trained & np.array([norm.kind == kind for norm in outliers.norms])[:, None, None]
            among &= np.isin(range(len(LEAVES)), pool_of(rule))[:, None]
            if among.any():
                parts = (among & outliers.chosen[rule], among & ~outliers.chosen[rule])
                own = (_distance(moved[part], size[part]) for part in parts)
                found.append(Move(about.task, about.setting, *deltas.run_of(about), rule, kind, *own))
    return found


def _distance(moved: np.ndarray, size: np.ndarray) -> Distance:
    return Distance(len(moved), float(moved.mean()), float(size.mean())) if len(moved) else Distance(0, None, None)


def read(
    workdir: Path | str, cells: Sequence[Mapping[str, Any]], outliers: Outliers, model: Callable[[str], Model]
) -> Moves:
    """The moves of the cells' runs at the selected rate; `model` gives the body as so pooled.

    Cells without deltas, or whose deltas train no scalar of a LayerNorm, and damaged deltas are told of and left out.

    Raises:
        InputError: a delta is of another body, or is not there.
    """
    found: list[Move] = []
    lacking, untouched, notes = [], [], []
    for cell in cells:
        name = f"{cell['task']}/{cell['setting']}"
        paths = results.kept_deltas(workdir, cell)
        if not paths:
            lacking.append(name)
        for path in paths.values():
            try:
                delta = deltas.read(path)
            except Damaged as error:
                notes.append(f"Damaged, and left out: {error}.")
                continue
            own = of_run(outliers, delta, model(delta.about.pooling), str(path))
            found += own
            if not own:
                untouched.append(name)
    if lacking:
        notes.append(f"Without deltas (train them with --config.save_deltas=best): {', '.join(lacking)}.")
    if untouched:
        notes.append(f"No LayerNorm of a block is in the deltas of {', '.join(dict.fromkeys(untouched))}.")
    return Moves(tuple(found), tuple(notes))


def by_cell(moves: Iterable[Move]) -> Mapping[tuple[str, ...], list[Move]]:
    """The moves of all seeds by task, setting, rule and kind of LayerNorm."""
    found: dict[tuple[str, ...], list[Move]] = {}
    for move in moves:
        found.setdefault((move.task, move.setting, move.rule, move.kind), []).append(move)
    return found
