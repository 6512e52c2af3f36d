"""Which scalars of each LayerNorm are outliers under each rule, and how the rules' dimensions recur and overlap.

A setting trains the N scalars of each LayerNorm farthest from its mean (section 3.1); `lnflax.masks` chooses them here
as it does there. Beside these rules stands one of no fixed number: farther than three standard deviations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lnflax import masks, rules, settings
from lnflax.errors import InputError
from lnflax.settings import MaskRule

LEAVES = ("scale", "bias")
KINDS = {"a": settings.LN_A, "f": settings.LN_F}  # of the attention, of the feed-forward
SIGMA = "3σ "
RULES = (*settings.OUTLIER_POOLS, *(f"{SIGMA}{pool}" for pool in ("pooled", *LEAVES)))
SIGMAS = 3
RARE = 0.05


class Norm(NamedTuple):
    """A LayerNorm of the encoder: its block, from 1, and which of the block's two it is."""

    block: int
    kind: str
    path: str

    @property
    def name(self) -> str:
        """`3f` is the feed-forward's of the third block."""
        return f"{self.block}{self.kind}"


@dataclass(frozen=True)
class Outliers:
    """The LayerNorms of an encoder, in order, their values, and what each rule chooses of them."""

    count: int
    norms: tuple[Norm, ...]
    values: np.ndarray  # float64 [norms, scale or bias, width]
    chosen: Mapping[str, np.ndarray]  # by rule, bool of the same shape

    @property
    def width(self) -> int:
        """Dimensions of a LayerNorm."""
        return self.values.shape[-1]


class Chance(NamedTuple):
    """How often a dimension would recur if as many scale and bias scalars of each LayerNorm were drawn at random."""

    expected: float  # the count of any one dimension
    rare: int | None  # the least count that some dimension reaches with probability 0.05 at most; None: no count is


def pool_of(rule: str) -> tuple[int, ...]:
    """The places in `LEAVES` of what a rule chooses among."""
    leaf = rule.removeprefix(SIGMA)
    return (LEAVES.index(leaf),) if leaf in LEAVES else (0, 1)


def find(body: Mapping[str, np.ndarray], count: int) -> Outliers:
    """The outliers of a body, by path, under every rule.

    Raises:
        InputError: `count` is odd, or a rule cannot choose so many scalars of a LayerNorm.
    """
    norms = find_norms(body)
    values = np.stack([[body[f"{norm.path}/{leaf}"] for leaf in LEAVES] for norm in norms]).astype(np.float64)
    width = values.shape[-1]
    if count % 2 or not 2 <= count <= width:
        raise InputError(f"--count: {count}; allowed are even numbers from 2 to {width}, the model's width")
    chosen = {rule: _three_sigma(values, rule) for rule in RULES if rule.startswith(SIGMA)}
    chosen |= {pool: _farthest(body, norms, MaskRule("outliers", count, pool)) for pool in settings.OUTLIER_POOLS}
    return Outliers(count, norms, values, {rule: chosen[rule] for rule in RULES})


def find_norms(body: Mapping[str, np.ndarray]) -> tuple[Norm, ...]:
    """The LayerNorms of the encoder's blocks, by block, the attention's first; the embeddings' is none of them."""
    norms = []
    for path in body:
        stem, _, leaf = path.rpartition("/")
        for kind, pattern in KINDS.items():
            if leaf == "scale" and re.fullmatch(pattern, stem):
                block = int(stem.removeprefix("bert/encoder/layer/").partition("/")[0])
                norms.append(Norm(block + 1, kind, stem))
    return tuple(sorted(norms))


def _farthest(body: Mapping[str, np.ndarray], norms: tuple[Norm, ...], rule: MaskRule) -> np.ndarray:
    """What a setting of this rule would train."""
    leaves = {f"{norm.path}/{leaf}": body[f"{norm.path}/{leaf}"] for norm in norms for leaf in LEAVES}
    among = tuple(LEAVES[place] for place in pool_of(rule.pool))
    labels = {path: "masked" if path.endswith(among) else "frozen" for path in leaves}
    mask = rules.flatten(masks.choose(rule, rules.unflatten(leaves), rules.unflatten(labels), seed=0))
    parts = [np.zeros(leaf.shape, bool) if mask[path] is None else mask[path] for path, leaf in leaves.items()]
    return np.stack(parts).reshape(len(norms), len(LEAVES), -1)


def _three_sigma(values: np.ndarray, rule: str) -> np.ndarray:
    """Farther from the mean of the rule's pool than three of its standard deviations (of all its scalars: ddof 0)."""
    among = list(pool_of(rule))
    pool = values[:, among]
    mean, std = (part(pool, axis=(1, 2), keepdims=True) for part in (np.mean, np.std))
    chosen = np.zeros(values.shape, bool)
    chosen[:, among] = np.abs(pool - mean) > SIGMAS * std
    return chosen


def recurrence(chosen: np.ndarray) -> np.ndarray:
    """In how many LayerNorms each dimension is chosen, by its scale, its bias or both: int `[width]`."""
    return chosen.any(axis=1).sum(axis=0)


def top(outliers: Outliers, most: int) -> list[int]:
    """The dimensions that are chosen most often, summed over all rules; ties to the lower, and none that never is."""
    total = sum(recurrence(chosen) for chosen in outliers.chosen.values())
    order = np.argsort(-np.asarray(total), kind="stable")[:most]
    return [int(dimension) for dimension in order if np.asarray(total)[dimension]]


def chance(chosen: np.ndarray) -> Chance:
    """What chance alone would give of as many scalars; LayerNorms are drawn apart, and scale and bias too.

    The count of a dimension is then a sum of independent draws of unlike chances. `rare` bounds the largest of all
    dimensions by the sum of their chances.
    """
    scale, bias = chosen.mean(axis=2).T
    shares = 1 - (1 - scale) * (1 - bias)
    exactly = np.ones(1)
    for share in shares:
        exactly = np.convolve(exactly, [1 - share, share])
    at_least = np.cumsum(exactly[::-1])[::-1]
    rare = np.flatnonzero(chosen.shape[-1] * at_least <= RARE)
    return Chance(float(shares.sum()), int(rare[0]) if len(rare) else None)


def overlap(outliers: Outliers) -> np.ndarray:
    """The mean over LayerNorms of the Jaccard index of two rules' dimensions: float64 `[rules, rules]`, in their order.

    LayerNorms in which neither rule chooses anything are left out; nan where that is all of them.
    """
    dims = np.stack([outliers.chosen[rule].any(axis=1) for rule in RULES])
    both = (dims[:, None] & dims[None]).sum(axis=-1)
    either = (dims[:, None] | dims[None]).sum(axis=-1)
    known = either > 0
    index = np.divide(both, either, out=np.zeros(both.shape), where=known)
    count = known.sum(axis=-1)
    return np.divide(index.sum(axis=-1), count, out=np.full(count.shape, np.nan), where=count > 0)
