"""The seeds of a cell averaged into one model: the mean of every trained value, evaluated as the runs were."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lnflax import deltas, finished, ledger, results, storage, variants
from lnflax.analysis import formats
from lnflax.analysis.formats import Grid
from lnflax.deltas import Delta, Scalars
from lnflax.errors import InputError
from lnflax.finished import Finished
from lnflax.wording import MISSING, mean_std, percent


def mean(own: Sequence[Delta]) -> Delta:
    """The delta whose values are the means of others', summed in float64; of no single run.

    Raises:
        InputError: they do not train the same scalars.
    """
    first, *others = own
    for delta in others:
        same = first.whole.keys() == delta.whole.keys() and first.scalars.keys() == delta.scalars.keys()
        if not same or any(
            not np.array_equal(part.index, delta.scalars[path].index) for path, part in first.scalars.items()
        ):
            raise InputError(
                f"{first.about.task}/{first.about.setting}: its seeds train other scalars each, and have no mean; "
                "where a mask is drawn, --config.random.per_seed=False trains the same"
            )

    def of(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(np.mean(values, axis=0, dtype=np.float64), np.float32)

    whole = {path: of([delta.whole[path] for delta in own]) for path in first.whole}
    scalars = {
        path: Scalars(part.index, of([delta.scalars[path].value for delta in own]))
        for path, part in first.scalars.items()
    }
    epochs, rates = ({getattr(delta.about, name) for delta in own} for name in ("epoch", "learning_rate"))
    about = dataclasses.replace(
        first.about,
        seed=None,
        epoch=epochs.pop() if len(epochs) == 1 else None,
        learning_rate=rates.pop() if len(rates) == 1 else None,
    )
    return Delta(about, whole, scalars)


def average(cell: Path, out: Path | None) -> str:
    """Averages the runs of a cell's selected rate, evaluates the average, and writes both. The numbers, in Markdown.

    Args:
        cell: WORKDIR/TASK/SETTING.
        out: where `average-TASK-SETTING.safetensors` and `.json` go; None for WORKDIR/analysis.

    Raises:
        InputError: the cell is not finished or has fewer than two deltas, or its seeds train other scalars each.
    """
    own = finished.read([cell / results.DELTAS], "CELL")
    if len(own.seeds) < 2:
        raise InputError(f"{cell}: one seed has a delta at the selected rate; a mean needs two")
    delta = mean(own.deltas)
    model = own.data.model
    changed = {**dict(deltas.changes(delta, model.body, model.sha256, str(cell))), **deltas.head(delta)}
    found = variants.predict(own.data, own.config, {**model.body, **changed}, [{}])
    scores = {name: value for split in found for name, value in _scores(own, split, found[split][0]).items()}
    task, setting = own.cell["task"], own.cell["setting"]
    folder = own.workdir / "analysis" if out is None else out
    stem = f"average-{task}-{setting}"
    storage.durable_write(folder / f"{stem}.safetensors", deltas.pack(delta))
    rows = {name: _runs(own, name) for name in scores}
    record = {
        "format": results.FORMAT,
        "task": task,
        "setting": setting,
        "learning_rate": own.learning_rate,
        "seeds": own.seeds,
        "average": scores,
        "runs": rows,
    }
    results.write_json(folder / f"{stem}.json", record)
    return _text(own, scores, rows) + f"\n{folder / stem}.safetensors\n"


def _scores(own: Finished, split: str, predictions: np.ndarray) -> dict[str, float | None]:
    """The metrics of a development set, named as in results.json."""
    data, examples = own.data, own.data.evals[split]
    ending = "" if split == next(iter(data.evals)) else f"_{split.rpartition('_')[2]}"
    found = ledger.score(data.task, predictions, examples)
    return {f"{name}{ending}": value for name, value in found.items()}


def _runs(own: Finished, name: str) -> list[float | None]:
    """A metric of each seed's run at the rate, at the reported epoch."""
    epoch = own.cell["report_epoch"]
    runs = {run["seed"]: run for run in own.cell["runs"] if run["learning_rate"] == own.learning_rate}
    return [runs[seed][epoch][name] for seed in own.seeds]


def _text(own: Finished, scores: Mapping[str, Any], rows: Mapping[str, Sequence[float | None]]) -> str:
    lines = []
    for name, value in scores.items():
        known = [row for row in rows[name] if row is not None]
        spread = mean_std(float(np.mean(known)), float(np.std(known, ddof=1))) if len(known) > 1 else MISSING
        lines.append((name, *map(percent, rows[name]), spread, percent(value)))
    header = ("metric, %", *(f"seed {seed}" for seed in own.seeds), "mean ± std", "average")
    title = f"{own.cell['task']}/{own.cell['setting']}, rate {own.learning_rate:g}"
    return f"{title}\n\n{formats.markdown(Grid(header, tuple(lines)))}"
