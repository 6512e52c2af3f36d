"""Statistics of weights that are read a leaf at a time: what is measured merges, so that nothing is concatenated."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.signal

from lnflax import trained
from lnflax.errors import InputError

WIDTH = 2.0**-10  # of a bin; a power of two, so that values fall into bins exactly
LIMIT = 16.0  # bins cover -LIMIT to LIMIT; the outer two hold what lies beyond
BINS = int(2 * LIMIT / WIDTH)
CHUNK = 2**18  # scalars in float64 at a time
SIGMAS = 3
PROMINENCE = 0.1  # of the highest mode

Leaves = Iterable[tuple[str, np.ndarray]]
Pair = tuple[str, np.ndarray, np.ndarray]  # path, before, after


class Place(NamedTuple):
    """Which weights: a kind of module (`trained.GROUPS`), one of its leaves, one block (from 1); None is all."""

    kind: str
    part: str | None = None
    block: int | None = None


def place(path: str) -> Place:
    """Where a leaf belongs: `bert/encoder/layer/0/output/LayerNorm/bias` is `ln_f`, `bias`, 1."""
    block = re.match(r"bert/encoder/layer/(\d+)/", path)
    return Place(trained.group(path), path.rpartition("/")[2], int(block[1]) + 1 if block else None)


def around(own: Place) -> list[Place]:
    """The leaf's own place and the pools that it is part of: both leaves, all blocks, both leaves of all blocks."""
    return list(dict.fromkeys(Place(own.kind, part, block) for block in (own.block, None) for part in (own.part, None)))


