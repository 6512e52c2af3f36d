"""Which learning rate is reported: pure, and the only place that chooses. The study and the tables both ask here.

The paper tunes the learning rate and nothing else (section 2.1). A run is a dict of results.json's `runs`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lnflax.errors import InputError, check_choice

Run = Mapping[str, Any]

HOW = ("mean", "first_seed")
REPORT_EPOCHS = ("last", "best")

_NOT_METRICS = frozenset({"epoch", "train_loss", "eval_loss"})

# Means that differ by less than this are a tie: sums of the same counts differ by rounding alone.
_TIE_DECIMALS = 12


def metric_names(runs: Iterable[Run], report_epoch: str = "last") -> list[str]:
    """The metrics that the runs hold, in their order; none when no run got as far as an evaluation."""
    found = (name for run in runs for name in run[report_epoch] or ())
    return [name for name in dict.fromkeys(found) if name not in _NOT_METRICS]


def score(run: Run, metric: str, report_epoch: str = "last") -> float | None:
    """The run's metric at the reported epoch; None for a diverged run and for a metric that is null there."""
    if run["status"] != "finished" or not run[report_epoch]:
        return None
    value = run[report_epoch].get(metric)
    return value if value is not None and math.isfinite(value) else None


def summary(scores: Iterable[float | None], ddof: int = 1) -> dict[str, Any]:
    """`{mean, std, n}` of the values among the scores; std is None where n - ddof < 1, mean where n is 0."""
    if ddof < 0:
        raise InputError(f"ddof: {ddof} is not 0 or more")
    values = [value for value in scores if value is not None]
    n = len(values)
    if n == 0:
        return {"mean": None, "std": None, "n": 0}
    mean = statistics.fmean(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return {"mean": mean, "std": math.sqrt(squares / (n - ddof)) if n - ddof >= 1 else None, "n": n}


def at_rate(
    runs: Sequence[Run], learning_rate: float, metric: str, report_epoch: str = "last", ddof: int = 1
) -> dict[str, Any]:
    """`{mean, std, n}` of a metric over the seeds at one rate: for a second metric beside the selecting one."""
    at = (run for run in runs if run["learning_rate"] == learning_rate)
    return summary((score(run, metric, report_epoch) for run in at), ddof)


def select(
    runs: Sequence[Run], metric: str, report_epoch: str = "last", how: str = "mean", ddof: int = 1
) -> dict[str, Any]:
    """`{learning_rate, mean, std, n, at_edge}`: the rate with the best mean over seeds, ties to the smaller.

    A rate with a diverged run is not eligible unless every rate has one; one whose metric is null for a seed (the
    Pearson of constant predictions) is not eligible unless no rate is whole. The mean is then over the values there
    are, and `n` says how many; with none at all, rate and mean are None.
    `how="first_seed"` chooses by the first seed's runs alone, as if no other had been trained, and then reports
    every seed at that rate. `at_edge` is true when the rate is the smallest or the largest of at least three.
    """
    check_choice("select", how, HOW)
    check_choice("report_epoch", report_epoch, REPORT_EPOCHS)
    if not runs:
        raise ValueError("a cell without runs has no rate to select")
    if names := metric_names(runs, report_epoch):
        check_choice("metric", metric, names)
    pool = [run for run in runs if run["seed"] == runs[0]["seed"]] if how == "first_seed" else runs
    rate = _best_rate(pool, metric, report_epoch)
    if rate is None:
        return {"learning_rate": None, **summary((), ddof), "at_edge": False}
    rates = sorted({run["learning_rate"] for run in runs})
    at_edge = len(rates) >= 3 and rate in (rates[0], rates[-1])
    return {"learning_rate": rate, **at_rate(runs, rate, metric, report_epoch, ddof), "at_edge": at_edge}


def _best_rate(runs: Sequence[Run], metric: str, report_epoch: str) -> float | None:
    """The best eligible rate: among the whole ones, else among those that did not diverge, else among all."""
    by_rate: dict[float, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run["learning_rate"]):
        by_rate.setdefault(run["learning_rate"], []).append(run)
    seeds = {run["seed"] for run in runs}
    means, whole, undiverged = {}, [], []
    for rate, group in by_rate.items():
        values = [value for run in group if (value := score(run, metric, report_epoch)) is not None]
        if not values:
            continue
        means[rate] = round(statistics.fmean(values), _TIE_DECIMALS)
        if all(run["status"] == "finished" for run in group):
            undiverged.append(rate)
        if len(values) == len(seeds):
            whole.append(rate)
    # max keeps the first of equals, and the rates ascend: a tie goes to the smaller.
    return max(whole or undiverged or means, key=lambda rate: means[rate], default=None)
