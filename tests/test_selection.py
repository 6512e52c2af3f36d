import math

import pytest

from lnflax.errors import InputError
from lnflax.selection import at_rate, metric_names, select, summary


def run(seed, rate, value, best=None):
    """A finished run with this accuracy at its last epoch; "diverged" for one that did not get there."""
    if value == "diverged":
        return {"seed": seed, "learning_rate": rate, "status": "diverged", "last": None, "best": None}
    last = {"epoch": 2, "train_loss": 0.1, "eval_loss": 0.2, "accuracy": value, "f1": 0.5}
    return {
        "seed": seed,
        "learning_rate": rate,
        "status": "finished",
        "last": last,
        "best": last if best is None else {**last, "epoch": 1, "accuracy": best},
    }


def grid(scores):
    """Runs by seed, then rate, from {rate: [a score a seed]}."""
    seeds = range(len(next(iter(scores.values()))))
    return [run(seed, rate, values[seed]) for seed in seeds for rate, values in scores.items()]


def test_the_best_mean_over_seeds_and_its_sample_std():
    runs = grid({1e-4: [0.5, 0.5, 0.5], 1e-3: [0.75, 0.5, 1.0], 1e-2: [0.9, 0.5, 0.5]})
    chosen = select(runs, "accuracy")
    assert chosen == {"learning_rate": 1e-3, "mean": 0.75, "std": 0.25, "n": 3, "at_edge": False}
    assert list(chosen) == ["learning_rate", "mean", "std", "n", "at_edge"]
    assert select(runs, "accuracy", ddof=0)["std"] == pytest.approx(math.sqrt(0.125 / 3), rel=1e-15)


def test_ties_go_to_the_smaller_rate_in_any_order_of_the_grid():
    assert select(grid({1e-2: [0.5, 0.7], 1e-4: [0.7, 0.5], 1e-3: [0.1, 0.1]}), "accuracy")["learning_rate"] == 1e-4


def test_a_difference_of_rounding_is_a_tie():
    assert 0.1 + 0.2 > 0.15 + 0.15
    assert select(grid({1e-4: [0.15, 0.15], 1e-3: [0.1, 0.2]}), "accuracy")["learning_rate"] == 1e-4


def test_a_rate_with_a_diverged_run_is_not_eligible():
    runs = grid({1e-4: [0.5, 0.6], 1e-3: [0.9, "diverged"]})
    assert select(runs, "accuracy")["learning_rate"] == 1e-4


def test_where_every_rate_has_a_diverged_run_the_finished_ones_count():
    runs = grid({1e-4: [0.5, "diverged"], 1e-3: ["diverged", 0.75], 1e-2: ["diverged", "diverged"]})
    assert select(runs, "accuracy") == {
        "learning_rate": 1e-3,
        "mean": 0.75,
        "std": None,
        "n": 1,
        "at_edge": False,
    }


def test_where_nothing_finished_nothing_is_chosen():
    nothing = {"learning_rate": None, "mean": None, "std": None, "n": 0, "at_edge": False}
    runs = grid({1e-4: ["diverged"] * 2, 1e-3: ["diverged"] * 2, 1e-2: ["diverged"] * 2})
    assert select(runs, "accuracy") == nothing
    assert select(runs, "accuracy", how="first_seed") == nothing


@pytest.mark.parametrize("null", [None, math.nan, math.inf])
def test_a_null_metric_is_no_value(null):
    assert select(grid({1e-4: [0.5, 0.5], 1e-3: [0.9, null]}), "accuracy")["learning_rate"] == 1e-4
    partial = select(grid({1e-4: [null, 0.5], 1e-3: [0.75, null]}), "accuracy")
    assert (partial["learning_rate"], partial["mean"], partial["n"]) == (1e-3, 0.75, 1)
    assert select(grid({1e-4: [null], 1e-3: [null]}), "accuracy")["mean"] is None


def test_a_rate_with_a_null_comes_before_one_with_a_diverged_run():
    runs = grid({1e-4: [0.5, None], 1e-3: [0.9, "diverged"]})
    assert select(runs, "accuracy")["learning_rate"] == 1e-4


def test_a_rate_that_lacks_a_seed_is_not_whole():
    runs = [*grid({1e-4: [0.5, 0.5]}), run(0, 1e-3, 0.9)]
    assert select(runs, "accuracy")["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("best", "edge"), [(1e-4, True), (1e-3, False), (1e-2, True)], ids=["smallest", "middle", "largest"]
)
def test_the_edge_of_a_grid_of_three(best, edge):
    runs = grid({rate: [0.9 if rate == best else 0.5] for rate in (1e-4, 1e-3, 1e-2)})
    assert select(runs, "accuracy")["at_edge"] is edge


def test_a_grid_of_two_has_no_edge():
    assert select(grid({1e-4: [0.5], 1e-3: [0.9]}), "accuracy")["at_edge"] is False


def test_first_seed_chooses_alone_and_reports_all_seeds():
    runs = grid({1e-4: [0.8, 0.2, 0.5], 1e-3: [0.7, 0.9, 0.9]})
    chosen = select(runs, "accuracy", how="first_seed")
    assert chosen["learning_rate"] == 1e-4 and chosen["n"] == 3
    assert chosen["mean"] == pytest.approx(0.5, rel=1e-15) and chosen["std"] == pytest.approx(0.3, rel=1e-15)


def test_first_seed_does_not_look_at_the_others_divergence():
    runs = grid({1e-4: [0.5, 0.5], 1e-3: [0.75, "diverged"], 1e-2: ["diverged", 0.9]})
    chosen = select(runs, "accuracy", how="first_seed")
    assert (chosen["learning_rate"], chosen["mean"], chosen["n"]) == (1e-3, 0.75, 1)


def test_the_best_epoch_is_read_where_it_is_reported():
    runs = [run(0, 1e-4, 0.5, best=0.9), run(0, 1e-3, 0.6, best=0.7)]
    assert select(runs, "accuracy")["learning_rate"] == 1e-3
    assert select(runs, "accuracy", "best")["learning_rate"] == 1e-4


def test_one_seed_has_no_deviation():
    assert select(grid({1e-4: [0.5]}), "accuracy") == {
        "learning_rate": 1e-4,
        "mean": 0.5,
        "std": None,
        "n": 1,
        "at_edge": False,
    }
    assert summary([0.5], ddof=0) == {"mean": 0.5, "std": 0.0, "n": 1}


def test_a_second_metric_at_the_same_rate():
    runs = grid({1e-4: [0.5, "diverged"], 1e-3: [0.7, 0.7]})
    assert at_rate(runs, 1e-4, "f1") == {"mean": 0.5, "std": None, "n": 1}
    assert at_rate(runs, 1e-3, "f1") == {"mean": 0.5, "std": 0.0, "n": 2}


def test_bad_choices_name_what_there_is():
    runs = grid({1e-4: [0.5]})
    assert metric_names(runs) == ["accuracy", "f1"]
    with pytest.raises(InputError, match="metric: 'acuracy' is not known; allowed are accuracy, f1; did you mean"):
        select(runs, "acuracy")
    with pytest.raises(InputError, match="select: 'median' is not known"):
        select(runs, "accuracy", how="median")
    with pytest.raises(InputError, match="report_epoch: 'first' is not known"):
        select(runs, "accuracy", "first")
    with pytest.raises(InputError, match="ddof: -1"):
        select(runs, "accuracy", ddof=-1)
    with pytest.raises(InputError, match="metric: 'eval_loss'"):
        select(runs, "eval_loss")
