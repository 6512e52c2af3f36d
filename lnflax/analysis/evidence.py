"""What a cell's stored predictions say: a metric as sums over examples, at the reported rate and at the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lnflax import metrics, selection
from lnflax.analysis.entries import measured_on
from lnflax.analysis.significance import Sums, entity_sums, statistics
from lnflax.errors import InputError
from lnflax.results import PREDICTIONS, cell_folder, read_predictions

TOLERANCE = 1e-6  # between a score of results.json and the same of the predictions, which are float32


@dataclass(frozen=True)
class Evidence:
    """One number of a cell: `sums` of the seeds that count at the selected rate, and of every rate whose seeds all
    count, ascending. An example is a sentence or a pair; of tagged words too a sentence, for its words stand or fall
    together."""

    seeds: tuple[int, ...]
    sums: Sums
    rates: tuple[Sums, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Stored:
    """Predictions on one split, `[seeds, rates, targets]`, and what belongs to them."""

    predictions: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray | None  # of the sentences of tagged words, int `[sentences + 1]`
    seeds: list[int]
    rates: list[float]
    names: list[str]


def read_evidence(workdir: Path | str, cell: Mapping[str, Any], metric: str, rate: float) -> Evidence:
    """The evidence of a cell's metric at its reported epoch.

    Raises:
        InputError: the predictions are not there, not whole, or not those of results.json; or the metric has no sums.
    """
    folder = cell_folder(workdir, cell["task"], cell["setting"])
    measure, split = measured_on(cell, metric)
    stored = read_stored(folder, cell["report_epoch"], split)
    if "tags" in cell and stored.offsets is None:
        raise InputError(f"{folder / PREDICTIONS} does not say where sentences of {split} begin: offsets/{split}")
    scores: dict[float, dict[int, float]] = {}
    for run in sorted(cell["runs"], key=lambda run: run["learning_rate"]):
        if (score := selection.score(run, metric, cell["report_epoch"])) is not None:
            scores.setdefault(run["learning_rate"], {})[run["seed"]] = score
    seeds = {run["seed"] for run in cell["runs"]}
    whole = [own for own in scores if len(scores[own]) == len(seeds)]
    found = {}
    for own in dict.fromkeys((*whole, rate)):
        try:
            found[own] = sums_at(measure, stored, own, list(scores[own]))
        except ValueError as error:
            raise InputError(f"{folder / PREDICTIONS}: {error}") from error
        _check(found[own], scores[own], metric, folder)
    return Evidence(tuple(scores[rate]), found[rate], tuple(found[own] for own in whole), stored.labels)


def read_stored(folder: Path, epoch: str, split: str) -> Stored:
    """The predictions of a cell's folder, at one epoch and of one split.

    Raises:
        InputError: they are not there, not whole, or do not fit each other.
    """
    path = folder / PREDICTIONS
    arrays, about = read_predictions(folder)
    try:
        seeds, rates, names = (json.loads(about[field]) for field in ("seeds", "learning_rates", "labels"))
        predictions, labels = arrays[f"{epoch}/{split}"], arrays[f"labels/{split}"]
    except KeyError as error:
        raise InputError(f"{path} lacks {error}") from error
    except ValueError as error:
        raise InputError(f"{path}: its metadata are not JSON ({error})") from error
    if predictions.shape != (len(seeds), len(rates), len(labels)):
        raise InputError(f"{path}: {epoch}/{split} is {predictions.shape}, not its seeds, rates and labels")
    offsets = arrays.get(f"offsets/{split}")
    if offsets is not None and (offsets[0], offsets[-1]) != (0, len(labels)):
        raise InputError(f"{path}: offsets/{split} do not span its {len(labels)} labels")
    return Stored(predictions, labels, offsets, seeds, rates, names)


def sums_at(measure: str, stored: Stored, rate: float, seeds: Sequence[int]) -> Sums:
    """A metric as sums, of some seeds at one rate.

    Raises:
        ValueError: it has none.
    """
    own = stored.predictions[[stored.seeds.index(seed) for seed in seeds], stored.rates.index(rate)]
    if stored.offsets is None:
        return statistics(measure, own, stored.labels)
    if measure in ("f1", "precision", "recall"):
        return _entities(measure, own, stored, stored.offsets)
    words = statistics(measure, own, stored.labels)
    ends = np.cumsum(words.shares, axis=1)[:, stored.offsets[1:] - 1] * (stored.offsets[1:] > 0)[:, None]
    return Sums(np.diff(ends, axis=1, prepend=0), words.value)


def _entities(measure: str, predictions: np.ndarray, stored: Stored, offsets: np.ndarray) -> Sums:
    # The last name is for -1, a word that no prediction was made for.
    names = np.array([*stored.names, "O"])

    def sentences(numbers: np.ndarray) -> list[list[str]]:
        return [own.tolist() for own in np.split(names[numbers.astype(np.int64)], offsets[1:-1])]

    actual = sentences(stored.labels)
    counts = np.stack([metrics.sentence_counts(sentences(own), actual) for own in predictions], axis=1)
    return entity_sums(counts[0], counts[1], counts[2], measure)


def _check(sums: Sums, scores: Mapping[int, float], metric: str, folder: Path) -> None:
    """A file that was moved, or is of another time, does not give the scores of results.json."""
    for seed, here, there in zip(scores, sums.whole, scores.values(), strict=True):
        if not abs(here - there) < TOLERANCE:
            raise InputError(
                f"{folder / PREDICTIONS} is not of these results: seed {seed} has {metric} {here:.4f} there"
                f" and {there:.4f} in results.json"
            )
