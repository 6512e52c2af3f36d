"""Every run of a run folder as a flat record, for pandas: `pandas.DataFrame(read_runs(workdir))`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lnflax import selection
from lnflax.results import read_study


def read_runs(workdir: Path | str) -> list[dict[str, Any]]:
    """One flat dict a run of a finished cell, by cell, seed and rate; all have the same keys.

    `score` is the cell's `metric` at its `report_epoch`, None where the run diverged; `selected` says whether the
    run's rate is the reported one, `at_edge` whether that rate is at the edge of the grid. `last_…` and `best_…` are
    the epoch, losses and metrics at these two epochs; a metric that a task does not have is None.

    Raises:
        InputError: the folder holds no finished cell, or a file of it is broken.
    """
    runs = [run for cell in read_study(workdir).cells for run in _runs(cell)]
    keys = dict.fromkeys(key for run in runs for key in run)
    # Values of `last` before those of `best`, in the order of the first run that has them.
    order = sorted(keys, key=lambda key: key.startswith("last_") + 2 * key.startswith("best_"))
    return [{key: run.get(key) for key in order} for run in runs]


def _runs(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    metric, epoch = cell["metric"], cell["report_epoch"]
    chosen = selection.select(cell["runs"], metric, epoch)
    return [
        {
            **{name: cell[name] for name in ("task", "setting", "ratio")},
            "trained": cell.get("trained"),
            "metric": metric,
            "report_epoch": epoch,
            **{name: run[name] for name in ("seed", "learning_rate", "status", "diverged_step")},
            "score": selection.score(run, metric, epoch),
            "selected": run["learning_rate"] == chosen["learning_rate"],
            "at_edge": run["learning_rate"] == chosen["learning_rate"] and chosen["at_edge"],
            **{f"{kind}_{name}": value for kind in ("last", "best") for name, value in (run[kind] or {}).items()},
        }
        for run in cell["runs"]
    ]
