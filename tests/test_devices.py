"""How runs are spread over devices, by hand."""

import os

import numpy as np
import pytest

from lnflax import devices
from lnflax.devices import Plan, Work, make_plan

FEW = Work(prefix=0.0, suffix=1e9, update=1e3)  # trains little
ALL = Work(prefix=0.0, suffix=1e9, update=1e9)  # an update takes as long as a step's products
HEAD = Work(prefix=1e9, suffix=1e3, update=1e2)  # nearly everything is shared by the rates


def plan_of(seeds, rates, count, work=FEW, split=False):
    return make_plan(seeds, rates, count, work, split=split)


def test_one_device_has_all_runs():
    assert plan_of(3, 7, 1) == Plan(((0, 1, 2),), ((0, 1, 2, 3, 4, 5, 6),), 1)


def test_seven_rates_on_four_devices_repeat_the_last():
    plan = plan_of(1, 7, 4)
    assert plan == Plan(((0,),) * 4, ((0, 1), (2, 3), (4, 5), (6, 6)), 1)
    assert plan.owner(0, 6) == (3, 0, 0)
    assert plan.devices == 4


def test_three_seeds_and_seven_rates_on_four_devices():
    plan = plan_of(3, 7, 4)
    assert plan.seeds == ((0, 1, 2),) * 4
    assert plan.rates == ((0, 1), (2, 3), (4, 5), (6, 6))


def test_seeds_are_cut_before_rates_where_their_prefix_is_shared():
    assert plan_of(2, 2, 2, HEAD) == Plan(((0,), (1,)), ((0, 1), (0, 1)), 1)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(("seeds", "rates", "count"), [(3, 7, 2), (3, 7, 8), (5, 1, 4), (2, 3, 6), (10, 10, 7)])
def test_every_run_has_a_place_and_rectangles_are_of_one_size(seeds, rates, count, split):
    plan = plan_of(seeds, rates, count, split=split)
    assert plan.devices <= count
    assert len({(len(s), len(r)) for s, r in zip(plan.seeds, plan.rates, strict=True)}) == 1
    for run in np.ndindex(seeds, rates):
        group, i, j = plan.owner(*run)
        assert (plan.seeds[group][i], plan.rates[group][j]) == run


def test_fewer_runs_than_devices_split_the_batch():
    assert plan_of(1, 1, 4) == Plan(((0,),), ((0,),), 4)
    # Two runs on four devices: two groups of two.
    assert plan_of(1, 2, 4) == Plan(((0,), (0,)), ((0,), (1,)), 2)


def test_cores_split_batches_where_runs_do_not_divide_or_share_a_prefix():
    # 7 runs on 2 cores: 4 runs after one another, or 7 of half the tokens and a twentieth more.
    assert plan_of(1, 7, 2, split=True) == Plan(((0,),), (tuple(range(7)),), 2)
    assert plan_of(1, 8, 2, split=True).batch_parts == 1
    assert plan_of(1, 8, 2, HEAD, split=True).batch_parts == 2
    # Each core would make the whole update.
    assert plan_of(1, 7, 2, ALL, split=True).batch_parts == 1


def test_gather_puts_runs_in_the_cells_order():
    plan = plan_of(1, 7, 4)
    values = np.zeros((4, 5, 1, 2))  # devices, steps, seeds, rates
    for device, rates in enumerate(plan.rates):
        values[device] = np.asarray(rates)
    assert plan.gather(values).shape == (5, 1, 7)
    assert plan.gather(values)[0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_targets_are_gathered_from_the_part_that_has_them():
    plan = plan_of(1, 2, 4)
    values = 10 * np.arange(4).reshape(4, 1, 1, 1, 1) + np.arange(3)  # devices, steps, seeds, rates, targets
    # Rate 0 is on devices 0 and 1, rate 1 on 2 and 3.
    assert plan.gather_targets(values, np.array([[0, 1, 0]])).tolist() == [[[[0, 11, 2], [20, 31, 22]]]]
    assert plan.gather(np.full((4, 2, 1, 1), 7.0)).shape == (2, 1, 2)


def test_what_groups_and_parts_get():
    plan = plan_of(1, 2, 4)
    assert plan.by_device([np.array(5), np.array(6)]).tolist() == [5, 5, 6, 6]
    parts = np.arange(2).reshape(2, 1, 1)  # parts, steps, seeds
    assert plan.by_part(parts).reshape(-1).tolist() == [0, 1, 0, 1]
    assert plan.to_parts(parts).reshape(-1).tolist() == [0, 1, 0, 1]


def test_determinism_keeps_the_users_flags(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4 --xla_other=1")
    devices.be_deterministic()
    given = "--xla_gpu_autotune_level=4 --xla_other=1 --xla_gpu_deterministic_ops=true"
    assert os.environ["XLA_FLAGS"] == given
    devices.be_deterministic()
    assert os.environ["XLA_FLAGS"] == given
