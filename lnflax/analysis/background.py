"""What was run and on what, what trained, and the commands that make it again: for the page, from the run folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lnflax import wording
from lnflax.analysis.comparison import Against
from lnflax.analysis.entries import Reading
from lnflax.analysis.formats import Grid
from lnflax.errors import InputError
from lnflax.results import CONTENTS, TRAINED, Study, cell_folder, read_json

Told = Mapping[tuple[str, str], Mapping[str, Any]]  # trained.json by (task, setting)


class Fact(NamedTuple):
    """A name and what is known under it."""

    name: str
    text: str


def read_told(workdir: Path | str, cells: Iterable[Mapping[str, Any]]) -> tuple[Told, list[str]]:
    """trained.json of each cell that has one, and what is wrong with the others."""
    told, faults = {}, []
    for cell in cells:
        try:
            told[cell["task"], cell["setting"]] = read_json(
                cell_folder(workdir, cell["task"], cell["setting"]) / TRAINED
            )
        except InputError as error:
            faults.append(str(error))
    return told, faults


def facts(study: Study, told: Told) -> list[Fact]:
    """Model, protocol and versions; what the folder does not say is left out."""
    first = next(iter(told.values()), {})
    bodies = dict.fromkeys(own["model"]["sha256"] for own in told.values() if own["model"]["sha256"])
    versions = [f"{name} {value}" for name, value in study.versions.items() if name != "format"]
    model, *protocol = _protocol(study.config) if study.config else [Fact("Model", "")]
    sets = [
        model,
        Fact("Body", f"{first['body']:,} parameters" if first else ""),
        Fact("SHA-256 of the body", ", ".join(bodies)),
        *protocol,
        Fact("Versions", ", ".join(versions)),
    ]
    return [fact for fact in sets if fact.text]


def _protocol(config: Mapping[str, Any]) -> list[Fact]:
    """What the config says; the model first."""
    model = dict(config["model"])
    optimizer = ", ".join(f"{name} {_value(value)}" for name, value in config["optimizer"].items())
    return [
        Fact("Model", ", ".join([model.pop("name"), *(f"{name} {value}" for name, value in model.items())])),
        Fact("Data", config["data"]["path"] or "each task's own"),
        Fact("Seeds", _join(config["seeds"])),
        Fact("Learning rates", _join(config["learning_rates"])),
        Fact("Batch", f"{config['batch_size']} examples, at most {config['max_length']} tokens"),
        Fact("Optimizer", f"Adam: {optimizer}; schedule {config['schedule']}"),
    ]


def data(study: Study, told: Told) -> Grid:
    """A line a task: its examples, epochs, and the sums of its splits."""
    rows = []
    for task in dict.fromkeys(cell["task"] for cell in study.cells):
        own = [cell for cell in study.cells if cell["task"] == task]
        sums: Mapping[str, str] = next(
            (there["data"] for cell in own if "data" in (there := told.get((task, cell["setting"]), {}))), {}
        )
        rows.append(
            (
                task,
                " / ".join(f"{split} {count:,}" for split, count in own[0]["eval_examples"].items()),
                _each(f"{cell['train_examples']:,}" for cell in own if "train_examples" in cell),
                _each(str(cell["epochs"]) for cell in own if "epochs" in cell),
                _each(f"{cell['steps']:,}" for cell in own if "steps" in cell),
                _each(cell["report_epoch"] for cell in own),
                " ".join(f"{split} {digest[:12]}" for split, digest in sums.items()) or wording.MISSING,
            )
        )
    header = (
        "task",
        "development examples",
        "training examples",
        "epochs",
        "steps",
        "epoch reported",
        "SHA-256 begins",
    )
    return Grid(header, tuple(rows))


def trained(study: Study, told: Told) -> Grid:
    """A line a setting, and the tasks that it is true of: what trains beside the head."""
    order = list(dict.fromkeys(cell["setting"] for cell in study.cells))
    rows: dict[tuple[str, ...], list[str]] = {}
    for cell in sorted(study.cells, key=lambda cell: order.index(cell["setting"])):
        own = told.get((cell["task"], cell["setting"]), {})
        count, head, reachable = (own.get(name) for name in ("trained", "with_head", "reachable"))
        count = cell.get("trained") if count is None else count
        row = (
            cell["setting"],
            wording.MISSING if count is None else f"{count:,}",
            wording.ratio_percent(cell["ratio"]),
            f"{head['trained']:,}" if head else wording.MISSING,
            wording.count_range(reachable) if reachable else wording.MISSING,
        )
        rows.setdefault(row, []).append(cell["task"])
    header = ("setting", "tasks", "trained scalars", "of the body", "with the head", "a gradient can reach")
    return Grid(header, tuple((row[0], ", ".join(tasks), *row[1:]) for row, tasks in rows.items()), names=2)


def train_command(config: Mapping[str, Any], workdir: Path | str) -> str:
    """The command that trains this study, with every field of its config; nothing where no config is known."""
    fields = {name: value for name, value in config.items() if name not in ("format", "rules", CONTENTS)}
    if not fields:
        return ""
    flags = [f"--config.{name}={_quoted(_value(value))}" for name, value in _flat(fields)]
    lines = ["python train.py --config=configs/base.py", *flags, f"--workdir={_quoted(str(workdir))}"]
    return " \\\n    ".join(lines)


def report_command(
    workdir: Path | str, out: Path | str | None, reading: Reading, published: Path | str | None, against: Against | None
) -> str:
    """The command that makes this page and its figures."""
    flags: dict[str, Any] = {"workdir": workdir}
    if out is not None:
        flags["out"] = out
    if reading.how != Reading.how:
        flags["select"] = reading.how
    if reading.ddof != Reading.ddof:
        flags["ddof"] = reading.ddof
    if against:
        flags["reference"] = against.setting
        if against.margin != Against.margin:
            flags["margin"] = f"{round(100 * against.margin, 10):g}"
    if published is not None:
        flags["published"] = published
    words = [f"--{name}={_quoted(str(value))}" for name, value in flags.items()]
    if reading.metrics:
        words.append(" ".join(["--metric", *(f"{task}={metric}" for task, metric in reading.metrics.items())]))
    return " ".join(["python analyze.py report", *words])


def _flat(fields: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _value(value: Any) -> str:
    """As `--config.FIELD=` reads it."""
    return repr(tuple(value)) if isinstance(value, list) else str(value)


def _quoted(text: str) -> str:
    """For a shell, in the quotes that are easier to read."""
    plain = "'" in text and not set(text) & set('"$`\\!')
    return f'"{text}"' if plain else shlex.quote(text) if text else "''"


def _join(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)


def _each(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(texts)) or wording.MISSING
