# ruff: noqa: E501 (tables are as wide as they are)
import dataclasses

import numpy as np
import pytest
import scipy.stats

from lnflax import results
from lnflax.analysis import comparison, significance
from lnflax.analysis.comparison import Against, Difference
from lnflax.analysis.entries import Reading, make_entry
from lnflax.analysis.evidence import read_evidence
from lnflax.analysis.tables import make_tables
from lnflax.errors import InputError
from tests import stored

LABELS = np.arange(100, dtype=np.int32) % 2


def samples(root, reading=None):
    cells, reading = results.read_study(root).cells, reading or Reading()
    entries = {(cell["setting"], cell["task"]): make_entry(cell, reading) for cell in cells}
    return comparison.draw_samples(root, cells, entries, reading)


TABLE = """\
## Table 1: modules

| setting    | ratio |           rte |
| ---------- | ----: | ------------: |
| full       |  50 % |   100.0 ± 0.0 |
| frozen     |  50 % |   0.0 ± 0.0 ▼ |
| layernorms |  50 % | 100.0 ± 0.0 ≈ |

▲ better, ▼ worse than full (Holm-adjusted p < 0.05); ≈ on a par: the 95 % interval of the difference lies within ±1 point, whatever p is; ? cannot tell.

### Details

| setting    | task | metric   |  rate | seeds | dev size | diverged | at edge |   mean |  std |    95 % interval | honest | minus full |  its 95 % interval | p (Holm) |   verdict |
| ---------- | ---- | -------- | ----: | ----: | -------: | -------: | ------: | -----: | ---: | ---------------: | -----: | ---------: | -----------------: | -------: | --------: |
| full       | rte  | accuracy | 0.001 |     3 |      100 |        0 |      no | 100.00 | 0.00 | [100.00, 100.00] | 100.00 |          – |                  – |        – | reference |
| frozen     | rte  | accuracy | 0.001 |     3 |      100 |        0 |      no |   0.00 | 0.00 |     [0.00, 0.00] |   0.00 |    -100.00 | [-100.00, -100.00] |   <0.001 |     worse |
| layernorms | rte  | accuracy | 0.001 |     3 |      100 |        0 |      no | 100.00 | 0.00 | [100.00, 100.00] | 100.00 |      +0.00 |     [+0.00, +0.00] |    1.000 |  on a par |

Percent points, mean ± std over seeds (ddof 1) at the rate with the best mean over seeds; epoch reported: last.

95 % intervals: bootstrap over seeds and dev examples together, 10,000 resamples. Honest: the rate chosen on one half of the dev set and scored on the other, mean over 100 splits.

Differences to full: over the same seeds and examples, p adjusted over 2 of this table (Holm).

The smallest p that seeds alone allow (sign flips): 0.25 with 3 paired seeds; a smaller one rests on the dev examples.

The least difference between a setting and full that the dev examples can show (80 % power, two-sided 5 %, median over pairs), in points: rte accuracy 0.00.
"""


def test_a_table_with_a_reference(tmp_path):
    """One setting is always right, one never, one is the first again: nothing is left to chance."""
    root = stored.folder(tmp_path)
    for setting, count in (("full", 100), ("layernorms", 100), ("frozen", 0)):
        stored.cell(root, "rte", setting, stored.right(count, LABELS), LABELS)
    text = make_tables(root, against=Against("full"))
    assert text == TABLE
    assert text == make_tables(root, against=Against("full"))
    plain = make_tables(root)
    assert "≈" not in plain and "minus full" not in plain and "| [100.00, 100.00] | 100.00 |\n" in plain


def test_the_csv_and_the_latex_of_a_comparison(tmp_path):
    root = stored.folder(tmp_path / "run")
    stored.cell(root, "rte", "full", stored.right(100, LABELS), LABELS)
    stored.cell(root, "rte", "frozen", stored.right(0, LABELS), LABELS)
    make_tables(root, tmp_path / "out", against=Against("full"))
    lines = (tmp_path / "out" / "table1.csv").read_text(encoding="utf-8").splitlines()
    assert lines[1].endswith(",3,100,0,false,,,1.0,1.0,1.0,,,,,,,,")
    least = 2 / 10_001
    assert lines[2].endswith(f",3,100,0,false,,,0.0,0.0,0.0,full,3,-1.0,-1.0,-1.0,{least!r},{least!r},worse")
    latex = (tmp_path / "out" / "table1.tex").read_text(encoding="utf-8")
    assert r"frozen & 50 \% & 0.0 $\pm$ 0.0 $\downarrow$ \\" in latex and r"& $<$0.001 & worse \\" in latex
    assert r"$\uparrow$ better, $\downarrow$ worse than full (Holm-adjusted p $<$ 0.05); $\approx$ on a par" in latex


