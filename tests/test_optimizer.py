import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lnflax import bert, masks, rules, step
from lnflax.batches import Batch, Targets
from lnflax.bert import BertConfig
from lnflax.optimizer import OptimizerConfig, make_optimizer, schedule
from tests import tiny

PAPER = OptimizerConfig(
    eps=1e-6, epsilon_form="adam", b1=0.9, b2=0.999, weight_decay=0.0, clip_norm=0.0, head_learning_rate=0.0
)
LABELS = {
    "bert": {"kernel": "frozen", "whole": "trainable", "part": "masked"},
    "classifier": {"kernel": "trainable"},
}
MASK = {
    "bert": {"kernel": None, "whole": None, "part": np.array([True, False, True, False])},
    "classifier": {"kernel": None},
}


def tree(kernel, whole, part, head):
    """Full trees have None at frozen leaves, so `kernel` is None for all but the labels."""
    arrays = [None if leaf is None else jnp.array(leaf, jnp.float32) for leaf in (kernel, whole, part, head)]
    return {
        "bert": dict(zip(("kernel", "whole", "part"), arrays[:3], strict=True)),
        "classifier": {"kernel": arrays[3]},
    }


VALUES = tree(None, [1, -2, 3], [0.5, -0.0, -0.5, 7], [[0.25], [-0.25]])


def gradients(number, scale=1.0):
    rng = np.random.default_rng(number)
    return tree(None, scale * rng.normal(size=3), scale * rng.normal(size=4), scale * rng.normal(size=(2, 1)))


def config(**changes):
    return dataclasses.replace(PAPER, **changes)


def run(given, grads, values=VALUES, mask=MASK, rate=0.1, head_rate=None):
    """The updates of as many steps as there are gradients, and the values after each."""
    head_rate = rate if head_rate is None else head_rate
    state = make_optimizer(given, LABELS, mask, rate=0.0, head_rate=0.0, step=0).init(values)

    @jax.jit
    def one(values, state, grad, number):
        optimizer = make_optimizer(given, LABELS, mask, rate=rate, head_rate=head_rate, step=number)
        updates, state = optimizer.update(grad, state, values)
        return updates, masks.select(mask, optax.apply_updates(values, updates), values), state

    history = []
    for number, grad in enumerate(grads):
        updates, values, state = one(values, state, grad, number)
        history.append((updates, values))
    return history


def close(a, b, rtol=1e-6, atol=1e-7):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


@pytest.mark.parametrize(
    ("kind", "steps", "ratio", "expected"),
    [
        ("linear", 20, 0.1, [0, 1 / 2, *(n / 18 for n in range(18, 0, -1))]),
        ("constant", 20, 0.1, [0, 1 / 2, *[1] * 18]),
        ("linear", 11, 0.1, [0, 1 / 2, *(n / 9 for n in range(9, 0, -1))]),  # W = ceil(1.1)
        ("linear", 4, 0.0, [1, 3 / 4, 2 / 4, 1 / 4]),
        ("constant", 3, 0.0, [1, 1, 1]),
        ("linear", 4, 0.5, [0, 1 / 2, 1, 1 / 2]),
        ("linear", 1, 0.1, [0]),
        ("linear", 2, 0.99, [0, 1 / 2]),
        ("linear", 0, 0.1, []),
    ],
)
def test_the_schedule(kind, steps, ratio, expected):
    found = schedule(kind, steps, ratio)
    assert found.dtype == np.float64
    assert found.tolist() == expected


@pytest.mark.parametrize("steps", [30, 1560, 7000, 245_440])
def test_the_warm_up_of_whole_tenths_is_exact(steps):
    assert int(np.argmax(schedule("linear", steps, 0.1))) == steps // 10


def test_frozen_leaves_carry_no_state_and_get_no_update():
    big = {
        "bert": {"kernel": None, "whole": jnp.zeros(5), "part": jnp.zeros(3)},
        "classifier": {"kernel": jnp.zeros(2)},
    }
    mask = {**MASK, "bert": {**MASK["bert"], "part": np.array([True, False, True])}}
    optimizer = make_optimizer(PAPER, LABELS, mask, rate=0.1, head_rate=0.1, step=0)
    state = optimizer.init(big)
    # Two moments of float32 a trained scalar, and a counter for each of head, trainable and masked.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 2 * 4 * (5 + 3 + 2) + 3 * 4
    updates, state = optimizer.update(jax.tree.map(jnp.ones_like, big), state, big)
    assert updates["bert"]["kernel"] is None
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(state)) == 2 * 4 * (5 + 3 + 2) + 3 * 4


def test_adam_form_is_optax_adam():
    grads = [gradients(i, scale=1e-5) for i in range(5)]
    expected, optimizer = VALUES, optax.adam(0.1, b1=0.9, b2=0.999, eps=1e-6)
    state = optimizer.init(expected)
    whole = jax.tree.map(lambda leaf: None, MASK)
    for grad, (updates, values) in zip(grads, run(PAPER, grads, mask=whole), strict=True):
        own, state = optimizer.update(grad, state, expected)
        expected = optax.apply_updates(expected, own)
        close(updates, own)
        close(values, expected)


