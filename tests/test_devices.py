"""How runs are spread over devices, by hand."""

import os

import numpy as np
import pytest

from lnflax import devices
from lnflax.devices import Plan, make_plan
from lnflax.errors import InputError


def test_one_device_has_all_runs():
    assert make_plan(3, 7, 1, 16) == Plan(((0, 1, 2),), ((0, 1, 2, 3, 4, 5, 6),), False)


def test_seven_rates_on_four_devices_repeat_the_last():
    plan = make_plan(1, 7, 4, 16)
    assert plan == Plan(((0,),) * 4, ((0, 1), (2, 3), (4, 5), (6, 6)), False)
    assert plan.owner(0, 6) == (3, 0, 0)
    assert plan.batch_parts == 1


def test_three_seeds_and_seven_rates_on_four_devices():
    plan = make_plan(3, 7, 4, 16)
    assert plan.seeds == ((0, 1, 2),) * 4
    assert plan.rates == ((0, 1), (2, 3), (4, 5), (6, 6))


def test_seeds_are_cut_before_rates_where_both_are_as_even():
    assert make_plan(2, 2, 2, 16) == Plan(((0,), (1,)), ((0, 1), (0, 1)), False)


@pytest.mark.parametrize(("seeds", "rates", "count"), [(3, 7, 2), (3, 7, 8), (5, 1, 4), (2, 3, 6), (10, 10, 7)])
def test_every_run_has_a_place_and_rectangles_are_of_one_size(seeds, rates, count):
    plan = make_plan(seeds, rates, count, 16)
    assert plan.devices <= count
    assert len({(len(s), len(r)) for s, r in zip(plan.seeds, plan.rates, strict=True)}) == 1
    for run in np.ndindex(seeds, rates):
        device, i, j = plan.owner(*run)
        assert (plan.seeds[device][i], plan.rates[device][j]) == run


def test_fewer_runs_than_devices_split_the_batch():
    plan = make_plan(1, 2, 4, 16)
    assert plan == Plan(((0,),) * 4, ((0, 1),) * 4, True)
    assert plan.batch_parts == 4


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match="batch_size: 6 does not divide over 4 devices"):
        make_plan(1, 1, 4, 6)


def test_gather_puts_runs_in_the_cells_order():
    plan = make_plan(1, 7, 4, 16)
    values = np.zeros((4, 5, 1, 2))  # devices, steps, seeds, rates
    for device, rates in enumerate(plan.rates):
        values[device] = np.asarray(rates)
    assert plan.gather(values).shape == (5, 1, 7)
    assert plan.gather(values)[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_gather_joins_the_parts_of_a_split_batch():
    plan = make_plan(1, 1, 4, 16)
    targets = np.arange(12).reshape(4, 1, 1, 1, 3)  # devices, steps, seeds, rates, targets
    assert plan.gather(targets)[0, 0, 0].tolist() == list(range(12))
    assert plan.gather(np.full((4, 2, 1, 1), 7.0)).shape == (2, 1, 1)


def test_determinism_keeps_the_users_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4 --xla_other=1")
    devices.be_deterministic()
    given = "--xla_gpu_autotune_level=4 --xla_other=1 --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == given
    devices.be_deterministic()
    assert os.environ["XLA_FLAGS"] == given
