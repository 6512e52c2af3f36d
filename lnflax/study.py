"""The loop over the cells of a study: what it does, in order, and what it says."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lnflax import cells, claims, compiling, estimate, identity, memory, results, states, storage, trained, wording
from lnflax.cells import Cell
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.interruption import Interruption
from lnflax.progress import Reporter
from lnflax.standing import ESSENTIAL, Standing, stand
from lnflax.training import CellTraining

PACKAGES = ("lnflax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers", "tokenizers", "datasets", "evaluate")
OWN_FILES = (results.CONFIG, results.VERSIONS, storage.SUMS)  # of a workdir, beside the folders of its tasks
POLL_SECONDS = 2.0  # between two looks at cells that others train


class Share(NamedTuple):
    """Every `of`-th cell from the `number`-th, both from 1; number 0 is the last, so that both ways of counting do."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Share:
        """`i/n`.

        Raises:
            InputError: it is not so, or i is not from 0 to n.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 0 <= int(number) <= int(of) and int(of) > 0):
            raise InputError(f"--cells={text}: give i/n, as 1/4 to 4/4 (or 0/4 to 3/4)")
        return cls(int(number), int(of))

    def has(self, place: int) -> bool:
        """Whether the cell at this place, from 0, is of the share."""
        return (place + 1 - self.number) % self.of == 0


def run(
    config: Config, workdir: Path, reporter: Reporter, *, dry_run: bool = False, share: Share | None = None
) -> None:
    """Trains every cell of the study that is not done, in order; with `dry_run` it only says what it would do.

    Everything is read and checked, and what trains is said, before the first file is written. Processes that run the
    same study share its cells out by claims; one that has a `share` trains those cells, and takes no claim.

    Raises:
        InputError: bad input, on one line.
        StorageError: a file cannot be written or read, on one line.
        Interrupted: a signal has come, and all is saved.
    """
    _check_places(workdir, config)
    there = identity.read(workdir)
    if there is not None:
        identity.check(workdir, there, results.plain({"format": results.FORMAT, **config.record}))
    pairs = [(task, setting) for task in config.tasks for setting in config.settings]
    standings = {pair: stand(config, workdir, *pair) for pair in pairs}
    todo = cells.prepare(config, jax.local_device_count(), {pair: own.coverage for pair, own in standings.items()})
    record = identity.record(config.record, [cell.data for cell in todo])
    if there is not None:
        identity.check(workdir, there, record)
    planned = list(zip(todo, standings.values(), strict=True))
    _say_plan(planned, workdir, reporter)
    if dry_run:
        reporter.say(estimate.line(workdir, planned))
        return
    with Interruption() as interruption, compiling.counted() as programs:
        _open_workdir(workdir, record, locked=share is None, reporter=reporter)
        mine = [cell for place, cell in enumerate(todo) if share is None or share.has(place)]
        _train_all(mine, config, workdir, reporter, interruption, claimed=share is None)
    if programs.ready:
        reporter.say(str(programs))


def _say_plan(planned: Sequence[tuple[Cell, Standing]], workdir: Path, reporter: Reporter) -> None:
    reporter.say(trained.terminal_table([cell.report for cell, _ in planned]))
    for cell, standing in planned:
        reporter.say(_plan_line(cell, standing, claims.holder(workdir, cell.name)))
    for data in {cell.data.task.name: cell.data for cell, _ in planned}.values():
        for split in data.absent:
            reporter.warn(f"{data.task.name} has no {split}: its metrics are null")
        for note in data.notes:
            reporter.warn(note)
    for path in _foreign(workdir):
        reporter.warn(f"workdir: {path} is no file of a study; it is left alone")
    for _, standing in planned:
        for error in standing.damaged:
            reporter.warn(f"{error}; a start that trains sets it aside")


def _plan_line(cell: Cell, standing: Standing, holder: str | None) -> str:
    config, claimed = cell.config, f", claimed by {holder}" if holder else ""
    grid = f"{len(config.seeds)} seeds × {len(config.learning_rates)} rates"
    if standing.done:
        return f"{cell.name}: done{claimed}; {grid}"
    parts, rows = cell.parts, cell.parts[0].rows
    plan, first = parts[0].plan, parts[0]
    count = f"{len(parts)} parts of {len(first.seeds)}×{len(first.rates)}, " if len(parts) > 1 else ""
    spread = f"{len(plan.seeds[0])}×{len(plan.rates[0])} on each of {len(plan.seeds)}"
    group = f" groups of {plan.batch_parts} devices" if plan.batch_parts > 1 else " devices"
    return (
        f"{cell.name}: {_how_far(cell, standing)}{claimed}; {grid} ({count}{spread}{group}),"
        f" {cell.epochs} epochs × {cell.epoch_steps} steps of {config.batch_size} examples"
        f" in rows {' '.join(f'{shape.rows}×{shape.length}' for shape in rows.shapes)}"
    )


def _how_far(cell: Cell, standing: Standing) -> str:
    if standing.state is None:
        whole = len(cell.config.seeds) * len(cell.config.learning_rates)
        return f"{standing.coverage.runs} of {whole} runs to do" if standing.begun else "to do"
    record = standing.state.record
    part = f" of part {record['part'] + 1} of {len(cell.parts)}" if len(cell.parts) > 1 else ""
    return f"under way, {record['epoch']} of {cell.epochs} epochs{part} done"


def _check_places(workdir: Path, config: Config) -> None:
    cell_folders = (workdir / task / setting for task in config.tasks for setting in config.settings)
    for folder in (workdir, *workdir.parents, *(f for own in cell_folders for f in (own.parent, own))):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"workdir: {folder} is a file; there should be a folder")


def _foreign(workdir: Path) -> list[Path]:
    """Files of the workdir itself that are not a study's."""
    files = sorted(path for path in workdir.iterdir() if not path.is_dir()) if workdir.is_dir() else []
    own = {*storage.stale(workdir), *(workdir / name for name in OWN_FILES)}
    return [path for path in files if path not in own and storage.ASIDE not in path.name]


