"""A cell as the tables show it: its numbers at the selected rate, and what is said beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lnflax import selection, wording
from lnflax.analysis import formats
from lnflax.errors import check_choice

# The metric that a task reports beside its first: MNLI's other dev set.
SECOND = {("mnli", "accuracy"): "accuracy_mismatched"}


@dataclass(frozen=True)
class Reading:
    """How the runs are read: what chooses the rate, the deviation's ddof, and the metric of a task if not its own."""

    how: str = "mean"
    ddof: int = 1
    metrics: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Value:
    """One number of a cell: a metric over seeds at the selected rate, and the examples that it was measured on."""

    metric: str
    mean: float | None
    std: float | None
    n: int
    examples: int


@dataclass(frozen=True)
class Entry:
    """A cell as the tables show it; `values` is the first metric and, for MNLI, the other dev set's."""

    task: str
    setting: str
    ratio: float
    report_epoch: str
    learning_rate: float | None
    at_edge: bool
    seeds: int
    runs: int
    diverged: int
    values: tuple[Value, ...]

    def text(self, marks: Mapping[str, str]) -> str:
        """`83.0 ± 0.4`, two of them for MNLI, each with the mark of its metric, where there is one; then a mark where
        runs diverged and where a seed has no value."""
        if self.diverged == self.runs:
            return "diverged"
        shown = [value for value in self.values if value.mean is not None]
        numbers = (
            f"{wording.mean_std(value.mean, value.std)} {marks.get(value.metric, '')}".rstrip() for value in shown
        )
        text = " / ".join(numbers) or "no value"
        diverged = formats.DIVERGED_MARK if self.diverged else ""
        fewer = formats.FEWER_MARK if any(value.n < self.seeds for value in shown) else ""
        return text + diverged + fewer


def check_metrics(cells: Iterable[Mapping[str, Any]], reading: Reading) -> None:
    """Refuses a metric asked for of a task that the study does not have."""
    tasks = dict.fromkeys(cell["task"] for cell in cells)
    for task in reading.metrics or {}:
        check_choice("--metric", task, tasks)


def metric_of(cell: Mapping[str, Any], reading: Reading) -> str:
    """The metric that a cell is read by: its task's first, or the one asked for, which must be among its own."""
    asked = (reading.metrics or {}).get(cell["task"])
    if asked is None:
        return cell["metric"]
    if names := selection.metric_names(cell["runs"], cell["report_epoch"]):
        check_choice(f"--metric {cell['task']}", asked, names)
    return asked


def measured_on(cell: Mapping[str, Any], metric: str) -> tuple[str, str]:
    """The metric's own name and the split that it was measured on: `accuracy_mismatched` is the accuracy of
    `validation_mismatched`; without such an ending it is of the first split."""
    first, *others = cell["eval_examples"]
    for split in others:
        ending = f"_{split.rpartition('_')[2]}"
        if metric.endswith(ending):
            return metric.removesuffix(ending), split
    return metric, first


def make_entry(cell: Mapping[str, Any], reading: Reading) -> Entry:
    """An entry from a cell's results.json."""
    task, runs, epoch = cell["task"], cell["runs"], cell["report_epoch"]
    metric = metric_of(cell, reading)
    chosen = selection.select(runs, metric, epoch, how=reading.how, ddof=reading.ddof)
    rate = chosen["learning_rate"]
    values = [Value(metric, chosen["mean"], chosen["std"], chosen["n"], _examples(cell, metric))]
    if second := SECOND.get((task, metric)):
        other = selection.at_rate(runs, rate, second, epoch, reading.ddof)
        if other["mean"] is not None:
            values.append(Value(second, **other, examples=_examples(cell, second)))
    return Entry(
        task=task,
        setting=cell["setting"],
        ratio=cell["ratio"],
        report_epoch=epoch,
        learning_rate=rate,
        at_edge=chosen["at_edge"],
        seeds=len({run["seed"] for run in runs}),
        runs=len(runs),
        diverged=sum(run["status"] == "diverged" for run in runs),
        values=tuple(values),
    )


def _examples(cell: Mapping[str, Any], metric: str) -> int:
    return cell["eval_examples"][measured_on(cell, metric)[1]]
