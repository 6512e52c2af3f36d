"""Which scalars of the masked leaves train: outliers, exact-k random. It only chooses; training is elsewhere.

Masks are boolean trees with None where a leaf is not masked. A random mask is a function of (seed, parameter paths
and sizes) alone: the same on every machine, in every order, for every task.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lnflax import rules, streams
from lnflax.errors import InputError
from lnflax.gathered import Index
from lnflax.settings import MaskRule

Tree = Any
Sizes = tuple[tuple[str, int, int], ...]  # path, slots, the most of them in one row


def choose(rule: MaskRule | None, params: Tree, labels: Tree, seed: int) -> Tree:
    """The mask of one seed: a full tree, bool arrays at leaves labelled `masked`, None elsewhere.

    `params` needs values only for outliers (section 3.1: the N weights farthest from the mean); the random masks
    read shapes alone.

    Raises:
        InputError: more scalars are asked for than the masked leaves have.
    """
    flat_labels = rules.flatten(labels)
    leaves = {path: leaf for path, leaf in rules.flatten(params).items() if flat_labels[path] == "masked"}
    chosen: dict[str, np.ndarray] = {}
    if rule is not None:
        stream = seed if rule.per_seed else 0
        if rule.kind == "random":
            chosen = _draw("all", leaves, rule.size, stream)
        else:
            for own in _by_norm(leaves).values():
                for group, size in _pools(own, rule):
                    farthest = rule.kind == "outliers"
                    chosen |= _farthest(group, size) if farthest else _draw("+".join(group), group, size, stream)
    return rules.unflatten({path: chosen.get(path) for path in flat_labels})


def _by_norm(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Leaves by LayerNorm, scale before bias: ties go to the scale."""
    norms: dict[str, dict[str, Any]] = {}
    for path in sorted(leaves, reverse=True):
        norms.setdefault(path.rpartition("/")[0], {})[path] = leaves[path]
    return norms


def _pools(norm: dict[str, Any], rule: MaskRule) -> list[tuple[dict[str, Any], int]]:
    if rule.pool == "each":
        return [({path: leaf}, rule.size // 2) for path, leaf in norm.items()]
    return [(norm, rule.size)]


def _farthest(group: dict[str, Any], size: int) -> dict[str, np.ndarray]:
    """The `size` scalars of the pooled group farthest from its mean; ties to the earlier leaf, then lower index."""
    values = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in group.values()])
    mean = math.fsum(values) / len(values)  # rounded once: numpy's sum may differ by machine, and decide a tie
    order = np.argsort(-np.abs(values - mean), kind="stable")
    return _scatter(group, order[:size])


def _draw(name: str, group: dict[str, Any], size: int, seed: int) -> dict[str, np.ndarray]:
    total = sum(int(np.prod(leaf.shape)) for leaf in group.values())
    if size > total:
        raise InputError(f"random.count: {size} scalars of {total}; allowed are 1 … {total}")
    return _scatter(group, streams.subset(("mask", name, seed), size, total))


def _scatter(group: dict[str, Any], indices: np.ndarray) -> dict[str, np.ndarray]:
    """Indices into the concatenation of the group's leaves, to one bool array a leaf."""
    sizes = [int(np.prod(leaf.shape)) for leaf in group.values()]
    flat = np.zeros(sum(sizes), bool)
    flat[indices] = True
    parts = np.split(flat, np.cumsum(sizes)[:-1])
    return {path: part.reshape(leaf.shape) for (path, leaf), part in zip(group.items(), parts, strict=True)}


def digest(mask: Tree) -> str:
    """sha256 of a mask: in path order the UTF-8 path, then its flat indices as little-endian int32."""
    sha = hashlib.sha256()
    for path, leaf in rules.flatten(mask).items():
        if leaf is not None:
            sha.update(path.encode())
            sha.update(np.flatnonzero(leaf).astype("<i4").tobytes())
    return sha.hexdigest()


class Mask(NamedTuple):
    """A seed's mask as its steps want it: two full trees, None where a leaf is not masked.

    `inside` says which of the stored scalars train. Of a leaf that is stored whole it is the mask itself. Of others
    the chosen scalars alone are stored: `chosen` says where they are, and `inside`, `[k]`, which slots are in use.
    """

    inside: Tree
    chosen: Tree


def sizes(seeds: Sequence[Tree]) -> Sizes:
    """Of each leaf of two axes the most scalars that a seed chose, and the most in one row, at least 1.

    So many slots hold the scalars of every seed. At least 1, since not everything can keep an empty array.
    """
    counts: dict[str, tuple[int, int]] = {}
    for mask in seeds:
        for path, leaf in rules.flatten(mask).items():
            if leaf is not None and leaf.ndim > 1:
                rows = leaf.reshape(len(leaf), -1).sum(axis=1)
                slots, width = counts.get(path, (1, 1))
                counts[path] = max(slots, int(rows.sum())), max(width, int(rows.max()))
    return tuple((path, *count) for path, count in counts.items())


def gather(mask: Tree, sizes: Sizes) -> Mask:
    """A mask as `choose` gives it, in the form of the steps; leaves that `sizes` does not name are stored whole."""
    inside = rules.flatten(mask)
    chosen: dict[str, Any] = dict.fromkeys(inside)
    for path, slots, width in sizes:
        leaf = inside[path]
        chosen[path] = _index(leaf, slots, width)
        inside[path] = chosen[path].flat < leaf.size
    return Mask(rules.unflatten(inside), rules.unflatten(chosen))


def _index(leaf: np.ndarray, most: int, width: int) -> Index:
    """The scalars of a leaf in `most` slots, of which a row has up to `width`."""
    flat = np.flatnonzero(leaf)
    row, order = flat // (leaf.size // len(leaf)), np.arange(len(flat))
    slots = np.full((len(leaf), width), most, np.int32)
    slots[row, order - np.searchsorted(row, row)] = order
    return Index(np.append(flat, [leaf.size] * (most - len(flat))).astype(np.int32), slots)


def start(frozen: Tree, chosen: Tree) -> Tree:
    """The gathered scalars before training, float32 `[k]` with 0 in unused slots; None elsewhere. On the host."""

    def scalars(leaf: Any, index: Any) -> Any:
        return None if index is None else np.append(leaf, np.float32(0))[index.flat]

    return jax.tree.map(scalars, frozen, chosen, is_leaf=rules.is_none)


def select(mask: Tree, inside: Tree, outside: Tree) -> Tree:
    """`inside` where the mask is True or where there is no mask, else `outside`; None and MaskedNode stay.

    It selects, it does not multiply: 0 · nan is nan.
    """

    def pick(keep: Any, a: Any, b: Any) -> Any:
        absent = keep is None or a is None or isinstance(a, optax.MaskedNode)
        return a if absent else jnp.where(keep, a, b)

    is_leaf = lambda leaf: leaf is None or isinstance(leaf, optax.MaskedNode)  # noqa: E731
    return jax.tree.map(pick, mask, inside, outside, is_leaf=is_leaf)
