"""Recomputation changes what is kept, not what comes out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lnflax import bert, recompute, rules, step
from tests import grids, tiny

LIKE = {"rtol": 1e-5, "atol": 1e-6}  # float32; the two programs may fuse differently


def gradients(recipe, params, batch, stream):
    """Loss and gradients of the trained leaves, dropout on, the prefix computed apart."""
    trained, frozen = rules.split(params, recipe.label_tree)
    chosen = jax.tree.map(lambda label: None, recipe.label_tree)
    below, above = step.noise(recipe, batch, stream, jnp.int32(3))

    def loss(trained):
        features = step.prefix(recipe, frozen, batch, below)
        logits = step.suffix(recipe, trained, frozen, chosen, features, batch, above)
        return step.losses(logits, batch.targets).sum()

    return jax.value_and_grad(loss)(trained)


@pytest.mark.parametrize("setting", ["full", "layernorms", "outliers_4", "single_norm_2"])
def test_gradients_are_those_without(setting):
    own, _ = grids.make(setting, grids.study(), pooling="mean")
    model, batch = own.recipe.model, tiny.batch(tiny.examples(7, 4, 5, 3), [[2, 0], [3, 1]])
    both = [
        tiny.jit(functools.partial(gradients, dataclasses.replace(own.recipe, recompute=again)))(
            tiny.params(model), batch, jnp.uint32(7)
        )
        for again in (False, True)
    ]
    (loss, plain), (again, computed) = both
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    for path, value in rules.flatten(plain).items():
        assert (value is None) == (rules.flatten(computed)[path] is None), path
        if value is not None:
            np.testing.assert_allclose(rules.flatten(computed)[path], value, **LIKE, err_msg=path)


def test_a_grid_trains_as_without():
    """Two seeds, two rates, at once; ten steps with dropout on."""
    losses = []
    for again in (False, True):
        own, _ = grids.make("layernorms", grids.study(seeds=(0, 1), learning_rates=(1e-3, 1e-2), epochs=2))
        own = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, recompute=again))
        losses.append(grids.train(own)[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("setting", ["layernorms", "full"])
def test_the_compiled_program_needs_less(setting):
    """Four blocks keep four inputs, and the inside of one."""
    own, _ = grids.make(setting, grids.study(), num_hidden_layers=4, **grids.dropout_free())
    batch = tiny.batch(tiny.examples(*[20] * 16))
    temporary = []
    for again in (False, True):
        function = functools.partial(gradients, dataclasses.replace(own.recipe, recompute=again))
        lowered = tiny.jit(function).lower(bert.parameter_shapes(own.recipe.model), batch, jnp.uint32(7))
        temporary.append(lowered.compile().memory_analysis().temp_size_in_bytes)
    assert temporary[1] < 0.5 * temporary[0]


def test_a_gradient_of_nan_stays_one():
    """A run that has diverged is seen as such."""
    function = recompute.recomputed(lambda trained, x, rest: jnp.sin(trained * x) * rest)
    one = jnp.ones(3)
    _, pull = jax.vjp(lambda trained, x: function(trained, x, one), 2 * one, 3 * one)
    for first in (1.0, np.nan, np.inf, -np.inf):
        back = jnp.array([first, 1.0, 1.0])
        trained, x = pull(back)
        np.testing.assert_array_equal(trained, back * jnp.cos(6.0) * 3)
        np.testing.assert_array_equal(x, back * jnp.cos(6.0) * 2)
