import numpy as np
import pytest

from lnflax import heads
from tests import tiny

SHAPE = tiny.config(hidden_size=12, num_outputs=2)
WIDE = tiny.config(hidden_size=3000, num_attention_heads=3, num_outputs=3)


def kernel(shape=SHAPE, init="normal", seed=0, task="rte"):
    return heads.make_head(shape, init=init, seed=seed, task=task)["classifier/kernel"]


def test_a_head_is_a_kernel_and_a_zero_bias():
    head = heads.make_head(SHAPE, init="normal", seed=0, task="rte")
    assert {path: (leaf.shape, leaf.dtype) for path, leaf in head.items()} == {
        "classifier/bias": ((2,), np.float32),
        "classifier/kernel": ((12, 2), np.float32),
    }
    assert not head["classifier/bias"].any()


# Of this release; a change of them changes every published number.
PINNED = {
    "normal": [[-0.01553697, -0.03745952], [0.04006198, 0.03065739]],
    "truncated_normal": [[-0.01468313, -0.03253472], [0.03405532, 0.02776199]],
}


@pytest.mark.parametrize("init", PINNED)
def test_the_first_values_are_pinned(init):
    np.testing.assert_allclose(kernel(init=init)[:2], PINNED[init], rtol=1e-5)


@pytest.mark.parametrize("init", ["normal", "truncated_normal"])
def test_a_head_is_a_function_of_seed_and_task(init):
    assert (kernel(init=init) == kernel(init=init)).all()
    others = [kernel(init=init), kernel(init=init, seed=1), kernel(init=init, task="mrpc")]
    assert len({own.tobytes() for own in others}) == 3


@pytest.mark.parametrize("spread", [0.02, 0.3])
def test_a_normal_kernel_has_the_checkpoints_deviation(spread):
    values = kernel(tiny.config(hidden_size=3000, num_outputs=3, initializer_range=spread))
    np.testing.assert_allclose(values.std(), spread, rtol=0.03)
    assert abs(values.mean()) < 4 * spread / np.sqrt(values.size)
    assert np.abs(values).max() > 3 * spread


def test_a_truncated_kernel_ends_at_two_deviations():
    values = kernel(WIDE, init="truncated_normal")
    assert 1.99 * 0.02 < np.abs(values).max() <= 2 * 0.02
    # The deviation of a standard normal cut at ±2.
    np.testing.assert_allclose(values.std(), 0.8796 * 0.02, rtol=0.03)


def test_zeros():
    assert not kernel(init="zeros").any()


def test_one_output_for_regression():
    assert kernel(tiny.config(num_outputs=1)).shape == (12, 1)
