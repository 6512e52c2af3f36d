import itertools
import math
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from lnflax import metrics
from lnflax.errors import InputError

CLASSES = ("matthews", "accuracy", "f1")
SCORES = ("pearson", "spearman")


def one(name, predictions, references):
    return metrics.compute([name], np.asarray(predictions), np.asarray(references))[name]


@pytest.mark.parametrize("size", [2, 7, 500, 40_430])
def test_classes_agree_with_scikit_learn(size):
    rng = np.random.default_rng(size)
    references = rng.integers(0, 2, size)
    references[:2] = 0, 1
    predictions = np.where(rng.random(size) < 0.3, 1 - references, references).astype(np.float32)
    assert metrics.compute(CLASSES, predictions, references) == pytest.approx(
        {
            "matthews": sklearn.metrics.matthews_corrcoef(references, predictions),
            "accuracy": sklearn.metrics.accuracy_score(references, predictions),
            "f1": sklearn.metrics.f1_score(references, predictions),
        },
        abs=1e-12,
    )


def test_three_classes_agree_with_scikit_learn():
    rng = np.random.default_rng(3)
    predictions, references = rng.integers(0, 3, (2, 300))
    expected = sklearn.metrics.matthews_corrcoef(references, predictions)
    assert one("matthews", predictions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("size", [3, 1500])
def test_scores_agree_with_scipy(size):
    rng = np.random.default_rng(size)
    references = np.round(rng.random(size) * 5, 1).astype(np.float32)
    predictions = (references + rng.normal(size=size)).astype(np.float32)
    found = metrics.compute(SCORES, predictions, references)
    exact = references.astype(np.float64), predictions.astype(np.float64)
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(*exact).statistic, abs=1e-12)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(*exact).statistic, abs=1e-12)


def test_numbers_by_hand():
    predictions, references = [1, 1, 0, 0, 1], [1, 0, 0, 1, 1]  # 2 right of class 1, 1 false, 1 missed, 1 right of 0
    assert one("accuracy", predictions, references) == 3 / 5
    assert one("f1", predictions, references) == 4 / 6
    assert one("matthews", predictions, references) == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert one("spearman", [10, 20, 30, 25], [1, 2, 3, 4]) == pytest.approx(0.8)
    assert one("pearson", [0, 1, 2], [5, 3, 1]) == pytest.approx(-1)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "expected"),
    [
        ("matthews", [1, 1, 1], [0, 1, 1], 0),
        ("matthews", [0, 1, 1], [1, 1, 1], 0),
        ("matthews", [1, 1], [1, 1], 0),
        ("matthews", [0, 1], [1, 0], -1),
        ("f1", [0, 0], [0, 0], 0),
        ("f1", [0, 0], [1, 1], 0),
        ("f1", [1], [1], 1),
        ("accuracy", [2], [2], 1),
        ("pearson", [1, 1, 1], [1, 2, 3], math.nan),
        ("pearson", [1, 2, 3], [2, 2, 2], math.nan),
        ("pearson", [1], [1], math.nan),
        ("pearson", [1, math.nan, 3], [1, 2, 3], math.nan),
        ("spearman", [1, math.inf, 3], [1, 2, 3], math.nan),
        ("spearman", [4, 4, 4], [1, 2, 3], math.nan),
        ("accuracy", [], [], math.nan),
        ("f1", [], [], math.nan),
        ("spearman", [], [], math.nan),
    ],
)
def test_edges(name, predictions, references, expected):
    assert one(name, predictions, references) == pytest.approx(expected, nan_ok=True)


def test_a_nearly_collapsed_run_has_a_number_and_no_warning():
    references = np.linspace(0, 5, 100)
    predictions = 2.5 + 1e-15 * np.arange(100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert -1 <= one("pearson", predictions, references) <= 1


def test_names_keep_their_order_and_unknown_ones_are_an_error():
    assert list(metrics.compute(["f1", "accuracy"], np.ones(2), np.ones(2))) == ["f1", "accuracy"]
    with pytest.raises(InputError, match=r"'acuracy' is not known.*did you mean 'accuracy'"):
        metrics.compute(["acuracy"], np.ones(2), np.ones(2))


def test_a_refused_call_leaves_nothing_in_the_next_one():
    with pytest.raises(ValueError, match=r"predictions \(3,\) do not fit references \(2,\)"):
        metrics.compute(["accuracy"], np.ones(3), np.ones(2))
    assert metrics.compute(["accuracy"], np.ones(2), np.ones(2)) == {"accuracy": 1.0}


def test_metrics_are_subclasses_of_evaluate():
    import evaluate

    metric = metrics.make_metric(("f1", "accuracy"))
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=[1, 0], references=[1, 1]) == {"f1": 2 / 3, "accuracy": 0.5}


