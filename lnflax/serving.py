"""Answers to a stream of examples: packed, on all devices, in order, in memory that does not grow with the stream.

The base is put on the devices once, whatever is tuned over it; another delta costs its own kilobytes there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lnflax import batches, devices, evaluation, packing, questions, rules, tokens, work
from lnflax.batches import Batch
from lnflax.bert import BertConfig, Classifier
from lnflax.errors import InputError
from lnflax.packing import Layout, Shape
from lnflax.questions import Question
from lnflax.tasks import Texts
from lnflax.tokens import Encoded
from lnflax.tuned import Model

Tree = Any
Answer = dict[str, Any]
WINDOW = 2048  # examples that are looked at together
SIZES = (256, evaluation.TOKENS)  # tokens of a batch on one device: of a few examples, and of many
SHORTEST = 32  # tokens of a row; longer ones double, so that there are few shapes
TARGETS = 32  # of a batch, at least; more are a power of two


class Work(NamedTuple):
    """Batches of one shape, and where their targets are."""

    batch: Batch  # leaves [devices, batches, …]
    part: np.ndarray  # which device has each target, int64 [batches, targets]
    label: np.ndarray  # which label each target is, int64 [batches, targets]; `batches.NONE` for no target


def predict(
    models: Mapping[str, Model], examples: Iterable[Any], *, max_length: int, window: int = WINDOW
) -> Iterator[Answer]:
    """An answer an example, in order.

    Args:
        models: by name, all over one base; each example names its own where there are several (`questions.read`).
        examples: texts, pairs of texts, lists of words, or mappings; asked for one window ahead.
        max_length: tokens of an example, at most; longer ones are cut as in training.
        window: examples that are packed together.

    Yields:
        `label` and `probabilities` by label; of a regression `score`; of words `tags` and `probabilities`, one a
        word, None where a word has no token; `error` where the example is none of its model. With the example's `id`.

    Raises:
        InputError: a model has fewer positions than `max_length`.
    """
    stream = iter(examples)
    windows = iter(lambda: list(itertools.islice(stream, window)), [])
    return itertools.chain.from_iterable(answers(models, windows, max_length))


def answers(models: Mapping[str, Model], windows: Iterable[Sequence[Any]], max_length: int) -> Iterator[list[Answer]]:
    """The same for examples that come in windows: each is answered before the next is asked for.

    Raises:
        InputError: as there.
    """
    for model in models.values():
        if max_length > (most := model.shape.max_position_embeddings):
            raise InputError(f"max_length: {max_length}; the model has {most} positions")
    place = Placed(jax.local_device_count())
    return (_window(models, place, window, max_length) for window in windows)


class Placed:
    """Parameters on the devices: of each array one copy a device, however many models have it."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._arrays: dict[int, tuple[np.ndarray, jax.Array]] = {}  # the first keeps its id from being given again

    def __call__(self, params: Mapping[str, np.ndarray]) -> Tree:
        """A model's tree, leaves `[devices, …]`."""
        return rules.unflatten({path: self._put(leaf) for path, leaf in params.items()})

    def _put(self, leaf: np.ndarray) -> jax.Array:
        if id(leaf) not in self._arrays:
            self._arrays[id(leaf)] = (leaf, devices.put_copies(leaf, self.count))
        return self._arrays[id(leaf)][1]


def _window(models: Mapping[str, Model], place: Placed, window: Sequence[Any], max_length: int) -> list[Answer]:
    found: list[Answer] = [{} for _ in window]
    asked: dict[str, list[tuple[int, Question]]] = {}
    for number, given in enumerate(window):
        try:
            question = questions.read(models, given)
            asked.setdefault(question.model, []).append((number, question))
        except InputError as error:
            found[number] = {**questions.echo(given), "error": str(error)}
    for name, own in asked.items():
        # A pair and a single text are told apart by their columns, which a tokenizer wants apart.
        for width in sorted({len(question.columns) for _, question in own}):
            here = [(number, question) for number, question in own if len(question.columns) == width]
            given = [question for _, question in here]
            for (number, question), answer in zip(here, _ask(models[name], place, given, max_length), strict=True):
                found[number] = {**question.echo, **answer}
    return found


