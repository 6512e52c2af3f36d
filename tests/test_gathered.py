"""Chosen scalars of kernels and tables as vectors: what they compute, and that training them equals the dense way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lnflax import bert, gathered, masks, rules, shapes, trainer
from lnflax.gathered import Gathered, Index
from lnflax.grid import Chunks
from tests import grids, tiny

WORDS = "bert/embeddings/word_embeddings/embedding"
QUERY = "bert/encoder/layer/0/attention/self/query/kernel"
UNUSED = 2  # slots past those that a drawn mask uses


def leaf(rows, columns, count, spare=UNUSED, name="leaf"):
    """A leaf with `count` scalars replaced, and the array that it stands for."""
    base, new = tiny.draw(f"{name} base", (rows, columns), 1.0), tiny.draw(f"{name} new", (count + spare,), 1.0)
    mask = np.zeros(rows * columns, bool)
    mask[np.argsort(tiny.draw(f"{name} order", (rows * columns,), 1.0), kind="stable")[:count]] = True
    whole = base.reshape(-1).copy()
    whole[mask] = new[:count]
    mask = mask.reshape(rows, columns)
    width = int(mask.sum(axis=1).max()) + 1
    made = masks.gather({"leaf": mask}, (("leaf", count + spare, width),))
    return Gathered(base, made.chosen["leaf"], new), whole.reshape(rows, columns)


def dense(own, values):
    """The array, in a form that JAX differentiates by itself."""
    return jnp.asarray(own.base).reshape(-1).at[own.chosen.flat].set(values, mode="drop").reshape(own.base.shape)


def gradients(function, *args):
    """The value, and the gradients of a loss that weighs all of it differently."""

    def loss(*args):
        out = function(*args)
        return jnp.sum(out.astype(jnp.float32) * tiny.draw("weights", out.shape, 1.0)), out

    found, out = jax.grad(loss, argnums=tuple(range(len(args))), has_aux=True)(*args)
    return out, *found


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_a_product_and_its_gradients_are_those_of_the_array(count):
    own, whole = leaf(5, 6, count)
    x = tiny.draw("x", (2, 3, 5), 1.0)
    out, of_x, of_values = gradients(lambda x, v: gathered.product(x, own._replace(values=v)), x, own.values)
    np.testing.assert_allclose(out, x @ whole, rtol=0, atol=1e-6)
    _, wanted_x, wanted = gradients(lambda x, v: x @ dense(own, v), x, own.values)
    np.testing.assert_allclose(of_x, wanted_x, rtol=0, atol=1e-6)
    np.testing.assert_allclose(of_values[:count], wanted[:count], rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7, 30])
def test_a_lookup_and_its_gradient_are_those_of_the_array(count):
    own, whole = leaf(5, 6, count)
    ids = np.array([[0, 3, 3], [4, 2, 3]], np.int32)  # row 1 is never read, row 3 three times
    out, of_values = gradients(lambda v: gathered.lookup(own._replace(values=v), ids), own.values)
    np.testing.assert_array_equal(out, whole[ids])
    _, wanted = gradients(lambda v: dense(own, v)[ids], own.values)
    np.testing.assert_allclose(of_values, wanted, rtol=0, atol=1e-6)
    assert not np.asarray(of_values)[count:].any()


def test_a_product_in_bfloat16_sums_the_gradient_in_float32():
    own, whole = leaf(32, 16, 40)
    x = jnp.asarray(tiny.draw("x", (64, 32), 1.0), jnp.bfloat16)
    out, of_x, of_values = gradients(lambda x, v: gathered.product(x, own._replace(values=v)), x, own.values)
    assert (out.dtype, of_x.dtype, of_values.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(out, x @ jnp.asarray(whole, jnp.bfloat16))
    g = np.asarray(jnp.asarray(tiny.draw("weights", out.shape, 1.0), jnp.bfloat16), np.float64)
    wanted = (np.asarray(x, np.float64).T @ g).reshape(-1)[own.chosen.flat[:40]]
    np.testing.assert_allclose(of_values[:40], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["product", "lookup"])
def test_under_vmap_over_seeds_and_rates(kind):
    """Index and values by seed, values and what enters by rate."""
    made = [leaf(5, 6, count, spare, str(count))[0] for count, spare in ((7, 0), (3, 4))]
    wide = max(own.chosen.slots.shape[1] for own in made)
    slots = [np.pad(o.chosen.slots, ((0, 0), (0, wide - o.chosen.slots.shape[1])), constant_values=7) for o in made]
    index = Index(np.stack([own.chosen.flat for own in made]), np.stack(slots))
    values = tiny.draw("values", (2, 3, 7), 1.0)
    base, ids, x = made[0].base, np.array([3, 0, 3], np.int32), tiny.draw("x", (2, 3, 4, 5), 1.0)

    def one(index, values, x):
        own = Gathered(base, index, values)
        function = (
            (lambda v: gathered.lookup(own._replace(values=v), ids))
            if kind == "lookup"
            else (lambda v: gathered.product(x, own._replace(values=v)))
        )
        return gradients(function, values)

    found = jax.vmap(jax.vmap(one, (None, 0, 0)), (0, 0, 0))(index, values, x)
    for seed, rate in np.ndindex(2, 3):
        alone = one(Index(index.flat[seed], index.slots[seed]), values[seed, rate], x[seed, rate])
        for together, single in zip(found, alone, strict=True):
            np.testing.assert_allclose(together[seed, rate], single, rtol=0, atol=1e-6)


def test_gather_by_hand():
    first = np.array([[True, False, True], [False, False, False]])
    second = np.array([[False, False, False], [False, True, False]])
    seeds = [{"a": leaf, "b": np.array([True, False]), "c": None} for leaf in (first, second)]
    sizes = masks.sizes(seeds)
    assert sizes == (("a", 2, 2),)
    one, other = (masks.gather(mask, sizes) for mask in seeds)
    assert one.chosen["a"].flat.tolist() == [0, 2] and other.chosen["a"].flat.tolist() == [4, 6]
    assert one.chosen["a"].slots.tolist() == [[0, 1], [2, 2]] and other.chosen["a"].slots.tolist() == [[2, 2], [0, 2]]
    assert one.inside["a"].tolist() == [True, True] and other.inside["a"].tolist() == [True, False]
    for mask in (one, other):
        assert mask.inside["b"].tolist() == [True, False] and mask.inside["c"] is None
        assert mask.chosen["b"] is None and mask.chosen["c"] is None
    base = {"a": np.array([[10, 11, 12], [13, 14, 15]], np.float32), "b": None, "c": None}
    assert masks.start(base, one.chosen)["a"].tolist() == [10, 12]
    assert masks.start(base, other.chosen)["a"].tolist() == [14, 0]


def test_a_leaf_that_no_seed_chose_has_a_slot_that_nobody_uses():
    mask = {"a": np.zeros((2, 2), bool)}
    sizes = masks.sizes([mask])
    made = masks.gather(mask, sizes)
    assert sizes == (("a", 1, 1),) and made.inside["a"].tolist() == [False] and made.chosen["a"].flat.tolist() == [4]


SIX = {"seeds": (0, 1), "learning_rates": (1e-4, 5e-4, 1e-3)}
ALL = 3_592  # scalars of the tiny body
HARD = {"optimizer__weight_decay": 0.1, "optimizer__clip_norm": 1.0}


def both(count, chunks=grids.SINGLE, **fields):
    """Two trainers of the same cell: with gathered scalars, and with all masked leaves stored whole."""
    study = grids.study(**SIX, random__count=count, **fields)
    own, _ = grids.make("random", study, chunks=chunks)
    values = tiny.weights(own.recipe.model)
    whole = trainer.make_trainer(
        study,
        dataclasses.replace(own.recipe, gathered=()),
        own.plan,
        chunks,
        task="rte",
        train=own.train,
        rows=own.rows,
        epochs=own.epochs,
        body={path: value for path, value in values.items() if path.startswith("bert/")},
        seed_masks=grids.drawn("random", study),
    )
    return own, whole


def test_the_body_is_as_large_as_said():
    shapes = rules.flatten(bert.parameter_shapes(tiny.config()))
    assert sum(int(np.prod(x.shape)) for path, x in shapes.items() if path.startswith("bert/")) == ALL


@pytest.mark.parametrize(
    ("count", "chunks", "fields"),
    [
        (0, Chunks(1, 1), {}),
        (200, Chunks(9, 9), HARD),
        (1, Chunks(2, 2), {}),
        (ALL, Chunks(1, 3), HARD),
    ],
)
def test_training_equals_that_of_whole_leaves(count, chunks, fields):
    """Three steps with dropout on; two seeds that chose other numbers of scalars of a leaf."""
    own, whole = both(count, chunks, **fields)
    assert own.recipe.gathered and not whole.recipe.gathered
    (states, losses), (wanted_states, wanted) = (grids.train(each) for each in (own, whole))
    np.testing.assert_allclose(losses, wanted, rtol=1e-6, atol=1e-6)
    final, expected = grids.final(own, states), grids.final(whole, wanted_states)
    for path, values in final.items():
        np.testing.assert_allclose(values, expected[path], rtol=0, atol=1e-6, err_msg=path)
    ours, theirs = (grids.evaluate(*pair, own.train) for pair in ((own, states), (whole, wanted_states)))
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6, atol=1e-6)


def counts(own, path):
    """How many scalars each seed chose of a leaf."""
    return np.asarray(rules.flatten(own.masks.inside)[path]).sum(axis=-1)[0].tolist()


def stored(own, states, path):
    """What the runs store of a leaf, values and both moments, and which of it is in use: `[seeds, rates, k]`."""
    moments = [part for part in jax.tree.leaves(states.opt_state, is_leaf=is_adam) if is_adam(part)]
    (adam,) = [part for part in moments if hasattr(rules.flatten(part.mu).get(path), "shape")]
    trees = (states.values, adam.mu, adam.nu)
    values = [np.asarray(rules.flatten(tree)[path])[0] for tree in trees]
    used = np.asarray(rules.flatten(own.masks.inside)[path])[0][:, None]
    return [(value, np.broadcast_to(used, value.shape)) for value in values]


def is_adam(leaf):
    return hasattr(leaf, "mu")


@pytest.mark.parametrize("rates", [(1e-3, 5e-3), (1e-3, 1e30)])
def test_unused_slots_never_move(rates):
    """Under weight decay and clipping, and in a run that has diverged, whose moments clipping spoils."""
    study = grids.study(seeds=(0, 1, 2), learning_rates=rates, random__count=60, epochs=2, **HARD)
    own, _ = grids.make("random", study)
    states, losses = grids.train(own)
    finite = np.isfinite(losses[-1]).all(axis=0)
    assert finite.tolist() == [True, rates[1] < 1]
    uneven = [path for path, *_ in own.recipe.gathered if len(set(counts(own, path))) > 1]
    assert any(0 in counts(own, path) for path in uneven) and WORDS in uneven
    for path, slots, _ in own.recipe.gathered:
        assert slots == max(1, *counts(own, path))
        (values, used), *moments = stored(own, states, path)
        assert values.shape == (3, 2, slots)
        for value, unused in ((values, ~used), *((moment[:, finite], ~used[:, finite]) for moment, used in moments)):
            assert not value[unused].any() and not np.signbit(value[unused]).any(), path


def test_a_run_owns_what_it_trains():
    own, _ = grids.make("random", grids.study(random__count=96))
    states = trainer.start(own)
    scalars = sum(leaf.size for leaf in jax.tree.leaves(states) if leaf.dtype != np.int32)
    slots = sum(count for _, count, _ in own.recipe.gathered)
    flat = {path: x.shape for path, x in rules.flatten(bert.parameter_shapes(own.recipe.model)).items()}
    whole = sum(int(np.prod(shape)) for shape in flat.values() if len(shape) == 1) + 12 * 2  # biases, norms, the head
    assert scalars == 3 * (slots + whole) < 3 * 800
    labels = dict(own.recipe.labels)
    frozen = rules.flatten(own.frozen)
    for path, shape in flat.items():
        assert labels[path] == ("trainable" if path.startswith("classifier/") else "masked")
        assert (frozen[path] is None) == (len(shape) == 1 or path.startswith("classifier/"))


def test_the_arguments_as_shapes():
    own, _ = grids.make("random", grids.study(**SIX))
    batch = shapes.batch_shapes(own.recipe, (trainer.STEPS, 2), 8, 16, 8)
    made = shapes.train_arguments(own.recipe, 2, 3, batch)[:3]
    given = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (trainer.start(own), own.frozen, own.masks)
    )
    assert made == given


def test_recomputed_blocks_give_the_same():
    losses = []
    for again in (False, True):
        own, _ = grids.make("random", grids.study(**SIX))
        own = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, recompute=again))
        losses.append(grids.train(own)[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6, atol=1e-6)


def test_bfloat16_trains_float32_scalars():
    own, body = grids.make("random", grids.study(**SIX, random__count=400), dtype="bfloat16")
    states, losses = grids.train(own)
    exact, _ = grids.make("random", grids.study(**SIX, random__count=400))
    np.testing.assert_allclose(losses, grids.train(exact)[1], rtol=0.02)
    assert {x.dtype for x in jax.tree.leaves(states.values)} == {np.dtype("float32")}
    (values, used), *_ = stored(own, states, QUERY)
    before = np.asarray(rules.flatten(trainer.start(own).values)[QUERY])[0]
    assert (values != before)[used].all()
    for path, leaf in grids.final(own, states).items():
        if path.startswith("bert/"):
            inside = [rules.flatten(mask)[path] for mask in grids.drawn("random", own.config)]
            for seed, mask in enumerate(inside):
                assert (leaf[seed, :, ~mask] == body[path][~mask][:, None]).all(), path
