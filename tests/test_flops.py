"""What a step computes, by the compiler's own count: flops of programs made from shapes, no weight."""

import functools

import jax

from lnflax import bert, masks, rules, settings, shapes, step
from tests import grids, tiny

MIDDLE = {
    "vocab_size": 3000,
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "pooling": "mean",
}


@functools.cache
def costs(setting, stored="gathered"):
    """Flops of a step of a middle-sized model, 8 rows of 72 tokens, and its bytes."""
    model, study = tiny.config(**MIDDLE), grids.study()
    sizes = {"layers": model.num_hidden_layers, "hidden_size": model.hidden_size}
    rule = settings.make_setting(setting, study.options, **sizes, user_rules={})
    params = bert.parameter_shapes(model)
    labels = rules.label(params, rule.rules)
    counts = masks.sizes([masks.choose(rule.mask, params, labels, 0)] if stored == "gathered" else [])
    recipe = step.Recipe(model, tuple(rules.flatten(labels).items()), study.optimizer, gathered=counts)
    given = shapes.train_arguments(recipe, 1, 1, shapes.batch_shapes(recipe, (1, 1), 8, 72, 16))
    states, frozen, mask, streams, batches, _, updates, _ = given

    def one(state, frozen, mask, stream, batch, update):
        below, above = step.noise(recipe, batch, stream, update.step)
        features = step.prefix(recipe, frozen, batch, below)
        return step.train_step(recipe, frozen, state, mask, features, batch, above, update)

    update = step.Update(*(jax.ShapeDtypeStruct((), x.dtype) for x in updates))
    given = (first(states, 2), frozen, first(mask), first(streams), first(batches, 2), update)
    program = tiny.jit(one, donate_argnums=0).lower(*given).compile()
    memory = program.memory_analysis()
    return program.cost_analysis()["flops"], memory.argument_size_in_bytes + memory.temp_size_in_bytes


def first(tree, axes=1):
    """Shapes without their leading axes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[axes:], x.dtype), tree)


LENGTH, HIDDEN, WIDE, BLOCKS = 72, 128, 512, 6
TOKENS = 8 * LENGTH
FEED_FORWARD = 2 * TOKENS * 2 * HIDDEN * WIDE  # one pass through its two products
PROJECTIONS = 2 * TOKENS * 4 * HIDDEN**2  # query, key, value, output
SCORES = 2 * TOKENS * LENGTH * HIDDEN  # one product of attention itself


def test_a_frozen_kernel_has_no_weight_gradient():
    """`full` costs one product more for each kernel, the way back through the first attention, and its updates."""
    more = costs("full")[0] - costs("layernorms")[0]
    products = BLOCKS * (PROJECTIONS + FEED_FORWARD) + PROJECTIONS + 4 * SCORES
    scalars = sum(x.size for x in jax.tree.leaves(bert.parameter_shapes(tiny.config(**MIDDLE))))
    assert 0 < more - products < 50 * scalars


def test_nothing_is_sent_back_below_the_first_trained_norm():
    """The last block's feed-forward pass is all that lies between its two norms; frozen sends nothing back."""
    more = costs("single_norm_6")[0] - costs("frozen")[0]
    assert FEED_FORWARD < more < 1.2 * FEED_FORWARD


def test_a_random_step_costs_about_what_one_of_layernorms_does():
    """Whole leaves cost a weight gradient for each product, and moments as large as the model."""
    random, norms, whole = costs("random"), costs("layernorms"), costs("random", stored="whole")
    assert random[0] < 1.1 * norms[0] < 0.8 * whole[0]
    assert random[1] < 1.3 * norms[1] < 0.8 * whole[1]
