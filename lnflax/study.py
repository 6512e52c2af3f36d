"""The loop over cells and epochs: what a study does, in order, and what it writes."""

from __future__ import annotations

import json
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from lnflax import cells, compiling, results, selection, trained, trainer, wording
from lnflax import config as configs
from lnflax.batches import epoch_steps
from lnflax.cells import Cell, Model
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.ledger import Ledger
from lnflax.progress import Reporter
from lnflax.trainer import Trainer

PACKAGES = ("lnflax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers", "datasets", "evaluate")
EXTENDS = ("tasks", "settings")  # fields that may grow in a workdir: cells do not touch one another


def run(config: Config, workdir: Path, reporter: Reporter, *, dry_run: bool = False) -> None:
    """Trains every cell of the study that is not done, in order; with `dry_run` it only says what it would do.

    Everything is read and checked, and what trains is said, before the first file is written.

    Raises:
        InputError: bad input, on one line.
    """
    _check_workdir(workdir, config)
    model, todo = cells.prepare(config, jax.local_device_count())
    reporter.say(trained.terminal_table([cell.report for cell in todo]))
    for cell in todo:
        reporter.say(_plan_line(cell, config, results.is_done(_folder(workdir, cell))))
    for data in {cell.data.task.name: cell.data for cell in todo}.values():
        for split in data.absent:
            reporter.warn(f"{data.task.name} has no {split}: its metrics are null")
    if dry_run:
        return
    _open_workdir(workdir, config)
    with compiling.counted() as programs:
        for cell in todo:
            if not results.is_done(_folder(workdir, cell)):
                _train_cell(cell, model, config, _folder(workdir, cell), reporter)
    if programs.ready:
        reporter.say(str(programs))


def _folder(workdir: Path, cell: Cell) -> Path:
    return results.cell_folder(workdir, cell.data.task.name, cell.setting.name)


def _plan_line(cell: Cell, config: Config, done: bool) -> str:
    plan, train = cell.plan, cell.data.train
    per_epoch = epoch_steps(len(train.labels), config.batch_size)
    spread = "batch split over" if plan.split_batch else f"{len(plan.seeds[0])}×{len(plan.rates[0])} on each of"
    return (
        f"{cell.name}: {'done' if done else 'to do'}; {len(config.seeds)} seeds × {len(config.learning_rates)} rates"
        f" ({spread} {plan.devices} device{'s'[: plan.devices != 1]}), {cell.epochs} epochs × {per_epoch} steps of"
        f" {config.batch_size} examples in rows of {' '.join(map(str, cell.data.row_lengths))} tokens"
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


def _train_cell(cell: Cell, model: Model, config: Config, folder: Path, reporter: Reporter) -> None:
    began, data = time.monotonic(), cell.data
    results.write_json(folder / results.TRAINED, cell.report)
    results.start_metrics(folder)
    own = trainer.make_trainer(
        config,
        cell.recipe,
        cell.plan,
        task=data.task.name,
        train=data.train,
        epochs=cell.epochs,
        body=model.body,
        seed_masks=cells.seed_masks(cell.setting, cell.recipe, model, config.seeds),
    )
    log, spent = Ledger(config, data), {"train": 0.0, "eval": 0.0}
    reporter.start(cell.name, own.steps)
    try:
        states = trainer.start(own)
        for epoch in range(1, cell.epochs + 1):
            states = _epoch(own, states, epoch, log, folder, reporter, spent)
        still = trainer.unmoved(own, states)
    finally:
        reporter.finish()
    record = _finish(cell, own, log, folder, {"total": time.monotonic() - began, **spent})
    _say_outcome(cell, record, still, log, reporter)


def _epoch(
    own: Trainer, states: Any, epoch: int, log: Ledger, folder: Path, reporter: Reporter, spent: dict[str, float]
) -> Any:
    begin = time.monotonic()
    label = f"{epoch}/{own.epochs}"
    lengths = log.data.row_lengths
    states, losses = trainer.train_epoch(own, states, epoch, lengths, lambda n: reporter.advance(label, n))
    middle = time.monotonic()
    evals = {split: trainer.evaluate(own, states, examples) for split, examples in log.data.evals.items()}
    end = time.monotonic()
    spent["train"] += middle - begin
    spent["eval"] += end - middle
    results.append_metrics(folder, log.add(epoch, epoch * len(losses), losses, evals, end - begin))
    return states


def _finish(cell: Cell, own: Trainer, log: Ledger, folder: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Predictions first, results.json last: with it the cell is done."""
    config, data, runs = own.config, cell.data, log.runs()
    metric = data.task.metrics[0]
    labels = {f"labels/{split}": examples.labels for split, examples in data.evals.items()}
    about = {"seeds": config.seeds, "learning_rates": config.learning_rates, "labels": data.task.labels}
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
        "steps": own.steps,
        "train_examples": len(data.train.labels),
        "eval_examples": {split: len(examples.labels) for split, examples in data.evals.items()},
        **{name: cell.report[name] for name in ("body", "trained", "ratio")},
        "runs": runs,
        "selected": selection.select(runs, metric, config.report_epoch),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }
    results.write_json(folder / results.RESULTS, record)
    return record


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
