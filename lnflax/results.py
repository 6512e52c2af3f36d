"""The run folder: the only reader and writer of its files. A cell is done if and only if its results.json exists."""

from __future__ import annotations

import errno
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from lnflax import storage, tensors
from lnflax.errors import InputError
from lnflax.storage import Damaged, StorageError

FORMAT = 1
CONFIG = "config.json"
VERSIONS = "versions.json"
TRAINED = "trained.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
COST = "cost.json"
PREDICTIONS = "predictions.safetensors"
DELTAS = "deltas"
CONTENTS = "contents"  # of config.json: SHA-256 of the body by how it is pooled, and of each task's splits

_RESULT_FIELDS = ("task", "setting", "metric", "report_epoch", "ratio", "eval_examples", "runs")


@dataclass(frozen=True)
class Study:
    """A run folder as read: its config (empty where it is damaged) and versions, the results.json of each finished
    cell, in order, the (task, setting) of every cell that has begun and is not done, and what is wrong with files
    that could not be read."""

    config: dict[str, Any]
    versions: dict[str, Any]
    cells: tuple[dict[str, Any], ...]
    unfinished: tuple[tuple[str, str], ...]
    damaged: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[tuple[str, str], ...]:
        """The (task, setting) of every cell of the config; nothing where it is not known."""
        return tuple(itertools.product(self.config["tasks"], self.config["settings"])) if self.config else ()

    @property
    def missing(self) -> str:
        """A line for each kind of thing that is not among the cells; nothing where all is."""
        unfinished = ", ".join(map("/".join, self.unfinished))
        lines = [f"Unfinished cells, not in the tables: {unfinished}."] if unfinished else []
        lines += [f"Damaged: {reason}; `train.py` sets it aside and makes it anew." for reason in self.damaged]
        return "\n".join(lines)


def cell_folder(workdir: Path | str, task: str, setting: str) -> Path:
    """WORKDIR/TASK/SETTING. A name that is not one plain folder name is refused."""
    for field, name in (("task", task), ("setting", setting)):
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise InputError(f"{field}: {name!r} cannot be the name of a folder")
    return Path(workdir) / task / setting


def is_done(cell: Path) -> bool:
    """Whether the cell in this folder is done: its results.json exists."""
    return (cell / RESULTS).is_file()


def check_there(cell: Path) -> None:
    """That the workdir of a cell is still the one that the study began in.

    Raises:
        StorageError: it is gone, as behind a mount that has vanished; nothing is written in its place.
    """
    path = cell.parents[1] / CONFIG
    if not path.is_file():
        raise StorageError(
            errno.ENOENT,
            f"{path} is gone: is the folder still mounted? Then give the same command again: what is finished is kept",
        )


def plain(value: Any) -> Any:
    """Plain JSON values: arrays and numpy scalars become lists and numbers, non-finite numbers None."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Strict JSON (non-finite is null), UTF-8, keys in the order given; the file appears whole or not at all."""
    text = json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)
    storage.write(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote.

    Raises:
        Damaged: it is not.
        InputError: it is missing, or of another format.
    """
    text = _read_text(path)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise Damaged(path, f"is not whole JSON ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise InputError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    return value


def _read_text(path: Path) -> str:
    try:
        return storage.read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(path, f"is not UTF-8 text ({error.reason})") from error


def write_metrics(cell: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """metrics.jsonl: a line of strict JSON a row. It is written whole each time: it is small, and never holds half."""
    lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    storage.write(cell / METRICS, "".join(lines).encode())


def read_metrics(cell: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. A last line without its newline is a write that was cut, and is left out."""
    path = cell / METRICS
    rows = []
    for number, line in enumerate(_read_text(path).split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line, parse_constant=_refuse_constant))
        except ValueError as error:
            raise Damaged(path, f"is not whole: line {number} is not JSON ({error})") from error
    return rows


