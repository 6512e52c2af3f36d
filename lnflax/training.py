"""A cell from its beginning, or from its last saved state, to its results.json."""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lnflax import config as configs
from lnflax import deltas, host, memory, packing, results, selection, states, storage, trainer
from lnflax.cells import Cell, Part, make_trainer
from lnflax.coverage import Coverage
from lnflax.evaluation import Evaluation, evaluate
from lnflax.grid import Chunks
from lnflax.interruption import Interruption
from lnflax.ledger import Ledger
from lnflax.memory import Cut, Size
from lnflax.progress import Reporter
from lnflax.states import State
from lnflax.step import RunState
from lnflax.storage import StorageError
from lnflax.trainer import Epoch, Trainer

Tree = Any
RUNS, LOSSES, PREDICTIONS = "runs", "losses", "predictions/"  # of a state's arrays


@dataclasses.dataclass
class Spent:
    """Seconds and tokens of a cell so far; a seed's tokens are counted once for all its rates."""

    total: float = 0.0
    train: float = 0.0
    eval: float = 0.0
    real_tokens: int = 0
    computed_tokens: int = 0
    clock: float = dataclasses.field(default_factory=time.monotonic)

    def lap(self) -> float:
        """Seconds since the last lap, which count into the total."""
        now = time.monotonic()
        self.clock, passed = now, now - self.clock
        self.total += passed
        return passed

    def record(self) -> dict[str, float]:
        """As JSON values."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "clock"}

    def seconds(self) -> dict[str, float]:
        """Of the whole cell, of training and of evaluations."""
        self.lap()
        return {name: round(getattr(self, name), 3) for name in ("total", "train", "eval")}


@dataclasses.dataclass
class Progress:
    """How far a cell is: its part, the epochs of that part that are done, and the losses of the steps after them."""

    part: int = 0
    epoch: int = 0
    losses: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))


def coverage_of(state: State) -> tuple[Coverage, Cut]:
    """The runs of a state's cell, and how they were cut."""
    grid, cut = state.record["coverage"], state.record["cut"]
    lacking = tuple((tuple(seeds), tuple(rates)) for seeds, rates in grid["lacking"])
    own = Cut(Size(*cut["part"]), Chunks(*cut["chunks"]), cut["recompute"], cut["need"])
    return Coverage(tuple(grid["seeds"]), tuple(grid["rates"]), lacking), own


