"""Arguments as shapes are those that a trainer gives."""

import dataclasses

import jax
import numpy as np
import pytest

from lnflax import devices, packing, shapes, trainer
from lnflax.packing import Shape
from lnflax.trainer import Rows
from tests import grids


def arguments(own, rows):
    """What the training program of a trainer is called with."""
    own = dataclasses.replace(own, rows=rows)
    count = devices.put(np.zeros(own.plan.devices, np.int32), own.plan.devices)
    batch, known = trainer.train_batches(own, trainer.plan_epoch(own, 1), 0, 1)
    return trainer.start(own), own.frozen, own.masks, own.streams, batch, known, trainer.make_updates(own, 0, 1), count


def same_form(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)


@pytest.mark.parametrize(
    ("setting", "outputs", "count"), [("full", 2, 1), ("layernorms", 1, 2), ("random", 2, 2), ("outliers_4", 3, 1)]
)
def test_of_training(setting, outputs, count):
    study = grids.study(seeds=(0, 1), learning_rates=(1e-3, 2e-3, 3e-3, 4e-3))
    data = grids.examples(outputs=outputs)
    own, _ = grids.make(setting, study, device_count=count, data=data, num_outputs=outputs)
    seeds, rates = len(own.plan.seeds[0]), len(own.plan.rates[0])
    batch = shapes.batch_shapes(own.recipe, (trainer.STEPS, seeds), study.batch_size, 16, study.batch_size)
    made = shapes.train_arguments(own.recipe, seeds, rates, batch)
    same_form(devices.shapes(made, count), arguments(own, Rows(packing.plain, (Shape(study.batch_size, 16),))))
