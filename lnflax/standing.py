"""How far each cell of a workdir is, and what of its files is damaged. It changes nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from lnflax import coverage, results, states, training
from lnflax.config import Config
from lnflax.coverage import Coverage
from lnflax.memory import Cut
from lnflax.states import State
from lnflax.storage import Damaged

# Without these a finished cell is not whole: it trains again. What else it has is made anew from them, or is of no use.
ESSENTIAL = (results.RESULTS, results.PREDICTIONS, results.METRICS)


@dataclasses.dataclass(frozen=True)
class Standing:
    """A cell as it lies in its folder, against what is asked of it."""

    coverage: Coverage  # the whole cell, and what it lacks
    begun: bool  # some of its runs are finished, or it has a state
    state: State | None
    cut: Cut | None  # how the runs of the state were cut
    damaged: tuple[Damaged, ...]

    @property
    def done(self) -> bool:
        """Whether nothing is lacking."""
        return not self.coverage.lacking


def stand(config: Config, workdir: Path, task: str, setting: str) -> Standing:
    """Reads the folder of a cell; damaged files count as not there.

    A cell with a state is finished first as it was begun, whatever else is asked of it.

    Raises:
        InputError: a file is of another program, or of another version.
        StorageError: a file cannot be read.
    """
    folder = results.cell_folder(workdir, task, setting)
    damaged = results.damage(workdir, task, setting)
    whole = results.is_done(folder) and not any(error.path.name in ESSENTIAL for error in damaged)
    there: tuple[tuple[int, ...], tuple[float, ...]] = ((), ())
    if whole:
        runs = results.read_results(workdir, task, setting)["runs"]
        there = (tuple(dict.fromkeys(r["seed"] for r in runs)), tuple(dict.fromkeys(r["learning_rate"] for r in runs)))
    found = states.read(folder)
    damaged += [Damaged(path, "is not the state that was written") for path in found.damaged]
    own, cut = training.coverage_of(found.state) if found.state else (None, None)
    if own is None or (whole and not coverage.cover(own.seeds, own.rates, there).lacking):
        asked = coverage.cover(config.seeds, config.learning_rates, there)
        return Standing(asked, whole, None, None, tuple(damaged))
    return Standing(own, True, found.state, cut, tuple(damaged))