def _ask(model: Model, place: Placed, asked: Sequence[Question], max_length: int) -> Iterator[Answer]:
    columns = tuple([question.columns[i] for question in asked] for i in range(len(asked[0].columns)))
    count = sum(map(len, columns[0])) if model.tagged else len(asked)
    encoded = tokens.encode_once(model.base.tokenizer(), Texts(columns, np.zeros(count, np.int32)), max_length)
    if (largest := int(encoded.tokens.max())) >= model.shape.vocab_size:
        known = model.shape.vocab_size
        raise InputError(f"{model.base.folder}: the tokenizer gives token {largest}, the model knows {known}")
    logits = _logits(model.shape, place(model.params), place.count, encoded, max_length)
    for begin, end in itertools.pairwise(encoded.label_offsets.tolist()):
        yield _answer(model, logits[begin:end])


def _logits(shape: BertConfig, params: Tree, count: int, encoded: Encoded, max_length: int) -> np.ndarray:
    """Of every label, float32 `[labels, outputs]`; nan where no token answers for it."""
    found = np.full((len(encoded.labels), shape.num_outputs), np.nan, np.float32)
    if not len(encoded.asked.label):
        return found
    program = _program(shape, count)
    own = lay(encoded, count, max_length, work.knee(shape))
    given = [jax.tree.map(lambda leaf: leaf[:, number], own.batch) for number in range(len(own.part))]  # noqa: B023
    results = [program(params, devices.put(batch, count)) for batch in given]
    for logits, part, label in zip(results, own.part, own.label, strict=True):
        inside = label != batches.NONE
        found[label[inside]] = np.asarray(logits)[part[inside], np.flatnonzero(inside)]
    return found


@functools.cache
def _program(shape: BertConfig, count: int) -> Callable[[Tree, Batch], jax.Array]:
    """Logits `[devices, targets, outputs]` of a batch `[devices, …]`."""
    return devices.parallel(lambda params, batch: Classifier(shape).apply({"params": params}, batch, {}), count)


def lay(encoded: Encoded, count: int, max_length: int, knee: float) -> Work:
    """Examples in rows of one of a few lengths, in batches of one of a few sizes, cut for so many devices."""
    lengths = encoded.lengths
    tried = [length for length in row_lengths(max_length) if length >= lengths.max()]
    laid = {length: packing.pack_all(lengths, length) for length in tried}
    length = min(tried, key=lambda own: packing.cost(Shape(laid[own][1], own), knee))
    layout, rows = laid[length]
    most = [max(size // length, 1) * count for size in SIZES]
    each = next((own for own in most if rows <= own), most[-1])
    order, where = evaluation.deal(layout, -(-rows // each))
    room = max(TARGETS, 2 ** int(np.ceil(np.log2(batches.count_targets(encoded, order).max()))))
    asks = batches.asks_of(encoded, order, room)
    made: Any = batches.make_batches(encoded, order, asks, Layout(*where), Shape(each, length), count)
    part = np.take_along_axis(where.row // (each // count), asks.column, axis=-1)
    label = np.where(asks.target == batches.NONE, batches.NONE, encoded.asked.label[asks.target])
    return Work(made, part, label)


def row_lengths(max_length: int) -> list[int]:
    """Those that are tried: doubling, up to the first that holds every example."""
    lengths = [SHORTEST]
    while lengths[-1] < max_length:
        lengths.append(2 * lengths[-1])
    return lengths


def _answer(model: Model, logits: np.ndarray) -> Answer:
    """Of an example's labels: one, or one a word, float32 `[labels, outputs]`."""
    if not model.labels:
        return {"score": _number(logits[0, 0])}
    power = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    shares = power / power.sum(axis=1, keepdims=True)
    known, best = np.isfinite(shares).all(axis=1), np.argmax(np.nan_to_num(shares), axis=1)
    labels = [model.labels[i] if there else None for i, there in zip(best, known, strict=True)]
    if model.tagged:
        return {"tags": labels, "probabilities": [_number(share) for share in shares[np.arange(len(best)), best]]}
    by_label = {label: _number(share) for label, share in zip(model.labels, shares[0], strict=True)}
    return {"label": labels[0], "probabilities": by_label}


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
