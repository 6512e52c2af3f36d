import types

import numpy as np
import pytest

from lnflax import ledger
from lnflax.ledger import Ledger
from lnflax.tasks import TASKS

NAN = np.nan


def make(task="rte", labels=(0, 1, 1, 0), rates=(0.1, 0.2), absent=(), splits=None):
    """A ledger of one seed and two rates; the parts of its config and data that it reads."""
    config = types.SimpleNamespace(seeds=(7,), learning_rates=rates, batch_size=4)
    kind = np.int32 if TASKS[task].labels else np.float32
    own = types.SimpleNamespace(
        labels=np.asarray(labels, kind), asked=types.SimpleNamespace(label=np.arange(len(labels)))
    )
    sets = dict.fromkeys(splits or ("validation",), own)
    return Ledger(config, types.SimpleNamespace(task=TASKS[task], evals=sets, absent=absent))


def losses(*rows):
    """`[steps, 1 seed, 2 rates]`."""
    return np.array(rows, np.float32)[:, None, :]


def evals(first, second, loss=(0.5, 0.5), split="validation"):
    """Predictions of the two runs, and a loss for every example."""
    predictions = np.array([[first, second]], np.float32)
    return {split: (predictions, np.broadcast_to(np.float32(loss)[None, :, None], predictions.shape))}


THREE = np.array([[4], [4], [2]])  # targets: ten examples in steps of four
QUIET = losses([1, 1], [1, 1], [1, 1])


def test_a_line_of_metrics():
    log = make()
    lines = log.add(
        (0,),
        range(2),
        1,
        3,
        losses([1, 2], [2, 3], [6, 0]),
        THREE,
        evals([0, 1, 1, 1], [1, 1, 1, 1], (0.25, 0.75)),
        1.23456,
    )
    assert lines == [
        {
            "seed": 7,
            "learning_rate": 0.1,
            "epoch": 1,
            "step": 3,
            "train_loss": (4 * 1 + 4 * 2 + 2 * 6) / 10,
            "eval_loss": 0.25,
            "accuracy": 0.75,
            "seconds": 1.235,
        },
        {
            "seed": 7,
            "learning_rate": 0.2,
            "epoch": 1,
            "step": 3,
            "train_loss": (4 * 2 + 4 * 3 + 2 * 0) / 10,
            "eval_loss": 0.75,
            "accuracy": 0.5,
            "seconds": 1.235,
        },
    ]


def test_a_whole_last_step_counts_as_much_as_the_others():
    lines = make().add((0,), range(2), 1, 2, losses([1, 1], [3, 5]), THREE[:2], evals([0] * 4, [0] * 4), 0)
    assert [line["train_loss"] for line in lines] == [2, 3]


def test_last_and_best():
    log = make()
    log.add((0,), range(2), 1, 3, QUIET, THREE, evals([0, 1, 1, 1], [1, 1, 1, 1]), 0)  # 0.75, 0.5
    log.add((0,), range(2), 2, 6, QUIET, THREE, evals([1, 1, 1, 0], [0, 1, 1, 0]), 0)  # 0.75, 1.0
    log.add((0,), range(2), 3, 9, QUIET, THREE, evals([1, 0, 0, 0], [0, 0, 1, 0]), 0)  # 0.25, 0.75
    first, second = log.runs()
    assert (first["last"]["epoch"], first["last"]["accuracy"]) == (3, 0.25)
    assert (first["best"]["epoch"], first["best"]["accuracy"]) == (1, 0.75)  # a tie stays with the earlier
    assert (second["last"]["epoch"], second["best"]["epoch"], second["best"]["accuracy"]) == (3, 2, 1.0)
    assert log.predictions["last/validation"].tolist() == [[[1, 0, 0, 0], [0, 0, 1, 0]]]
    assert log.predictions["best/validation"].tolist() == [[[0, 1, 1, 1], [0, 1, 1, 0]]]
    assert log.predictions["last/validation"].dtype == np.int32


def test_runs_are_by_seed_then_rate():
    log = make(rates=(0.2, 0.1))
    log.config.seeds = (3, 1)
    log = Ledger(log.config, log.data)
    log.add(
        range(2),
        range(2),
        1,
        1,
        np.ones((1, 2, 2), np.float32),
        np.ones((1, 2), int),
        {"validation": (np.zeros((2, 2, 4)), np.ones((2, 2, 4)))},
        0,
    )
    assert [(run["seed"], run["learning_rate"]) for run in log.runs()] == [(3, 0.2), (3, 0.1), (1, 0.2), (1, 0.1)]
    assert list(log.runs()[0]) == ["seed", "learning_rate", "status", "diverged_step", "last", "best", "delta"]


