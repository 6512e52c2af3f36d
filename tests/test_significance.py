import itertools

import numpy as np
import pytest
import scipy.stats

from lnflax import metrics
from lnflax.analysis import significance
from lnflax.analysis.significance import Sums, entity_sums, statistics

CLASSES = ("accuracy", "f1", "matthews")
SCORES = ("pearson", "spearman")


def draw(kind, seeds=3, examples=200):
    """Predictions of some seeds, right about three times in four, and labels."""
    rng = np.random.default_rng(7)
    if kind in CLASSES:
        labels = rng.integers(0, 2, examples)
        return np.where(rng.random((seeds, examples)) < 0.25, 1 - labels, labels).astype(np.int32), labels
    labels = np.round(rng.random(examples) * 5, 1).astype(np.float32)
    return (labels + rng.normal(size=(seeds, examples))).astype(np.float32), labels


@pytest.mark.parametrize("metric", [*CLASSES, *SCORES])
def test_sums_give_the_metrics_of_the_study(metric):
    predictions, labels = draw(metric)
    found = statistics(metric, predictions, labels).whole
    expected = [metrics.compute([metric], own, labels)[metric] for own in predictions]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("metric", SCORES)
def test_predictions_that_hardly_differ_still_correlate(metric):
    """A run that went wrong gives nearly the same score to all; constant ones have no correlation."""
    _, labels = draw(metric)
    rng = np.random.default_rng(8)
    hardly = (2.5 + 1e-6 * rng.normal(size=(1, 200))).astype(np.float32)
    expected = scipy.stats.pearsonr(hardly[0].astype(float), labels)[0]
    if metric == "spearman":
        expected = scipy.stats.spearmanr(hardly[0], labels)[0]
    assert statistics(metric, hardly, labels).whole[0] == pytest.approx(expected, abs=1e-9)
    assert np.isnan(statistics(metric, np.full((1, 200), 0.1, np.float32), labels).whole).all()


def test_what_is_undefined_is_as_in_the_study():
    same = np.ones((1, 4), np.int32)
    assert statistics("matthews", same, np.array([1, 1, 0, 0])).whole.tolist() == [0.0]
    assert statistics("f1", 0 * same, np.zeros(4)).whole.tolist() == [0.0]
    assert np.isnan(statistics("pearson", same.astype(np.float32), np.arange(4.0)).whole).all()
    with pytest.raises(ValueError, match="matthews is no function of sums"):
        statistics("matthews", same, np.array([0, 1, 2, 1]))


def test_entities_are_resampled_by_the_sentence():
    """Two sentences: 1 of 2 right of 1 there, 2 of 2 right of 4 there: F1 is 2·3 / (4 + 5)."""
    found = entity_sums(np.array([[1, 2]]), np.array([[2, 2]]), np.array([1, 4]))
    assert found.whole.tolist() == [6 / 9]


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "pearson"])
def test_a_resample_is_the_metric_of_the_examples_drawn(metric):
    """Against the plain way: one resample after another, by indices, with scipy's and our own metrics."""
    predictions, labels = draw(metric, examples=40)
    found = significance.resampled(("a",), [statistics(metric, predictions, labels)], resamples=20)[0]
    assert found.shape == (20, 3)
    drawn = significance.streams.words(("a", 0), 20 * 40).astype(object) % 40
    for b, chosen in enumerate(drawn.reshape(20, 40).astype(int)):
        for s in range(3):
            expected = metrics.compute([metric], predictions[s, chosen], labels[chosen])[metric]
            assert found[b, s] == pytest.approx(expected, abs=1e-9)


def test_cells_share_their_draws():
    predictions, labels = draw("accuracy")
    own = statistics("accuracy", predictions, labels)
    one, other = significance.resampled(("a",), [own, own], resamples=50)
    assert np.array_equal(one, other)
    means = significance.seed_means(("b",), np.stack([one, other]))
    assert means.shape == (2, 50) and np.array_equal(means[0], means[1])
    assert not np.array_equal(one, significance.resampled(("c",), [own], resamples=50)[0])


def test_means_over_seeds_are_of_seeds_drawn_with_replacement():
    values = np.broadcast_to([0.0, 1.0, 4.0], (300, 3))
    found = np.unique(significance.seed_means(("a",), values))
    possible = {sum(own) / 3 for own in itertools.product([0, 1, 4], repeat=3)}
    assert set(found.tolist()) == possible


def test_p_values_and_the_least_of_them():
    assert significance.p_value(np.array([1.0] * 99)) == 0.02
    assert significance.p_value(np.array([1.0] * 90 + [-1.0] * 9)) == 0.2
    assert significance.p_value(np.array([-1.0, 1.0] * 50)) == 1.0
    assert [significance.least_p(n) for n in (1, 2, 3, 5)] == [1.0, 0.5, 0.25, 0.0625]


def test_holm_on_a_worked_example():
    """Smallest first 0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 · 1, which may not fall below the one before."""
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.6, 0.7]) == [1.0, 1.0] and significance.holm([]) == []


