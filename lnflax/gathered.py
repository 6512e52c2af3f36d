"""Layers whose kernels and tables may train at chosen scalars only, without a copy or a gradient of the rest.

The leaf itself is frozen and shared. A run has a vector of the values that stand in their places at the chosen
indices. Vectors of one length may hold different numbers of scalars: the rest have an index past the leaf's end,
where nothing is read or written.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lnflax import recompute

Tree = Any


class Index(NamedTuple):
    """Which scalars of a leaf of rows and columns are chosen, int32.

    `flat` says where each is in C order, ascending, and ends in the leaf's size where there are no more. `slots` says
    which of them each row has, and ends in the length of `flat`.
    """

    flat: Any  # [k]
    slots: Any  # [rows, the most that a row has]


class Gathered(NamedTuple):
    """A leaf with other values at the chosen indices."""

    base: Any  # [rows, columns]
    chosen: Index
    values: Any  # float32 [k]


def parameters(values: Tree, frozen: Tree, chosen: Tree) -> Tree:
    """The full tree that the model reads: a run's own leaf, or the frozen one, or both where scalars are chosen."""

    def leaf(own: Any, shared: Any, index: Any) -> Any:
        if index is not None:
            return Gathered(shared, index, own)
        return shared if own is None else own

    return jax.tree.map(leaf, values, frozen, chosen, is_leaf=lambda leaf: leaf is None)


def dense(leaf: Gathered, dtype: Any) -> jax.Array:
    """The leaf as an array `[rows, columns]`."""
    base = jnp.asarray(leaf.base, dtype)
    return base.reshape(-1).at[leaf.chosen.flat].set(leaf.values.astype(dtype), mode="drop").reshape(base.shape)


@jax.custom_vjp
def product(x: jax.Array, kernel: Gathered) -> jax.Array:
    """`[…, rows]` to `[…, columns]`, in the type of x. Its gradients are of x and of the values, of nothing else."""
    return x @ dense(kernel, x.dtype)


def _forward(x: jax.Array, kernel: Gathered) -> tuple[jax.Array, Any]:
    return x @ dense(kernel, x.dtype), (x, kernel)


def _backward(kept: tuple[jax.Array, Gathered], g: jax.Array) -> tuple[jax.Array, Gathered]:
    x, kernel = kept
    row, column = jnp.divmod(kernel.chosen.flat, kernel.base.shape[1])
    # Of each scalar the sum over tokens of what entered it, times the gradient of what it gave to. The two gathers are
    # written out first: inside the sum XLA would read them down the columns, where every entry is another cache line.
    entered, given = jax.lax.optimization_barrier((_columns(x, row), _columns(g, column)))
    values = jnp.sum(entered.astype(jnp.float32) * given.astype(jnp.float32), axis=0)
    # The leaf is made once more, not kept since the way forward: all of a model's would be a second copy of it. It is
    # the base that waits for g, since XLA would else copy it, for the values to be written into, as soon as it can.
    again = kernel._replace(base=recompute.after(kernel.base, g))
    return g @ dense(again, x.dtype).T, Gathered(None, Index(None, None), values)


def _columns(x: jax.Array, which: jax.Array) -> jax.Array:
    """Columns of `[…, size]`, `[tokens, k]`."""
    return jnp.take(x.reshape(-1, x.shape[-1]), which, axis=1, mode="clip")


product.defvjp(_forward, _backward)


def lookup(table: Gathered, ids: jax.Array) -> jax.Array:
    """Rows of a table, float32 `[…, columns]` for ids `[…]`, without a copy of the table."""
    columns, flat = table.base.shape[1], ids.reshape(-1)
    slots = jnp.take(table.chosen.slots, flat, axis=0)  # [tokens, most]
    values = jnp.take(table.values, slots, mode="fill", fill_value=0)
    column = jnp.take(table.chosen.flat % columns, slots, mode="fill", fill_value=columns)
    column += (column == columns) * jnp.arange(slots.shape[1])[None]  # no place is written twice, past the end neither
    place = (jnp.arange(len(flat))[:, None], column)
    rows = jnp.take(table.base, flat, axis=0).at[place].set(values, mode="drop", unique_indices=True)
    return rows.reshape(*ids.shape, columns)


class Dense(nn.Module):
    """A dense layer that computes in `dtype`."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[…, size]` to `[…, features]`."""
        kernel = _parameter(self, "kernel", (x.shape[-1], self.features))
        bias = jnp.asarray(_parameter(self, "bias", (self.features,)), self.dtype)
        x = x.astype(self.dtype)
        y = product(x, kernel) if isinstance(kernel, Gathered) else x @ jnp.asarray(kernel, self.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))


class Embed(nn.Module):
    """A table of vectors, float32."""

    rows: int
    features: int

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """`[…]` to `[…, features]`."""
        table = _parameter(self, "embedding", (self.rows, self.features))
        return lookup(table, ids) if isinstance(table, Gathered) else jnp.take(table, ids, axis=0)


def _parameter(module: nn.Module, name: str, shape: tuple[int, ...]) -> Any:
    """A parameter as it was given, an array or `Gathered`. A fresh one is 0: only its shape is read."""
    if module.is_initializing():
        return module.param(name, nn.initializers.zeros, shape)
    return module.get_variable("params", name)
