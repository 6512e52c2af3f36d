"""The grid against the single run: same numbers whatever the companions, chunks, devices; frozen bits stay."""

import dataclasses

import jax
import numpy as np
import pytest

from lnflax import grid, masks, packing, rules, step, trainer
from lnflax.grid import Chunks
from lnflax.packing import Shape
from lnflax.trainer import Rows
from tests import grids, tiny

ONE = {"learning_rates": (1e-2,), "seeds": (0,)}
SIX = {"learning_rates": (1e-3, 3e-3, 1e-2), "seeds": (0, 1)}
STEPS_20 = {"epochs": 7}  # of 3 steps
KERNELS = ((12, 12), (12, 20), (20, 12))
TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}  # float32, after 20 steps


def run(setting="layernorms", *, device_count=1, split=False, chunks=grids.SINGLE, data=None, model=None, **fields):
    places = {"device_count": device_count, "split": split, "chunks": chunks}
    own, _ = grids.make(setting, grids.study(**fields), **places, data=data, **model or {})
    states, losses = grids.train(own)
    return own, states, losses


@pytest.mark.parametrize("setting", grids.SETTINGS)
def test_only_what_the_setting_names_changes_and_all_of_it_does(setting):
    study = grids.study(**SIX, epochs=2, optimizer__weight_decay=0.1, optimizer__clip_norm=1.0)
    own, body = grids.make(setting, study)
    states, _ = grids.train(own)
    labels = dict(own.recipe.labels)
    chosen = [rules.flatten(mask) for mask in grids.drawn(setting, study)]
    for path, values in grids.final(own, states).items():
        for seed, rate in np.ndindex(values.shape[:2]):
            now = values[seed, rate]
            if labels[path] == "frozen":
                assert now.tobytes() == body[path].tobytes(), path
            elif labels[path] == "masked":
                inside = chosen[seed][path]
                assert now[~inside].tobytes() == body[path][~inside].tobytes(), path
                assert not inside.any() or (now[inside] != body[path][inside]).any(), path
            elif path.startswith("bert/"):
                assert (now != body[path]).any(), path
    assert trainer.unmoved(own, states) == []
    assert trainer.unmoved(own, trainer.start(own)) == list(trained_paths(labels, chosen))


def trained_paths(labels, chosen):
    """Where something trains, embeddings of a mask apart: rows that no example has cannot move."""
    for path, label in labels.items():
        masked = label == "masked" and not path.startswith("bert/embeddings/")
        if label == "trainable" or (masked and any(mask[path].any() for mask in chosen)):
            yield path


@pytest.mark.parametrize("setting", ["layernorms", "random", "full", "frozen", "single_norm_2"])
def test_a_run_in_a_grid_equals_the_run_alone(setting):
    _, _, together = run(setting, **SIX, **STEPS_20)
    _, _, alone = run(setting, seeds=(1,), learning_rates=(3e-3,), **STEPS_20)
    assert together.shape == (21, 2, 3)
    np.testing.assert_allclose(together[:20, 1, 1], alone[:20, 0, 0], **TOLERANCE)


@pytest.mark.parametrize("chunks", [(1, 1), (2, 1), (1, 3), (2, 2), (9, 9)])
def test_every_chunk_size_gives_the_same(chunks):
    _, _, losses = run("layernorms", chunks=Chunks(*chunks), **SIX, **STEPS_20)
    _, _, plain = run("layernorms", chunks=Chunks(1, 1), **SIX, **STEPS_20)
    np.testing.assert_allclose(losses[:20], plain[:20], **TOLERANCE)


