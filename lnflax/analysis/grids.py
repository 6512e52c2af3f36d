"""The whole of each cell: its score at every learning rate and seed, the selected rate, and what diverged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Matrix:
    """A cell at every rate and seed, ascending: as text, and its scores as fractions `[rates][seeds]`, None where a run
    has none; `selected` is the reported rate."""

    task: str
    setting: str
    metric: str
    epoch: str
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]
    selected: float | None
    at_edge: bool
    grid: Grid

    @property
    def title(self) -> str:
        """The cell, and what the numbers are."""
        return f"{self.task}, {self.setting}: {self.metric}, {self.epoch} epoch"


def make_grids(workdir: Path | str, out: Path | str | None = None, reading: Reading | None = None) -> str:
    """A matrix a cell as Markdown; with `out` also written there as grid.md and, a line a run, as grid.csv."""
    study, reading = read_study(workdir), reading or Reading()
    cells = study.cells
    check_metrics(cells, reading)
    matrices = [make_matrix(cell, reading) for cell in cells]
    text = "\n".join(f"## {own.title}\n\n{formats.markdown(own.grid)}" for own in matrices)
    text += f"\n{study.missing}\n" if study.missing else ""
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


def make_matrix(cell: Mapping[str, Any], reading: Reading) -> Matrix:
    """The matrix of a cell's results.json."""
    metric, epoch, chosen = _chosen(cell, reading)
    runs = {(run["learning_rate"], run["seed"]): run for run in cell["runs"]}
    seeds, rates = (tuple(sorted({key[place] for key in runs})) for place in (1, 0))
    rows, scores = [], []
    for rate in rates:
        mean = selection.at_rate(cell["runs"], rate, metric, epoch, reading.ddof)
        of_seeds = [runs.get((rate, seed)) for seed in seeds]
        place = "selected, edge of the grid" if chosen["at_edge"] else "selected"
        shown = place if rate == chosen["learning_rate"] else ""
        texts = [_text(run, metric, epoch) for run in of_seeds]
        rows.append((f"{rate:g}", *texts, wording.mean_std(mean["mean"], mean["std"]), shown))
        scores.append(tuple(run and selection.score(run, metric, epoch) for run in of_seeds))
    header = ("rate", *(f"seed {seed}" for seed in seeds), "mean ± std", "")
    mark = f"{formats.DIVERGED_MARK} diverged at this step."
    footnote = mark if any(run["status"] == "diverged" for run in cell["runs"]) else ""
    return Matrix(
        *(cell["task"], cell["setting"], metric, epoch, rates, seeds, tuple(scores)),
        selected=chosen["learning_rate"],
        at_edge=chosen["at_edge"],
        grid=Grid(header, tuple(rows), footnote=footnote),
    )


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
