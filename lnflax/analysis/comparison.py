"""What the stored predictions support: an interval of each number, and of its difference to a reference setting.

Seeds and examples are resampled together (`significance`), the same ones for all cells of a task, so that what is hard
for every setting falls out of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lnflax.analysis import significance
from lnflax.analysis.entries import Entry, Reading, measured_on, metric_of
from lnflax.analysis.evidence import Evidence, read_evidence
from lnflax.errors import InputError
from lnflax.results import PREDICTIONS, cell_folder

ALPHA = 0.05
# Few seeds whose spread is more than this many times the error of one seed's examples make an interval too narrow:
# in simulation three seeds then cover 82 to 88 % instead of 95 %.
FEW, EXCESS = 10, 2.0
BETTER, WORSE, ON_A_PAR, CANNOT_TELL = MARKS = ("better", "worse", "on a par", "cannot tell")

Key = tuple[str, str, str]  # setting, task, metric
Interval = tuple[float, float]

# Rounding, of sums in another order, is not a difference.
_DECIMALS = 12


@dataclass(frozen=True)
class Against:
    """The setting that the others are compared with, and how far off still is on a par, as a fraction."""

    setting: str
    margin: float = 0.01


@dataclass(frozen=True)
class Sample:
    """A number's scores `[seeds]`, the same on resampled examples `[resamples, seeds]`, its interval, its honest
    score."""

    task: str
    seeds: tuple[int, ...]
    scores: np.ndarray
    values: np.ndarray
    interval: Interval | None
    honest: float | None

    @property
    def narrow(self) -> bool:
        """Whether the seeds are too few for how much they differ."""
        return _narrow(self.scores, self.values)


@dataclass(frozen=True)
class Difference:
    """A number less the reference's, over so many seeds that both have; `adjusted` is p over the table (Holm)."""

    seeds: int
    mean: float
    interval: Interval
    p: float
    narrow: bool
    adjusted: float
    mark: str = CANNOT_TELL


@dataclass(frozen=True)
class Samples:
    """What is known of each number of a study; for the cells of which it is not, why."""

    found: Mapping[Key, Sample]
    faults: Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Support:
    """What the numbers of one table rest on: the samples of its study, and its own differences to a reference."""

    samples: Samples
    differences: Mapping[Key, Difference]
    against: Against | None


def draw_samples(
    workdir: Path | str, cells: Iterable[Mapping[str, Any]], entries: Mapping[tuple[str, str], Entry], reading: Reading
) -> Samples:
    """Resamples every number that has a value; numbers of one development set share their draws."""
    found: dict[Key, Sample] = {}
    faults: dict[tuple[str, str], str] = {}
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_task.setdefault(cell["task"], []).append(cell)
    # A task at a time: the sums of one are all that is held.
    for task, own in by_task.items():
        first = metric_of(own[0], reading)
        for split, group in _read_task(workdir, own, entries, faults).items():
            found |= _resample(task, split, group, reading, first)
    return Samples(found, faults)


def _read_task(
    workdir: Path | str,
    cells: Iterable[Mapping[str, Any]],
    entries: Mapping[tuple[str, str], Entry],
    faults: dict[tuple[str, str], str],
) -> dict[str, dict[Key, Evidence]]:
    """The evidence of a task's numbers by development set; adds to `faults` why others have none."""
    sets: dict[str, dict[Key, Evidence]] = {}
    for cell in cells:
        entry = entries[cell["setting"], cell["task"]]
        for value in entry.values:
            if value.mean is None or entry.learning_rate is None:
                continue
            try:
                group = sets.get(split := measured_on(cell, value.metric)[1], {})
                evidence = read_evidence(workdir, cell, value.metric, entry.learning_rate)
                _check_labels(cell_folder(workdir, entry.task, entry.setting) / PREDICTIONS, evidence, group)
                sets[split] = {**group, (entry.setting, entry.task, value.metric): evidence}
            except InputError as error:
                faults[entry.setting, entry.task] = str(error).replace(f"{Path(workdir)}/", "")
    return sets


def _check_labels(path: Path, evidence: Evidence, group: Mapping[Key, Evidence]) -> None:
    for (setting, task, _), other in group.items():
        if not np.array_equal(evidence.labels, other.labels):
            raise InputError(f"{path} has other labels than that of {task}/{setting}")