def noisy(root, setting, share, seed, seeds=3, examples=400, labels=None):
    """A cell that is right on about a share of the examples, drawn apart for every seed."""
    labels = np.arange(examples, dtype=np.int32) % 2 if labels is None else labels
    wrong = np.random.default_rng(seed).random((seeds, 1, len(labels))) >= share
    return stored.cell(root, "rte", setting, np.where(wrong, 1 - labels, labels).astype(np.int32), labels)


def test_intervals_of_one_seed_are_scipys(tmp_path):
    """Of one seed only the examples are resampled: scipy's percentile bootstrap, alone and paired."""
    root = stored.folder(tmp_path)
    folders = [noisy(root, "full", 0.8, 1, seeds=1), noisy(root, "layernorms", 0.7, 2, seeds=1)]
    arrays = [results.read_predictions(own)[0] for own in folders]
    correct = [(own["last/validation"][0, 0] == own["labels/validation"]).astype(float) for own in arrays]
    found = samples(root).found
    full, other = (found[setting, "rte", "accuracy"] for setting in ("full", "layernorms"))
    options = {"method": "percentile", "n_resamples": 9999, "rng": 5}
    alone = scipy.stats.bootstrap((correct[0],), np.mean, **options).confidence_interval
    np.testing.assert_allclose(full.interval, alone, atol=0.004)
    pair = scipy.stats.bootstrap(
        (correct[1], correct[0]), lambda a, b, axis: np.mean(a - b, axis=axis), paired=True, **options
    ).confidence_interval
    own = comparison.difference(other, full)
    np.testing.assert_allclose(own.interval, pair, atol=0.004)
    assert own.mean == pytest.approx(correct[1].mean() - correct[0].mean()) and own.seeds == 1
    assert "they speak of that seed alone" in make_tables(root)


def test_seeds_and_examples_are_resampled_together(tmp_path):
    """Against the plain way: draw seeds, draw examples, take the mean of both settings there."""
    root = stored.folder(tmp_path)
    folders = [noisy(root, "full", 0.8, 1, seeds=5), noisy(root, "layernorms", 0.7, 2, seeds=5)]
    arrays = [results.read_predictions(own)[0] for own in folders]
    full, other = ((own["last/validation"][:, 0] == own["labels/validation"]).astype(float) for own in arrays)
    rng, values = np.random.default_rng(0), []
    for _ in range(4000):
        chosen = np.ix_(rng.integers(0, 5, 5), rng.integers(0, 400, 400))
        values.append(other[chosen].mean() - full[chosen].mean())
    found = samples(root).found
    own = comparison.difference(found["layernorms", "rte", "accuracy"], found["full", "rte", "accuracy"])
    np.testing.assert_allclose(own.interval, np.quantile(values, [0.025, 0.975]), atol=0.004)
    assert own.p < 0.005 and own.mean == pytest.approx(other.mean() - full.mean())


def test_what_is_added_to_a_study_changes_no_interval(tmp_path):
    root = stored.folder(tmp_path)
    noisy(root, "full", 0.8, 1)
    before = samples(root).found["full", "rte", "accuracy"]
    noisy(root, "frozen", 0.6, 2)
    after = samples(root).found["full", "rte", "accuracy"]
    assert before.interval == after.interval and before.honest == after.honest


def test_only_seeds_that_both_settings_finished_are_compared(tmp_path):
    """Seed 1 of the reference diverged; over seeds 0 and 2 the other is 10 points better, over all it is not."""
    root = stored.folder(tmp_path)
    full = np.concatenate([stored.right(count, LABELS, 1) for count in (60, 0, 60)])
    other = np.concatenate([stored.right(count, LABELS, 1) for count in (70, 10, 70)])
    stored.cell(root, "rte", "full", full, LABELS, diverged=[(1, 0)])
    stored.cell(root, "rte", "layernorms", other, LABELS)
    found = samples(root).found
    own = comparison.difference(found["layernorms", "rte", "accuracy"], found["full", "rte", "accuracy"])
    assert (own.seeds, own.mean) == (2, pytest.approx(0.1))
    assert "allow (sign flips): 0.5 with 2 paired seeds;" in make_tables(root, against=Against("full"))


