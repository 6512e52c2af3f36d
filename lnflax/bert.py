"""A linen BERT for sentence classification and regression, cut into stages.

The model is a row of stages, each from one array to the next, so that everything below the first trained parameter
can be computed once and shared. Parameter names are those of the former FlaxBert. The batch has one form (see
`batches.Batch`): rows of tokens with example ids and positions; one example a row is its plain case.

Arrays between stages are `[rows, length, hidden]`. Where the head reads single tokens (`pooler`, `cls`), the last
block needs keys and values of all tokens, and everything else of the targets' tokens only: its stages give
`[targets, hidden]`.

Devlin et al., 2019; the exact (erf) GELU and post-norm order of the original code.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lnflax import dropout
from lnflax.batches import Array, Batch
from lnflax.gathered import Dense, Embed

POOLINGS = ("pooler", "cls", "mean")
DTYPES = ("float32", "bfloat16")
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # PyTorch's own form; Flax writes erfc(-x / sqrt 2), which made a whole step on a CPU 3 % slower.
    "gelu": lambda x: 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5))),
    "gelu_new": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
}
MASKED_SCORE = -1e9  # finite, so that a row of nothing but padding has no nan

Masks = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder and of its head; hashable, so that compiled programs can be shared."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pooling: str = "pooler"
    num_outputs: int = 2
    dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Readers:
    """The tokens whose vectors a block gives: all of the batch, `[rows, length, …]`, or the targets', `[targets, …]`.

    Attention wants its queries in rows. Few targets have each a column of their own there, empty in all rows but
    one; many have the column of their token, so that rows never get wider than they are. Targets of weight 0 may
    stand anywhere, and share a place: they ask the same there.
    """

    batch: Batch
    everyone: bool

    @property
    def _columns(self) -> tuple[Array, int]:
        """Where in its row each target's query stands, `[targets]`, and how many columns there are."""
        targets, length = self.batch.targets, self.batch.tokens.shape[-1]
        count = targets.row.shape[0]
        return (jnp.arange(count), count) if count < length else (targets.position, length)

    def pick(self, x: Array) -> Array:
        """What belongs to the readers of `[rows, length, …]`."""
        return x if self.everyone else x[self.batch.targets.row, self.batch.targets.position]

    def in_rows(self, y: Array) -> Array:
        """The readers' `y` in the rows of their tokens, `[rows, readers of a row, …]`; 0 where there is none."""
        if self.everyone:
            return y
        columns, width = self._columns
        empty = jnp.zeros((self.batch.tokens.shape[0], width, *y.shape[1:]), y.dtype)
        return empty.at[self.batch.targets.row, columns].set(y)

    def from_rows(self, y: Array) -> Array:
        """The inverse of `in_rows`."""
        return y if self.everyone else y[self.batch.targets.row, self._columns[0]]


def readers(config: BertConfig, batch: Batch, block: str) -> Readers:
    """Whom a block works for: a mean reads all tokens of the last block, any other head its targets'."""
    last = block == str(config.num_hidden_layers - 1)
    return Readers(batch, everyone=config.pooling == "mean" or not last)


def norm(config: BertConfig) -> nn.LayerNorm:
    """LayerNorm in float32 whatever the products' type: a bfloat16 scale near 1 would never move."""
    return nn.LayerNorm(epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=jnp.float32)


def dense(config: BertConfig, size: int) -> Dense:
    """A dense layer in the products' type; its parameters stay float32."""
    return Dense(size, dtype=config.dtype)


