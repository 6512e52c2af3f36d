"""The nesting: over seeds the prefix, over learning rates the suffix, and the chunk of each level.

    devices      rectangles of (seeds, rates), or parts of the batch
      seeds      own head, data order, dropout, random mask
        prefix   everything below the first trained parameter, dropout on: once a seed, for all steps of the call
        rates    own trained values and optimizer state; the same batches, prefix and dropout masks
          steps  suffix, loss, backward down to the first trained parameter, update

A level of n in chunks of c is a loop over n / c blocks, each a vmap of c: c = 1 is a loop inside the program, c = n
a plain vmap, under which products with frozen kernels merge into one. The states of all runs lie in one tree; a
block's is taken out, trained for all steps of the call, and put back: inside the loop over steps XLA would copy the
whole tree at every step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lnflax import devices, rules, step
from lnflax.batches import Batch
from lnflax.masks import Mask
from lnflax.step import Recipe, RunState, Update

Tree = Any
ALL = 2**31
CPU_ROWS = 800  # of one product on a core: fewer leave it idle, more leave its cache (measured, docs/performance.md)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How many seeds, and how many rates, are computed at once; more than there are means all."""

    seeds: int
    rates: int


def default_chunks(platform: str, tokens: int, rates: int) -> Chunks:
    """What does best: an accelerator all runs at once; a CPU run by run, or so many that a product has enough rows.

    Args:
        platform: JAX's name of the backend.
        tokens: of one run's step on one device.
        rates: how many a rectangle has.
    """
    if platform != "cpu":
        return Chunks(ALL, ALL)
    if tokens > CPU_ROWS / 4:
        return Chunks(1, 1)
    blocks = -(-rates * tokens // CPU_ROWS)
    return Chunks(1, -(-rates // blocks))


def walk(count: int, chunk: int, body: Callable[[Any, int, Tree], Tree], carry: Tree) -> Tree:
    """Runs `body(start, size, carry)` over blocks of `chunk`, then once for the rest; a single block has no loop."""
    chunk = min(chunk, count)
    blocks, rest = divmod(count, chunk)
    if blocks == 1:
        carry = body(0, chunk, carry)
    else:
        carry = jax.lax.fori_loop(0, blocks, lambda i, c: body(i * chunk, chunk, c), carry)
    return body(blocks * chunk, rest, carry) if rest else carry


def take(tree: Tree, starts: tuple, sizes: tuple[int, ...]) -> Tree:
    """A block of the leading axes of every leaf."""
    return jax.tree.map(lambda x: jax.lax.dynamic_slice(x, _origin(starts, x), (*sizes, *x.shape[len(sizes) :])), tree)


def place(tree: Tree, block: Tree, starts: tuple) -> Tree:
    """The tree with the block written over its place: the inverse of `take`."""
    return jax.tree.map(lambda x, b: jax.lax.dynamic_update_slice(x, b, _origin(starts, x)), tree, block)


def _origin(starts: tuple, x: jax.Array) -> tuple:
    return (*starts, *(0 for _ in range(x.ndim - len(starts))))


def over(function: Callable, size: int, in_axes: tuple) -> Callable:
    """vmap, without the batch axis where it would be of one: a batched product of one is a slower product."""
    if size > 1:
        return jax.vmap(function, in_axes)

    def single(*args: Tree) -> Tree:
        squeezed = [
            arg if axis is None else jax.tree.map(lambda x: x[0], arg) for arg, axis in zip(args, in_axes, strict=True)
        ]
        return jax.tree.map(lambda x: x[None], function(*squeezed))

    return single


def train_steps(
    recipe: Recipe,
    chunks: Chunks,
    total: step.Sum,
    states: RunState,
    frozen: Tree,
    masks: Mask,
    streams: jax.Array,
    batches: Batch,
    features: Tree,
    updates: Update,
    count: jax.Array,
) -> tuple[RunState, jax.Array]:
    """`count` steps of one device's rectangle, inside one program.

    Args:
        recipe: what trains.
        chunks: the chunk of each level.
        total: the sum over the devices that share a batch.
        states: leaves `[seeds, rates, …]`.
        frozen: the frozen parameters, unmapped.
        masks: the seeds' masks, leaves `[seeds, …]`.
        streams: one dropout word a seed, uint32 `[seeds]`.
        batches: leaves `[steps, seeds, …]`; steps at and after `count` are not computed.
        features: the prefix where it was computed before, `[steps, seeds, …]`; else None.
        updates: rates `[steps, rates]`, step `[steps]`.
        count: int32 `[]`.

    Returns:
        The states, and the loss of every step, float32 `[steps, seeds, rates]`, 0 where not computed.
    """
    steps, rates = updates.rate.shape
    seeds = streams.shape[0]

    def one_seed(batch: Batch, known: Any, stream: jax.Array, number: jax.Array) -> tuple[Any, Any]:
        below, above = step.noise(recipe, batch, stream, number)
        return above, step.prefix(recipe, frozen, batch, below) if known is None else known

    def one_run(state: RunState, mask: Mask, features: Any, batch: Batch, noise: Any, rate: tuple, number: Any) -> Any:
        update = Update(rate=rate[0], head_rate=rate[1], step=number)
        return step.train_step(recipe, frozen, state, mask, features, batch, noise, update, total)

    def seed_block(s: Any, ns: int, carry: Any) -> Any:
        mask, stream = take((masks, streams), (s,), (ns,))
        batch, known = take((batches, features), (0, s), (steps, ns))

        def below(i: Any) -> Any:
            return over(one_seed, ns, (0, 0, 0, None))(at(batch, i), at(known, i), stream, updates.step[i])

        shared = every_step(below, steps, count)

        def rate_block(r: Any, nr: int, carry: Any) -> Any:
            row = over(one_run, nr, (0, None, None, None, None, 0, None))
            block = over(row, ns, (0, 0, 0, 0, 0, None, None))

            def one_step(i: jax.Array, carry: Any) -> Any:
                own, losses = carry
                noise, features = at(shared, i)
                rate = take(at((updates.rate, updates.head_rate), i), (r,), (nr,))
                own, loss = block(own, mask, features, at(batch, i), noise, rate, updates.step[i])
                return own, place(losses, loss[None], (i, s, r))

            states, losses = carry
            own, losses = jax.lax.fori_loop(0, count, one_step, (take(states, (s, r), (ns, nr)), losses))
            return place(states, own, (s, r)), losses

        return walk(rates, chunks.rates, rate_block, carry)

    return walk(seeds, chunks.seeds, seed_block, (states, jnp.zeros((steps, seeds, rates), jnp.float32)))


def at(tree: Tree, i: Any) -> Tree:
    """Entry `i` of the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[i], tree)


def every_step(function: Callable[[Any], Tree], steps: int, count: jax.Array) -> Tree:
    """`function(i)` for i below `count`, stacked to leaves `[steps, …]`, zero from `count` on."""
    shapes = jax.eval_shape(function, 0)
    empty = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), shapes)

    def body(i: jax.Array, kept: Tree) -> Tree:
        return place(kept, jax.tree.map(lambda x: x[None], function(i)), (i,))

    return jax.lax.fori_loop(0, count, body, empty)


def prefix_steps(recipe: Recipe, frozen: Tree, batches: Batch, count: jax.Array) -> jax.Array:
    """The prefix without dropout of `count` batches, which is the same for all runs.

    Args:
        recipe: what trains.
        frozen: the frozen parameters.
        batches: leaves `[steps, …]`.
        count: int32 `[]`.

    Returns:
        `[steps, rows, length, hidden]`, or `[steps, targets, hidden]` where only the head is above.
    """
    return every_step(lambda i: step.prefix(recipe, frozen, at(batches, i), {}), batches.tokens.shape[0], count)


def eval_steps(
    recipe: Recipe,
    chunks: Chunks,
    values: Tree,
    chosen: Tree,
    frozen: Tree,
    batches: Batch,
    features: Tree,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Predictions and losses of all runs of one device over `count` batches, which all runs share.

    Args:
        recipe: what trains.
        chunks: the chunk of each level.
        values: the runs' trained values, leaves `[seeds, rates, …]`.
        chosen: where gathered scalars are, leaves `[seeds, …]`.
        frozen: the frozen parameters.
        batches: leaves `[steps, …]`.
        features: their prefix, `[steps, …]`; None where there is none.
        count: int32 `[]`.

    Returns:
        `(predictions, losses)`, float32 `[steps, seeds, rates, targets]`.
    """
    seeds, rates = jax.tree.leaves(values)[0].shape[:2]
    steps, targets = batches.targets.label.shape

    def one_batch(i: jax.Array, carry: Any) -> Any:
        batch, known = at((batches, features), i)

        def one_run(values: Tree, chosen: Tree) -> Any:
            return step.eval_step(recipe, frozen, values, chosen, known, batch)

        def seed_block(s: Any, ns: int, carry: Any) -> Any:
            where = take(chosen, (s,), (ns,))

            def rate_block(r: Any, nr: int, carry: Any) -> Any:
                block = over(over(one_run, nr, (0, None)), ns, (0, 0))(take(values, (s, r), (ns, nr)), where)
                return place(carry, jax.tree.map(lambda x: x[None], block), (i, s, r))

            return walk(rates, chunks.rates, rate_block, carry)

        return walk(seeds, chunks.seeds, seed_block, carry)

    empty = jnp.zeros((steps, seeds, rates, targets), jnp.float32)
    return jax.lax.fori_loop(0, count, one_batch, (empty, empty))


def initial_states(recipe: Recipe, rates: int, body: Tree, own: Tree, masks: Mask) -> RunState:
    """The states of one device's runs before the first update, leaves `[seeds, rates, …]`.

    Args:
        recipe: what trains.
        rates: how many learning rates the rectangle has.
        body: the body's trained values, None elsewhere.
        own: what each seed starts from, heads and gathered scalars: leaves `[seeds, …]`, None elsewhere.
        masks: the seeds' masks, leaves `[seeds, …]`.
    """

    def one_seed(own: Tree, mask: Mask) -> RunState:
        state = step.initial_state(recipe, rules.merge(own, body), mask)
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (rates, *jnp.shape(x))), state)

    return jax.vmap(one_seed)(own, masks)


def moved(values: Tree, body: Tree, own: Tree) -> Tree:
    """Which trained leaves differ from what they were: bool `[seeds, rates]` a leaf, None at frozen ones.

    The three trees are those of `initial_states`, after training and before.
    """

    def differs(now: Any, shared: Any, own: Any) -> Any:
        if now is None:
            return None
        then = own[:, None] if shared is None else shared[None, None]
        return jnp.any((now != then).reshape(*now.shape[:2], -1), axis=-1)

    return jax.tree.map(differs, values, body, own, is_leaf=rules.is_none)


@functools.cache
def train_program(recipe: Recipe, chunks: Chunks, plan: devices.Plan) -> Callable:
    """`train_steps` on the plan's devices; the states are donated. Cells of one recipe and plan share it."""
    function = functools.partial(train_steps, recipe, chunks, plan.device_sum)
    return devices.parallel(function, plan.devices, donate=(0,))


@functools.cache
def initial_program(recipe: Recipe, rates: int, count: int) -> Callable:
    """`initial_states` on `count` devices."""
    return devices.parallel(functools.partial(initial_states, recipe, rates), count)


@functools.cache
def moved_program(count: int) -> Callable:
    """`moved` on `count` devices."""
    return devices.parallel(moved, count)


@functools.cache
def eval_program(recipe: Recipe, chunks: Chunks, count: int) -> Callable:
    """`eval_steps` on `count` devices."""
    return devices.parallel(functools.partial(eval_steps, recipe, chunks), count)


@functools.cache
def prefix_program(recipe: Recipe, count: int) -> Callable:
    """`prefix_steps` on `count` devices."""
    return devices.parallel(functools.partial(prefix_steps, recipe), count)
