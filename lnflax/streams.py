"""Random streams on the host, each a function of its name alone.

A stream is named by a tuple such as `("order", task, seed, epoch)`. The raw words of numpy's Philox are part of
numpy's compatibility promise (NEP 19), which `Generator` methods are not: so a draw here is the same on every
machine, in every order, and with every numpy.
"""

from __future__ import annotations

import hashlib

import numpy as np

Name = tuple[str | int, ...]


def words(name: Name, count: int) -> np.ndarray:
    """`count` words of the stream, uint64 `[count]`, uniform."""
    if any(type(part) not in (str, int) for part in name):
        raise TypeError(f"a stream's name holds str and int: numpy's integers print differently; got {name!r}")
    digest = hashlib.sha256("\x1f".join(map(repr, name)).encode()).digest()
    key = np.frombuffer(digest[:16], dtype="<u8")
    return np.random.Philox(key=key).random_raw(count)


def permutation(name: Name, size: int) -> np.ndarray:
    """A uniform order of `size` things, int64 `[size]`: the argsort of as many words."""
    return np.argsort(words(name, size), kind="stable")


def subset(name: Name, count: int, size: int) -> np.ndarray:
    """A uniform set of exactly `count` of `size` things, int64 `[count]`, ascending.

    The first `count` distinct values of a uniform sequence; of more than half, the complement is drawn.
    """
    if not 0 <= count <= size:
        raise ValueError(f"cannot draw {count} of {size}")
    if 2 * count > size:
        return np.setdiff1d(np.arange(size), subset(name, size - count, size), assume_unique=True)
    draws = count + count // 2 + 16
    while True:
        values = (words(name, draws) % np.uint64(size)).astype(np.int64) if size else np.zeros(0, np.int64)
        _, first = np.unique(values, return_index=True)
        if len(first) >= count:
            return np.sort(values[np.sort(first)[:count]])
        draws *= 2
