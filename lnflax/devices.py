"""Devices: how a cell's runs are spread over them, and the only pmap of the project.

Everything that is given to a device program has a leading axis of devices; what all devices share is put there once,
one copy each.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Tree = Any
AXIS = "devices"
CPU_DEVICES = 8
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which runs each device trains, and whether devices share a batch.

    Devices come in groups of `batch_parts`. Each group trains a rectangle of seeds × rates, all rectangles of one
    size: `seeds[g]` and `rates[g]` index the lists of the runs that are spread. Rectangles are padded with repeats of
    the last seed or rate, whose results are thrown away. The devices of a group have the same runs, and each its
    part of every batch's rows.
    """

    seeds: tuple[tuple[int, ...], ...]
    rates: tuple[tuple[int, ...], ...]
    batch_parts: int

    @property
    def devices(self) -> int:
        """How many devices the plan uses."""
        return len(self.seeds) * self.batch_parts

    def owner(self, seed: int, rate: int) -> tuple[int, int, int]:
        """The first place of a run: `(group, row, column)`."""
        for group, (seeds, rates) in enumerate(zip(self.seeds, self.rates, strict=True)):
            if seed in seeds and rate in rates:
                return group, seeds.index(seed), rates.index(rate)
        raise ValueError(f"no device has run {seed}, {rate}")

    def by_device(self, groups: Sequence[Tree]) -> Tree:
        """One tree a group to leaves `[devices, …]`: the devices of a group get the same."""
        each = [tree for tree in groups for _ in range(self.batch_parts)]
        return jax.tree.map(lambda *x: np.stack(x), *each)

    def by_part(self, tree: Tree) -> Tree:
        """Leaves `[parts, steps, S, …]` to `[devices, steps, seeds, …]`: its part of the batches of its seeds."""
        return jax.tree.map(lambda x: np.stack([x[p][:, list(s)] for s in self.seeds for p in range(len(x))]), tree)

    def to_parts(self, tree: Tree) -> Tree:
        """Leaves `[parts, …]` to `[devices, …]`: its part of batches that all runs share."""
        return jax.tree.map(lambda x: np.concatenate([x] * len(self.seeds)), tree)

    def device_sum(self, tree: Tree) -> Tree:
        """The sum over the devices that share a batch, inside a program made by `parallel`."""
        if self.batch_parts == 1:
            return tree
        numbers = np.arange(self.devices).reshape(-1, self.batch_parts).tolist()
        return jax.lax.psum(tree, AXIS, axis_index_groups=numbers if len(numbers) > 1 else None)

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Runs from all devices to their order: `[devices, steps, seeds, rates, …]` to `[steps, S, R, …]`.

        Of each group the first device is read.
        """
        seeds, rates = max(map(max, self.seeds)) + 1, max(map(max, self.rates)) + 1
        first = values[:: self.batch_parts]
        places = [[self.owner(seed, rate) for rate in range(rates)] for seed in range(seeds)]
        return np.stack([np.stack([first[g][:, i, j] for g, i, j in row], axis=1) for row in places], axis=1)

    def to_runs(self, tree: Tree) -> Tree:
        """What the runs own, from all devices to the host: leaves `[devices, seeds, rates, …]` to `[S, R, …]`."""
        return jax.tree.map(lambda x: self.gather(np.asarray(x)[:, None])[0], tree)

    def of_runs(self, tree: Tree) -> Tree:
        """The inverse of `to_runs`, on the devices."""
        groups = [
            jax.tree.map(lambda x: x[np.ix_(seeds, rates)], tree)  # noqa: B023 - called at once
            for seeds, rates in zip(self.seeds, self.rates, strict=True)
        ]
        return put(self.by_device(groups), self.devices)

    def gather_targets(self, values: np.ndarray, part: np.ndarray) -> np.ndarray:
        """The same for `[devices, steps, seeds, rates, targets]`, each target from the part of the batch that has it.

        `part` is int `[steps, targets]`.
        """
        parts = np.stack([self.gather(np.roll(values, -number, axis=0)) for number in range(self.batch_parts)])
        return np.take_along_axis(parts, part[None, :, None, None], axis=0)[0]


class Work(NamedTuple):
    """What a step takes, in floating-point operations or what takes as long as so many."""

    prefix: float  # once a seed
    suffix: float  # a run
    update: float  # a run, whatever its share of the batch


SPLIT = 0.05  # what one more part of a batch costs: smaller products, waiting for one another
EXCHANGE = 2e7  # what a step's sum over devices costs, however small


def make_plan(seeds: int, rates: int, devices: int, work: Work, *, split: bool) -> Plan:
    """Spreads `seeds × rates` runs over devices: the plan whose busiest device is done first.

    Splitting batches shares a seed's prefix without computing it twice and leaves no device idle where runs do not
    divide; but every device of the group makes the whole update. `split` allows it always; else only with fewer
    runs than devices.
    """
    parts = range(1, devices + 1) if split or seeds * rates < devices else (1,)
    cuts = [(a, b, p) for p in parts for a in range(1, seeds + 1) for b in range(1, rates + 1) if a * b * p <= devices]
    plans = [_plan(seeds, rates, *cut) for cut in cuts]
    return min(plans, key=lambda plan: load(plan, work))


def _plan(seeds: int, rates: int, a: int, b: int, p: int) -> Plan:
    seed_parts, rate_parts = _parts(seeds, -(-seeds // a)), _parts(rates, -(-rates // b))
    places = [(s, r) for s in seed_parts for r in rate_parts]
    return Plan(tuple(s for s, _ in places), tuple(r for _, r in places), p)


def load(plan: Plan, work: Work) -> float:
    """What a step of all runs takes each device, in the units of `Work`."""
    height, width, p = len(plan.seeds[0]), len(plan.rates[0]), plan.batch_parts
    compute = height * (work.prefix + width * work.suffix) * (1 + SPLIT * (p - 1)) / p
    return compute + height * width * (work.update * (1 + (p > 1)) + EXCHANGE * (p > 1))


def _parts(count: int, size: int) -> list[tuple[int, ...]]:
    starts = range(0, count, size)
    return [tuple(min(i, count - 1) for i in range(start, start + size)) for start in starts]


def be_deterministic() -> None:
    """Asks XLA for the same bits every time; before JAX starts. A user's own flags of the same names stand."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = [flag for flag in DETERMINISTIC if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()