def test_without_a_seed_in_common_nothing_is_compared(tmp_path):
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", stored.right(60, LABELS, 2), LABELS, diverged=[(0, 0)])
    stored.cell(root, "rte", "layernorms", stored.right(60, LABELS, 2), LABELS, diverged=[(1, 0)])
    text = make_tables(root, against=Against("full"))
    assert text.endswith("No comparison for rte/layernorms: no seed has both values.\n") and "≈" not in text


def test_a_task_without_the_reference_is_told_of(tmp_path):
    root = stored.folder(tmp_path, ("rte", "cola"))
    stored.cell(root, "rte", "full", stored.right(60, LABELS), LABELS)
    stored.cell(root, "rte", "layernorms", stored.right(50, LABELS), LABELS)
    stored.cell(root, "cola", "layernorms", stored.right(50, LABELS), LABELS)
    text = make_tables(root, against=Against("full"))
    assert text.endswith("No comparison for cola: it has no full with an interval.\n")
    with pytest.raises(InputError, match=r"--reference: 'layernorm' is not known.*did you mean 'layernorms'"):
        make_tables(root, against=Against("layernorm"))


@pytest.mark.parametrize(
    ("interval", "adjusted", "expected"),
    [
        ((0.02, 0.05), 0.01, "better"),
        ((-0.05, -0.02), 0.01, "worse"),
        ((-0.009, 0.009), 0.9, "on a par"),
        ((0.002, 0.01), 0.01, "on a par"),  # sure, and too small to matter
        ((-0.02, 0.005), 0.3, "cannot tell"),
        ((0.001, 0.05), 0.2, "cannot tell"),  # not after Holm's correction
    ],
)
def test_marks(interval, adjusted, expected):
    own = Difference(3, sum(interval) / 2, interval, 0.01, False, adjusted)
    assert comparison.mark(own, adjusted, 0.01) == expected


def test_the_margin_decides_what_is_on_a_par(tmp_path):
    """Two settings that differ on 4 of 2,000 examples, either way alike."""
    labels = np.arange(2000, dtype=np.int32) % 2
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", stored.right(1500, labels), labels)
    other = stored.right(1500, labels)
    other[..., [0, 1, 1998, 1999]] = 1 - other[..., [0, 1, 1998, 1999]]
    stored.cell(root, "rte", "layernorms", other, labels)
    assert "| layernorms |  50 % | 75.0 ± 0.0 ≈ |" in make_tables(root, against=Against("full"))
    text = make_tables(root, against=Against("full", margin=0.001))
    assert "| layernorms |  50 % | 75.0 ± 0.0 ? |" in text and "lies within ±0.1 points" in text


def test_a_table_is_corrected_as_a_whole(tmp_path):
    """Holm over three settings: the raw p of each, times 3, 2 and 1 from the smallest."""
    root = stored.folder(tmp_path)
    for number, share in enumerate((0.8, 0.76, 0.75, 0.74)):
        noisy(root, ("full", "layernorms", "frozen", "mha")[number], share, number)
    found = samples(root)
    keys = list(found.found)
    support = comparison.support(found, keys, Against("full"))
    own = list(support.differences.values())
    assert len(own) == 3 and [each.adjusted for each in own] == significance.holm([each.p for each in own])
    assert comparison.support(found, keys[:2], Against("full")).differences[keys[1]].adjusted == own[0].p


def test_resamples_are_enough_for_the_paper_s_largest_table():
    """Table 3: 12 blocks and two rows more against `full`, eight tasks, two numbers of MNLI."""
    assert 2 / (significance.RESAMPLES + 1) * 14 * 9 < comparison.ALPHA


