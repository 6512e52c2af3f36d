"""The run folder: the only reader and writer of its files. A cell is done if and only if its results.json exists."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from lnflax.errors import InputError

FORMAT = 1
CONFIG = "config.json"
VERSIONS = "versions.json"
TRAINED = "trained.json"
METRICS = "metrics.jsonl"
RESULTS = "results.json"
COST = "cost.json"
PREDICTIONS = "predictions.safetensors"

_RESULT_FIELDS = ("task", "setting", "metric", "report_epoch", "ratio", "eval_examples", "runs")


@dataclass(frozen=True)
class Study:
    """A run folder as read: its config and versions, the results.json of each finished cell, in order, and the
    (task, setting) of every cell that has begun and is not done."""

    config: dict[str, Any]
    versions: dict[str, Any]
    cells: tuple[dict[str, Any], ...]
    unfinished: tuple[tuple[str, str], ...]


def cell_folder(workdir: Path | str, task: str, setting: str) -> Path:
    """WORKDIR/TASK/SETTING. A name that is not one plain folder name is refused."""
    for field, name in (("task", task), ("setting", setting)):
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise InputError(f"{field}: {name!r} cannot be the name of a folder")
    return Path(workdir) / task / setting


def is_done(cell: Path) -> bool:
    """Whether the cell in this folder is done: its results.json exists."""
    return (cell / RESULTS).is_file()


def durable_write(path: Path, data: bytes) -> None:
    """Writes the whole file or leaves the old one: temporary file, fsync, rename, fsync of the folder."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise InputError(f"{path} is a folder where a file should be") from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} cannot be a folder: a file is in its place") from error


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
    durable_write(path, f"{text}\n".encode())


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote. A missing, broken or foreign file is one clear line."""
    text = _read_text(path)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InputError(f"{path} is not whole JSON ({error})") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        raise InputError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is not there") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder where a file should be") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})") from error


def start_metrics(cell: Path) -> None:
    """An empty metrics.jsonl: a cell that is not done starts again."""
    durable_write(cell / METRICS, b"")


def append_metrics(cell: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds one line of strict JSON a row, all of them in one write."""
    lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    data = "".join(lines).encode()
    _make_folder(cell)
    with (cell / METRICS).open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_metrics(cell: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl. A last line without its newline is a write that was cut, and is left out."""
    path = cell / METRICS
    rows = []
    for number, line in enumerate(_read_text(path).split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line, parse_constant=_refuse_constant))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON ({error})") from error
    return rows


def write_predictions(cell: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """predictions.safetensors, with byte-for-byte the same file for the same arrays and metadata."""
    if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
        raise TypeError(f"metadata of safetensors is text to text, not {dict(metadata)!r}")
    # safetensors writes the memory of an array as it lies, which is wrong for a transposed view.
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    data = safetensors.numpy.save(whole, metadata=dict(metadata))
    durable_write(cell / PREDICTIONS, _sorted_metadata(data))


def _sorted_metadata(data: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the package writes them in a random order."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def read_predictions(cell: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata that `write_predictions` wrote."""
    path = cell / PREDICTIONS
    if not path.is_file():
        raise InputError(f"{path} is not there")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error})") from error


def read_results(workdir: Path | str, task: str, setting: str) -> dict[str, Any]:
    """The results.json of a finished cell, with its fields and its place checked."""
    path = cell_folder(workdir, task, setting) / RESULTS
    results = read_json(path)
    if missing := [field for field in _RESULT_FIELDS if field not in results]:
        raise InputError(f"{path} lacks {', '.join(missing)}")
    if (results["task"], results["setting"]) != (task, setting):
        raise InputError(f"{path} is the result of {results['task']}/{results['setting']}: was it moved?")
    return results


def read_study(workdir: Path | str) -> Study:
    """The whole run folder: cells in the config's order, then by name those that it does not list."""
    root = Path(workdir)
    if not root.is_dir():
        raise InputError(f"workdir: {root} is not a folder" if root.exists() else f"workdir: {root} is not there")
    config = read_json(root / CONFIG)
    versions = read_json(root / VERSIONS) if (root / VERSIONS).exists() else {}
    done, unfinished = [], []
    for task in _in_order(root, config.get("tasks") or ()):
        for setting in _in_order(root / task, config.get("settings") or ()):
            cell = cell_folder(root, task, setting)
            if is_done(cell):
                done.append(read_results(root, task, setting))
            elif (cell / TRAINED).is_file():
                unfinished.append((task, setting))
    if not done:
        begun = f"; begun: {', '.join(map('/'.join, unfinished))}" if unfinished else ""
        raise InputError(f"workdir: {root} holds no finished cell{begun}")
    return Study(config, versions, tuple(done), tuple(unfinished))


def _in_order(folder: Path, known: Iterable[str]) -> list[str]:
    """The names of the subfolders: the known ones in their order, then the others by name."""
    names = {path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")}
    first = [name for name in dict.fromkeys(known) if name in names]
    return first + sorted(names.difference(first))