def test_seven_rates_on_four_devices_equal_one_device():
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 2e-2, 3e-2)
    own, states, four = run("outliers_4", device_count=4, seeds=(3,), learning_rates=rates, **STEPS_20)
    assert own.plan.rates == ((0, 1), (2, 3), (4, 5), (6, 6))
    one_own, one_states, one = run("outliers_4", device_count=1, seeds=(3,), learning_rates=rates, **STEPS_20)
    np.testing.assert_allclose(four[:20], one[:20], **TOLERANCE)
    dev = grids.examples(13)
    pairs = zip(grids.evaluate(own, states, dev), grids.evaluate(one_own, one_states, dev), strict=True)
    for ours, theirs in pairs:
        assert ours.shape == (1, 7, 13)
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("model", [{"pooling": "mean"}, {"pooling": "pooler", "num_outputs": 1}])
def test_one_run_on_four_devices_with_its_batch_split_equals_one_device(model):
    data = grids.examples(21, outputs=model.get("num_outputs", 2))  # the last step is not full
    own, states, four = run("layernorms", device_count=4, data=data, model=model, **ONE, **STEPS_20)
    assert own.plan.batch_parts == own.plan.devices == 4
    one_own, one_states, one = run("layernorms", device_count=1, data=data, model=model, **ONE, **STEPS_20)
    np.testing.assert_allclose(four[:20], one[:20], **TOLERANCE)
    for path, leaf in grids.final(own, states).items():
        np.testing.assert_allclose(leaf, grids.final(one_own, one_states)[path], rtol=1e-3, atol=1e-4, err_msg=path)
    ours, theirs = (grids.evaluate(*pair, data) for pair in ((own, states), (one_own, one_states)))
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("seeds", "rates", "parts"), [((1,), (1e-3, 1e-2), 2), ((0, 1), (1e-3, 3e-3, 1e-2), 2)])
def test_groups_of_devices_that_split_their_batches_equal_one_device(seeds, rates, parts):
    fields = {"seeds": seeds, "learning_rates": rates, **STEPS_20}
    own, states, many = run("outliers_4", device_count=4, split=True, **fields)
    assert (own.plan.batch_parts, own.plan.devices) == (parts, 4)
    one_own, one_states, one = run("outliers_4", **fields)
    np.testing.assert_allclose(many[:20], one[:20], **TOLERANCE)
    dev = grids.examples(29)
    pairs = zip(grids.evaluate(own, states, dev), grids.evaluate(one_own, one_states, dev), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("setting", "split"), [("layernorms", False), ("random", True), ("frozen", True)])