@pytest.mark.parametrize("form", ["adam", "keras"])
def test_the_two_forms_against_numpy(form):
    # Gradients as small as epsilon: elsewhere the two forms cannot be told apart.
    grads = [np.random.default_rng(i).normal(size=3) * 1e-6 for i in range(5)]
    given = config(epsilon_form=form)
    history = run(given, [tree(None, grad, np.zeros(4), np.zeros((2, 1))) for grad in grads])
    p, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, grad in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        if form == "keras":
            p = p - 0.1 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-6)
        else:
            p = p - 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6)
        np.testing.assert_allclose(history[t - 1][1]["bert"]["whole"], p, rtol=2e-6)


def test_the_two_forms_differ():
    grads = [gradients(0, scale=1e-6)]
    adam, keras = (run(config(epsilon_form=form), grads)[0][0]["bert"]["whole"] for form in ("adam", "keras"))
    assert (np.abs(adam) > 2 * np.abs(keras)).all()


def test_weight_decay_is_decoupled():
    grads = [gradients(0)]
    plain, decayed = (run(config(weight_decay=decay), grads)[0][0] for decay in (0.0, 0.3))
    for group, leaf in (("bert", "whole"), ("classifier", "kernel")):
        np.testing.assert_allclose(
            decayed[group][leaf], plain[group][leaf] - 0.1 * 0.3 * VALUES[group][leaf], rtol=1e-5
        )


def test_clipping_is_by_the_norm_of_all_trained_scalars():
    # An epsilon of 1 keeps Adam from dividing the clipping out again.
    grad = tree(None, [1, 2, 2], [4, 1e6, 2, 1e6], [[2], [4]])  # the norm without the masked is 7
    third = tree(None, [1 / 3, 2 / 3, 2 / 3], [4 / 3, 0, 2 / 3, 0], [[2 / 3], [4 / 3]])
    clipped = run(config(eps=1.0, clip_norm=7 / 3), [grad])[0][0]
    close(clipped, run(config(eps=1.0), [third])[0][0], rtol=1e-5)
    close(run(config(eps=1.0, clip_norm=7.1), [grad])[0][0], run(config(eps=1.0), [grad])[0][0])


def test_the_heads_rate_is_the_heads_alone():
    one, both = run(PAPER, [gradients(0)], rate=0.1)[0][0], run(PAPER, [gradients(0)], rate=0.1, head_rate=0.4)[0][0]
    close(both["bert"], one["bert"])
    np.testing.assert_allclose(both["classifier"]["kernel"], 4 * one["classifier"]["kernel"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes", [{}, {"weight_decay": 0.1}, {"clip_norm": 0.5}, {"weight_decay": 0.1, "clip_norm": 0.5}]
)
def test_masked_scalars_keep_their_bits(changes):
    history = run(config(**changes), [gradients(i) for i in range(5)])
    before, after = VALUES["bert"]["part"], history[-1][1]["bert"]["part"]
    outside = ~MASK["bert"]["part"]
    assert np.asarray(before).view(np.uint32)[outside].tolist() == np.asarray(after).view(np.uint32)[outside].tolist()
    assert np.signbit(after[1])  # the -0.0
    assert (np.asarray(before) != np.asarray(after))[~outside].all()
    assert all(not np.asarray(updates["bert"]["part"])[outside].any() for updates, _ in history)


def test_a_masked_nan_stays_out():
    grads = [gradients(i) for i in range(5)]
    spoilt = [
        {**grad, "bert": {**grad["bert"], "part": jnp.where(MASK["bert"]["part"], grad["bert"]["part"], jnp.nan)}}
        for grad in grads
    ]
    given = config(weight_decay=0.1, clip_norm=0.5)
    for (_, expected), (_, found) in zip(run(given, grads), run(given, spoilt), strict=True):
        jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_training_a_bert_moves_what_the_mask_names_and_no_bit_else():
    model = BertConfig(13, 8, 1, 2, 12, 6, 2)
    shapes = bert.parameter_shapes(model)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    params["bert"]["encoder"]["layer"]["0"]["output"]["LayerNorm"]["bias"][:] = -0.0
    norms = "bert/encoder/.*/LayerNorm/.*"
    labels = rules.label(shapes, [(norms, "masked"), ("bert/.*", "frozen"), (".*", "trainable")])
    mask = jax.tree.map(lambda label, leaf: rng.random(leaf.shape) < 0.5 if label == "masked" else None, labels, params)
    given = config(weight_decay=0.1, clip_norm=0.5)
    recipe = step.Recipe(model, tuple(rules.flatten(labels).items()), given)
    values, frozen = rules.split(params, labels)
    ids = np.ones((2, 3), np.int32) * np.array([[1], [2]], np.int32)
    targets = Targets(np.array([0, 1]), np.zeros(2, np.int32), np.array([0, 1]), np.ones(2, np.float32))
    batch = Batch(rng.integers(0, 13, (2, 3)), 0 * ids, np.arange(3)[None] + 0 * ids, ids, targets)

    @jax.jit
    def one(state, number):
        features = step.prefix(recipe, frozen, batch, {})
        update = step.Update(0.01, 0.01, number)
        return step.train_step(recipe, frozen, state, tiny.whole_mask(mask), features, batch, {}, update)[0]

    state = step.initial_state(recipe, values, tiny.whole_mask(mask))
    for number in range(5):
        state = one(state, number)
    before, after, flat = map(rules.flatten, (values, state.values, mask))
    for path, leaf in before.items():
        if leaf is None:
            assert after[path] is None
            continue
        inside = np.ones(leaf.shape, bool) if flat[path] is None else flat[path]
        old, new = leaf.view(np.uint32), np.asarray(after[path]).view(np.uint32)
        assert (old == new)[~inside].all(), path
        assert (old != new)[inside].all(), path
