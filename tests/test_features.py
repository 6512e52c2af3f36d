"""Features computed once: the same training as computing the prefix without dropout at every step."""

import dataclasses

import jax
import numpy as np
import pytest

from lnflax import batches, features, step, tokens, trainer
from lnflax.packing import Layout, Shape
from lnflax.tokens import Encoded
from tests import grids

FIELDS = {"seeds": (0, 1), "learning_rates": (1e-3, 1e-2), "epochs": 2, "frozen_dropout": False}
HASH = "0" * 64


def cached(setting, model, **places):
    """Two trainers of the same runs, dropout off below the first trained parameter: with features, and without."""
    own, _ = grids.make(setting, grids.study(**FIELDS, packing=True), **places, **model)
    own = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, frozen_dropout=False))
    known = features.load(own.recipe, own.plan, own.frozen, own.train, HASH, knee=12)
    return trainer.with_features(own, known), own


@pytest.mark.parametrize(
    ("setting", "model"),
    [
        ("frozen", {"pooling": "mean"}),
        ("frozen", {"pooling": "pooler", "num_outputs": 1}),
        ("single_norm_1", {"pooling": "mean"}),
        ("single_norm_2", {"pooling": "cls"}),
    ],
)
def test_training_on_features_equals_computing_the_prefix_at_every_step(setting, model):
    data = grids.examples(21, outputs=model.get("num_outputs", 2))
    with_features, without = cached(setting, model, data=data)
    losses = [grids.train(own)[1] for own in (with_features, without)]
    assert losses[0].shape == (6, 2, 2)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_features_on_devices_that_split_their_batches():
    with_features, without = cached("single_norm_2", {"pooling": "mean"}, device_count=4, split=True)
    assert without.plan.batch_parts == 4 or without.plan.devices == 4
    losses = [grids.train(own)[1] for own in (with_features, without)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_only_the_head_is_left_of_frozen():
    own, _ = cached("frozen", {"pooling": "mean"})
    assert own.features.values.shape == (24, 12) and not own.features.per_token
    assert own.rows.shapes == (Shape(8, 1),)
    batch, known = trainer.train_batches(own, trainer.plan_epoch(own, 1), 0, 3)
    assert known.shape == (1, trainer.HEAD_STEPS, 2, 8, 12)
    order = trainer.plan_epoch(own, 1).order
    assert np.array_equal(known[0, 2, 1], own.features.values[order[2, 1]])
    assert batch.tokens.shape == (1, trainer.HEAD_STEPS, 2, 8, 1)


def test_features_are_those_of_single_examples():
    own, _ = cached("single_norm_2", {"pooling": "mean"})
    assert own.features.values.shape == (len(own.train.tokens), 12)
    start, stop = own.train.offsets[5:7]
    one = Encoded.of_sentences(
        own.train.tokens[start:stop], own.train.token_types[start:stop], np.array([0, stop - start]), [0]
    )
    alone = features.compute(own.recipe, own.plan, own.frozen, one._replace(labels=np.zeros(1, np.int32)), 12)
    np.testing.assert_allclose(own.features.values[start:stop], alone, rtol=1e-5, atol=1e-6)


def test_rows_of_features_by_hand():
    encoded = Encoded.of_sentences(
        np.arange(5, dtype=np.int32), np.zeros(5, np.int32), np.array([0, 2, 5]), np.zeros(2, np.int32)
    )
    known = features.Features(np.arange(5, dtype=np.float32)[:, None] + 1, per_token=True)
    layout = Layout(np.array([[1, 0]]), np.array([[1, 0]]))
    order = np.array([[0, 1]])
    made = features.make(known, "float32", encoded, order, batches.asks_of(encoded, order, 2), layout, Shape(2, 4), 2)
    assert made[..., 0].tolist() == [[[[3, 4, 5, 0]]], [[[0, 1, 2, 0]]]]


def test_they_are_kept_by_the_content_that_they_depend_on(monkeypatch):
    with_features, own = cached("frozen", {"pooling": "mean"})

    def key(recipe=own.recipe, encoded=own.train, body=HASH):
        return features._key(recipe, encoded, body)

    other = dataclasses.replace(own.recipe.model, pooling="cls")
    keys = [
        key(),
        key(body="1" * 64),
        key(encoded=own.train._replace(tokens=own.train.tokens + 1)),
        key(recipe=dataclasses.replace(own.recipe, model=other)),
    ]
    assert len(set(keys)) == 4 and key() == keys[0]
    monkeypatch.setattr(features, "compute", None)
    again = features.load(own.recipe, own.plan, own.frozen, own.train, HASH, knee=12)
    assert np.array_equal(again.values, with_features.features.values)
    file = next(tokens.cache_folder().glob(f"features-{keys[0]}.npy"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(TypeError, match="not callable"):  # a damaged file is computed anew
        features.load(own.recipe, own.plan, own.frozen, own.train, HASH, knee=12)
    file.unlink()


def test_the_head_still_drops():
    own, _ = cached("frozen", {"pooling": "mean"})
    free = dataclasses.replace(
        own, recipe=dataclasses.replace(own.recipe, model=dataclasses.replace(own.recipe.model, **grids.dropout_free()))
    )
    losses = [grids.train(one)[1] for one in (own, free)]
    assert abs(losses[0] - losses[1]).max() > 1e-4
    assert step.prefix_has_tokens(own.recipe) is False
    jax.block_until_ready(own.frozen)
