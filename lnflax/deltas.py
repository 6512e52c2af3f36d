"""What a run has trained, as a file that knows what it applies to: kilobytes where a setting trains few scalars.

A leaf that trains whole is stored by its path; of a masked leaf the scalars that train, as `PATH.index` (int32, flat in
C order, ascending) and `PATH.value` (float32). Values are absolute, so that applying them is exact. The head is whole.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import results, rules, storage, tensors
from lnflax.errors import InputError
from lnflax.masks import Mask
from lnflax.tensors import Leaves

Tree = Any
FORMAT = 1
INDEX, VALUE = ".index", ".value"
TEXTS = ("task", "setting", "base_sha256", "pooling")  # of the metadata; the others are JSON


@dataclasses.dataclass(frozen=True)
class Scalars:
    """Some scalars of a leaf: where they are, int32 `[k]`, flat in C order and ascending; their values, float32."""

    index: np.ndarray
    value: np.ndarray


@dataclasses.dataclass(frozen=True)
class About:
    """The run that a delta is of, and the body that it applies to; None is what no single run tells."""

    task: str
    setting: str
    seed: int | None
    learning_rate: float | None
    epoch: int | None
    base_sha256: str
    pooling: str
    labels: tuple[str, ...]  # names of the head's outputs; none of a regression


@dataclasses.dataclass(frozen=True)
class Delta:
    """The trained values of one run, by path."""

    about: About
    whole: Mapping[str, np.ndarray]  # the head's leaves among them
    scalars: Mapping[str, Scalars]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and value >= 0)


def _is_rate(value: Any) -> bool:
    return value is None or (isinstance(value, float) and 0 < value < math.inf)


_FIELDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(TEXTS, _is_text),
    "seed": _is_count,
    "epoch": _is_count,
    "learning_rate": _is_rate,
    "labels": lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value),
}


class Run(NamedTuple):
    """Which run of its cell a delta is of, and at which epoch."""

    seed: int
    learning_rate: float
    epoch: int


def run_of(about: About) -> Run:
    """The run of a delta that a study has written.

    Raises:
        InputError: the delta is of no single run: an average, or imported.
    """
    if about.seed is None or about.learning_rate is None or about.epoch is None:
        raise InputError(f"a delta of {about.task}/{about.setting} is of no single run: an average, or imported")
    return Run(about.seed, about.learning_rate, about.epoch)


def name(seed: int, learning_rate: float) -> str:
    """The file of a run in its cell's folder: `deltas/seed0-lr0.001.safetensors`."""
    return f"{results.DELTAS}/seed{seed}-lr{learning_rate:g}.safetensors"


def make(about: About, values: Tree, mask: Mask) -> Delta:
    """A run's delta from what it owns (`RunState.values`) and its seed's mask, both on the host.

    Of a masked leaf that is stored whole, and of one of which scalars are gathered, the same scalars come.
    """
    whole, scalars = {}, {}
    inside, chosen = rules.flatten(mask.inside), _indices(mask.chosen)
    for path, own in rules.flatten(values).items():
        if own is None:
            continue
        if inside[path] is None:
            whole[path] = np.asarray(own, np.float32)
            continue
        keep = np.flatnonzero(inside[path])
        index = keep if path not in chosen else chosen[path][keep]
        if len(keep):
            scalars[path] = Scalars(index.astype(np.int32), np.asarray(own, np.float32).reshape(-1)[keep])
    return Delta(about, whole, scalars)


def _indices(chosen: Tree) -> dict[str, np.ndarray]:
    """Where gathered scalars are, by path."""
    return {path: np.asarray(leaf.flat) for path, leaf in rules.flatten(chosen).items() if leaf is not None}


def write(path: Path, delta: Delta) -> None:
    """Stores the file."""
    storage.write(path, pack(delta))


def pack(delta: Delta) -> bytes:
    """The file's bytes; the same delta gives the same."""
    arrays = dict(delta.whole)
    for own, part in delta.scalars.items():
        arrays |= {f"{own}{INDEX}": part.index, f"{own}{VALUE}": part.value}
    return tensors.pack(arrays, words(delta.about))


