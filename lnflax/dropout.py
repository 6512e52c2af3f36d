"""Dropout masks from a counter-based hash: every bit is a function of where it is used, and of nothing else.

A bit depends on (seed, task, step, site, example of the batch, position, feature or head and key position). It
knows no row, device, chunk, learning rate or setting, so packed equals plain, four devices one, and all settings
are compared on common random numbers. Masks are computed once a seed and step, and shared by its learning rates.

The mixer is `lowbias32` of Chris Wellons' hash-prospector (2018, second edition of its constants), a bijection of
32-bit words with near-perfect avalanche.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

GOLDEN = 0x9E3779B9  # 2^32 / golden ratio: keeps the word 0 off the mixer's fixed point


def mix(x: jax.Array) -> jax.Array:
    """lowbias32: uint32 to uint32, a bijection."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0xD35A2D97)
    return x ^ (x >> 15)


def fold(state: jax.Array, word: jax.Array | int) -> jax.Array:
    """The state (uint32, any shape) with one more word absorbed; shapes broadcast.

    The word is mixed before it meets the state: nearby words give unrelated constants, so that the streams of two
    states never run into each other shifted by a few counts.
    """
    return mix(state ^ mix(jnp.asarray(word).astype(jnp.uint32) + jnp.uint32(GOLDEN)))


def kept(state: jax.Array, rate: float) -> jax.Array:
    """True with probability 1 - rate, from the bits of `state`."""
    return state >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))


def token_mask(state: jax.Array, examples: jax.Array, positions: jax.Array, size: int, rate: float) -> jax.Array:
    """What dropout keeps of one vector a token, bool `[..., size]` for ids and positions of shape `[...]`."""
    token = fold(fold(state, examples), positions)[..., None]
    return kept(fold(token, jnp.arange(size).reshape((1,) * (token.ndim - 1) + (size,))), rate)


def attention_mask(
    state: jax.Array, examples: jax.Array, positions: jax.Array, keys: jax.Array, heads: int, rate: float
) -> jax.Array:
    """What dropout keeps of the attention weights, bool `[rows, heads, query, key]`.

    Ids and positions of the queries are `[rows, query]`, positions of the keys `[rows, key]`; a key has its query's id.
    """
    query = fold(fold(state, examples), positions)
    head = fold(query[:, None, :], jnp.arange(heads)[None, :, None])
    return kept(fold(head[..., None], keys[:, None, None, :]), rate)


def drop(x: jax.Array, mask: jax.Array | None, rate: float) -> jax.Array:
    """Inverted dropout (Srivastava et al., 2014): what is kept is divided by 1 - rate; no mask, no change."""
    if mask is None:
        return x
    return jnp.where(mask, x / (1.0 - rate), jnp.zeros((), x.dtype))
