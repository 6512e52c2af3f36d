"""What is known of each run of a cell so far: losses, scores, divergence, predictions. It reads and writes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lnflax import metrics, results
from lnflax.cells import TaskData
from lnflax.config import Config
from lnflax.tasks import Task
from lnflax.tokens import Encoded

Run = tuple[int, int]  # the places of its seed and rate in the config's lists
Evals = dict[str, tuple[np.ndarray, np.ndarray]]  # split: predictions and losses, [seeds, rates, …] or a run's


class Ledger:
    """What is known of each run of a cell so far; runs are `[seed, rate]` of the config's lists."""

    def __init__(self, config: Config, data: TaskData) -> None:
        self.config, self.data = config, data
        self.shape = (len(config.seeds), len(config.learning_rates))
        self.diverged = np.zeros(self.shape, np.int64)  # the first step whose loss was not finite; 0: none
        self.last = np.empty(self.shape, object)
        self.best = np.empty(self.shape, object)
        self.predictions: dict[str, np.ndarray] = {}
        self.lines: list[dict[str, Any]] = []  # of metrics.jsonl

    def record(self) -> dict[str, Any]:
        """All but the predictions, as JSON values."""
        runs = {"diverged": self.diverged, "last": self.last, "best": self.best}
        return results.plain({**runs, "lines": self.lines})

    def restore(self, record: Mapping[str, Any], predictions: Mapping[str, np.ndarray]) -> None:
        """What `record` gave, and the predictions."""
        self.diverged[:] = record["diverged"]
        for kind in ("last", "best"):
            for run in np.ndindex(self.shape):
                getattr(self, kind)[run] = record[kind][run[0]][run[1]]
        self.lines = list(record["lines"])
        self.predictions = dict(predictions)

    def adopt(
        self, runs: Sequence[Mapping[str, Any]], predictions: Mapping[str, np.ndarray], lines: Sequence[dict[str, Any]]
    ) -> None:
        """The runs of a finished cell, which are some of this one's; predictions are `[runs, …]`."""
        places = [self._place(run["seed"], run["learning_rate"]) for run in runs]
        for place, run in zip(places, runs, strict=True):
            self.diverged[place] = run["diverged_step"] or 0
            self.last[place], self.best[place] = run["last"], run["best"]
        for name, values in predictions.items():
            self.predictions[name] = np.zeros((*self.shape, *values.shape[1:]), values.dtype)
            for place, own in zip(places, values, strict=True):
                self.predictions[name][place] = own
        self.lines = list(lines)

    def _place(self, seed: int, rate: float) -> Run:
        return self.config.seeds.index(seed), self.config.learning_rates.index(rate)

    def add(
        self,
        seeds: Sequence[int],
        rates: Sequence[int],
        epoch: int,
        step: int,
        losses: np.ndarray,
        targets: np.ndarray,
        evals: Evals,
        seconds: float,
    ) -> list[dict]:
        """An epoch of the runs of some seeds and rates, by their places in the config's lists.

        Losses are `[steps, seeds, rates]`, each the mean of so many targets, `[steps, seeds]`; evaluations are those
        of the same runs. Returns the lines that metrics.jsonl gets of them.
        """
        lines = []
        for (i, s), (j, r) in itertools.product(enumerate(seeds), enumerate(rates)):
            run, own = (s, r), {split: (values[i, j], loss[i, j]) for split, (values, loss) in evals.items()}
            self._watch(run, step - len(losses), losses[:, i, j], own)
            seed, rate = self.config.seeds[s], self.config.learning_rates[r]
            row = {"train_loss": float(np.average(losses[:, i, j], weights=targets[:, i])), **self._scores(run, own)}
            self._keep(run, {"epoch": epoch, **row}, own)
            lines.append(
                {"seed": seed, "learning_rate": rate, "epoch": epoch, "step": step, **row, "seconds": round(seconds, 3)}
            )
        self.lines += lines
        return lines

    def _watch(self, run: Run, first: int, losses: np.ndarray, evals: Evals) -> None:
        """Notes the first step whose loss was not finite; an evaluation's counts as the last step's."""
        bad = np.flatnonzero(~np.isfinite(losses))
        if not self.diverged[run] and len(bad):
            self.diverged[run] = first + 1 + bad[0]
        if not self.diverged[run] and not all(np.isfinite(loss).all() for _, loss in evals.values()):
            self.diverged[run] = first + len(losses)

    def _scores(self, run: Run, evals: Evals) -> dict[str, Any]:
        names, first = self.data.task.metrics, next(iter(self.data.evals))
        loss = None if self.diverged[run] else float(evals[first][1].mean())
        scores: dict[str, float | None] = {"eval_loss": loss}
        for split in (*self.data.evals, *self.data.absent):
            ending = "" if split == first else f"_{split.rpartition('_')[2]}"
            values: dict[str, float | None] = dict.fromkeys(names)
            if split in evals and not self.diverged[run]:
                values |= score(self.data.task, evals[split][0], self.data.evals[split])
            scores |= {f"{name}{ending}": value for name, value in values.items()}
        return scores

    def tags(self) -> dict[str, dict[str, Any]]:
        """Of each tag or type of entity of the first development set, at the last epoch: how many there are, and
        `[seeds, rates]` how many are predicted and how many of these are right."""
        task, (split, examples) = self.data.task, next(iter(self.data.evals.items()))
        count = metrics.entity_counts if task.spans else metrics.tag_counts
        actual = sentences(task, examples.labels, examples)
        given = self.predictions[f"last/{split}"].reshape(-1, len(examples.labels))
        counts = [count(sentences(task, own, examples), actual) for own in given]
        names = set().union(*counts)
        if not task.spans:
            names &= {*task.labels, *task.unseen}  # without what stands for a word that was not asked for
        record = {}
        for name in sorted(names):
            own = [each.get(name, {"actual": 0, "predicted": 0, "correct": 0}) for each in counts]
            sides = {side: np.reshape([each[side] for each in own], self.shape) for side in ("predicted", "correct")}
            record[name] = {"actual": own[0]["actual"], **sides}
        return record

    def _keep(self, run: Run, row: dict[str, Any], evals: Evals) -> None:
        better = self.best[run] is None or self._value(row) > self._value(self.best[run])
        self.last[run] = row
        self.best[run] = row if better else self.best[run]
        for kind in ("last", "best")[: 1 + better]:
            for split, (predictions, loss) in evals.items():
                asked = self.data.evals[split].asked.label
                own = predictions if not self.data.task.labels else classes(predictions, loss, asked)
                name = f"{kind}/{split}"
                if name not in self.predictions:
                    self.predictions[name] = np.zeros((*self.shape, *own.shape), own.dtype)
                self.predictions[name][run] = own

    def _value(self, row: dict[str, Any]) -> float:
        value = row[self.data.task.metrics[0]]
        return value if value is not None and np.isfinite(value) else -np.inf

    def reported(self) -> np.ndarray:
        """Each run's row of the reported epoch so far, `[seeds, rates]`; None before its first epoch."""
        return self.best if self.config.report_epoch == "best" else self.last

    def runs(self) -> list[dict[str, Any]]:
        """The runs of results.json, by seed, then rate."""
        return [
            {
                "seed": self.config.seeds[run[0]],
                "learning_rate": self.config.learning_rates[run[1]],
                "status": "diverged" if self.diverged[run] else "finished",
                "diverged_step": int(self.diverged[run]) or None,
                "last": self.last[run],
                "best": self.best[run],
                "delta": None,
            }
            for run in np.ndindex(self.shape)
        ]

    def constant(self) -> int:
        """How many finished runs give one class to the whole first development set."""
        if not self.data.task.labels:
            return 0
        predictions = self.predictions[f"last/{next(iter(self.data.evals))}"]
        same = (predictions == predictions[..., :1]).all(axis=-1)
        return int((same & (self.diverged == 0)).sum())


def score(task: Task, predictions: np.ndarray, examples: Encoded) -> dict[str, float]:
    """The task's metrics of predictions `[labels]` in data order."""
    if not task.spans:
        return metrics.compute(task.metrics, predictions, examples.labels)
    found = metrics.entities(*(sentences(task, side, examples) for side in (predictions, examples.labels)))
    return {name: found[name] for name in task.metrics}


def sentences(task: Task, numbers: np.ndarray, examples: Encoded) -> list[list[str]]:
    """The tags of each sentence; a word that was not asked for has `O`, which is no word's kind of word."""
    names = np.array([*task.labels, *task.unseen, "O"])
    tags = names[numbers.astype(np.int64)].tolist()
    return [tags[a:b] for a, b in itertools.pairwise(examples.label_offsets.tolist())]


def classes(predictions: np.ndarray, losses: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Classes, int32 `[labels]`; -1 where the logits were not finite. `asked` is the label of each loss."""
    found = predictions.astype(np.int32)
    found[asked[~np.isfinite(losses)]] = -1
    return found
