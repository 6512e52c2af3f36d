"""The paper's Tables 1 to 4 from a run folder, as far as it has cells. Reads and selects; trains nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnflax import selection, wording
from lnflax.analysis import formats
from lnflax.analysis.formats import Grid
from lnflax.analysis.published import Number, Published, read_published
from lnflax.errors import check_choice
from lnflax.results import Study, read_study
from lnflax.storage import durable_write

TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
TOKEN_TASKS = ("pos", "ner")
MODULES = ("full", "frozen", "mha", "ffn", "layernorms", "ln_a", "ln_f", "bitfit", "random")
TITLES = {
    "table1": "Table 1: modules",
    "table2": "Table 2: modules, tagged words",
    "table3": "Table 3: one block's LayerNorms",
    "table4": "Table 4: outliers against as many random scalars of each LayerNorm",
}
REFERENCES = {"table3": ("layernorms", "full", "frozen")}

# The metric that a task reports beside its first: MNLI's other dev set.
SECOND = {("mnli", "accuracy"): "accuracy_mismatched"}

CSV_FIELDS = (
    *("table", "setting", "task", "metric", "ratio", "learning_rate", "mean", "std", "n"),
    *("eval_examples", "diverged", "at_edge", "published", "published_std"),
)
_DETAILS = (
    *("setting", "task", "metric", "rate", "seeds", "dev size"),
    *("diverged", "at edge", "mean", "std"),
)
_FOOTNOTES = {
    formats.DIVERGED_MARK: "some runs of this cell diverged; the details say how many.",
    formats.FEWER_MARK: "some seeds have no value at the selected rate; mean and std are over the others.",
}


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
    examples: int | None


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

    def text(self) -> str:
        """`83.0 ± 0.4`, two of them for MNLI, with a mark where runs diverged and where a seed has no value."""
        if self.diverged == self.runs:
            return "diverged"
        shown = [value for value in self.values if value.mean is not None]
        text = " / ".join(wording.mean_std(value.mean, value.std) for value in shown) or "no value"
        diverged = formats.DIVERGED_MARK if self.diverged else ""
        fewer = formats.FEWER_MARK if any(value.n < self.seeds for value in shown) else ""
        return text + diverged + fewer


@dataclass(frozen=True)
class Table:
    """One table of the paper: its grid, the details of its cells, and the same as rows for CSV."""

    name: str
    grid: Grid
    details: Grid
    records: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """Title, table, details and notes."""
        parts = [f"## {TITLES[self.name]}\n", formats.markdown(self.grid)]
        parts += ["### Details\n", formats.markdown(self.details), "\n".join(self.notes) + "\n"]
        return "\n".join(parts)

    def latex(self) -> str:
        """Two booktabs tabulars, the table and its details; the notes are comments."""
        notes = "".join(f"% {note}\n" for note in (f"{TITLES[self.name]}.", *self.notes))
        return f"{notes}{formats.latex(self.grid)}\n{formats.latex(self.details)}"


def make_tables(
    workdir: Path | str,
    out: Path | str | None = None,
    reading: Reading | None = None,
    published: Path | str | None = None,
) -> str:
    """The tables of a run folder as Markdown; with `out` also written there as `.md`, `.csv` and `.tex`."""
    study = read_study(workdir)
    tasks = dict.fromkeys((*TASKS, *TOKEN_TASKS, *(cell["task"] for cell in study.cells)))
    settings = dict.fromkeys((*MODULES, *(cell["setting"] for cell in study.cells)))
    numbers = read_published(published, settings, tasks) if published is not None else Published()
    tables = build_tables(study, reading or Reading(), numbers)
    unfinished = ", ".join(map("/".join, study.unfinished))
    last = f"\nUnfinished cells, not in the tables: {unfinished}.\n" if unfinished else ""
    text = "\n".join(table.markdown() for table in tables) + last
    if out is None:
        return text
    written = []
    for table in tables:
        csv = formats.csv_text(CSV_FIELDS, table.records)
        comment = last.strip() and f"% {last.strip()}\n"
        forms = {"md": table.markdown() + last, "csv": csv, "tex": comment + table.latex()}
        for suffix, form in forms.items():
            written.append(Path(out) / f"{table.name}.{suffix}")
            durable_write(written[-1], form.encode())
    return f"{text}\nWritten: {', '.join(map(str, written))}\n"


def build_tables(study: Study, reading: Reading, published: Published) -> list[Table]:
    """The tables that have at least one cell of their own; a reference row alone makes none."""
    metrics = reading.metrics or {}
    for task in metrics:
        check_choice("--metric", task, dict.fromkeys(cell["task"] for cell in study.cells))
    entries = {(cell["setting"], cell["task"]): _entry(cell, reading, metrics) for cell in study.cells}
    tables = []
    for name in TITLES:
        placed = [cell for cell in entries if place(*cell)[0] == name]
        tasks = {task for _, task in placed}
        here = {cell: entry for cell, entry in entries.items() if cell[1] in tasks}
        own = sorted(dict.fromkeys(setting for setting, _ in placed), key=lambda setting: place(setting)[1])
        if own:
            tables.append(_table(name, own, here, reading, published))
    return tables


def place(setting: str, task: str = "") -> tuple[str, tuple[int, ...]]:
    """The table that a cell belongs to, and its order there; equals keep the study's order."""
    if match := re.fullmatch(r"single_norm_(\d+)", setting):
        return "table3", (int(match[1]),)
    if match := re.fullmatch(r"(outliers|random_norms)_(\d+)", setting):
        return "table4", (int(match[2]), int(match[1] == "random_norms"))
    return "table2" if task in TOKEN_TASKS else "table1", (
        MODULES.index(setting) if setting in MODULES else len(MODULES),
    )


