"""Devices: how a cell's runs are spread over them, and the only pmap of the project.

Everything that is given to a device program has a leading axis of devices; what all devices share is put there once,
one copy each.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lnflax.errors import InputError

Tree = Any
AXIS = "devices"
DETERMINISTIC = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which runs each device trains: a rectangle of seeds × rates, all of one size.

    `seeds[d]` and `rates[d]` index the cell's lists. Rectangles are padded with repeats of the last seed or rate,
    whose results are thrown away. Where `split_batch` is true every device has all the runs, and its share of each
    batch's rows.
    """

    seeds: tuple[tuple[int, ...], ...]
    rates: tuple[tuple[int, ...], ...]
    split_batch: bool

    @property
    def devices(self) -> int:
        """How many devices the plan uses."""
        return len(self.seeds)

    @property
    def batch_parts(self) -> int:
        """Into how many parts the rows of a batch are cut."""
        return self.devices if self.split_batch else 1

    def owner(self, seed: int, rate: int) -> tuple[int, int, int]:
        """The first place of a run: `(device, row, column)`."""
        for device, (seeds, rates) in enumerate(zip(self.seeds, self.rates, strict=True)):
            if seed in seeds and rate in rates:
                return device, seeds.index(seed), rates.index(rate)
        raise ValueError(f"no device has run {seed}, {rate}")

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Runs from all devices to the cell's order: `[devices, steps, seeds, rates, …]` to `[steps, S, R, …]`.

        Where the batch is split and there is a last axis of targets, its parts are joined.
        """
        if self.split_batch:
            return np.concatenate(list(values), axis=-1) if values.ndim == 5 else values[0]
        seeds, rates = max(map(max, self.seeds)) + 1, max(map(max, self.rates)) + 1
        places = [[self.owner(seed, rate) for rate in range(rates)] for seed in range(seeds)]
        return np.stack([np.stack([values[d][:, i, j] for d, i, j in row], axis=1) for row in places], axis=1)


def make_plan(seeds: int, rates: int, devices: int, batch_size: int) -> Plan:
    """Spreads `seeds × rates` runs over devices; with fewer runs than devices the batch is split.

    Of all ways to cut both levels, the one whose largest rectangle has the fewest runs, then the fewest seeds: a
    seed's prefix is computed once on each device that has it.

    Raises:
        InputError: the batch must be split and does not divide.
    """
    if seeds * rates < devices:
        if batch_size % devices:
            raise InputError(
                f"batch_size: {batch_size} does not divide over {devices} devices"
                f" (with fewer runs than devices, here {seeds * rates}, the batch is split)"
            )
        return Plan((tuple(range(seeds)),) * devices, (tuple(range(rates)),) * devices, True)
    cuts = [(a, b) for a in range(1, seeds + 1) for b in range(1, rates + 1) if a * b <= devices]
    sizes = {cut: (-(-seeds // cut[0]), -(-rates // cut[1])) for cut in cuts}
    a, b = min(cuts, key=lambda cut: (sizes[cut][0] * sizes[cut][1], sizes[cut][0], cut))
    height, width = sizes[a, b]
    seed_parts, rate_parts = _parts(seeds, height), _parts(rates, width)
    places = [(s, r) for s in seed_parts for r in rate_parts]
    return Plan(tuple(s for s, _ in places), tuple(r for _, r in places), False)


def _parts(count: int, size: int) -> list[tuple[int, ...]]:
    starts = range(0, count, size)
    return [tuple(min(i, count - 1) for i in range(start, start + size)) for start in starts]


def be_deterministic() -> None:
    """Asks XLA for the same bits every time; before JAX starts. A user's own flags of the same names stand."""
    given = os.environ.get("XLA_FLAGS", "")
    flags = [flag for flag in DETERMINISTIC if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *flags]).strip()


def device_sum(tree: Tree) -> Tree:
    """The sum over all devices, inside a program made by `parallel`."""
    return jax.lax.psum(tree, AXIS)


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
