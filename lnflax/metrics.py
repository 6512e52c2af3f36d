"""The metrics of the GLUE tasks as `evaluate.Metric`s of our own: no network, and no file left behind; and of entities.

A metric of a score that does not vary is undefined: nan. Of one class only, Matthews is 0, as in scikit-learn.
"""

from __future__ import annotations

import functools
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import scipy.stats

from lnflax.errors import InputError, check_choice


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews' correlation of two classifications, of any number of classes (Gorodkin, 2004)."""
    classes, codes = np.unique(np.concatenate([predictions, references]), return_inverse=True)
    predicted, actual = np.split(codes, 2)
    n, correct = len(actual), int(np.sum(predicted == actual))
    # Python's integers: the product below passes 2^63 at some tens of thousands of examples.
    p, t = (np.bincount(side, minlength=len(classes)).tolist() for side in (predicted, actual))
    spread = (n**2 - sum(a * a for a in p)) * (n**2 - sum(b * b for b in t))
    return (n * correct - sum(a * b for a, b in zip(p, t, strict=True))) / math.sqrt(spread) if spread else 0.0


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """The share of examples that are right."""
    return float(np.mean(predictions == references))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1; 0 where class 1 is neither predicted nor there."""
    both = int(np.sum((predictions == 1) & (references == 1)))
    either = int(np.sum(predictions == 1) + np.sum(references == 1))
    return 2 * both / either if either else 0.0


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    """Pearson's correlation; nan where it is undefined."""
    return _correlation(scipy.stats.pearsonr, predictions, references)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    """Spearman's rank correlation, ties at their mean rank; nan where it is undefined."""
    return _correlation(scipy.stats.spearmanr, predictions, references)


def _correlation(of: Callable, predictions: np.ndarray, references: np.ndarray) -> float:
    for side in (predictions, references):
        if not np.isfinite(side).all() or np.ptp(side) == 0:
            return math.nan
    with warnings.catch_warnings():
        # A run that has all but collapsed is near-constant; its number is as good as any.
        warnings.simplefilter("ignore", scipy.stats.NearConstantInputWarning)
        return float(of(predictions, references).statistic)


Tags = Sequence[Sequence[str]]


def entities(predicted: Tags, actual: Tags) -> dict[str, float]:
    """F1, precision and recall over entities, by seqeval in its default mode: conlleval's reading.

    An entity is right if its type and both its ends are. An `I-` after `O` or another type begins one. What is
    undefined is 0.

    Args:
        predicted: the tags of each sentence, IOB2.
        actual: the same of the data.

    Raises:
        InputError: seqeval is not installed.
    """
    scores = _seqeval().precision_recall_fscore_support(
        [list(own) for own in actual], [list(own) for own in predicted], average="micro", zero_division=0
    )
    return dict(zip(("precision", "recall", "f1"), map(float, scores[:3]), strict=True))


def entity_counts(predicted: Tags, actual: Tags) -> dict[str, dict[str, int]]:
    """How many entities of each type there are, how many are predicted, and how many of these are right."""
    found = _seqeval().get_entities
    sides = [
        {(number, *entity) for number, own in enumerate(side) for entity in found(list(own))}
        for side in (predicted, actual)
    ]
    types = [[entity[1] for entity in side] for side in (*sides, sides[0] & sides[1])]
    return _counts(types[0], types[1], types[2])


def sentence_counts(predicted: Tags, actual: Tags) -> np.ndarray:
    """How many entities of each sentence are predicted and right, predicted, and there, int64 `[3, sentences]`."""
    # seqeval lays sentences end to end with one place between two.
    starts = np.cumsum([0, *(len(own) + 1 for own in actual)])
    found = [set(_seqeval().get_entities([list(own) for own in side])) for side in (predicted, actual)]
    rows = []
    for entities_of in (found[0] & found[1], *found):
        places = np.array([begin for _, begin, _ in entities_of], np.int64)
        sentence = np.searchsorted(starts, places, side="right") - 1
        rows.append(np.bincount(sentence, minlength=len(actual)))
    return np.stack(rows)


def tag_counts(predicted: Tags, actual: Tags) -> dict[str, dict[str, int]]:
    """The same of words by their tag."""
    sides = [[tag for own in side for tag in own] for side in (predicted, actual)]
    return _counts(sides[0], sides[1], [own for own, right in zip(*sides, strict=True) if own == right])


def _counts(predicted: Iterable[str], actual: Iterable[str], correct: Iterable[str]) -> dict[str, dict[str, int]]:
    sides = {"actual": Counter(actual), "predicted": Counter(predicted), "correct": Counter(correct)}
    names = sorted(set(sides["actual"]) | set(sides["predicted"]))
    return {name: {side: count[name] for side, count in sides.items()} for name in names}


def _seqeval() -> Any:
    try:
        from seqeval.metrics import sequence_labeling
    except ImportError as error:
        raise InputError("tasks: entities need the package seqeval: pip install 'lnflax[tagging]'") from error
    return sequence_labeling


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    function.__name__: function for function in (matthews, accuracy, f1, pearson, spearman)
}


def compute(names: Sequence[str], predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Each named metric of one run's predictions, as a fraction; nan where it is undefined.

    Args:
        names: keys of `METRICS`.
        predictions: classes or scores, `[examples]`.
        references: the same of the data, `[examples]`.

    Raises:
        InputError: a name is not known.
        ValueError: the two are not of one length.
    """
    predictions, references = (np.asarray(side, np.float64) for side in (predictions, references))
    if predictions.ndim != 1 or predictions.shape != references.shape:
        raise ValueError(f"predictions {predictions.shape} do not fit references {references.shape}")
    if not len(predictions):
        return dict.fromkeys(names, math.nan)
    return make_metric(tuple(names)).compute(predictions=predictions, references=references)


@functools.cache
def make_metric(names: tuple[str, ...]) -> Any:
    """The `evaluate.Metric` that gives all the named metrics at once: most of a metric's time is the way in and out.

    It keeps what it is given in memory; the cache folder that it wants is gone before it is used, so that processes
    share nothing.
    """
    for name in names:
        check_choice("metrics", name, METRICS)
    # Imported here: they take seconds, and most commands measure nothing.
    import datasets
    import evaluate

    class GlueMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            score = datasets.Value("float64")
            features = datasets.Features({"predictions": score, "references": score})
            return evaluate.MetricInfo(description=f"{', '.join(names)} of GLUE", citation="", features=features)

        def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
            # Lists, because evaluate's own numpy format rounds to float32.
            sides = np.asarray(predictions), np.asarray(references)
            return {name: METRICS[name](*sides) for name in names}

    with tempfile.TemporaryDirectory() as folder:
        return GlueMetric(keep_in_memory=True, cache_dir=folder)