def break_cell(own, how):
    arrays, about = results.read_predictions(own)
    if how == "missing":
        (own / "predictions.safetensors").unlink()
    elif how == "cut":
        path = own / "predictions.safetensors"
        path.write_bytes(path.read_bytes()[:100])
    elif how == "moved":
        results.write_predictions(own, arrays | {"last/validation": 1 - arrays["last/validation"]}, about)
    elif how == "other labels":
        turned = {name: 1 - values for name, values in arrays.items()}
        results.write_predictions(own, turned, about)
    elif how == "no epoch":
        results.write_predictions(own, {name: arrays[name] for name in arrays if "last" not in name}, about)
    elif how == "no metadata":
        results.write_predictions(own, arrays, {})
    elif how == "not JSON":
        results.write_predictions(own, arrays, about | {"seeds": "0,1"})
    elif how == "other seeds":
        results.write_predictions(own, arrays, about | {"seeds": "[0, 1]"})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", " is not there."),
        ("cut", " is not what was written"),
        ("moved", " is not of these results: seed 0 has accuracy 0.4000 there and 0.6000 in results.json."),
        ("other labels", " has other labels than that of rte/full."),
        ("no epoch", " lacks 'last/validation'."),
        ("no metadata", " lacks 'seeds'."),
        ("not JSON", ": its metadata are not JSON"),
        ("other seeds", ": last/validation is (3, 1, 100), not its seeds, rates and labels."),
    ],
)
def test_predictions_that_cannot_be_used_cost_the_interval_alone(tmp_path, how, said):
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", stored.right(70, LABELS), LABELS)
    break_cell(stored.cell(root, "rte", "layernorms", stored.right(60, LABELS), LABELS), how)
    text = make_tables(root, against=Against("full"))
    assert "| layernorms |  50 % | 60.0 ± 0.0 |" in text
    assert f"\nNo interval: rte/layernorms/predictions.safetensors{said}" in text and str(tmp_path) not in text


def test_a_metric_without_sums_has_no_interval(tmp_path):
    labels = np.arange(90, dtype=np.int32) % 3
    root = stored.folder(tmp_path)
    own = np.broadcast_to(labels, (2, 1, 90)).copy()
    stored.cell(root, "mine", "full", own, labels, metric="matthews")
    assert "matthews is no function of sums over examples." in make_tables(root)


def test_the_reported_epoch_is_the_one_that_is_resampled(tmp_path):
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", stored.right(0, LABELS), LABELS, best=stored.right(100, LABELS))
    assert samples(root).found["full", "rte", "accuracy"].interval == (1.0, 1.0)


def test_a_mismatched_metric_is_of_the_mismatched_examples(tmp_path):
    root = stored.folder(tmp_path)
    own = stored.cell(root, "mnli", "full", stored.right(100, LABELS), LABELS, split="validation_matched")
    others = np.zeros(50, np.int32)
    arrays, about = results.read_predictions(own)
    more = {"last/validation_mismatched": stored.right(0, others), "labels/validation_mismatched": others}
    results.write_predictions(own, arrays | more, about)
    record = results.read_json(own / "results.json")
    record["eval_examples"]["validation_mismatched"] = 50
    for run in record["runs"]:
        run["last"]["accuracy_mismatched"] = 0.0
    results.write_json(own / "results.json", record)
    found = samples(root).found
    assert found["full", "mnli", "accuracy"].interval == (1.0, 1.0)
    other = found["full", "mnli", "accuracy_mismatched"]
    assert (other.interval, other.honest) == ((0.0, 0.0), None)
    assert "| full    | mnli | accuracy_mismatched | 0.001 |     3 |       50 |" in make_tables(root)
    alone = samples(root, Reading(metrics={"mnli": "accuracy_mismatched"})).found
    assert alone["full", "mnli", "accuracy_mismatched"].honest == 0.0


def test_the_honest_score_chooses_as_the_reading_does(tmp_path):
    """At the first rate seed 0 is right throughout and seeds 1 and 2 nowhere; at the second the other way around."""
    first, second = (
        np.concatenate([stored.right(c, LABELS, 1) for c in counts]) for counts in ((100, 0, 0), (0, 100, 100))
    )
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", np.concatenate([first, second], axis=1), LABELS)
    key = ("full", "rte", "accuracy")
    assert samples(root).found[key].honest == pytest.approx(2 / 3)
    assert samples(root, Reading(how="first_seed")).found[key].honest == pytest.approx(1 / 3)


def test_few_seeds_that_differ_much_are_told_of(tmp_path):
    root = stored.folder(tmp_path)
    stored.cell(root, "rte", "full", stored.right(60, LABELS), LABELS)
    apart = np.concatenate([stored.right(count, LABELS, 1) for count in (40, 60, 80)])
    stored.cell(root, "rte", "layernorms", apart, LABELS)
    said = "Too few seeds for how much they differ, so that the interval is too narrow: rte/layernorms accuracy.\n"
    assert said in make_tables(root)
    assert "interval of the difference is too narrow: rte/layernorms" in make_tables(root, against=Against("full"))