def test_a_packed_study_equals_a_plain_one(setting, split):
    """The same examples a step and the same dropout bits: 20 steps, and the evaluation of a set not seen."""
    devices = {"device_count": 2 if split else 1, "split": split}
    packed, states, losses = run(setting, packing=True, **devices, **SIX, **STEPS_20)
    plain, plain_states, plain_losses = run(setting, **devices, **SIX, **STEPS_20)
    assert packed.rows.shapes[0].rows < plain.rows.shapes[0].rows
    np.testing.assert_allclose(losses[:20], plain_losses[:20], **TOLERANCE)
    dev = grids.examples(37)
    pairs = zip(grids.evaluate(packed, states, dev), grids.evaluate(plain, plain_states, dev), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_the_same_twice_is_bit_identical():
    for devices in (1, 4):
        first, second = (run("random", device_count=devices, **SIX, epochs=2) for _ in range(2))
        assert first[2].tobytes() == second[2].tobytes()
        for a, b in zip(jax.tree.leaves(first[1]), jax.tree.leaves(second[1]), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_a_diverging_run_leaves_its_neighbours_alone():
    _, _, losses = run("full", seeds=(0,), learning_rates=(1e-3, 1e30), epochs=3)
    _, _, alone = run("full", seeds=(0,), learning_rates=(1e-3,), epochs=3)
    assert not np.isfinite(losses[-1, 0, 1])
    np.testing.assert_allclose(losses[:, 0, 0], alone[:, 0, 0], **TOLERANCE)


def test_dropout_is_on_while_training_and_off_in_evaluation():
    own, states, losses = run("frozen", **ONE, epochs=1)
    _, _, without = run("frozen", **ONE, epochs=1, model=grids.dropout_free())
    assert abs(losses[0] - without[0]) > 1e-4
    first, second = (grids.evaluate(own, states, own.train)[1] for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_evaluation_is_in_data_order_and_counts_each_example_once():
    own, states, _ = run("layernorms", **SIX)
    few = grids.examples(150)
    whole, whole_loss = grids.evaluate(own, states, few)
    assert whole.shape == whole_loss.shape == (2, 3, 150)
    for i in (0, 77, 149):
        start, stop = few.offsets[i : i + 2]
        single = type(few).of_sentences(
            few.tokens[start:stop], few.token_types[start:stop], np.array([0, stop - start]), few.labels[i : i + 1]
        )
        prediction, loss = grids.evaluate(own, states, single)
        np.testing.assert_allclose(loss[..., 0], whole_loss[..., i], rtol=1e-4, atol=1e-5)
        assert (prediction[..., 0] == whole[..., i]).all()


def test_frozen_leaves_carry_no_state_and_no_gradient():
    own, _ = grids.make("layernorms", grids.study(**ONE))
    states = trainer.start(own)
    trained = 2 * 2 * 2 * 12 + 12 * 2 + 2  # two blocks of two norms of scale and bias, and the head
    scalars = sum(leaf.size for leaf in jax.tree.leaves(states))
    counters = sum(leaf.size for leaf in jax.tree.leaves(states) if leaf.dtype == np.int32)
    assert scalars - counters == 3 * trained  # values, first and second moments
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(states)) == 4 * (3 * trained + counters)
    assert counters <= 3


def test_a_masked_nan_gradient_stays_out():
    mask = {"a": np.array([True, False])}
    kept = masks.select(mask, {"a": np.array([1.0, np.nan])}, {"a": np.zeros(2)})
    assert kept["a"].tolist() == [1.0, 0.0]


def products(own, chunks, batch_shape=(8, 16)):
    """How often each dot of a training step is computed, from the jaxpr: [(times, flops of one)]."""
    states = trainer.start(own)
    squeeze = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
    own = dataclasses.replace(own, rows=Rows(packing.plain, (Shape(*batch_shape),)))
    batch, _ = squeeze(trainer.train_batches(own, trainer.plan_epoch(own, 1), 0, 1))
    update = squeeze(trainer.make_updates(own, 0, 1))
    jaxpr = jax.make_jaxpr(
        lambda *args: grid.train_steps(own.recipe, chunks, own.plan.device_sum, *args),
    )(squeeze(states), squeeze(own.frozen), squeeze(own.masks), squeeze(own.streams), batch, None, update, np.int32(1))
    return list(walk(jaxpr.jaxpr, 1))


def walk(jaxpr, times):
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[i] for i in contract])
            yield times, int(2 * inner * np.prod(equation.outvars[0].aval.shape)), equation
        # A loop with a known count is a scan; the loop over steps, a while, is counted once.
        trips = times * equation.params.get("length", 1)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from walk(inner, trips)


def flops(*args):
    return sum(times * one for times, one, _ in products(*args))


def grid_of(setting, seeds, rates):
    study = grids.study(seeds=tuple(range(seeds)), learning_rates=tuple(1e-3 * (i + 1) for i in range(rates)))
    return grids.make(setting, study)[0]


@pytest.mark.parametrize("chunks", [Chunks(1, 1), Chunks(9, 9), Chunks(1, 9)])
def test_the_prefix_is_computed_once_a_seed(chunks):
    """frozen: all but the head's product is prefix; single_norm_2: the first block and the second's attention are."""
    head = 3 * 2 * 8 * 12 * 2  # forward, and the gradients of kernel and input: the dropped input needs none
    one, seven = (flops(grid_of("frozen", 2, rates), chunks) for rates in (1, 7))
    assert 0 < seven - one <= 2 * 6 * head
    once, more = (flops(grid_of("single_norm_2", 2, rates), chunks) for rates in (1, 7))
    suffix_one = (more - once) / (2 * 6)
    prefix_one = once / 2 - suffix_one
    tokens, hidden, wide, length, targets = 8 * 16, 12, 20, 16, 8
    block = 2 * tokens * (4 * hidden * hidden + 2 * hidden * wide) + 2 * 2 * tokens * length * hidden
    # Keys and values of all tokens; queries and output of the targets, which are 8 columns in each of the 8 rows.
    attention = 2 * 2 * (tokens + targets) * hidden * hidden + 2 * 2 * 8 * 8 * length * hidden
    assert prefix_one == block + attention


