"""The state of a cell under way, `state/` in its folder: what its runs own, and nothing frozen.

A state is one safetensors file, named by its number and the start of its own SHA-256: the one with the highest number
that is whole is read, so that a state is never half of one. The older goes after the newer lies on the disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import storage, tensors

FOLDER = "state"
FORMAT = 1

_NAME = re.compile(r"(\d{6,})-([0-9a-f]{16})\.safetensors")


class State(NamedTuple):
    """A state as stored: arrays by name, and a record of plain JSON values, whose floats come back as they were."""

    number: int
    record: dict[str, Any]
    arrays: dict[str, np.ndarray]


class Found(NamedTuple):
    """What a cell's folder holds: the last whole state or None, and the files that are none."""

    state: State | None
    damaged: tuple[Path, ...]


def write(cell: Path, number: int, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Stores the state with a number higher than any before, then lets the older ones go.

    Raises:
        StorageError: it cannot be written.
    """
    folder = cell / FOLDER
    text = json.dumps({"format": FORMAT, **record}, allow_nan=False)
    data = tensors.pack(arrays, {"record": text})
    own = folder / f"{number:06d}-{storage.sha256(data)[:16]}.safetensors"
    storage.durable_write(own, data)
    storage.remove(*(path for path, _ in _files(folder) if path != own))


def read(cell: Path) -> Found:
    """The last whole state. Nothing is changed.

    Raises:
        StorageError: the folder cannot be read.
    """
    damaged: list[Path] = []
    for path, digest in reversed(_files(cell / FOLDER)):
        data = storage.read_bytes(path)
        state = _parse(path, data) if storage.sha256(data).startswith(digest) else None
        if state is not None:
            return Found(state, tuple(damaged))
        damaged.append(path)
    return Found(None, tuple(damaged))


def remove(cell: Path) -> None:
    """Takes `state/` away: the cell is done, or starts again."""
    storage.remove_folder(cell / FOLDER)


def _files(folder: Path) -> list[tuple[Path, str]]:
    """The states in a folder with the sums of their names, by number."""
    found = [(path, match) for path in folder.glob("*.safetensors") if (match := _NAME.fullmatch(path.name))]
    return [(path, match[2]) for path, match in sorted(found, key=lambda each: int(each[1][1]))]


def _parse(path: Path, data: bytes) -> State | None:
    """None for a state of another version."""
    arrays, about = tensors.unpack(data)
    record = json.loads(about["record"])
    if record.pop("format") != FORMAT:
        return None
    return State(int(path.name.partition("-")[0]), record, arrays)