def _open_workdir(workdir: Path, record: dict[str, Any], *, locked: bool, reporter: Reporter) -> None:
    """config.json and versions.json; of several processes each adds what it brings."""
    storage.make_folder(workdir)
    with claims.claim(workdir, claims.STUDY, wait=True) if locked else contextlib.nullcontext():
        for name in (results.CONFIG, results.VERSIONS):
            try:
                if (workdir / name).exists():
                    results.read_json(workdir / name)
            except storage.Damaged as error:
                _set_aside(error, workdir, reporter)
        there = identity.read(workdir)
        if there is not None:
            identity.check(workdir, there, record)
            record = identity.join(there, record)
        results.write_json(workdir / results.CONFIG, record)
        device = jax.local_devices()[0]
        versions = {name: metadata.version(name) for name in PACKAGES}
        machine = {"platform": device.platform, "device": device.device_kind, "devices": jax.local_device_count()}
        own = {"format": results.FORMAT, "python": platform.python_version(), **versions, **machine}
        results.write_json(workdir / results.VERSIONS, own)
        storage.settle(workdir)


def _set_aside(error: storage.Damaged, folder: Path, reporter: Reporter) -> None:
    aside = storage.set_aside(error.path, folder)
    reporter.warn(f"{error}; set aside as {aside}")


def _train_all(
    todo: Sequence[Cell],
    config: Config,
    workdir: Path,
    reporter: Reporter,
    interruption: Interruption,
    *,
    claimed: bool,
) -> None:
    """Trains cells that nobody else trains, until all are done: one whose owner dies is taken over."""
    left, told = list(todo), set()
    while left:
        waiting = []
        for cell in left:
            interruption.check()
            with _claim(workdir, cell, claimed) as mine:
                if mine:
                    _train_until_done(cell, config, workdir, reporter, interruption)
                else:
                    waiting.append(cell)
        if len(waiting) == len(left):
            for cell in waiting:
                if cell.name not in told:
                    told.add(cell.name)
                    reporter.say(f"{cell.name}: waits for {claims.holder(workdir, cell.name) or 'its next owner'}")
            _sleep(interruption)
        left = waiting


