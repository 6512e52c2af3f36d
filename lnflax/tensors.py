"""Arrays and words in the bytes of one safetensors file; the same arrays and words give the same bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
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
