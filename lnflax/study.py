"""The loop over cells and epochs: what a study does, in order, and what it writes."""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from lnflax import cells, compiling, host, memory, packing, results, selection, trained, trainer, wording
from lnflax import config as configs
from lnflax.batches import epoch_steps
from lnflax.cells import Cell, Part
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.evaluation import evaluate
from lnflax.ledger import Ledger
from lnflax.progress import Reporter

PACKAGES = ("lnflax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers", "datasets", "evaluate")
EXTENDS = ("tasks", "settings")  # fields that may grow in a workdir: cells do not touch one another


def run(config: Config, workdir: Path, reporter: Reporter, *, dry_run: bool = False) -> None:
    """Trains every cell of the study that is not done, in order; with `dry_run` it only says what it would do.

    Everything is read and checked, and what trains is said, before the first file is written.

    Raises:
        InputError: bad input, on one line.
    """
    _check_workdir(workdir, config)
    todo = cells.prepare(config, jax.local_device_count())
    reporter.say(trained.terminal_table([cell.report for cell in todo]))
    for cell in todo:
        reporter.say(_plan_line(cell, config, results.is_done(_folder(workdir, cell))))
    for data in {cell.data.task.name: cell.data for cell in todo}.values():
        for split in data.absent:
            reporter.warn(f"{data.task.name} has no {split}: its metrics are null")
        for note in data.notes:
            reporter.warn(note)
    if dry_run:
        return
    _open_workdir(workdir, config)
    with compiling.counted() as programs:
        for cell in todo:
            if not results.is_done(_folder(workdir, cell)):
                _train_or_halve(cell, config, _folder(workdir, cell), reporter)
    if programs.ready:
        reporter.say(str(programs))


def _folder(workdir: Path, cell: Cell) -> Path:
    return results.cell_folder(workdir, cell.data.task.name, cell.setting.name)


def _plan_line(cell: Cell, config: Config, done: bool) -> str:
    parts, rows = cell.parts, cell.parts[0].rows
    plan, first = parts[0].plan, parts[0]
    per_epoch = _epoch_steps(cell, config)
    count = f"{len(parts)} parts of {len(first.seeds)}×{len(first.rates)}, " if len(parts) > 1 else ""
    spread = f"{len(plan.seeds[0])}×{len(plan.rates[0])} on each of {len(plan.seeds)}"
    group = f" groups of {plan.batch_parts} devices" if plan.batch_parts > 1 else " devices"
    return (
        f"{cell.name}: {'done' if done else 'to do'}; {len(config.seeds)} seeds × {len(config.learning_rates)} rates"
        f" ({count}{spread}{group}),"
        f" {cell.epochs} epochs × {per_epoch} steps of {config.batch_size} examples"
        f" in rows {' '.join(f'{shape.rows}×{shape.length}' for shape in rows.shapes)}"
    )


def _check_workdir(workdir: Path, config: Config) -> None:
    """A workdir belongs to one protocol; more tasks and settings may join it."""
    cell_folders = (workdir / task / setting for task in config.tasks for setting in config.settings)
    for folder in (workdir, *workdir.parents, *(f for own in cell_folders for f in (own.parent, own))):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"workdir: {folder} is a file; there should be a folder")
    path = workdir / results.CONFIG
    if not path.exists():
        return
    there, here = results.read_json(path), results.plain(_config_file(config))
    for field in sorted(set(there) | set(here)):
        if field not in EXTENDS and there.get(field) != here.get(field):
            raise InputError(
                f"workdir: {workdir} holds another study: {_difference(field, there.get(field), here.get(field))}"
            )


