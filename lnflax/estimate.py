"""What of a study is left: work, time, memory and programs, told before a step is done."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from lnflax import coverage, memory, results, work
from lnflax.cells import Cell
from lnflax.coverage import Rectangle
from lnflax.standing import Standing


def effort(cell: Cell, parts: Sequence[Rectangle], done: float = 0.0) -> float:
    """Floating-point operations, about, of some runs of a cell, of which a share is done."""
    tokens = int(cell.config.batch_size * cell.data.train.lengths.mean())
    step = work.of_step(cell.recipe, tokens)
    each = sum(len(seeds) * (step.prefix + len(rates) * (step.suffix + step.update)) for seeds, rates in parts)
    return each * cell.epochs * cell.epoch_steps * (1 - done)


def share(cell: Cell, standing: Standing) -> float:
    """How much of what a cell lacks its state has done."""
    if standing.state is None:
        return 0.0
    record, parts = standing.state.record, max(len(cell.parts), 1)
    return (record["part"] + record["epoch"] / cell.epochs) / parts


def seconds(workdir: Path, cells: Sequence[tuple[Cell, Standing]]) -> float | None:
    """How long what is left takes one process, by what finished cells of the same workdir took; None without any."""
    spent = known = left = 0.0
    for cell, standing in cells:
        task, setting = cell.name.split("/")
        left += effort(cell, standing.coverage.lacking, share(cell, standing))
        if standing.done:
            spent += results.read_results(workdir, task, setting)["seconds"]["total"]
            whole = coverage.cover(cell.config.seeds, cell.config.learning_rates)
            known += effort(cell, whole.lacking)
        elif standing.state is not None:
            spent += standing.state.record["spent"]["total"]
            known += effort(cell, standing.coverage.lacking, 1 - share(cell, standing))
    return left * spent / known if known else None


def programs(cells: Sequence[Cell]) -> int:
    """How many programs of cells that are not done have to be ready: one a shape of rows, plan and recipe."""
    found: set[tuple] = set()
    for cell in cells:
        for part in cell.parts:
            found |= {(cell.recipe, part.chunks, part.plan, shape) for shape in part.rows.shapes}
            found |= {(cell.recipe, part.plan.devices, name) for name in ("start", "moved")}
            found |= {(cell.recipe, part.chunks, part.plan, cell.data.task.name, split) for split in cell.data.evals}
    return len(found)


def line(workdir: Path, cells: Sequence[tuple[Cell, Standing]]) -> str:
    """All of it in a line."""
    todo = [cell for cell, standing in cells if not standing.done]
    if not todo:
        return "nothing is left to do"
    runs = sum(standing.coverage.runs for _, standing in cells)
    left = seconds(workdir, cells)
    time = (
        "time is told when a cell is done here"
        if left is None
        else f"about {datetime.timedelta(seconds=round(left))} for one process, by what the others took"
    )
    need = memory.gib(max(cell.cut.need for cell in todo))
    return (
        f"left: {len(todo)} of {len(cells)} cells, {runs} runs; {time}; up to {need} a device;"
        f" {programs(todo)} programs to compile, those in the cache aside"
    )