def _resample(task: str, split: str, group: Mapping[Key, Evidence], reading: Reading, first: str) -> dict[Key, Sample]:
    """Samples of the numbers of one development set; only the metric that chose the rate has an honest score."""
    examples = next(iter(group.values())).sums.shares.shape[1]
    drawn = significance.resampled(("bootstrap", task, split), [own.sums for own in group.values()])
    halves = significance.halves(("honest", task, split), examples)
    samples = {}
    for (key, own), values in zip(group.items(), drawn, strict=True):
        honest = math.nan
        if key[2] == first and own.rates and examples > 1:
            honest = significance.honest_score(halves, own.rates, reading.how == "first_seed")
        interval = _interval(_seed_means(task, values))
        score = round(honest, _DECIMALS) if math.isfinite(honest) else None
        samples[key] = Sample(task, own.seeds, own.sums.whole, values, interval, score)
    return samples


def _interval(values: np.ndarray) -> Interval | None:
    """The interval; None where a resample has no metric."""
    low, high = significance.interval(values)
    return None if math.isnan(low + high) else (round(low, _DECIMALS), round(high, _DECIMALS))


def _seed_means(task: str, values: np.ndarray) -> np.ndarray:
    return significance.seed_means(("bootstrap seeds", task), values)


def _narrow(scores: np.ndarray, values: np.ndarray) -> bool:
    """Whether few seeds differ more than their examples explain; scores `[seeds]`, values `[resamples, seeds]`."""
    if not 1 < len(scores) < FEW:
        return False
    error = math.sqrt(np.mean(np.var(values, axis=0, ddof=1)))
    return bool(np.std(scores, ddof=1) > EXCESS * error)


def _paired(own: Sample, reference: Sample) -> tuple[tuple[int, ...], list[int], list[int]]:
    """The seeds that both have, and their places in each."""
    common = tuple(seed for seed in own.seeds if seed in reference.seeds)
    return common, [own.seeds.index(seed) for seed in common], [reference.seeds.index(seed) for seed in common]


def difference(own: Sample, reference: Sample) -> Difference | None:
    """The paired difference of two numbers of a task; None without a common seed, or where one is undefined."""
    common, here, there = _paired(own, reference)
    if not common:
        return None
    scores = own.scores[here] - reference.scores[there]
    values = own.values[:, here] - reference.values[:, there]
    differences = np.round(_seed_means(own.task, values), _DECIMALS)
    interval = _interval(differences)
    if interval is None:
        return None
    mean, p = round(float(scores.mean()), _DECIMALS), significance.p_value(differences)
    return Difference(len(common), mean, interval, p, _narrow(scores, values), adjusted=p)


def least_difference(pairs: Iterable[tuple[Sample, Sample]]) -> float | None:
    """The difference that the examples can show at all, seeds as they are: the median over pairs of numbers."""
    found = []
    for own, other in pairs:
        common, here, there = _paired(own, other)
        if common:
            differences = own.values[:, here].mean(axis=1) - other.values[:, there].mean(axis=1)
            found.append(significance.least_difference(differences))
    found = [least for least in found if math.isfinite(least)]
    return float(np.median(found)) if found else None


def support(samples: Samples, keys: Iterable[Key], against: Against | None) -> Support:
    """Compares the numbers of a table with the reference's, those that can be; p is adjusted over all of them."""
    if against is None:
        return Support(samples, {}, None)
    found: dict[Key, Difference] = {}
    for key in keys:
        own, other = samples.found.get(key), samples.found.get((against.setting, *key[1:]))
        if own and other and own is not other and (made := difference(own, other)):
            found[key] = made
    return Support(samples, judge(found, against.margin), against)


def judge(differences: Mapping[Key, Difference], margin: float) -> dict[Key, Difference]:
    """The same with p adjusted over all of them (Holm) and with their marks."""
    adjusted = significance.holm([own.p for own in differences.values()])
    return {
        key: replace(own, adjusted=p, mark=mark(own, p, margin))
        for (key, own), p in zip(differences.items(), adjusted, strict=True)
    }


def mark(own: Difference, adjusted: float, margin: float) -> str:
    """On a par is an interval within the margin, whichever side of 0 it lies: a difference that is sure and too small
    to matter is on a par. Else better or worse is an adjusted p below `ALPHA`."""
    if -margin <= own.interval[0] and own.interval[1] <= margin:
        return ON_A_PAR
    if adjusted < ALPHA:
        return BETTER if own.mean > 0 else WORSE
    return CANNOT_TELL