def test_holm_is_that_of_statsmodels():
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="the test extra has statsmodels")
    p_values = np.random.default_rng(4).random(40) ** 3
    p_values[7] = p_values[9]
    expected = multitest.multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(significance.holm(p_values.tolist()), expected, rtol=1e-12)


def test_halves_are_halves():
    found = significance.halves(("a",), 7, splits=50)
    assert found.shape == (50, 7) and set(found.sum(axis=1)) == {3.0} and len(np.unique(found, axis=0)) > 20


def test_the_honest_score_by_hand():
    """Each of two rates is right on examples of its own; of every split the half that chose is known by its count."""
    right = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]])
    rates = [statistics("accuracy", own[None], np.ones(6)) for own in right]
    halves = significance.halves(("a",), 6)
    scores = []
    for half in halves.astype(bool):
        for side in (half, ~half):
            best = 0 if right[0, side].sum() >= right[1, side].sum() else 1
            scores.append(right[best, ~side].mean())
    assert significance.honest_score(halves, rates) == pytest.approx(np.mean(scores))


def test_the_least_difference_of_a_development_set():
    """Two cells that differ on a tenth of 1,000 examples, either way alike: (1.96 + 0.84) · sqrt(0.1 / 1000)."""
    labels = np.zeros(1000)
    first, second = np.zeros((1, 1000)), np.zeros((1, 1000))
    first[0, :50], second[0, 50:100] = 1, 1
    both = [statistics("accuracy", own, labels) for own in (first, second)]
    one, other = (values[:, 0] for values in significance.resampled(("a",), both))
    assert significance.least_difference(one - other) == pytest.approx(2.8016 * np.sqrt(1e-4), rel=0.05)


def test_the_honest_score_of_rates_that_are_all_noise_is_below_the_best_of_them():
    """Five rates right by chance: the best looks better than it is on the examples that chose it."""
    rng = np.random.default_rng(1)
    labels = np.zeros(400)
    rates = [statistics("accuracy", rng.integers(0, 2, (1, 400)), labels) for _ in range(5)]
    best = max(rate.whole.mean() for rate in rates)
    halves = significance.halves(("a",), 400)
    honest = significance.honest_score(halves, rates)
    assert best > 0.51 and honest < best - 0.01
    # One rate: nothing is chosen, and both halves together are the whole.
    assert significance.honest_score(halves, rates[:1]) == pytest.approx(rates[0].whole.mean(), abs=1e-12)


def coverage(seeds, examples, spread, studies=300):
    """The share of studies whose interval of a cell covers the truth, and of a difference of two alike covers 0.

    A right answer has the log-odds 2 + difficulty + seed; examples are of different difficulty, the same for all seeds.
    """
    rng, hits = np.random.default_rng(3), np.zeros(2)
    many = 2 + 2 * rng.normal(size=(4000, 1)) + spread * rng.normal(size=(1, 4000))
    truth = np.mean(1 / (1 + np.exp(-many)))
    for study in range(studies):
        difficulty = 2 + 2 * rng.normal(size=(1, examples))
        cells = []
        for _ in range(2):
            odds = difficulty + spread * rng.normal(size=(seeds, 1))
            right = rng.random((seeds, examples)) < 1 / (1 + np.exp(-odds))
            cells.append(Sums(np.stack([np.ones(right.shape), right], axis=-1), lambda s: s[..., 1] / s[..., 0]))
        one, other = significance.resampled(("a", study), cells, resamples=400)
        for place, (values, true) in enumerate(((one, truth), (one - other, 0))):
            low, high = significance.interval(significance.seed_means(("b", study), values))
            hits[place] += low <= true <= high
    return hits / studies


@pytest.mark.parametrize(
    ("seeds", "examples", "spread"), [(3, 300, 0.1), (10, 300, 0.1), (3, 1000, 0.1), (10, 1000, 0.1)]
)
def test_intervals_cover_the_truth(seeds, examples, spread):
    """Seeds that differ by about a point, as they do; a difference errs to the safe side, for each resampled seed
    brings its own noise of the examples once more."""
    cell, difference = coverage(seeds, examples, spread)
    print(f"{seeds} seeds, {examples} examples: interval of a cell {cell:.3f}, of a difference {difference:.3f}")
    assert 0.92 <= cell <= 0.995 and difference >= 0.94


def test_intervals_of_few_seeds_that_differ_much_are_too_narrow():
    """Seeds that differ by three points, twice and more the error of the examples: which tables say."""
    few, many = coverage(3, 1000, 0.3), coverage(10, 1000, 0.3)
    print(f"seeds apart: 3 seeds {few[0]:.3f}, {few[1]:.3f}; 10 seeds {many[0]:.3f}, {many[1]:.3f}")
    assert (few < 0.91).all() and (many > few).all()


def test_intervals_are_percentiles():
    assert significance.interval(np.arange(1001.0)) == pytest.approx((25, 975), abs=1e-9)
    z = scipy.stats.norm.rvs(size=20000, random_state=1)
    np.testing.assert_allclose(significance.interval(z), (-1.96, 1.96), atol=0.05)