def test_a_loss_that_is_not_finite_marks_the_run_with_its_step():
    log = make()
    log.add((0,), range(2), 1, 3, QUIET, THREE, evals([0, 1, 1, 0], [0, 1, 1, 1]), 0)
    lines = log.add(
        (0,),
        range(2),
        2,
        6,
        losses([1, 1], [1, np.inf], [1, NAN]),
        THREE,
        evals([0, 1, 1, 0], [0, 0, 0, 0], (0.5, NAN)),
        0,
    )
    whole, broken = log.runs()
    assert (whole["status"], whole["diverged_step"], whole["last"]["accuracy"]) == ("finished", None, 1.0)
    assert (broken["status"], broken["diverged_step"]) == ("diverged", 5)
    assert (broken["last"]["epoch"], broken["last"]["accuracy"], broken["last"]["eval_loss"]) == (2, None, None)
    assert not np.isfinite(broken["last"]["train_loss"])
    assert (broken["best"]["epoch"], broken["best"]["accuracy"]) == (1, 0.75)
    assert lines[1]["accuracy"] is None and lines[0]["accuracy"] == 1.0
    assert log.predictions["last/validation"].tolist() == [[[0, 1, 1, 0], [-1, -1, -1, -1]]]
    assert log.predictions["best/validation"].tolist() == [[[0, 1, 1, 0], [0, 1, 1, 1]]]
    # The mark stays, with its first step, whatever comes after.
    log.add((0,), range(2), 3, 9, losses([1, NAN], [1, NAN], [1, 1]), THREE, evals([0, 1, 1, 0], [0, 1, 1, 0]), 0)
    assert (log.runs()[1]["status"], log.runs()[1]["diverged_step"]) == ("diverged", 5)
    assert log.runs()[1]["last"]["accuracy"] is None


def test_the_first_step_can_diverge():
    log = make()
    log.add((0,), range(2), 1, 3, losses([NAN, 1], [NAN, 1], [NAN, 1]), THREE, evals([0] * 4, [0] * 4, (NAN, 1)), 0)
    assert [run["diverged_step"] for run in log.runs()] == [1, None]
    assert log.runs()[0]["best"]["accuracy"] is None


def test_a_run_that_only_the_development_set_shows_to_be_broken():
    log = make()
    log.add((0,), range(2), 1, 3, QUIET, THREE, evals([0] * 4, [0] * 4, (0.5, np.inf)), 0)
    assert [run["diverged_step"] for run in log.runs()] == [None, 3]


def test_a_score_that_is_undefined_is_never_the_best():
    log = make("stsb", labels=(1, 2, 3, 4))
    log.add((0,), range(2), 1, 3, QUIET, THREE, evals([2, 2, 2, 2], [1, 2, 3, 4]), 0)
    assert np.isnan(log.runs()[0]["best"]["pearson"])
    log.add((0,), range(2), 2, 6, QUIET, THREE, evals([4, 3, 2, 1], [2, 2, 2, 2]), 0)
    assert [run["best"]["epoch"] for run in log.runs()] == [2, 1]
    assert log.predictions["best/validation"].tolist() == [[[4, 3, 2, 1], [1, 2, 3, 4]]]
    assert log.predictions["best/validation"].dtype == np.float32
    assert list(log.runs()[0]["last"]) == ["epoch", "train_loss", "eval_loss", "pearson", "spearman"]


@pytest.mark.parametrize("there", [True, False])
def test_a_second_development_set(there):
    splits = ("validation_matched", "validation_mismatched")
    log = make("mnli", splits=splits[: 1 + there], absent=splits[1 + there :])
    given = evals([0, 1, 1, 0], [0, 0, 0, 0], (0.25, 0.5), splits[0])
    if there:
        given |= evals([0, 0, 0, 0], [0, 1, 1, 0], (9, 9), splits[1])
    lines = log.add((0,), range(2), 1, 3, QUIET, THREE, given, 0)
    assert [line["accuracy"] for line in lines] == [1.0, 0.5]
    assert [line["accuracy_mismatched"] for line in lines] == ([0.5, 1.0] if there else [None, None])
    assert [line["eval_loss"] for line in lines] == [0.25, 0.5]  # of the first set alone
    assert set(log.predictions) == {f"{kind}/{split}" for kind in ("last", "best") for split in splits[: 1 + there]}


def test_runs_that_say_one_class_are_counted():
    log = make(rates=(0.1, 0.2, 0.3))
    predictions = np.array([[[1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]]], np.float32)
    loss = np.ones_like(predictions)
    log.add((0,), range(3), 1, 3, np.ones((3, 1, 3), np.float32), THREE, {"validation": (predictions, loss)}, 0)
    assert log.constant() == 2
    broken = np.array([[[1, 1, NAN]]], np.float32).repeat(3, axis=0)
    log.add(
        (0,), range(3), 2, 6, broken, THREE, {"validation": (predictions, loss * np.array([1, 1, NAN])[:, None])}, 0
    )
    assert log.constant() == 1  # a diverged run is told of as such
    scores = make("stsb", labels=(1, 2, 3, 4))
    scores.add((0,), range(2), 1, 3, QUIET, THREE, evals([2, 2, 2, 2], [1, 2, 3, 4]), 0)
    assert scores.constant() == 0


def test_classes():
    predictions = np.array([0.0, 2.0, 1.0], np.float32)
    own = ledger.classes(predictions, np.array([0.1, NAN, np.inf], np.float32), np.arange(3))
    assert own.tolist() == [0, -1, -1] and own.dtype == np.int32
    # Two losses of three labels: the one between was not asked for.
    own = ledger.classes(np.array([0, -1, 1], np.float32), np.array([0.1, NAN], np.float32), np.array([0, 2]))
    assert own.tolist() == [0, -1, -1]