def _claim(workdir: Path, cell: Cell, claimed: bool) -> contextlib.AbstractContextManager[bool]:
    return claims.claim(workdir, cell.name) if claimed else contextlib.nullcontext(True)


def _sleep(interruption: Interruption) -> None:
    end = time.monotonic() + POLL_SECONDS
    while time.monotonic() < end and not interruption.asked:
        time.sleep(POLL_SECONDS / 20)


def _train_until_done(
    cell: Cell, config: Config, workdir: Path, reporter: Reporter, interruption: Interruption
) -> None:
    """What lies in the folder now decides: a cell that was begun otherwise is finished so, and then extended."""
    task, setting = cell.data.task.name, cell.setting.name
    folder = results.cell_folder(workdir, task, setting)
    for standing in _standings(config, workdir, task, setting, reporter):
        if standing.coverage != cell.coverage or standing.cut not in (None, cell.cut):
            devices = jax.local_device_count()
            cell = cells.make_cell(config, cell.data, cell.setting, standing.coverage, devices, standing.cut)
        if standing.state is not None:
            identity.check(workdir, standing.state.record["config"], results.plain(config.record))
        training = _train_or_halve(cell, standing, folder, reporter, interruption)
        _say_outcome(cell, training, reporter)
    if not (folder / results.TRAINED).exists():  # it was damaged
        results.write_json(folder / results.TRAINED, cell.report)
    for own in (folder, folder / results.DELTAS):
        storage.settle(own)


def _standings(config: Config, workdir: Path, task: str, setting: str, reporter: Reporter) -> Iterator[Standing]:
    """How the cell stands, its folder tidied up, as long as it lacks something."""
    folder = results.cell_folder(workdir, task, setting)
    results.check_there(folder)
    while True:
        storage.remove(*(path for own in ("", states.FOLDER, results.DELTAS) for path in storage.stale(folder / own)))
        standing = stand(config, workdir, task, setting)
        for error in standing.damaged:
            _set_aside(error, folder, reporter)
        if any(error.path.name in ESSENTIAL for error in standing.damaged) and results.is_done(folder):
            aside = storage.set_aside(folder / results.RESULTS, folder)
            reporter.warn(f"{task}/{setting}: trains again; what it had is {aside}")
        if standing.state is None:
            states.remove(folder)
        if standing.done:
            return
        yield standing


def _train_or_halve(
    cell: Cell, standing: Standing, folder: Path, reporter: Reporter, interruption: Interruption
) -> CellTraining:
    """Trains a cell; where memory runs out against the plan, once more from the start with half of it at once."""
    training = CellTraining(cell, folder, reporter, interruption)
    try:
        training.run(standing.state)
        return training
    except Exception as error:
        smaller = memory.halve(cell.cut) if memory.is_out_of_memory(error) else None
        if smaller is None:
            raise
    reporter.warn(f"{cell.name}: out of memory; again with {memory.describe(smaller)}")
    states.remove(folder)
    training = CellTraining(cells.recut(cell, smaller), folder, reporter, interruption)
    training.run(None)
    return training


def _say_outcome(cell: Cell, training: CellTraining, reporter: Reporter) -> None:
    record, log, still = training.record, training.log, list(dict.fromkeys(training.still))
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
    lost = [run["seed"] for run in runs if run["learning_rate"] == chosen["learning_rate"] and not run["delta"]]
    if lost and cell.config.save_deltas != "none":
        reporter.warn(f"{cell.name}: seeds {', '.join(map(str, lost))} have no delta at the selected rate")
    if constant := log.constant():
        reporter.warn(f"{cell.name}: {constant} of {len(runs)} runs predict one class only")
    if still and not all(run["status"] == "diverged" for run in runs):
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        reporter.warn(f"{cell.name}: did not move in some run: {still[0]}{more}")