class Embeddings(nn.Module):
    """Word, position and type embeddings, their norm and dropout."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        c = self.config
        self.word_embeddings = Embed(c.vocab_size, c.hidden_size)
        self.position_embeddings = Embed(c.max_position_embeddings, c.hidden_size)
        self.token_type_embeddings = Embed(c.type_vocab_size, c.hidden_size)
        self.LayerNorm = norm(c)

    def total(self, batch: Batch) -> jax.Array:
        """`[rows, length, hidden]`, before the norm."""
        words = self.word_embeddings(batch.tokens) + self.token_type_embeddings(batch.token_types)
        return words + self.position_embeddings(batch.positions)

    def normalised(self, x: jax.Array, masks: Masks) -> jax.Array:
        """The norm, then dropout."""
        c = self.config
        return dropout.drop(self.LayerNorm(x), masks.get("embeddings"), c.hidden_dropout_prob).astype(c.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention among the tokens of one example."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        c = self.config
        self.query = dense(c, c.hidden_size)
        self.key = dense(c, c.hidden_size)
        self.value = dense(c, c.hidden_size)

    def __call__(self, x: jax.Array, own: Readers, batch: Batch, mask: jax.Array | None) -> jax.Array:
        """`[rows, length, hidden]` to the readers' vectors, before the output's dense layer."""
        c = self.config
        size = (c.num_attention_heads, c.hidden_size // c.num_attention_heads)

        def heads(y: jax.Array) -> jax.Array:
            return y.reshape(*y.shape[:2], *size)

        query = heads(own.in_rows(self.query(own.pick(x))))
        key, value = heads(self.key(x)), heads(self.value(x))
        scores = jnp.einsum("rqhd,rkhd->rhqk", query / jnp.sqrt(size[-1]).astype(c.dtype), key)
        ids = own.in_rows(own.pick(batch.example_ids))
        same = ids[:, None, :, None] == batch.example_ids[:, None, None, :]
        weights = jax.nn.softmax(jnp.where(same, scores.astype(jnp.float32), MASKED_SCORE))
        weights = dropout.drop(weights, mask, c.attention_probs_dropout_prob).astype(c.dtype)
        mixed = jnp.einsum("rhqk,rkhd->rqhd", weights, value)
        return own.from_rows(mixed.reshape(*mixed.shape[:2], c.hidden_size))


class Output(nn.Module):
    """The end of each half of a block: dense, dropout, residual; then the norm, a stage of its own."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.dense = dense(self.config, self.config.hidden_size)
        self.LayerNorm = norm(self.config)

    def total(self, inner: jax.Array, residual: jax.Array, mask: jax.Array | None) -> jax.Array:
        """The shape of both, before the norm."""
        return dropout.drop(self.dense(inner), mask, self.config.hidden_dropout_prob) + residual

    def normalised(self, x: jax.Array) -> jax.Array:
        """The norm's output in the products' type."""
        return self.LayerNorm(x).astype(self.config.dtype)


class Attention(nn.Module):
    """The attention half of a block."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.self = SelfAttention(self.config)
        self.output = Output(self.config)


class Intermediate(nn.Module):
    """The widening dense layer of the feed-forward half, with its activation."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.dense = dense(self.config, self.config.intermediate_size)

    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        return ACTIVATIONS[self.config.hidden_act](self.dense(x))


class Block(nn.Module):
    """One transformer block as four stages: attention, its norm (LN_a), feed-forward, its norm (LN_f)."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.attention = Attention(self.config)
        self.intermediate = Intermediate(self.config)
        self.output = Output(self.config)

    def stage(self, name: str, x: jax.Array, batch: Batch, masks: Masks, site: str) -> jax.Array:
        """One of the four stages; the first gives the vectors of the block's readers, on which the others work."""
        match name:
            case "attention":
                own = readers(self.config, batch, site)
                inner = self.attention.self(x, own, batch, masks.get(f"{site}/probs"))
                return self.attention.output.total(inner, own.pick(x), masks.get(f"{site}/attention"))
            case "attention_norm":
                return self.attention.output.normalised(x)
            case "ffn":
                return self.output.total(self.intermediate(x), x, masks.get(f"{site}/ffn"))
            case "ffn_norm":
                return self.output.normalised(x)
        raise ValueError(f"no stage {name!r}")


class Layers(nn.Module):
    """The blocks, named 0 … L-1."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.blocks = [Block(self.config, name=str(i)) for i in range(self.config.num_hidden_layers)]


class Encoder(nn.Module):
    """Holds the blocks under `layer`, as the names want it."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.layer = Layers(self.config)


class Pooler(nn.Module):
    """Dense and tanh over the first token (Devlin et al., 2019)."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.dense = dense(self.config, self.config.hidden_size)

    def __call__(self, x: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.tanh(self.dense(x))


class Body(nn.Module):
    """Everything under `bert/`: what the classifier stands on, and what every ratio is of."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.embeddings = Embeddings(self.config)
        self.encoder = Encoder(self.config)
        if self.config.pooling == "pooler":
            self.pooler = Pooler(self.config)

    def pooled(self, x: jax.Array, batch: Batch) -> jax.Array:
        """One vector a target, `[targets, hidden]`: its token's (with or without the pooler) or its example's mean."""
        if self.config.pooling == "mean":
            ids, targets = batch.example_ids, batch.targets
            member = ids.reshape(1, -1) == ids[targets.row, targets.position][:, None]
            share = member / member.sum(axis=1, keepdims=True)
            return share.astype(x.dtype) @ x.reshape(-1, x.shape[-1])
        return self.pooler(x) if self.config.pooling == "pooler" else x