def test_no_product_with_a_frozen_kernel_is_done_run_by_run():
    """All at once, a grid has as many products as a run alone: each frozen kernel meets all runs in one product."""
    every = Chunks(9, 9)
    alone, together = (products(grid_of("layernorms", *size), every) for size in ((1, 1), (2, 7)))
    assert all(times == 1 for times, _, _ in together)
    assert len(together) == len(alone)
    kernels = [eq.invars[0].aval.shape for _, _, eq in together if eq.invars[1].aval.shape in KERNELS]
    prefix, suffix = 4, 8 + 2 * 6 - 4  # attention below the first norm; the rest forward, and backward to the norm
    assert sum(shape[:2] == (2, 8) for shape in kernels) == prefix
    assert sum(shape[:2] == (2, 7) for shape in kernels) >= suffix
    assert all(shape[:2] in ((2, 8), (2, 7)) for shape in kernels)


def test_layernorms_have_no_weight_gradient_of_a_frozen_kernel():
    """The backward pass costs at most one product for each forward one, where full costs two."""
    chunks = Chunks(1, 1)
    forward_and_back = flops(grid_of("layernorms", 1, 1), chunks)
    full = flops(grid_of("full", 1, 1), chunks)
    tokens, hidden, wide = 8 * 16, 12, 20
    weight_gradients = 2 * (2 * tokens * (4 * hidden * hidden + 2 * hidden * wide))
    assert full - forward_and_back >= weight_gradients


def test_programs_are_shared_by_cells_of_one_recipe():
    first, _ = grids.make("layernorms", grids.study(**ONE))
    second, _ = grids.make("layernorms", grids.study(**ONE, optimizer__warmup_ratio=0.5, epochs=3))
    programs = [grid.train_program(own.recipe, own.chunks, own.plan) for own in (first, second)]
    assert programs[0] is programs[1]


@pytest.mark.parametrize("setting", ["layernorms", "full"])
def test_packed_rows_train_as_plain_ones_do(setting):
    """20 steps with dropout on, the examples of each step one a row, and several a row in another order."""
    own, _ = grids.make(setting, grids.study(**ONE), pooling="mean")
    examples = tiny.examples(7, 4, 5, 3)
    plain, packed = (tiny.batch(examples, layout) for layout in (None, [[2, 0], [3, 1]]))
    assert packed.tokens.shape == (2, 12)
    ends = [train_alone(own, batch, steps=20) for batch in (plain, packed)]
    np.testing.assert_allclose(ends[1][1], ends[0][1], **TOLERANCE)
    for one, other in zip(*(jax.tree.leaves(state.values) for state, _ in ends), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def train_alone(own, batch, steps):
    """The plain step, again and again on one batch, at 1e-3: the state, and the loss of every step."""
    first = jax.tree.map(lambda x: x[0, 0, 0], trainer.start(own))
    frozen, mask, stream = (jax.tree.map(lambda x: x[0], tree) for tree in (own.frozen, own.masks, own.streams))
    mask = jax.tree.map(lambda x: x[0], mask)

    @jax.jit
    def one(state, frozen, batch, number):
        below, above = step.noise(own.recipe, batch, stream[0], number)
        features = step.prefix(own.recipe, frozen, batch, below)
        update = step.Update(rate=1e-3, head_rate=1e-3, step=number)
        return step.train_step(own.recipe, frozen, state, mask, features, batch, above, update)

    losses = []
    for number in range(steps):
        first, loss = one(first, frozen, batch, np.int32(number))
        losses.append(loss)
    return first, np.array(losses)