def test_numpys_global_state_is_left_alone():
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    metrics.compute(["accuracy"], np.ones(4), np.ones(4))
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_processes_do_not_collide_and_leave_no_files(tmp_path):
    code = """import multiprocessing
import evaluate, numpy as np
from lnflax import metrics

def run(worker):
    return [metrics.compute(["accuracy"], np.arange(9) < worker, np.ones(9))["accuracy"] for _ in range(10)]

with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(run, [3, 6], chunksize=1) == [[3 / 9] * 10, [6 / 9] * 10]
"""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    own = {"HF_HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **own}, check=True, timeout=120)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_call_is_cheap():
    predictions, references = np.ones(1500), np.ones(1500)
    metrics.compute(["accuracy"], predictions, references)
    start = time.perf_counter()
    for _ in range(5):
        metrics.compute(["accuracy"], predictions, references)
    assert (time.perf_counter() - start) / 5 < 0.25  # measured: 4 ms


def random_tags(rng, sentences, types=("PER", "ORG", "LOC")):
    """Tags of any order, broken ones too."""
    names = ["O", *(f"{prefix}-{kind}" for prefix in "BI" for kind in types)]
    return [[names[i] for i in rng.integers(0, len(names), rng.integers(1, 12))] for _ in range(sentences)]


def spans(tags):
    """Entities as conlleval reads them, counted by hand: (start, end, type)."""
    found, begin, kind = [], None, None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        if begin is not None and (prefix in "OB" or own != kind):
            found.append((begin, i, kind))
            begin = None
        if prefix != "O" and begin is None:
            begin, kind = i, own
    return set(found)


@pytest.mark.parametrize("seed", range(3))
def test_entities_agree_with_seqeval_and_with_a_count_of_our_own(seed):
    import seqeval.metrics

    rng = np.random.default_rng(seed)
    actual = random_tags(rng, 1000)
    predicted = [own if rng.random() < 0.5 else rng.permutation(own).tolist() for own in actual]
    assert any(b.startswith("I-") and a == "O" for own in predicted for a, b in itertools.pairwise(own))
    found = metrics.entities(predicted, actual)
    assert found == {
        "f1": seqeval.metrics.f1_score(actual, predicted),
        "precision": seqeval.metrics.precision_score(actual, predicted),
        "recall": seqeval.metrics.recall_score(actual, predicted),
    }
    both = [(spans(p), spans(a)) for p, a in zip(predicted, actual, strict=True)]
    right = sum(len(p & a) for p, a in both)
    assert found["precision"] == right / sum(len(p) for p, _ in both)
    assert found["recall"] == right / sum(len(a) for _, a in both)
    counts = metrics.entity_counts(predicted, actual)
    for kind, own in counts.items():
        assert own == {
            "actual": sum(e[2] == kind for _, a in both for e in a),
            "predicted": sum(e[2] == kind for p, _ in both for e in p),
            "correct": sum(e[2] == kind for p, a in both for e in p & a),
        }
    assert list(counts) == ["LOC", "ORG", "PER"]


def test_entities_by_hand():
    actual = [["B-PER", "I-PER", "O", "B-LOC"], ["O"]]
    predicted = [["B-PER", "O", "O", "I-LOC"], ["O"]]  # a cut name is wrong; I- after O begins an entity
    assert metrics.entities(predicted, actual) == {"precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert metrics.entity_counts(predicted, actual) == {
        "LOC": {"actual": 1, "predicted": 1, "correct": 1},
        "PER": {"actual": 1, "predicted": 1, "correct": 0},
    }
    assert metrics.entities([["O"]], [["O"]]) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_words_by_their_tag():
    assert metrics.tag_counts([["NN", "NN"], ["VB"]], [["NN", "VB"], ["VB"]]) == {
        "NN": {"actual": 1, "predicted": 2, "correct": 1},
        "VB": {"actual": 2, "predicted": 1, "correct": 1},
    }


def test_entities_are_counted_by_the_sentence():
    """Of [X X] and [Y], then nothing, then [X]: the first is cut short, the last is found, one too many is given."""
    actual = [["B-X", "I-X", "B-Y"], ["O"], ["B-X"]]
    given = [["B-X", "O", "B-Y"], ["B-Y"], ["B-X"]]
    assert metrics.sentence_counts(given, actual).tolist() == [[1, 0, 1], [2, 1, 1], [2, 0, 1]]