def _difference(field: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(name for name in sorted(set(there) | set(here)) if there.get(name) != here.get(name))
        return _difference(f"{field}.{name}", there.get(name), here.get(name))
    return f"{field} is {there!r} there and {here!r} here"


def _config_file(config: Config) -> dict[str, Any]:
    return {"format": results.FORMAT, **config.record}


def _open_workdir(workdir: Path, config: Config) -> None:
    record, path = _config_file(config), workdir / results.CONFIG
    if path.exists():
        there = results.read_json(path)
        record |= {field: list(dict.fromkeys([*there[field], *record[field]])) for field in EXTENDS}
    results.write_json(path, record)
    device = jax.local_devices()[0]
    versions = {name: metadata.version(name) for name in PACKAGES}
    machine = {"platform": device.platform, "device": device.device_kind, "devices": jax.local_device_count()}
    record = {"format": results.FORMAT, "python": platform.python_version(), **versions, **machine}
    results.write_json(workdir / results.VERSIONS, record)


def _train_or_halve(cell: Cell, config: Config, folder: Path, reporter: Reporter) -> None:
    """Trains a cell; where memory runs out against the plan, once more from the start with half of it at once."""
    try:
        return _train_cell(cell, config, folder, reporter)
    except Exception as error:
        smaller = memory.halve(cell.cut) if memory.is_out_of_memory(error) else None
        if smaller is None:
            raise
    reporter.warn(f"{cell.name}: out of memory; again with {memory.describe(smaller)}")
    return _train_cell(cells.recut(cell, config, smaller), config, folder, reporter)


def _train_cell(cell: Cell, config: Config, folder: Path, reporter: Reporter) -> None:
    results.write_json(folder / results.TRAINED, cell.report)
    results.start_metrics(folder)
    host.reset_peak()
    log, spent = Ledger(config, cell.data), Spent(time.monotonic())
    reporter.start(cell.name, len(cell.parts) * cell.epochs * _epoch_steps(cell, config))
    try:
        still = [path for part in cell.parts for path in _train_part(cell, part, config, log, folder, reporter, spent)]
    finally:
        reporter.finish()
    record = _finish(cell, config, log, folder, spent)
    _say_outcome(cell, record, list(dict.fromkeys(still)), log, reporter)


def _epoch_steps(cell: Cell, config: Config) -> int:
    return epoch_steps(cell.data.train.examples, config.batch_size)


@dataclasses.dataclass
class Spent:
    """Seconds and tokens of a cell so far; a seed's tokens are counted once for all its rates."""

    began: float
    train: float = 0.0
    eval: float = 0.0
    real_tokens: int = 0
    computed_tokens: int = 0

    def seconds(self) -> dict[str, float]:
        """Of the whole cell, of training and of evaluations."""
        total = time.monotonic() - self.began
        return {"total": round(total, 3), "train": round(self.train, 3), "eval": round(self.eval, 3)}


def _train_part(
    cell: Cell,
    part: Part,
    config: Config,
    log: Ledger,
    folder: Path,
    reporter: Reporter,
    spent: Spent,
) -> list[str]:
    """Trains some runs through all epochs; returns the trained leaves that did not move in some of them."""
    own, evals = cells.make_trainer(cell, part, config)
    states = trainer.start(own)
    for epoch in range(1, cell.epochs + 1):
        begin = time.monotonic()
        tell = functools.partial(reporter.advance, f"{epoch}/{cell.epochs}")
        states, done = trainer.train_epoch(own, states, epoch, tell)
        middle = time.monotonic()
        found = {
            split: evaluate(cell.recipe, part.plan, part.chunks, own.frozen, states.values, own.masks.chosen, examples)
            for split, examples in evals.items()
        }
        end = time.monotonic()
        spent.train += middle - begin
        spent.eval += end - middle
        spent.real_tokens += done.real_tokens
        spent.computed_tokens += done.computed_tokens
        step = epoch * len(done.losses)
        lines = log.add(part.seeds, part.rates, epoch, step, done.losses, done.targets, found, end - begin)
        results.append_metrics(folder, lines)
    return trainer.unmoved(own, states)


def _finish(cell: Cell, config: Config, log: Ledger, folder: Path, spent: Spent) -> dict[str, Any]:
    """Predictions first, results.json last: with it the cell is done."""
    data, runs = cell.data, log.runs()
    metric = data.task.metrics[0]
    labels = {f"labels/{split}": examples.labels for split, examples in data.evals.items()}
    about = {
        "seeds": config.seeds,
        "learning_rates": config.learning_rates,
        "labels": (*data.task.labels, *data.task.unseen),
    }
    text = {name: json.dumps(values) for name, values in about.items()}
    results.write_predictions(folder, {**log.predictions, **labels}, text)
    record = {
        "format": results.FORMAT,
        "task": data.task.name,
        "setting": cell.setting.name,
        "config": configs.without_paths(config.record),
        "metric": metric,
        "report_epoch": config.report_epoch,
        "epochs": cell.epochs,
        "steps": cell.epochs * _epoch_steps(cell, config),
        "train_examples": data.train.examples,
        "eval_examples": {split: examples.examples for split, examples in data.evals.items()},
        **{name: cell.report[name] for name in ("body", "trained", "ratio")},
        "runs": runs,
        "selected": selection.select(runs, metric, config.report_epoch),
        **({"tags": log.tags()} if data.task.tagged else {}),
        "seconds": spent.seconds(),
    }
    results.write_json(folder / results.COST, _cost(cell, spent))
    results.write_json(folder / results.RESULTS, record)
    return record


def _cost(cell: Cell, spent: Spent) -> dict[str, Any]:
    """What the cell took: how its runs were cut, memory in bytes a device, tokens a seed's rates share."""
    cut, parts = cell.cut, cell.parts
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


def _say_outcome(cell: Cell, record: dict[str, Any], still: list[str], log: Ledger, reporter: Reporter) -> None:
    chosen, runs = record["selected"], record["runs"]
    if chosen["learning_rate"] is None:
        reporter.say(f"{cell.name}: no rate has a {record['metric']}")
    else:
        score = wording.mean_std(chosen["mean"], chosen["std"])
        reporter.say(
            f"{cell.name}: {record['metric']} {score} at {chosen['learning_rate']:g}"
            f" ({chosen['n']} seeds, {record['seconds']['total']:.0f} s)"
        )
    if chosen["at_edge"]:
        reporter.warn(f"{cell.name}: the best rate {chosen['learning_rate']:g} is at the edge of the grid")
    for run in runs:
        if run["status"] == "diverged":
            where = f"seed {run['seed']}, rate {run['learning_rate']:g}"
            reporter.warn(f"{cell.name}: {where} diverged at step {run['diverged_step']}")
    if constant := log.constant():
        reporter.warn(f"{cell.name}: {constant} of {len(runs)} runs predict one class only")
    if still and not all(run["status"] == "diverged" for run in runs):
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        reporter.warn(f"{cell.name}: did not move in some run: {still[0]}{more}")
