"""Arrays and words in the bytes of one safetensors file; the same arrays and words give the same bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from lnflax.storage import Damaged


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The file's bytes.

    Raises:
        TypeError: the metadata are not text.
    """
    if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
        raise TypeError(f"metadata of safetensors is text to text, not {dict(metadata)!r}")
    # safetensors writes the memory of an array as it lies, which is wrong for a transposed view.
    whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    return _sorted_metadata(safetensors.numpy.save(whole, metadata=dict(metadata)))


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata.

    Raises:
        SafetensorError: they are no such file's bytes.
    """
    arrays = safetensors.numpy.load(data)
    return arrays, _header(data)[0].get("__metadata__", {})  # an optional part of a foreign file's header


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file whose arrays are read one at a time.

    Raises:
        Damaged: it is no such file, or not whole.
    """
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Damaged(path, f"is not a whole safetensors file ({error})") from error


class Leaves(Mapping[str, np.ndarray]):
    """Arrays of a file by names of ours, in their order; each is read when it is asked for, and not kept."""

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[Any]],
        names: Mapping[str, str],
        convert: Callable[[str, np.ndarray], np.ndarray] = lambda own, value: value,
    ) -> None:
        """`opened` opens the file, `names` gives the file's name of each of ours, `convert` turns its array to ours."""
        self._opened, self._names, self._convert = opened, dict(names), convert

    def __getitem__(self, own: str) -> np.ndarray:
        """The array.

        Raises:
            KeyError: there is none of that name.
            InputError: whatever `opened` says of a file that is damaged, or no longer there.
        """
        name = self._names[own]
        # Opened for each array: pages of a mapped file count as this process's memory until it is closed.
        with self._opened() as file:
            value = file.get_tensor(name)
        return self._convert(own, value)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """The header, and where it ends."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), end


def _sorted_metadata(data: bytes) -> bytes:
    """The same file with its metadata sorted: the package writes them in a random order."""
    header, end = _header(data)
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return len(text).to_bytes(8, "little") + text + data[end:]