def words(about: About) -> dict[str, str]:
    """What a delta's metadata say."""
    fields = dataclasses.asdict(about)
    return {"format": str(FORMAT)} | {
        field: value if field in TEXTS else json.dumps(value) for field, value in fields.items()
    }


def read(path: Path) -> Delta:
    """What `write` stored, with its parts checked against each other; whole leaves are read when they are asked for.

    Raises:
        Damaged: the file is not what was written, or not whole.
        InputError: no such file, or no delta.
    """
    storage.check(path)
    with tensors.opened(path) as file:
        told = about(path, file.metadata() or {})
        kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
        whole, scalars = [], {}
        for own, kind in kinds.items():
            stem = own.removesuffix(VALUE).removesuffix(INDEX)
            if kind != (wanted := "I32" if own.endswith(INDEX) else "F32"):
                raise InputError(f"{path}: {own} is {kind}; a delta has {wanted} there")
            if stem == own:
                whole.append(own)
            elif missing := {f"{stem}{INDEX}", f"{stem}{VALUE}"}.difference(kinds):
                raise InputError(f"{path}: {own} is there, and {missing.pop()} is not")
            elif own.endswith(VALUE):
                scalars[stem] = _scalars(path, stem, file)
    leaves = Leaves(functools.partial(tensors.opened, path), {own: own for own in whole})
    return Delta(told, leaves, scalars)


def about(path: Path, words: Mapping[str, str]) -> About:
    """What the metadata of a file tell of a delta; the inverse of `words`.

    Raises:
        InputError: they are no delta's.
    """
    if words.get("format") != str(FORMAT):  # a foreign file has none
        raise InputError(f"{path} is no delta of format {FORMAT}")
    values: dict[str, Any] = {}
    for field, fits in _FIELDS.items():
        if field not in words:
            raise InputError(f"{path}: its metadata lack {field}")
        try:
            values[field] = words[field] if field in TEXTS else json.loads(words[field])
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: {field} of its metadata is not JSON ({error})") from error
        if not fits(values[field]):
            raise InputError(f"{path}: {field} of its metadata is {words[field]!r}")
    return About(**{**values, "labels": tuple(values["labels"])})


def _scalars(path: Path, own: str, file: Any) -> Scalars:
    index, value = file.get_tensor(f"{own}{INDEX}"), file.get_tensor(f"{own}{VALUE}")
    if index.ndim != 1 or index.shape != value.shape or (len(index) and index[0] < 0) or (np.diff(index) <= 0).any():
        raise InputError(f"{path}: {own} has no ascending index with as many values")
    return Scalars(index, value)


def changes(delta: Delta, body: Mapping[str, np.ndarray], sha256: str, where: str) -> Iterator[tuple[str, np.ndarray]]:
    """The leaves of the body that the delta changes, with their tuned values, one at a time; the body stays as it is.

    Args:
        delta: a run's.
        body: the pretrained leaves by path.
        sha256: of the body (`checkpoint.body_sha256`).
        where: the delta's file, for messages.

    Raises:
        InputError: the delta applies to another body, or does not fit this one.
    """
    if delta.about.base_sha256 != sha256:
        raise InputError(f"{where} applies to the body {delta.about.base_sha256}, not to {sha256}")
    for path in sorted({*delta.whole, *delta.scalars}):
        if path.startswith("classifier/"):
            continue
        if path not in body:
            raise InputError(f"{where}: the model has no {path}")
        base = body[path]
        if (own := delta.whole.get(path)) is not None:
            if own.shape != base.shape:
                raise InputError(f"{where}: {path} has shape {own.shape}; the model's has {base.shape}")
            yield path, own
            continue
        part = delta.scalars[path]
        if len(part.index) and part.index[-1] >= base.size:
            raise InputError(f"{where}: {path} has {base.size} scalars; the delta has one at {part.index[-1]}")
        tuned = base.astype(np.float32).reshape(-1)
        tuned[part.index] = part.value
        yield path, tuned.reshape(base.shape)


def head(delta: Delta) -> dict[str, np.ndarray]:
    """The head's leaves by path."""
    return {path: value for path, value in delta.whole.items() if path.startswith("classifier/")}