@dataclass(frozen=True)
class Moments:
    """Count, mean, sums of powers of deviations from it (float64), smallest and largest value."""

    count: int
    mean: float
    m2: float
    m3: float
    m4: float
    low: float
    high: float

    def __add__(self, other: Moments) -> Moments:
        """Of both together (Pébay 2008, equations 2.1 and 3.1)."""
        a, b, n = self.count, other.count, self.count + other.count
        d = other.mean - self.mean
        return Moments(
            n,
            self.mean + d * b / n,
            self.m2 + other.m2 + d**2 * a * b / n,
            self.m3 + other.m3 + d**3 * a * b * (a - b) / n**2 + 3 * d * (a * other.m2 - b * self.m2) / n,
            self.m4
            + other.m4
            + d**4 * a * b * (a**2 - a * b + b**2) / n**3
            + 6 * d**2 * (a**2 * other.m2 + b**2 * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def std(self) -> float:
        """Of the weights as the whole population: divided by their count."""
        return float(np.sqrt(self.m2 / self.count))

    @property
    def kurtosis(self) -> float | None:
        """Excess kurtosis (Fisher's: 0 of a normal distribution), biased; None where all weights are equal."""
        return self.count * self.m4 / self.m2**2 - 3 if self.m2 else None


@dataclass(frozen=True)
class Sample:
    """The moments of some weights and how many lie in each bin, int32 `[BINS]`."""

    moments: Moments
    counts: np.ndarray

    def __add__(self, other: Sample) -> Sample:
        return Sample(self.moments + other.moments, self.counts + other.counts)


@dataclass(frozen=True)
class Summary(Sample):
    """The same, and how many of the weights lie more than `SIGMAS` standard deviations from their mean."""

    beyond: int

    @property
    def share_beyond(self) -> float:
        """As a fraction; 0.0027 of a normal distribution."""
        return self.beyond / self.moments.count


def chunks(leaf: np.ndarray) -> Iterator[np.ndarray]:
    """The scalars in C order, float64, so many at a time."""
    flat = leaf.reshape(-1)
    for begin in range(0, flat.size, CHUNK):
        yield flat[begin : begin + CHUNK].astype(np.float64)


def measure(leaf: np.ndarray) -> Sample:
    """The sample of one leaf."""
    return functools.reduce(Sample.__add__, map(_measure, chunks(leaf)))


def _measure(x: np.ndarray) -> Sample:
    mean = float(x.mean())
    d = x - mean
    d2 = d * d
    m2, m3, m4 = (float(np.sum(power)) for power in (d2, d2 * d, d2 * d2))
    moments = Moments(x.size, mean, m2, m3, m4, float(x.min()), float(x.max()))
    bins = np.clip(np.floor(x / WIDTH) + BINS // 2, 0, BINS - 1).astype(np.int64)
    return Sample(moments, np.bincount(bins, minlength=BINS).astype(np.int32))


def beyond(leaf: np.ndarray, moments: Moments) -> int:
    """How many scalars lie more than `SIGMAS` standard deviations from the mean."""
    reach = SIGMAS * moments.std
    return sum(int(np.count_nonzero(np.abs(x - moments.mean) > reach)) for x in chunks(leaf))


def summarise(leaves: Callable[[], Leaves]) -> dict[Place, Summary]:
    """Of every leaf's own place and every pool of them.

    Args:
        leaves: gives the leaves; called twice: how many lie beyond is only known once the moments are.

    Raises:
        InputError: a weight is not finite.
    """
    samples: dict[Place, Sample] = {}
    for path, leaf in leaves():
        if not np.isfinite(leaf).all():
            raise InputError(f"{path} has weights that are not finite")
        own = measure(leaf)
        for where in around(place(path)):
            samples[where] = samples[where] + own if where in samples else own
    far: Counter[Place] = Counter()
    for path, leaf in leaves():
        for where in around(place(path)):
            far[where] += beyond(leaf, samples[where].moments)
    return {where: Summary(own.moments, own.counts, far[where]) for where, own in samples.items()}


def density(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bins smoothed by a Gaussian: the centres of those that are not empty and some around, and the density there.

    The Gaussian's width is Silverman's (1986, equation 3.31): 0.9 min(std, IQR / 1.34) n^(-1/5), of what the bins
    hold; at least one bin.
    """
    n, filled = int(counts.sum()), np.flatnonzero(counts)
    centres = (np.arange(BINS) - BINS // 2 + 0.5) * WIDTH
    shares, x = counts[filled] / n, centres[filled]
    std = np.sqrt(np.sum(shares * (x - np.sum(shares * x)) ** 2))
    low, high = x[np.searchsorted(np.cumsum(shares), (0.25, 0.75))]
    spread = min(std, (high - low) / 1.34)
    sigma = max(0.9 * spread * n**-0.2 / WIDTH, 1.0)  # in bins
    margin = int(np.ceil(4 * sigma)) + 1
    begin, end = filled[0] - margin, filled[-1] + margin + 1
    padded = np.pad(counts[filled[0] : filled[-1] + 1].astype(np.float64), margin)
    smooth = scipy.ndimage.gaussian_filter1d(padded, sigma, mode="constant")
    return (np.arange(begin, end) - BINS // 2 + 0.5) * WIDTH, smooth / (n * WIDTH)


def modes(counts: np.ndarray) -> list[float]:
    """Where the peaks of `density` are that stand out by at least `PROMINENCE` of the highest one, ascending.

    Prominence is how far one must go down from a peak to reach a higher one (`scipy.signal.find_peaks`).
    """
    x, y = density(counts)
    peaks, _ = scipy.signal.find_peaks(y, prominence=PROMINENCE * y.max())
    return x[peaks].tolist()


def outside(own: Sample) -> np.ndarray:
    """The centres of the bins that hold weights and lie more than `SIGMAS` standard deviations from the mean."""
    x = (np.flatnonzero(own.counts) - BINS // 2 + 0.5) * WIDTH
    return x[np.abs(x - own.moments.mean) > SIGMAS * own.moments.std]


class Moved(NamedTuple):
    """A scalar that tuning has changed: its leaf, its place there (kernels are `[in, out]`), its two values."""

    path: str
    at: tuple[int, ...]
    before: float
    after: float


@dataclass(frozen=True)
class Change:
    """What tuning has changed: ‖after − before‖ / ‖before‖ (Frobenius; None of zeros) by place, and the scalars that
    moved farthest, the farthest first."""

    relative: Mapping[Place, float | None]
    largest: tuple[Moved, ...]


def compare(pairs: Iterable[Pair], most: int = 20) -> Change:
    """The change of all leaves, of which `most` scalars are named; a leaf that is the same object has not changed."""
    squares: dict[Place, np.ndarray] = {}  # of the difference, and of before
    largest: list[Moved] = []
    for path, before, after in pairs:
        difference = sum(float(np.sum((a - b) ** 2)) for a, b in zip(chunks(after), chunks(before), strict=True))
        own = np.array([difference, sum(float(x @ x) for x in chunks(before))])
        for where in around(place(path)):
            squares[where] = squares.get(where, 0) + own
        if after is not before:
            largest = sorted([*largest, *_farthest(path, before, after, most)], key=_distance)[:most]
    relative = {where: float(np.sqrt(d / b)) if b else None for where, (d, b) in squares.items()}
    return Change(relative, tuple(largest))


def _distance(own: Moved) -> tuple[float, str, tuple[int, ...]]:
    return (-abs(own.after - own.before), own.path, own.at)


def _farthest(path: str, before: np.ndarray, after: np.ndarray, most: int) -> Iterator[Moved]:
    distance = np.abs(after - before).reshape(-1)
    count = min(most, distance.size)
    for flat in np.argpartition(distance, distance.size - count)[distance.size - count :]:
        if distance[flat]:
            at = tuple(int(i) for i in np.unravel_index(flat, before.shape))
            yield Moved(path, at, float(before[at]), float(after[at]))
