"""A delta written into its checkpoint's folder, and taken out again: exact inverses, tensor by tensor and bit by bit.

The folder of `apply` is the base's with the tuned values in their places and the head beside them, in the base's own
names. `undo.safetensors` there is a delta like any other: it applies to the tuned body and has the values that were in
the places before, so that `revert` needs no base, and refuses a body that has been changed since.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lnflax import checkpoint, deltas, storage, tensors, tuned
from lnflax.deltas import About, Delta, Scalars
from lnflax.errors import InputError
from lnflax.tuned import Base

WEIGHTS, DELTA, UNDO = "model.safetensors", "delta.safetensors", "undo.safetensors"
KINDS = "lnflax.kinds"  # of the weights' metadata: types of the tensors that are now float32 and were not

NARROW = {"float16": np.float16, "bfloat16": jnp.bfloat16}

Arrays = dict[str, np.ndarray]


def apply(base: Base, path: Path, folder: Path) -> str:
    """Writes a new checkpoint folder: the base with the values of a delta's file. What it has done, for people.

    Raises:
        InputError: the delta is of another base, or the folder is there.
    """
    storage.check_new(folder)
    model, delta = tuned.apply(base, path), deltas.read(path)
    assert model.about is not None
    own, metadata = checkpoint.read_tensors(base.folder)
    body = {p: leaf for p, leaf in model.params.items() if p.startswith("bert/")}
    sha256 = checkpoint.body_sha256(body)
    about = dataclasses.replace(model.about, base_sha256=sha256)
    changed = {p: leaf for p, leaf in body.items() if leaf is not base.leaves[p]} | deltas.head(delta)
    files = {
        WEIGHTS: tensors.pack(*_replace(own, metadata, changed)),
        UNDO: deltas.pack(undo(about, delta, base.leaves, checkpoint.read_head(base.folder)[0])),
        DELTA: storage.read(path),
    }
    storage.write_folder(folder, _with_others(base.folder, files))
    return (
        f"{folder} is {base.name} with {about.task}/{about.setting}: {len(changed)} leaves changed, the head's among "
        f"them.\nIts body is {sha256}.\n"
    )


def undo(about: About, delta: Delta, base: Mapping[str, np.ndarray], head: Mapping[str, np.ndarray]) -> Delta:
    """What turns a tuned body back: the base's values where the delta has its own, and the base's head if it has one.

    `about` is of the tuned body.
    """
    whole = {path: base[path] for path in delta.whole if path.startswith("bert/")}
    scalars = {path: Scalars(p.index, base[path].reshape(-1)[p.index]) for path, p in delta.scalars.items()}
    return Delta(about, {**whole, **head}, scalars)


def revert(place: Path, folder: Path) -> str:
    """Writes a new checkpoint folder: the base that `apply` has made another one of.

    Raises:
        InputError: the folder is none of `apply`, or its weights have been changed since.
    """
    storage.check_new(folder)
    if not (place / UNDO).is_file():
        raise InputError(f"{place} has no {UNDO}: it is no folder that `apply` made")
    back, base = deltas.read(place / UNDO), tuned.open_base(str(place))
    about = back.about
    sha256 = base.sha256(about.pooling == "pooler")
    changed = dict(deltas.changes(back, base.body(about.pooling), sha256, str(place / UNDO))) | deltas.head(back)
    own, metadata = checkpoint.read_tensors(place)
    kinds = _kinds(place, metadata)
    kept = {name: array for name, array in own.items() if name not in checkpoint.CLASSIFIER}
    arrays, _ = _replace(kept, {}, changed)
    arrays = {name: array.astype(kinds.get(name, array.dtype)) for name, array in arrays.items()}
    words = {name: text for name, text in metadata.items() if name != KINDS}
    storage.write_folder(folder, _with_others(place, {WEIGHTS: tensors.pack(arrays, words)}))
    body = {**base.body(about.pooling), **changed}
    sha256 = checkpoint.body_sha256({path: leaf for path, leaf in body.items() if path.startswith("bert/")})
    return f"{folder} is {place} without {about.task}/{about.setting}.\nIts body is {sha256}.\n"


def _kinds(place: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        kinds = json.loads(metadata.get(KINDS, "{}"))
        return {name: NARROW[kind] for name, kind in kinds.items()}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{place / WEIGHTS}: {KINDS} of its metadata is not what `apply` writes") from error


def _replace(
    own: Mapping[str, np.ndarray], metadata: Mapping[str, str], changed: Mapping[str, np.ndarray]
) -> tuple[Arrays, dict[str, str]]:
    """A file's tensors with changed leaves in their places, by path; those that have none get today's name.

    Raises:
        InputError: a tensor that is changed is of a type that float32 cannot keep.
    """
    names = {checkpoint.to_path(name): name for name in own if checkpoint.is_of_body(name)}
    arrays, kinds = dict(own), {}
    for path, leaf in changed.items():
        name = names.get(path, checkpoint.to_name(path))
        if name in own and own[name].dtype.itemsize > np.dtype(np.float32).itemsize:
            raise InputError(
                f"{name} of the base is {own[name].dtype.name}, which float32 cannot give back bit for bit"
            )
        if name in own and own[name].dtype != np.float32:
            kinds[name] = own[name].dtype.name
        arrays[name] = checkpoint.to_foreign(path, leaf)
    return arrays, {**metadata, **({KINDS: json.dumps(kinds)} if kinds else {})}


def _with_others(folder: Path, files: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Files, and those of a checkpoint that are as they were."""
    yield from files.items()
    for name in checkpoint.FILES:
        if name not in files and (folder / name).is_file():
            yield name, storage.read_bytes(folder / name)
