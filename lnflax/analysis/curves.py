"""The course of every run as one tidy table for figures: a line a run and epoch of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lnflax.analysis import formats
from lnflax.results import cell_folder, read_metrics, read_study
from lnflax.storage import durable_write

FIELDS = ("task", "setting", "seed", "learning_rate", "epoch", "step", "train_loss", "eval_loss")


def read_course(workdir: Path | str, cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The lines of a cell's metrics.jsonl, by seed, rate and epoch."""
    lines = read_metrics(cell_folder(workdir, cell["task"], cell["setting"]))
    return sorted(lines, key=lambda line: (line["seed"], line["learning_rate"], line["epoch"]))


def make_curves(workdir: Path | str, out: Path | str | None = None) -> str:
    """The table of all finished cells as CSV, by cell, seed, rate and epoch; with `out` it is written to curves.csv.

    After `FIELDS` come the metrics of all tasks, as fractions, empty where a task has no such metric. Seconds are
    left out, so that the same study gives the same bytes.
    """
    rows = []
    for cell in read_study(workdir).cells:
        about = {"task": cell["task"], "setting": cell["setting"]}
        rows += [about | line for line in read_course(workdir, cell)]
    fields = [name for name in dict.fromkeys((*FIELDS, *(name for row in rows for name in row))) if name != "seconds"]
    text = formats.csv_text(fields, ([row.get(name) for name in fields] for row in rows))
    if out is None:
        return text
    path = Path(out) / "curves.csv"
    durable_write(path, text.encode())
    return f"{len(rows)} lines.\nWritten: {path}\n"