class CellTraining:
    """One cell under way: what is known of its runs, how far it is, what it has cost."""

    def __init__(self, cell: Cell, folder: Path, reporter: Reporter, interruption: Interruption) -> None:
        self.cell, self.folder = cell, folder
        self.reporter, self.interruption = reporter, interruption
        self.log, self.spent, self.at = Ledger(cell.config, cell.data), Spent(), Progress()
        self.still: list[str] = []  # trained leaves that did not move in some run
        self.saves, self.saved = 0, time.monotonic()
        self.record: dict[str, Any] = {}  # results.json, once there is one

    def run(self, state: State | None) -> None:
        """Trains what is lacking, from `state` or from the beginning, up to results.json.

        Raises:
            Interrupted: a signal has come; all is saved.
            StorageError: a file cannot be written.
        """
        self._begin(state)
        host.reset_peak()
        done = self._steps_done()
        self.reporter.start(self.cell.name, len(self.cell.parts) * self.cell.epochs * self.cell.epoch_steps, done)
        try:
            for part in self.cell.parts[self.at.part :]:
                self._train_part(part, state)
                state = None
        finally:
            self.reporter.finish()
        self.record = self._finish()

    def _steps_done(self) -> int:
        return (self.at.part * self.cell.epochs + self.at.epoch) * self.cell.epoch_steps + len(self.at.losses)

    def _begin(self, state: State | None) -> None:
        """Takes up what lies in the folder, and what trains is written before the first step."""
        if state is not None:
            self._restore(state)
        elif results.is_done(self.folder):
            self._adopt()
        need = self._bytes()
        with storage.telling(self.folder):
            storage.make_folder(self.folder / states.FOLDER)
            free = shutil.disk_usage(self.folder).free
        if free < need:
            raise StorageError(
                errno.ENOSPC,
                f"{self.folder}: this cell writes up to {memory.gib(need)}, and {memory.gib(free)} are free;"
                " free some space and give the same command again",
            )
        results.write_json(self.folder / results.TRAINED, self.cell.report)
        self._write_metrics()

    def _bytes(self) -> int:
        """What the cell writes: two states for a moment, predictions of the last and the best epoch twice, deltas."""
        cell, config = self.cell, self.cell.config
        runs = len(config.seeds) * len(config.learning_rates)
        trained = int(np.max(cell.report["trained"]))  # one for all seeds, or one a seed
        largest = max((len(part.seeds) * len(part.rates) for part in cell.parts), default=0)
        labels = sum(len(examples.labels) for examples in cell.data.evals.values())
        values = trained + cell.report["head"]
        kept = 0 if config.save_deltas == "none" else 2 * runs  # a scalar may come with its index
        return 4 * (values * (2 * 3 * largest + kept) + 4 * 2 * labels * runs)

    def _restore(self, state: State) -> None:
        record, arrays = state.record, state.arrays
        predictions = {name: array for name, array in arrays.items() if name.startswith(PREDICTIONS)}
        self.log.restore(
            record["ledger"], {name.removeprefix(PREDICTIONS): array.copy() for name, array in predictions.items()}
        )
        self.spent = Spent(**record["spent"])
        self.at = Progress(record["part"], record["epoch"], arrays[LOSSES])
        self.still, self.saves = record["still"], state.number

    def _adopt(self) -> None:
        """The runs that the finished cell has, which now gets more."""
        task, setting = self.folder.parts[-2:]
        there = results.read_results(self.folder.parents[1], task, setting)
        arrays, about = results.read_predictions(self.folder)
        # They, and the lines, may already be those of more runs, where an extension was stopped.
        seeds, rates = (json.loads(about[name]) for name in ("seeds", "learning_rates"))
        keys = [(run["seed"], run["learning_rate"]) for run in there["runs"]]
        places = [(seeds.index(seed), rates.index(rate)) for seed, rate in keys]
        own = {
            name: np.stack([array[place] for place in places])
            for name, array in arrays.items()
            if name.startswith(("last/", "best/"))
        }
        lines = results.read_metrics(self.folder)
        self.log.adopt(there["runs"], own, [line for line in lines if (line["seed"], line["learning_rate"]) in keys])
        cost = results.read_json(self.folder / results.COST) if (self.folder / results.COST).exists() else None
        tokens = cost["tokens"] if cost else {"real": 0, "computed": 0}
        self.spent = Spent(**there["seconds"], real_tokens=tokens["real"], computed_tokens=tokens["computed"])

    def _write_metrics(self) -> None:
        """Where the file holds other lines than a save has left, they are of an epoch that is done again."""
        results.check_there(self.folder)
        results.write_metrics(self.folder, self.log.lines)

    def _train_part(self, part: Part, state: State | None) -> None:
        """Trains some runs through the epochs that they lack."""
        own, evals = make_trainer(self.cell, part)
        runs = trainer.start(own)
        if state is not None and any(name.startswith(RUNS) for name in state.arrays):
            runs = own.plan.of_runs(named_like(runs, state.arrays))
        for number in range(self.at.epoch + 1, self.cell.epochs + 1):
            epoch = trainer.plan_epoch(own, number)
            runs = self._train_epoch(own, runs, epoch, number)
            self._end_epoch(part, own, runs, epoch, number, evals)
            last = number == self.cell.epochs
            if last:
                self.still += trainer.unmoved(own, runs)
                self.at = Progress(self.at.part + 1)
            self._save(own, None if last else runs)
            self.interruption.check()

    def _train_epoch(self, own: Trainer, runs: RunState, epoch: Epoch, number: int) -> RunState:
        """The steps of an epoch that are lacking, with saves between them."""
        tell = functools.partial(self.reporter.advance, f"{number}/{self.cell.epochs}")
        self.spent.lap()
        while (begin := len(self.at.losses)) < len(epoch.order):
            runs, losses = trainer.train_steps(own, runs, epoch, number, begin, tell, self._pauses)
            self.at.losses = np.concatenate([self.at.losses, losses]) if begin else losses
            self.spent.train += self.spent.lap()
            if len(self.at.losses) < len(epoch.order):
                self._save(own, runs)
                self.interruption.check()
        return runs

    def _pauses(self) -> bool:
        minutes = self.cell.config.save_minutes
        return bool(self.interruption.asked) or (minutes > 0 and time.monotonic() - self.saved > 60 * minutes)

    def _end_epoch(
        self, part: Part, own: Trainer, runs: RunState, epoch: Epoch, number: int, evals: Mapping[str, Evaluation]
    ) -> None:
        """Evaluates, and notes what the epoch gave."""
        recipe, totals = self.cell.recipe, trainer.totals(own, epoch)
        found = {
            split: evaluate(recipe, part.plan, part.chunks, own.frozen, runs.values, own.masks.chosen, examples)
            for split, examples in evals.items()
        }
        passed = self.spent.lap()
        self.spent.eval += passed
        self.spent.real_tokens += totals.real_tokens
        self.spent.computed_tokens += totals.computed_tokens
        losses = self.at.losses
        self.log.add(part.seeds, part.rates, number, number * len(losses), losses, totals.targets, found, passed)
        self._write_metrics()
        if number == self.cell.epochs or self.cell.config.report_epoch == "best":
            self._write_deltas(part, own, runs, number)
        self.at = Progress(self.at.part, number)

    def _write_deltas(self, part: Part, own: Trainer, runs: RunState, number: int) -> None:
        """Of every run whose reported epoch is this one, for all that is known yet; the rate is selected later."""
        data, config = self.cell.data, self.cell.config
        if config.save_deltas == "none":
            return
        values, masks = trainer.owned(own, runs)
        for (i, s), (j, r) in itertools.product(enumerate(part.seeds), enumerate(part.rates)):
            row = self.log.reported()[s, r]
            if row is None or row["epoch"] != number or self.log.diverged[s, r]:
                continue
            seed, rate = config.seeds[s], config.learning_rates[r]
            about = deltas.About(
                task=data.task.name,
                setting=self.cell.setting.name,
                seed=seed,
                learning_rate=rate,
                epoch=number,
                base_sha256=data.model.sha256,
                pooling=data.shape.pooling,
                labels=data.task.labels,
            )
            delta = deltas.make(about, jax.tree.map(lambda x: x[i, j], values), masks[i])  # noqa: B023 - called at once
            deltas.write(self.folder / deltas.name(seed, rate), delta)

    def _settle_deltas(self, runs: list[dict[str, Any]], rate: float | None) -> None:
        """Tells each run where its delta lies, and lets those go that are not asked for."""
        folder, asked = self.folder / results.DELTAS, self.cell.config.save_deltas
        for run in runs:
            path = self.folder / deltas.name(run["seed"], run["learning_rate"])
            wanted = asked == "all" or (asked == "best" and run["learning_rate"] == rate)
            if not wanted or run["status"] == "diverged":
                storage.remove(path)
            elif path.is_file():
                run["delta"] = deltas.name(run["seed"], run["learning_rate"])
        if any(run["delta"] for run in runs):
            storage.settle(folder)
        else:
            storage.remove_folder(folder)

    def _save(self, own: Trainer, runs: RunState | None) -> None:
        """Stores all that the cell needs to go on from here; `runs` is None where the next part begins."""
        results.check_there(self.folder)
        cell, cut = self.cell, self.cell.cut
        record = {
            "config": results.plain(cell.config.record),
            "coverage": dataclasses.asdict(cell.coverage),
            "cut": {**cut._asdict(), "chunks": dataclasses.astuple(cut.chunks)},
            "part": self.at.part,
            "epoch": self.at.epoch,
            "ledger": self.log.record(),
            "spent": self.spent.record(),
            "still": self.still,
        }
        arrays = {f"{PREDICTIONS}{name}": array for name, array in self.log.predictions.items()}
        arrays |= {LOSSES: self.at.losses, **(named(own.plan.to_runs(runs)) if runs is not None else {})}
        self.saves += 1
        states.write(self.folder, self.saves, record, arrays)
        self.saved = time.monotonic()

    def _finish(self) -> dict[str, Any]:
        """Predictions first, results.json last: with it the cell is done, and its state goes."""
        cell, config, log = self.cell, self.cell.config, self.log
        data, runs = cell.data, log.runs()
        metric = data.task.metrics[0]
        selected = selection.select(runs, metric, config.report_epoch)
        labels = {f"labels/{split}": examples.labels for split, examples in data.evals.items()}
        if data.task.tagged:
            labels |= {f"offsets/{split}": examples.label_offsets for split, examples in data.evals.items()}
        about = {
            "seeds": config.seeds,
            "learning_rates": config.learning_rates,
            "labels": (*data.task.labels, *data.task.unseen),
        }
        text = {name: json.dumps(values) for name, values in about.items()}
        results.write_predictions(self.folder, {**log.predictions, **labels}, text)
        self._settle_deltas(runs, selected["learning_rate"])
        record = {
            "format": results.FORMAT,
            "task": data.task.name,
            "setting": cell.setting.name,
            "config": configs.without_paths(config.record),
            "metric": metric,
            "report_epoch": config.report_epoch,
            "epochs": cell.epochs,
            "steps": cell.epochs * cell.epoch_steps,
            "train_examples": data.train.examples,
            "eval_examples": {split: examples.examples for split, examples in data.evals.items()},
            **{name: cell.report[name] for name in ("body", "trained", "ratio")},
            "runs": runs,
            "selected": selected,
            **({"tags": log.tags()} if data.task.tagged else {}),
            "seconds": self.spent.seconds(),
        }
        results.write_json(self.folder / results.COST, self._cost())
        results.write_json(self.folder / results.RESULTS, record)
        states.remove(self.folder)
        return record

    def _cost(self) -> dict[str, Any]:
        """What the cell took: how its runs were cut, memory in bytes a device, tokens a seed's rates share."""
        cut, parts, spent = self.cell.cut, self.cell.parts, self.spent
        plan = parts[0].plan
        return {
            "format": results.FORMAT,
            "parts": len(parts),
            "devices": plan.devices,
            "batch_parts": plan.batch_parts,
            "at_once": {
                "seeds": min(cut.chunks.seeds, len(plan.seeds[0])),
                "rates": min(cut.chunks.rates, len(plan.rates[0])),
            },
            "recompute": cut.recompute,
            "memory": {"planned": cut.need, "peak": memory.peak()},
            "tokens": {"real": spent.real_tokens, "computed": spent.computed_tokens},
            "waste": round(packing.waste(spent.real_tokens, spent.computed_tokens), 4),
        }


def named(runs: Tree) -> dict[str, np.ndarray]:
    """The leaves of the runs' states by their place in the tree."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(runs)
    return {RUNS + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def named_like(runs: RunState, arrays: Mapping[str, np.ndarray]) -> RunState:
    """The inverse of `named`, for runs of the same tree."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(runs)
    return jax.tree.unflatten(tree, [arrays[RUNS + jax.tree_util.keystr(path)] for path, _ in leaves])
