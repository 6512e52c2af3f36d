"""What a difference between two cells is worth: a bootstrap over seeds and development examples together.

Metrics are functions of sums over examples, so that a resample is a matrix product: `statistics` gives each example's
share, and `value` the metric of their sums. All draws are functions of their name alone (`streams`), and the same for
all cells of a task: settings are compared on common seeds and on common examples.

The multi-bootstrap is that of the MultiBERTs (Sellam et al., 2022, section 4.2): seeds and examples are resampled with
replacement, independently of each other; a difference is paired over both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from lnflax import streams

RESAMPLES = 10_000  # so that the smallest p, times the differences of a large table (Holm), is still below 0.05
LEVEL = 0.95
POWER = 0.8
SPLITS = 100  # of the honest score
CHUNK = 2**22  # counts that are held at once


@dataclasses.dataclass(frozen=True)
class Sums:
    """A metric as a function of sums over examples: `shares` is float64 `[seeds, examples, k]`."""

    shares: np.ndarray
    value: Callable[[np.ndarray], np.ndarray]  # sums `[…, k]` to the metric `[…]`, nan where it is undefined

    @property
    def whole(self) -> np.ndarray:
        """The metric of each seed, `[seeds]`."""
        return self.value(self.shares.sum(axis=1))


def statistics(metric: str, predictions: np.ndarray, labels: np.ndarray) -> Sums:
    """The sums of a metric of `lnflax.metrics`; predictions `[seeds, examples]`, labels `[examples]`.

    Spearman is Pearson over the ranks in the whole set, which a resample keeps.

    Raises:
        ValueError: the metric is no function of such sums (Matthews of more than two classes).
    """
    p, t = predictions.astype(np.float64), np.broadcast_to(labels.astype(np.float64), predictions.shape)
    if metric == "spearman":
        p, t = (scipy.stats.rankdata(side, axis=-1) for side in (p, t))
    if metric in ("pearson", "spearman"):
        p, t = _standard(p), _standard(t)
        return Sums(np.stack([np.ones_like(p), p, t, p * p, t * t, p * t], axis=-1), _correlation)
    if metric == "accuracy":
        return Sums(np.stack([np.ones_like(p), p == t], axis=-1), lambda s: s[..., 1] / s[..., 0])
    if metric == "f1":
        return Sums(np.stack([(p == 1) & (t == 1), p == 1, t == 1], axis=-1).astype(np.float64), _f1)
    if metric == "matthews" and t.max(initial=0) <= 1:
        return Sums(np.stack([p == 1, t == 1, (p == 1) & (t == 1), np.ones_like(p)], axis=-1), _matthews)
    raise ValueError(f"{metric} is no function of sums over examples")


def _standard(side: np.ndarray) -> np.ndarray:
    """Of mean 0 and deviation 1 along the last axis, so that whether a resample varies does not depend on a unit; 0
    where all is the same."""
    varies = np.ptp(side, axis=-1, keepdims=True) > 0
    centred = np.where(varies, side - side.mean(axis=-1, keepdims=True), 0)
    return centred / np.where(varies, centred.std(axis=-1, keepdims=True), 1)


def entity_sums(correct: np.ndarray, predicted: np.ndarray, actual: np.ndarray, measure: str = "f1") -> Sums:
    """F1, precision or recall of entities, from their counts in each sentence, `[seeds, sentences]`."""
    actual = np.broadcast_to(actual, predicted.shape)
    sides = {"f1": (predicted, actual), "precision": (predicted, predicted), "recall": (actual, actual)}[measure]
    # Precision is F1 where as many are there as are predicted; recall the other way around.
    return Sums(np.stack([correct, *sides], axis=-1).astype(np.float64), _f1)


def _f1(s: np.ndarray) -> np.ndarray:
    """F1 from how many are right, predicted and there; 0 where there is neither."""
    both = s[..., 1] + s[..., 2]
    return np.divide(2 * s[..., 0], both, out=np.zeros_like(both), where=both > 0)


def _correlation(s: np.ndarray) -> np.ndarray:
    n, p, t, pp, tt, pt = np.moveaxis(s, -1, 0)
    spread = (n * pp - p * p) * (n * tt - t * t)
    out = np.full_like(spread, np.nan)
    return np.divide(n * pt - p * t, np.sqrt(np.maximum(spread, 0)), out=out, where=spread > 1e-9 * n**4)


def _matthews(s: np.ndarray) -> np.ndarray:
    p, t, both, n = np.moveaxis(s, -1, 0)
    spread = p * (n - p) * t * (n - t)
    return np.divide(n * both - p * t, np.sqrt(np.maximum(spread, 0)), out=np.zeros_like(spread), where=spread > 0)


def resampled(name: streams.Name, sums: Sequence[Sums], resamples: int = RESAMPLES) -> list[np.ndarray]:
    """Of each cell the metric of every seed on resampled examples, `[resamples, seeds]`; the same for all cells."""
    examples = sums[0].shares.shape[1]
    found: list[list[np.ndarray]] = [[] for _ in sums]
    for begin in range(0, resamples, size := max(CHUNK // examples, 1)):
        count = min(size, resamples - begin)
        drawn = (streams.words((*name, begin), count * examples) % np.uint64(examples)).astype(np.int64)
        flat = (drawn.reshape(count, examples) + examples * np.arange(count)[:, None]).reshape(-1)
        counts = np.bincount(flat, minlength=count * examples).reshape(count, examples).astype(np.float64)
        for own, cell in zip(found, sums, strict=True):
            own.append(cell.value(_weighted(counts, cell.shares)))
    return [np.concatenate(own) for own in found]


def _weighted(counts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Sums with examples counted so often: `[b, examples]` and `[seeds, examples, k]` give `[b, seeds, k]`."""
    seeds, examples, k = shares.shape
    # One matrix product: np.einsum takes a hundred times as long.
    return (counts @ shares.transpose(1, 0, 2).reshape(examples, seeds * k)).reshape(-1, seeds, k)