def write_predictions(cell: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """predictions.safetensors, with byte-for-byte the same file for the same arrays and metadata."""
    storage.write(cell / PREDICTIONS, tensors.pack(arrays, metadata))


def read_predictions(cell: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata that `write_predictions` wrote."""
    path = cell / PREDICTIONS
    try:
        return tensors.unpack(storage.read(path))
    except (safetensors.SafetensorError, KeyError) as error:
        raise Damaged(path, f"is not a whole safetensors file ({error})") from error


def read_results(workdir: Path | str, task: str, setting: str) -> dict[str, Any]:
    """The results.json of a finished cell, with its fields and its place checked."""
    path = cell_folder(workdir, task, setting) / RESULTS
    results = read_json(path)
    if missing := [field for field in _RESULT_FIELDS if field not in results]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if (results["task"], results["setting"]) != (task, setting):
        raise InputError(f"{path} is the result of {results['task']}/{results['setting']}: was it moved?")
    return results


def cell_of_delta(path: Path) -> Path | None:
    """The cell's folder of a delta that lies in WORKDIR/TASK/SETTING/deltas; None of one elsewhere."""
    folders = path.resolve().parents
    return folders[1] if len(folders) > 3 and folders[0].name == DELTAS else None


def kept_deltas(workdir: Path | str, cell: Mapping[str, Any]) -> dict[int, Path]:
    """The deltas of a cell's runs at the selected rate, by seed; none where none was kept."""
    folder, rate = cell_folder(workdir, cell["task"], cell["setting"]), cell["selected"]["learning_rate"]
    own = (run for run in cell["runs"] if run["learning_rate"] == rate and run["delta"])
    return {run["seed"]: folder / run["delta"] for run in own}


def chosen_deltas(workdir: Path | str, cell: Mapping[str, Any]) -> list[Path]:
    """The same without their seeds.

    Raises:
        InputError: the cell has none.
    """
    if own := list(kept_deltas(workdir, cell).values()):
        return own
    raise InputError(f"{cell['task']}/{cell['setting']} has no deltas: train it with --config.save_deltas=best")


def damage(workdir: Path | str, task: str, setting: str) -> list[Damaged]:
    """What of a cell's files is not what was written; files that are not there are no damage."""
    cell, found = cell_folder(workdir, task, setting), []
    readers: dict[str, Callable[[], Any]] = {
        RESULTS: lambda: read_results(workdir, task, setting),
        PREDICTIONS: lambda: read_predictions(cell),
        METRICS: lambda: read_metrics(cell),
        TRAINED: lambda: read_json(cell / TRAINED),
        COST: lambda: read_json(cell / COST),
        **{f"{DELTAS}/{path.name}": partial(storage.check, path) for path in (cell / DELTAS).glob("*.safetensors")},
    }
    for name, reader in readers.items():
        if (cell / name).exists():
            try:
                reader()
            except Damaged as error:
                found.append(error)
    return found


def read_study(workdir: Path | str) -> Study:
    """The whole run folder: cells in the config's order, then by name those that it does not list.

    What of it is damaged is named and left out; the rest is as good as it was.

    Raises:
        InputError: no such folder, or not one finished cell in it.
    """
    root = Path(workdir)
    if not root.is_dir():
        raise InputError(f"workdir: {root} is not a folder" if root.exists() else f"workdir: {root} is not there")
    damaged: list[str] = []
    config = _read_or_name(root / CONFIG, damaged)
    versions = _read_or_name(root / VERSIONS, damaged) if (root / VERSIONS).exists() else {}
    done, unfinished = [], []
    known = {"tasks": (), "settings": (), **config}  # of a damaged config nothing is known
    for task in _in_order(root, known["tasks"]):
        for setting in _in_order(root / task, known["settings"]):
            cell = cell_folder(root, task, setting)
            if is_done(cell):
                try:
                    done.append(read_results(root, task, setting))
                except (Damaged, StorageError) as error:
                    damaged.append(str(error))
            elif (cell / TRAINED).is_file():
                unfinished.append((task, setting))
    if not done:
        begun = f"; begun: {', '.join(map('/'.join, unfinished))}" if unfinished else ""
        broken = f"; {'; '.join(damaged)}" if damaged else ""
        raise InputError(f"workdir: {root} holds no finished cell{begun}{broken}")
    return Study(config, versions, tuple(done), tuple(unfinished), tuple(damaged))


def _read_or_name(path: Path, damaged: list[str]) -> dict[str, Any]:
    """The file, or nothing of it and a line in `damaged`."""
    try:
        return read_json(path)
    except (Damaged, StorageError) as error:
        damaged.append(str(error))
        return {}


def _in_order(folder: Path, known: Iterable[str]) -> list[str]:
    """The names of the subfolders: the known ones in their order, then the others by name."""
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    first = [name for name in dict.fromkeys(known) if name in names]
    return first + sorted(names.difference(first))