class Classifier(nn.Module):
    """The body and a dense head: `num_outputs` logits, or one score, a target."""

    config: BertConfig

    def setup(self) -> None:  # noqa: D102
        self.bert = Body(self.config)
        self.classifier = Dense(self.config.num_outputs, dtype=jnp.float32)

    def __call__(
        self, batch: Batch, masks: Masks, x: jax.Array | None = None, start: int = 0, stop: int | None = None
    ) -> jax.Array:
        """Runs the stages `start:stop` from the array `x` that the stages before them gave.

        `masks` holds the dropout masks by site (`dropout_masks`); an empty dict is evaluation. All stages give
        float32 logits `[targets, outputs]`.
        """
        for name in stages(self.config)[start:stop]:
            x = self.stage(name, x, batch, masks)
        assert x is not None
        return x

    def stage(self, name: str, x: Any, batch: Batch, masks: Masks) -> jax.Array:
        """One stage by its name."""
        c = self.config
        if name == "embeddings":
            return self.bert.embeddings.total(batch)
        if name == "embeddings_norm":
            return self.bert.embeddings.normalised(x, masks)
        if name == "pooling":
            return self.bert.pooled(x, batch)
        if name == "classifier":
            kept = dropout.drop(x, masks.get("classifier"), c.classifier_dropout)
            return self.classifier(kept)
        block, part = name.split("/")
        return self.bert.encoder.layer.blocks[int(block)].stage(part, x, batch, masks, block)


def stages(config: BertConfig) -> list[str]:
    """The names of the stages in order; a block is the four `K/attention … K/ffn_norm`."""
    parts = ("attention", "attention_norm", "ffn", "ffn_norm")
    blocks = [f"{i}/{part}" for i in range(config.num_hidden_layers) for part in parts]
    return ["embeddings", "embeddings_norm", *blocks, "pooling", "classifier"]


def blocks(config: BertConfig, start: int = 0) -> list[range]:
    """The stages of each block, from the stage `start` up."""
    ends = range(6, 4 * config.num_hidden_layers + 3, 4)  # two stages are below the blocks
    return [range(max(end - 4, start), end) for end in ends if end > start]


STAGE_OF_PATH = (
    (r"bert/embeddings/LayerNorm/.*", r"embeddings_norm"),
    (r"bert/embeddings/.*", r"embeddings"),
    (r"bert/encoder/layer/(\d+)/attention/output/LayerNorm/.*", r"\1/attention_norm"),
    (r"bert/encoder/layer/(\d+)/attention/.*", r"\1/attention"),
    (r"bert/encoder/layer/(\d+)/output/LayerNorm/.*", r"\1/ffn_norm"),
    (r"bert/encoder/layer/(\d+)/.*", r"\1/ffn"),
    (r"bert/pooler/.*", r"pooling"),
    (r"classifier/.*", r"classifier"),
)


def stage_of(config: BertConfig, path: str) -> int:
    """The index of the stage that reads the parameter at `path`."""
    for pattern, name in STAGE_OF_PATH:
        if match := re.fullmatch(pattern, path):
            return stages(config).index(match.expand(name))
    raise ValueError(f"no stage reads {path!r}")


def dropout_masks(config: BertConfig, batch: Batch, state: jax.Array, start: int = 0, stop: int | None = None) -> Masks:
    """The dropout masks that the stages `start:stop` read, bool by site; `state` is uint32 `[]` of (seed, task, step).

    Sites are numbered from the bottom, so a mask does not depend on which stages are asked for, nor on the setting.
    A rate of zero has no mask.
    """
    c = config
    masks: Masks = {}

    def tokens(site: str, number: int, own: Readers, rate: float) -> None:
        if rate > 0:
            ids, positions = own.pick(batch.example_ids), own.pick(batch.positions)
            masks[site] = dropout.token_mask(dropout.fold(state, number), ids, positions, c.hidden_size, rate)

    def scores(site: str, number: int, own: Readers, rate: float) -> None:
        if rate > 0:
            ids, positions = (own.in_rows(own.pick(x)) for x in (batch.example_ids, batch.positions))
            stream, heads = dropout.fold(state, number), c.num_attention_heads
            masks[site] = dropout.attention_mask(stream, ids, positions, batch.positions, heads, rate)

    for name in stages(c)[start:stop]:
        block, _, part = name.partition("/")
        own, first = readers(c, batch, block), 3 * int(block) + 1 if part else 0
        if name == "embeddings_norm":
            tokens("embeddings", 0, own, c.hidden_dropout_prob)
        elif part == "attention":
            scores(f"{block}/probs", first, own, c.attention_probs_dropout_prob)
            tokens(f"{block}/attention", first + 1, own, c.hidden_dropout_prob)
        elif part == "ffn":
            tokens(f"{block}/ffn", first + 2, own, c.hidden_dropout_prob)
        elif name == "classifier":
            targets = Readers(batch, everyone=False)
            tokens("classifier", 3 * c.num_hidden_layers + 1, targets, c.classifier_dropout)
    return masks


def parameter_shapes(config: BertConfig) -> dict[str, Any]:
    """The parameter tree as shapes (`jax.ShapeDtypeStruct`), without memory."""
    model = Classifier(config)
    return jax.eval_shape(lambda key: model.init(key, Batch.example(), {}), jax.random.key(0))["params"]
