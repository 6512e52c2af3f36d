"""What the GLUE server (gluebenchmark.com) takes: a table a test set, zipped flat, all eleven of them.

It refuses a zip that lacks a table, so the test sets of tasks without a model get one answer throughout.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lnflax import serving, storage, tasks
from lnflax.errors import InputError
from lnflax.tasks import ENTAILMENT, NLI, TASKS
from lnflax.tuned import Model

ZIP = "submission.zip"
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same predictions give the same bytes
NUMBERS = ("0", "1")


class Table(NamedTuple):
    """A table of a test set: its file, whose model answers, where its examples are, and what is written for a class."""

    file: str
    task: str
    folder: str
    split: str
    examples: int  # as many rows does the server want
    classes: tuple[str, ...]  # none of a score
    constant: str  # without a model


TABLES = (
    Table("CoLA.tsv", "cola", "cola", "test", 1063, NUMBERS, "0"),
    Table("SST-2.tsv", "sst2", "sst2", "test", 1821, NUMBERS, "0"),
    Table("MRPC.tsv", "mrpc", "mrpc", "test", 1725, NUMBERS, "0"),
    Table("STS-B.tsv", "stsb", "stsb", "test", 1379, (), "0.000"),
    Table("QQP.tsv", "qqp", "qqp", "test", 390965, NUMBERS, "0"),
    Table("MNLI-m.tsv", "mnli", "mnli", "test_matched", 9796, NLI, "neutral"),
    Table("MNLI-mm.tsv", "mnli", "mnli", "test_mismatched", 9847, NLI, "neutral"),
    Table("QNLI.tsv", "qnli", "qnli", "test", 5463, ENTAILMENT, "not_entailment"),
    Table("RTE.tsv", "rte", "rte", "test", 3000, ENTAILMENT, "not_entailment"),
    Table("WNLI.tsv", "wnli", "wnli", "test", 146, NUMBERS, "0"),
    Table("AX.tsv", "mnli", "ax", "test", 1104, NLI, "neutral"),
)


def submit(models: Mapping[str, Model], data: str, out: Path, max_length: int) -> str:
    """Writes the tables and the zip of them into a new folder, and says which is whose.

    Args:
        models: by name, at most one a task.
        data: GLUE with its test sets: a folder in the hub's layout, or a hub id.
        out: the new folder.
        max_length: tokens of an example.

    Raises:
        InputError: a model is of no task of GLUE's, or two are of one; a test set is not there, or not the server's;
            the folder is there and not empty.
    """
    storage.check_new(out)
    names = _by_task(models)
    asked = [own for own in TABLES if own.task in names]
    examples = {own.file: _read(own, data) for own in asked}  # all before the first is answered
    given = (
        {"delta": names[own.task], "text": texts[0], "pair": texts[1] if len(texts) > 1 else None}
        for own in asked
        for texts in zip(*examples[own.file], strict=True)
    )
    answers = serving.predict(models, given, max_length=max_length)  # one call, and so one base on the devices
    tables, said = {}, []
    for own in TABLES:
        if own.task in names:
            rows = [_prediction(own, models[names[own.task]], next(answers)) for _ in range(own.examples)]
            said.append(f"{own.file}: {own.examples:,} predictions of {_title(names[own.task], models)}")
        else:
            rows = [own.constant] * own.examples
            said.append(f"{own.file}: {own.examples:,} times {own.constant}: no model of {own.task}")
        tables[own.file] = _table(rows)
    storage.write_folder(out, _files(tables))
    return "\n".join([*said, f"{out / ZIP} is what the server takes"]) + "\n"


def _by_task(models: Mapping[str, Model]) -> dict[str, str]:
    """The name of each task's model."""
    known = sorted({own.task for own in TABLES} & set(TASKS))
    names: dict[str, str] = {}
    for name, model in models.items():
        if model.task is None:
            raise InputError("--glue: the base alone is of no task; give the deltas of GLUE's tasks")
        task = model.task.name
        if task not in known:
            what = "tags words" if model.tagged else f"is of {task}"
            raise InputError(f"--glue: {name!r} {what}, which is no task of GLUE's; allowed are {', '.join(known)}")
        if task in names:
            raise InputError(f"--glue: {names[task]!r} and {name!r} are both of {task}; give one a task")
        if len(model.labels) != len(model.task.labels):
            raise InputError(f"--glue: {name!r} has the labels {model.labels}; {task} has {model.task.labels}")
        names[task] = name
    return names


def _title(name: str, models: Mapping[str, Model]) -> str:
    about = models[name].about
    return name if about is None else f"{name} ({about.task}/{about.setting})"


def _read(own: Table, data: str) -> tuple[list[str], ...]:
    texts = tasks.read_test(own.folder, own.split, TASKS[own.task].columns, data)
    if len(texts[0]) != own.examples:
        where = f"data.path: {data!r}, {own.folder} {own.split}"
        raise InputError(f"{where}: {len(texts[0]):,} examples; the server wants {own.examples:,}")
    return texts


def _prediction(own: Table, model: Model, answer: Mapping[str, Any]) -> str:
    """The server's word for an answer."""
    value = answer.get("label" if own.classes else "score")
    if value is None:
        reason = answer.get("error", "the model's answer is not finite")
        raise InputError(f"{own.folder} {own.split}: an example has no prediction: {reason}")
    return own.classes[model.labels.index(value)] if own.classes else f"{min(max(value, 0.0), 5.0):.3f}"


def _table(rows: list[str]) -> bytes:
    return "".join(["index\tprediction\n", *(f"{i}\t{row}\n" for i, row in enumerate(rows))]).encode()


def _files(tables: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The tables and, last, the zip of them."""
    yield from tables.items()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        for name, data in tables.items():
            entry = zipfile.ZipInfo(name, DATE)
            entry.external_attr = 0o644 << 16
            file.writestr(entry, data, zipfile.ZIP_DEFLATED)
    yield ZIP, zipped.getvalue()
