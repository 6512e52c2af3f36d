"""The paper's Tables 1 to 4 from a run folder, as far as it has cells. Reads and selects; trains nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lnflax import wording
from lnflax.analysis import comparison, details, formats
from lnflax.analysis.comparison import Against, Samples, Support
from lnflax.analysis.entries import Entry, Reading, check_metrics, make_entry
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

_FOOTNOTES = {
    formats.DIVERGED_MARK: "some runs of this cell diverged; the details say how many.",
    formats.FEWER_MARK: "some seeds have no value at the selected rate; mean and std are over the others.",
}


@dataclass(frozen=True)
class Table:
    """One table of the paper: the cells that it shows, its grid, the details, and the same as rows for CSV."""

    name: str
    shown: tuple[Entry, ...]
    grid: Grid
    details: Grid
    records: tuple[tuple[Any, ...], ...]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """Title, table, details and notes."""
        parts = [f"## {TITLES[self.name]}\n", formats.markdown(self.grid)]
        parts += ["### Details\n", formats.markdown(self.details), "\n\n".join(self.notes) + "\n"]
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
    against: Against | None = None,
) -> str:
    """The tables of a run folder as Markdown; with `out` also written there as `.md`, `.csv` and `.tex`.

    Raises:
        InputError: bad input, on one line.
    """
    study, tables = read_tables(workdir, reading or Reading(), published, against)
    last = f"\n{study.missing}\n" if study.missing else ""
    text = "\n".join(table.markdown() for table in tables) + last
    if out is None:
        return text
    written = []
    for table in tables:
        csv = formats.csv_text(details.CSV_FIELDS, table.records)
        comment = "".join(f"% {line}\n" for line in study.missing.splitlines())
        forms = {"md": table.markdown() + last, "csv": csv, "tex": comment + table.latex()}
        for suffix, form in forms.items():
            written.append(Path(out) / f"{table.name}.{suffix}")
            durable_write(written[-1], form.encode())
    return f"{text}\nWritten: {', '.join(map(str, written))}\n"


def read_tables(
    workdir: Path | str, reading: Reading, published: Path | str | None, against: Against | None
) -> tuple[Study, list[Table]]:
    """A run folder and its tables.

    Raises:
        InputError: bad input, on one line.
    """
    study = read_study(workdir)
    tasks = dict.fromkeys((*TASKS, *TOKEN_TASKS, *(cell["task"] for cell in study.cells)))
    settings = dict.fromkeys((*MODULES, *(cell["setting"] for cell in study.cells)))
    numbers = read_published(published, settings, tasks) if published is not None else Published()
    return study, build_tables(workdir, study, reading, numbers, against)


def build_tables(
    workdir: Path | str, study: Study, reading: Reading, published: Published, against: Against | None = None
) -> list[Table]:
    """The tables that have at least one cell of their own; a reference row alone makes none."""
    check_metrics(study.cells, reading)
    if against:
        check_choice("--reference", against.setting, dict.fromkeys(cell["setting"] for cell in study.cells))
    entries = {(cell["setting"], cell["task"]): make_entry(cell, reading) for cell in study.cells}
    samples = comparison.draw_samples(workdir, study.cells, entries, reading)
    tables = []
    for name in TITLES:
        placed = [cell for cell in entries if place(*cell)[0] == name]
        tasks = {task for _, task in placed}
        here = {cell: entry for cell, entry in entries.items() if cell[1] in tasks}
        own = sorted(dict.fromkeys(setting for setting, _ in placed), key=lambda setting: place(setting)[1])
        if own:
            tables.append(_table(name, own, here, reading, published, samples, against))
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


def _table(
    name: str,
    own: list[str],
    entries: Mapping[tuple[str, str], Entry],
    reading: Reading,
    published: Published,
    samples: Samples,
    against: Against | None,
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
    keys = [(entry.setting, entry.task, value.metric) for entry in shown for value in entry.values]
    support = comparison.support(samples, keys, against)
    return Table(
        name,
        tuple(shown),
        _grid(settings, tasks, entries, numbers, support),
        details.details(shown, support),
        details.records(name, shown, numbers, support),
        details.notes(shown, reading, support),
    )


def _task_order(tasks: Iterable[str]) -> list[str]:
    order = (*TASKS, *TOKEN_TASKS)
    return sorted(dict.fromkeys(tasks), key=lambda task: order.index(task) if task in order else len(order))


def _grid(
    settings: list[str],
    tasks: list[str],
    entries: Mapping[tuple[str, str], Entry],
    numbers: Mapping[tuple[str, str], Number],
    support: Support,
) -> Grid:
    columns = [(task, beside) for task in tasks for beside in (False, True)]
    columns = [(task, beside) for task, beside in columns if not beside or any(task == t for _, t in numbers)]
    rows = []
    for setting in settings:
        present = [entries[setting, task] for task in tasks if (setting, task) in entries]
        ratios = dict.fromkeys(wording.ratio_percent(entry.ratio) for entry in present)
        cells = [
            _beside(numbers.get((setting, task))) if beside else _ours(entries.get((setting, task)), support)
            for task, beside in columns
        ]
        rows.append((setting, " / ".join(ratios), *cells))
    header = ("setting", "ratio", *(f"{task} (published)" if beside else task for task, beside in columns))
    shown = "".join(cell for row in rows for cell in row[1:])
    footnotes = [f"{mark} {note}" for mark, note in _FOOTNOTES.items() if mark in shown]
    if support.against and support.differences:
        footnotes.append(details.sign_note(support.against))
    return Grid(header, tuple(rows), footnote=" ".join(footnotes))


def _ours(entry: Entry | None, support: Support) -> str:
    if entry is None:
        return wording.MISSING
    keys = {value.metric: (entry.setting, entry.task, value.metric) for value in entry.values}
    found = {metric: support.differences[key] for metric, key in keys.items() if key in support.differences}
    return entry.text({metric: formats.SIGNS[own.mark] for metric, own in found.items()})


def _beside(number: Number | None) -> str:
    return wording.mean_std(number.mean, number.std) if number else wording.MISSING
