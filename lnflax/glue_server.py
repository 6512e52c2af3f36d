"""The files that GLUE's test server takes: a table of answers a task, all in one zip (gluebenchmark.com/faq)."""

from __future__ import annotations

import fnmatch
import functools
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lnflax import hub, serving, sources, storage
from lnflax.errors import InputError
from lnflax.tasks import TASKS, Task
from lnflax.tuned import Model

ZIP = "submission.zip"
WHEN = (1980, 1, 1, 0, 0, 0)  # the first time that a zip knows, so that the same answers are the same bytes


class Table(NamedTuple):
    """A file of the server's: which task's model answers which test set, how answers are written, and what stands
    there where there is no model, so many times."""

    file: str
    task: str
    folder: str
    split: str
    examples: int
    constant: str
    by_name: bool = False  # labels by their names, not their numbers


TABLES = (
    Table("CoLA.tsv", "cola", "cola", "test", 1063, "0"),
    Table("SST-2.tsv", "sst2", "sst2", "test", 1821, "0"),
    Table("MRPC.tsv", "mrpc", "mrpc", "test", 1725, "0"),
    Table("STS-B.tsv", "stsb", "stsb", "test", 1379, "0.000"),
    Table("QQP.tsv", "qqp", "qqp", "test", 390_965, "0"),
    Table("MNLI-m.tsv", "mnli", "mnli", "test_matched", 9796, "neutral", True),
    Table("MNLI-mm.tsv", "mnli", "mnli", "test_mismatched", 9847, "neutral", True),
    Table("QNLI.tsv", "qnli", "qnli", "test", 5463, "not_entailment", True),
    Table("RTE.tsv", "rte", "rte", "test", 3000, "not_entailment", True),
    Table("WNLI.tsv", "wnli", "wnli", "test", 146, "0"),
    Table("AX.tsv", "mnli", "ax", "test", 1104, "neutral", True),
)


def submit(models: Mapping[str, Model], data: str, folder: Path, max_length: int) -> str:
    """Writes the tables and their zip into a new folder. Which of them models have answered, for people.

    Args:
        models: by name; one a task. The one of `mnli` answers the diagnostic set too.
        data: GLUE with its test sets: a folder in the hub's layout, or a hub id.
        folder: the new one.
        max_length: tokens of an example, at most.

    Raises:
        InputError: a model is of no task of GLUE, or two are of one; a test set is not there; the folder is.
    """
    storage.check_new(folder)
    by_task = _by_task(models)
    columns = {table.file: _read(TASKS[table.task], table, data) for table in TABLES if table.task in by_task}
    files, lines = {}, []
    for table in TABLES:
        if table.task in by_task:
            name = by_task[table.task]
            answers = list(_answers(name, models[name], table, columns[table.file], max_length))
            lines.append(f"{table.file}: {len(answers)} answers of {name}")
        else:
            answers = [table.constant] * table.examples
            lines.append(f"{table.file}: no model, {table.constant} for all {table.examples}")
        rows = "".join(f"{number}\t{answer}\n" for number, answer in enumerate(answers))
        files[table.file] = f"index\tprediction\n{rows}".encode()
    storage.write_folder(folder, [*files.items(), (ZIP, _zip(files))])
    return "\n".join([*lines, f"{folder / ZIP}\n"])


def _by_task(models: Mapping[str, Model]) -> dict[str, str]:
    """The name of each task's model."""
    known = {table.task for table in TABLES}
    found: dict[str, str] = {}
    for name, model in models.items():
        task = model.task.name if model.task is not None else None
        if task not in known:
            raise InputError(
                f"--glue: {name or 'the base'} is of {task or 'no task'}; allowed are {', '.join(sorted(known))}"
            )
        if task in found:
            raise InputError(f"--glue: {found[task]} and {name} are both of {task}; give one")
        found[task] = name
    return found


def _read(task: Task, table: Table, data: str) -> list[tuple[str, ...]]:
    """The texts of a test set, in the order of its `idx`."""
    pattern = f"{table.folder}/{table.split}-*.parquet"
    rows = _rows(data, pattern)
    for name in (*task.columns, "idx"):
        if name not in rows:
            raise InputError(f"--data: {data!r}: {pattern} has no column {name!r}; there are {', '.join(rows)}")
    order = sorted(range(len(rows["idx"])), key=rows["idx"].__getitem__)
    return [tuple(rows[name][i] for name in task.columns) for i in order]


def _rows(data: str, pattern: str) -> dict[str, Any]:
    """The columns of a test set's files."""
    folder = sources.folder("--data", data, "a hub id, or a folder in the hub's layout")
    if folder is None:
        wanted = hub.Wanted("dataset", data, lambda names: {pattern: fnmatch.filter(names, pattern)}, (pattern,))
        folder = hub.fetch(f"--data: {data!r}", wanted).folder
    if not (files := sorted(map(str, folder.glob(pattern)))):
        raise InputError(f"--data: {data!r} has no {pattern}")
    read = functools.partial(sources.load, f"{data!r}, {pattern}")
    table = read(lambda datasets: datasets.load_dataset("parquet", data_files={"rows": files}))["rows"]
    return {name: list(table[name]) for name in table.column_names}


def _answers(
    name: str, model: Model, table: Table, columns: Sequence[tuple[str, ...]], max_length: int
) -> Iterator[str]:
    given = (texts[0] if len(texts) == 1 else texts for texts in columns)
    for number, found in enumerate(serving.predict({name: model}, given, max_length=max_length)):
        if "error" in found:
            raise InputError(f"--data: {table.folder} {table.split}, idx {number}: {found['error']}")
        if model.labels:
            own = found["label"]
            yield own if table.by_name else str(model.labels.index(own))
        else:
            yield f"{min(max(found['score'], 0.0), 5.0):.3f}"


def _zip(files: Mapping[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, WHEN), content, zipfile.ZIP_DEFLATED)
    return made.getvalue()