def seed_means(name: streams.Name, values: np.ndarray) -> np.ndarray:
    """Means over resampled seeds, `[…, resamples]` of `[…, resamples, seeds]`; the same seeds for all cells."""
    resamples, seeds = values.shape[-2:]
    drawn = (streams.words(name, resamples * seeds) % np.uint64(seeds)).astype(np.int64).reshape(resamples, seeds)
    return np.take_along_axis(values, np.broadcast_to(drawn, values.shape), axis=-1).mean(axis=-1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The percentile interval of `LEVEL`; nan where a resample has no metric."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Two-sided: twice the share of resamples on the other side of 0, never below what so many can tell."""
    below, above = np.sum(differences <= 0), np.sum(differences >= 0)
    return float(min(1.0, 2 * (1 + min(below, above)) / (1 + differences.size)))


def least_p(seeds: int) -> float:
    """The smallest two-sided p of a sign-flip test over so many paired seeds: 0.25 of three."""
    return min(1.0, 2.0 ** (1 - seeds))


def least_difference(differences: np.ndarray) -> float:
    """The difference that the development set shows with `POWER` at `LEVEL`, two-sided.

    Args:
        differences: of the mean over seeds, on resampled examples with the seeds as they are, `[resamples]`.
    """
    z = scipy.stats.norm.ppf((1 + LEVEL) / 2) + scipy.stats.norm.ppf(POWER)
    return float(z * np.std(differences, ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p of a family, in the order given: the i-th smallest of m times m - i, never falling."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    raised = np.maximum.accumulate(np.asarray(p_values, np.float64)[order] * factors)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(raised, 1)
    return adjusted.tolist()


def halves(name: streams.Name, examples: int, splits: int = SPLITS) -> np.ndarray:
    """Random halves: float64 `[splits, examples]`, 1 in the first half (the smaller one of an odd number)."""
    first = np.zeros((splits, examples))
    for number, row in enumerate(first):
        row[streams.permutation((*name, number), examples)[: examples // 2]] = 1
    return first


def honest_score(first: np.ndarray, rates: Sequence[Sums], first_seed: bool = False) -> float:
    """The rate chosen on one half of the examples and scored on the other, mean over splits, both ways around.

    Args:
        first: `halves`.
        rates: of each learning rate, in ascending order; ties go to the first.
        first_seed: whether the first seed alone chooses; the score is always the mean over seeds.
    """
    sides = []  # two of [rates, splits, seeds]
    for counts in (first, 1 - first):
        sides.append(np.stack([rate.value(_weighted(counts, rate.shares)) for rate in rates]))
    scores = []
    for choosing, scored in (sides, sides[::-1]):
        by = choosing[..., :1] if first_seed else choosing
        # Means that differ by rounding alone are a tie, as in `selection`.
        means = np.round(by.mean(axis=-1), 12)
        chosen = np.argmax(np.where(np.isnan(means), -np.inf, means), axis=0)
        scores.append(np.take_along_axis(scored.mean(axis=-1), chosen[None], axis=0))
    return float(np.mean(scores))