# Three sentences of 2, 3 and 1 words; entities are [PER PER], [LOC], [PER].
TAGS = ("B-LOC", "B-PER", "I-PER", "O")
GIVEN = np.array([1, 2, 0, 3, 3, 1], np.int32)
OFFSETS = [0, 2, 5, 6]


def test_entities_are_resampled_by_the_sentence(tmp_path):
    """Seed 0 cuts the first entity short and finds the other two: 2 of 3 right of 3. Seed 1 finds the second alone,
    and has no prediction for the last word."""
    predicted = np.array([[[1, 3, 0, 3, 3, 1]], [[3, 3, 0, 3, 3, -1]]], np.int32)
    by_hand = {predicted[0].tobytes(): 2 / 3, predicted[1].tobytes(): 2 / 4}
    root = stored.folder(tmp_path)
    stored.cell(
        *(root, "ner", "full", predicted, GIVEN),
        metric="f1",
        score=lambda own: by_hand[own.tobytes()],
        offsets=OFFSETS,
        names=TAGS,
    )
    own = read_evidence(root, results.read_results(root, "ner", "full"), "f1", 1e-3)
    # Of each seed and sentence: how many are right, predicted, there.
    assert own.sums.shares.tolist() == [[[0, 1, 1], [1, 1, 1], [1, 1, 1]], [[0, 0, 1], [1, 1, 1], [0, 0, 1]]]
    assert own.sums.whole.tolist() == [2 / 3, 1 / 2]
    assert "| ner  | f1     | 0.001 |     2 |        6 |" in make_tables(root)


def test_words_of_a_sentence_are_resampled_together(tmp_path):
    """40 sentences of 5 words, each right or wrong as a whole: as 40 examples, not as 200. An empty one is nothing."""
    labels = np.zeros(200, np.int32)
    own = np.repeat(np.arange(40) % 4 == 0, 5).astype(np.int32)[None, None]
    offsets = [0, *range(0, 201, 5)]
    root = stored.folder(tmp_path)
    stored.cell(root, "pos", "full", own, labels, offsets=offsets)
    evidence = read_evidence(root, results.read_results(root, "pos", "full"), "accuracy", 1e-3)
    assert evidence.sums.shares[0, :3].tolist() == [[0, 0], [5, 0], [5, 5]]
    low, high = samples(root).found["full", "pos", "accuracy"].interval
    half = 1.96 * np.sqrt(0.75 * 0.25 / 40)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.02)


def test_words_without_their_sentences_have_no_interval(tmp_path):
    root = stored.folder(tmp_path)
    own = stored.cell(root, "pos", "full", stored.right(60, LABELS), LABELS, offsets=[0, 50, 100])
    arrays, about = results.read_predictions(own)
    del arrays["offsets/validation"]
    results.write_predictions(own, arrays, about)
    said = "No interval: pos/full/predictions.safetensors does not say where sentences of validation begin"
    assert said in make_tables(root)
    results.write_predictions(own, arrays | {"offsets/validation": np.array([0, 50], np.int32)}, about)
    assert "offsets/validation do not span its 100 labels." in make_tables(root)


def test_the_least_difference_is_the_median_over_pairs(tmp_path):
    """Without a reference over all pairs; two cells that differ on a tenth of 1,000 examples, either way alike."""
    labels = np.zeros(1000, np.int32)
    root = stored.folder(tmp_path)
    for setting, wrong in (("full", slice(0, 50)), ("layernorms", slice(50, 100))):
        own = np.zeros((3, 1, 1000), np.int32)
        own[..., wrong] = 1
        stored.cell(root, "rte", setting, own, labels)
    pair = list(samples(root).found.values())
    least = comparison.least_difference([tuple(pair)])
    assert least == pytest.approx(2.8016 * np.sqrt(1e-4), rel=0.03)
    assert comparison.least_difference([tuple(pair), (pair[0], pair[0]), (pair[1], pair[1])]) == 0
    assert comparison.least_difference([]) is None
    same = dataclasses.replace(pair[1], seeds=(7, 8, 9))
    assert comparison.least_difference([(pair[0], same)]) is None