def _entry(cell: Mapping[str, Any], reading: Reading, metrics: Mapping[str, str]) -> Entry:
    task, runs, epoch = cell["task"], cell["runs"], cell["report_epoch"]
    metric = metrics.get(task, cell["metric"])
    if task in metrics and (names := selection.metric_names(runs, epoch)):
        check_choice(f"--metric {task}", metric, names)
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


def _examples(cell: Mapping[str, Any], metric: str) -> int | None:
    """The size of the split that the metric was measured on: the mismatched one for a mismatched metric."""
    mismatched = metric.endswith("mismatched")
    sizes = cell["eval_examples"].items()
    return next((size for split, size in sizes if ("mismatched" in split) == mismatched), None)


def _table(
    name: str, own: list[str], entries: Mapping[tuple[str, str], Entry], reading: Reading, published: Published
) -> Table:
    tasks = _task_order(task for setting, task in entries if setting in own)
    references = [setting for setting in REFERENCES.get(name, ()) if any((setting, task) in entries for task in tasks)]
    settings = [*own, *references]
    shown = [entries[setting, task] for setting in settings for task in tasks if (setting, task) in entries]
    numbers = {
        (setting, task): number
        for setting in settings
        for task in tasks
        if (number := published.find(name, setting, task))
    }
    grid = _grid(settings, tasks, entries, numbers)
    details = Grid(_DETAILS, tuple(line for entry in shown for line in _details(entry)), names=3)
    records = tuple(record for entry in shown for record in _records(name, entry, numbers))
    return Table(name, grid, details, records, _notes(shown, reading))


def _task_order(tasks: Iterable[str]) -> list[str]:
    order = (*TASKS, *TOKEN_TASKS)
    return sorted(dict.fromkeys(tasks), key=lambda task: order.index(task) if task in order else len(order))


def _grid(
    settings: list[str],
    tasks: list[str],
    entries: Mapping[tuple[str, str], Entry],
    numbers: Mapping[tuple[str, str], Number],
) -> Grid:
    columns = [(task, beside) for task in tasks for beside in (False, True)]
    columns = [(task, beside) for task, beside in columns if not beside or any(task == t for _, t in numbers)]
    rows = []
    for setting in settings:
        present = [entries[setting, task] for task in tasks if (setting, task) in entries]
        ratios = dict.fromkeys(wording.ratio_percent(entry.ratio) for entry in present)
        cells = [
            _beside(numbers.get((setting, task))) if beside else _ours(entries.get((setting, task)))
            for task, beside in columns
        ]
        rows.append((setting, " / ".join(ratios), *cells))
    header = ("setting", "ratio", *(f"{task} (published)" if beside else task for task, beside in columns))
    shown = "".join(cell for row in rows for cell in row[1:])
    footnotes = (f"{mark} {note}" for mark, note in _FOOTNOTES.items() if mark in shown)
    return Grid(header, tuple(rows), footnote=" ".join(footnotes))


def _ours(entry: Entry | None) -> str:
    return entry.text() if entry else wording.MISSING


def _beside(number: Number | None) -> str:
    return wording.mean_std(number.mean, number.std) if number else wording.MISSING


def _details(entry: Entry) -> list[tuple[str, ...]]:
    """A line a value of the cell."""
    rate = wording.MISSING if entry.learning_rate is None else f"{entry.learning_rate:g}"
    return [
        (
            *(entry.setting, entry.task, value.metric, rate),
            str(value.n) if value.n == entry.seeds else f"{value.n} of {entry.seeds}",
            wording.MISSING if value.examples is None else str(value.examples),
            f"{entry.diverged} of {entry.runs}" if entry.diverged else "0",
            "yes" if entry.at_edge else "no",
            *(wording.percent(value.mean, 2), wording.percent(value.std, 2)),
        )
        for value in entry.values
    ]


def _records(name: str, entry: Entry, numbers: Mapping[tuple[str, str], Number]) -> list[tuple[Any, ...]]:
    """The values of `CSV_FIELDS`, a row a value of the cell; a published number belongs to the first metric."""
    published = numbers.get((entry.setting, entry.task))
    beside = [(published.mean, published.std) if published else (None, None), (None, None)]
    return [
        (
            *(name, entry.setting, entry.task, value.metric, entry.ratio, entry.learning_rate),
            *(value.mean, value.std, value.n, value.examples, entry.diverged, entry.at_edge, *number),
        )
        for value, number in zip(entry.values, beside, strict=False)
    ]


def _notes(shown: list[Entry], reading: Reading) -> tuple[str, ...]:
    chosen = {"mean": "the best mean over seeds", "first_seed": "the best score of the first seed"}[reading.how]
    epochs = " and ".join(dict.fromkeys(entry.report_epoch for entry in shown))
    return (
        f"Percent points, mean ± std over seeds (ddof {reading.ddof}) at the rate with {chosen}; "
        f"epoch reported: {epochs}.",
    )
