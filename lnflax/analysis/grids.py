"""The whole of each cell: its score at every learning rate and seed, the selected rate, and what diverged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lnflax import selection, wording
from lnflax.analysis import formats
from lnflax.analysis.entries import Reading, check_metrics, metric_of
from lnflax.analysis.formats import Grid
from lnflax.results import read_study
from lnflax.storage import durable_write

CSV_FIELDS = (
    *("task", "setting", "metric", "report_epoch", "learning_rate", "seed"),
    *("status", "diverged_step", "value", "selected", "at_edge"),
)


def make_grids(workdir: Path | str, out: Path | str | None = None, reading: Reading | None = None) -> str:
    """A matrix a cell as Markdown; with `out` also written there as grid.md and, a line a run, as grid.csv."""
    study, reading = read_study(workdir), reading or Reading()
    cells = study.cells
    check_metrics(cells, reading)
    text = "\n".join(_section(cell, reading) for cell in cells) + (f"\n{study.missing}\n" if study.missing else "")
    if out is None:
        return text
    records = [record for cell in cells for record in _records(cell, reading)]
    forms = {"grid.md": text, "grid.csv": formats.csv_text(CSV_FIELDS, records)}
    for name, form in forms.items():
        durable_write(Path(out) / name, form.encode())
    return f"{text}\nWritten: {', '.join(str(Path(out) / name) for name in forms)}\n"


def _chosen(cell: Mapping[str, Any], reading: Reading) -> tuple[str, str, dict[str, Any]]:
    metric, epoch = metric_of(cell, reading), cell["report_epoch"]
    return metric, epoch, selection.select(cell["runs"], metric, epoch, how=reading.how, ddof=reading.ddof)


def _section(cell: Mapping[str, Any], reading: Reading) -> str:
    metric, epoch, chosen = _chosen(cell, reading)
    runs = {(run["learning_rate"], run["seed"]): run for run in cell["runs"]}
    seeds, rates = (sorted({key[place] for key in runs}) for place in (1, 0))
    rows = []
    for rate in rates:
        mean = selection.at_rate(cell["runs"], rate, metric, epoch, reading.ddof)
        of_seeds = [_text(runs.get((rate, seed)), metric, epoch) for seed in seeds]
        place = "selected, edge of the grid" if chosen["at_edge"] else "selected"
        shown = place if rate == chosen["learning_rate"] else ""
        rows.append((f"{rate:g}", *of_seeds, wording.mean_std(mean["mean"], mean["std"]), shown))
    header = ("rate", *(f"seed {seed}" for seed in seeds), "mean ± std", "")
    mark = f"{formats.DIVERGED_MARK} diverged at this step."
    footnote = mark if any(run["status"] == "diverged" for run in cell["runs"]) else ""
    grid = formats.markdown(Grid(header, tuple(rows), footnote=footnote))
    return f"## {cell['task']}, {cell['setting']}: {metric}, {epoch} epoch\n\n{grid}"


def _text(run: Mapping[str, Any] | None, metric: str, epoch: str) -> str:
    if run is None:
        return wording.MISSING
    if run["status"] == "diverged":
        return f"{run['diverged_step'] or ''}{formats.DIVERGED_MARK}"
    return wording.percent(selection.score(run, metric, epoch))


def _records(cell: Mapping[str, Any], reading: Reading) -> list[tuple[Any, ...]]:
    metric, epoch, chosen = _chosen(cell, reading)
    records = []
    for run in cell["runs"]:
        selected = run["learning_rate"] == chosen["learning_rate"]
        records.append(
            (
                *(cell["task"], cell["setting"], metric, epoch, run["learning_rate"], run["seed"]),
                *(run["status"], run["diverged_step"], selection.score(run, metric, epoch)),
                *(selected, selected and chosen["at_edge"]),
            )
        )
    return records