def use_cores() -> None:
    """Makes each core of the CPU a device, before JAX starts, unless JAX_NUM_CPU_DEVICES says how many there are.

    Every part of a step then runs on all cores, not its large products only. Each device has a copy of the frozen
    parameters, so there are at most `CPU_DEVICES`; where there are more cores, each has several.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(cores, CPU_DEVICES))


def parallel(function: Callable, count: int, *, donate: Sequence[int] = ()) -> Callable:
    """`function` on the first `count` devices at once; each argument and result has a leading axis of devices."""
    return jax.pmap(function, axis_name=AXIS, devices=jax.local_devices()[:count], donate_argnums=tuple(donate))


def put(tree: Tree, count: int) -> Tree:
    """Arrays with a leading axis of `count` devices, each slice on its device."""
    return jax.device_put(tree, _sharding(count))


def _sharding(count: int) -> NamedSharding:
    return NamedSharding(Mesh(np.array(jax.local_devices()[:count]), (AXIS,)), PartitionSpec(AXIS))


def shapes(tree: Tree, count: int) -> Tree:
    """What one device gets, as shapes, to what `put` makes of it: a program lowered from it is the one that runs."""
    where = _sharding(count)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype, sharding=where), tree)


def put_copies(tree: Tree, count: int) -> Tree:
    """One copy a device, under a leading axis; the host holds one."""
    return put(jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree), count)
