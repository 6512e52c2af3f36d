"""Answers of models over one base to examples, as they come: in order, packed, a window of them in memory at a time.

A window is tokenized, sorted by model, laid several examples a row, and cut into batches of few fixed shapes, so that
programs are compiled once however many windows come. The base lies on the devices once, whatever is tuned over it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lnflax import batches, bert, devices, evaluation, examples, packing, results, rules, tokens, work
from lnflax.bert import BertConfig
from lnflax.errors import InputError
from lnflax.packing import Layout, Shape
from lnflax.tasks import Texts
from lnflax.tokens import Encoded
from lnflax.tuned import Model

Tree = Any
WINDOW = 2048  # examples
LENGTHS = (32, 128, 512)  # of rows, below the longest example that there may be
FEW = 256  # tokens of a batch on one device, where there are few
CALL = 256  # tokens that take about as long as a call of a program
SHORT = 8  # tokens of a sentence, on the average: a batch has room for so many targets
LEAST = 4  # tokens: two of them are the tokenizer's own, three of a pair

Window = Sequence[Any]


def predict(
    models: Mapping[str, Model], given: Iterable[Any], *, max_length: int, window: int = WINDOW
) -> Iterator[dict[str, Any]]:
    """An answer an example, in order; what is wrong with one is its answer, and does not stop the rest.

    Args:
        models: over one base or several, by name; with several, an example names its own as `delta`.
        given: texts, pairs, lists of words, or objects (`examples.read`); `window` of them are read ahead.
        max_length: tokens of an example; what is longer is cut.
        window: examples that are answered together.

    Returns:
        `{"label", "probabilities": {label: p}}`, `{"score"}`, or for words `{"tokens", "tags", "probabilities"}`, with
        null for words that have no token within `max_length`; else `{"error"}`. With `id` where the example has one.
        All is plain JSON: what is not finite is null.

    Raises:
        InputError: no model, or one cannot read so many tokens.
    """
    answered = answer_windows(models, _cut(given, window), max_length=max_length)
    return itertools.chain.from_iterable(answered)


def answer_windows(
    models: Mapping[str, Model], windows: Iterable[Window], *, max_length: int
) -> Iterator[list[dict[str, Any]]]:
    """The same, a window at a time; arguments and errors are those of `predict`."""
    _check(models, max_length)
    params = _place(models)
    return (_answer(models, params, window, max_length) for window in windows)


def _cut(given: Iterable[Any], size: int) -> Iterator[Window]:
    source = iter(given)
    while window := list(itertools.islice(source, size)):
        yield window


def _check(models: Mapping[str, Model], max_length: int) -> None:
    if not models:
        raise InputError("there is no model to ask")
    most = min(model.shape.max_position_embeddings for model in models.values())
    if not LEAST <= max_length <= most:
        raise InputError(f"max_length: {max_length}; allowed are {LEAST} … {most}, the positions of the model")


def _place(models: Mapping[str, Model]) -> dict[str, Tree]:
    """The parameters of each model on the devices; an array that several have lies there once."""
    placed: dict[int, jax.Array] = {}
    for model in models.values():
        for leaf in model.params.values():
            if id(leaf) not in placed:
                placed[id(leaf)] = devices.put_copies(leaf, jax.local_device_count())
    return {
        name: rules.unflatten({path: placed[id(leaf)] for path, leaf in model.params.items()})
        for name, model in models.items()
    }


def _answer(
    models: Mapping[str, Model], params: Mapping[str, Tree], window: Window, max_length: int
) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = [{} for _ in window]
    asked: dict[tuple[str, int], list[tuple[int, tuple[Any, ...]]]] = {}  # by model, and one text or two
    for place, given in enumerate(window):
        try:
            name, columns = examples.read(models, given)
        except InputError as error:
            answers[place] = {"error": str(error)}
        else:
            asked.setdefault((name, len(columns)), []).append((place, columns))
    for (name, _), own in asked.items():
        columns = tuple(map(list, zip(*(columns for _, columns in own), strict=True)))
        found = _ask(models[name], params[name], columns, max_length)
        for (place, _), answer in zip(own, found, strict=True):
            answers[place] = answer
    return [examples.id_of(given) | answer for given, answer in zip(window, answers, strict=True)]


def _ask(model: Model, params: Tree, columns: tuple[list[Any], ...], max_length: int) -> Iterator[dict[str, Any]]:
    """The answers of one model to one or two columns of texts, or one of lists of words."""
    count = sum(map(len, columns[0])) if model.tagged else len(columns[0])
    encoded = tokens.tokenize(model.base.tokenizer(), Texts(columns, np.zeros(count, np.int32)), max_length)
    if (largest := int(encoded.tokens.max())) >= model.shape.vocab_size:
        known = model.shape.vocab_size
        raise InputError(f"{model.base.name}: the tokenizer gives token {largest}, the model knows {known}")
    logits = np.full((count, model.shape.num_outputs), np.nan, np.float32)
    if len(encoded.asked.label):  # of words, all may be without a token
        logits[encoded.asked.label] = _logits(model, params, encoded, max_length)
    if model.tagged:
        parts = itertools.pairwise(encoded.label_offsets.tolist())
        words = zip(columns[0], parts, strict=True)
        return (_of_words(model.labels, own, logits[start:stop]) for own, (start, stop) in words)
    if not model.labels:
        return ({"score": results.plain(score)} for score in logits[:, 0].tolist())
    return (_of_classes(model.labels, own) for own in _softmax(logits))


def _of_classes(labels: tuple[str, ...], share: np.ndarray) -> dict[str, Any]:
    known = bool(np.isfinite(share).all())
    best = labels[int(share.argmax())] if known else None
    return {"label": best, "probabilities": dict(zip(labels, results.plain(share), strict=True))}


def _of_words(labels: tuple[str, ...], words: list[str], logits: np.ndarray) -> dict[str, Any]:
    share = _softmax(logits)
    known = np.isfinite(share).all(axis=-1)
    best = np.where(known, share.argmax(axis=-1), 0)
    tags = [labels[number] if there else None for number, there in zip(best, known, strict=True)]
    chosen = np.where(known, share[np.arange(len(best)), best], np.nan)
    return {"tokens": words, "tags": tags, "probabilities": results.plain(chosen)}


def _softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, float32; nan where a logit is not finite."""
    logits = np.where(np.isfinite(logits).all(axis=-1, keepdims=True), logits, np.nan)
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share: np.ndarray = raised / raised.sum(axis=-1, keepdims=True)
    return share


class Calls(NamedTuple):
    """How examples are cut into calls of one shape on all devices."""

    shape: Shape  # of a batch
    targets: int  # of a batch
    order: np.ndarray  # the examples of each batch, int64 [calls × devices, examples]
    layout: Layout  # where they begin, [calls × devices, examples]


def _logits(model: Model, params: Tree, encoded: Encoded, max_length: int) -> np.ndarray:
    """Of every target that the examples have, float32 `[targets, outputs]`."""
    count = jax.local_device_count()
    calls = cut(encoded, model.shape, max_length, count, words=model.tagged)
    asks = batches.asks_of(encoded, calls.order, calls.targets)
    made: Any = batches.make_batches(encoded, calls.order, asks, calls.layout, calls.shape, 1)
    by_call = jax.tree.map(lambda x: x[0].reshape(-1, count, *x.shape[2:]), made)
    ask = program(model.shape, count)
    begun = [
        ask(params, devices.put(jax.tree.map(lambda x: x[number], by_call), count))  # noqa: B023 - called at once
        for number in range(len(calls.order) // count)
    ]
    found = np.concatenate([np.asarray(part) for part in begun])
    logits = np.empty((len(encoded.asked.label), found.shape[-1]), np.float32)
    inside = asks.target != batches.NONE
    logits[asks.target[inside]] = found[inside]
    return logits


def cut(encoded: Encoded, shape: BertConfig, max_length: int, count: int, *, words: bool) -> Calls:
    """The cheapest calls for some examples on `count` devices, of the few shapes that there are."""
    longest, knee = int(encoded.lengths.max()), work.knee(shape)
    top = -(-max_length // packing.MULTIPLE) * packing.MULTIPLE
    laid = {
        length: packing.pack_all(encoded.lengths, length)
        for length in (*(length for length in LENGTHS if length < top), top)
        if length >= longest
    }

    def calls(own: Shape) -> int:
        return -(-laid[own.length][1] // (own.rows * count))

    shapes = [Shape(max(size // length, 1), length) for length in laid for size in (FEW, evaluation.TOKENS)]
    best = min(shapes, key=lambda own: calls(own) * (packing.cost(own, knee) + CALL))
    room = best.tokens if words else max(best.tokens // SHORT, best.length)
    layout, number = laid[best.length][0], calls(best)
    while True:
        order, where = batches.deal(layout, number * count)
        if batches.count_targets(encoded, order).max() <= room:
            return Calls(best, room, order, where)
        number += 1  # many very short ones; a batch of one row has room for all that fit


@functools.cache
def program(shape: BertConfig, count: int) -> Callable:
    """Parameters and a batch to logits `[devices, targets, outputs]`, on `count` devices, without dropout."""
    classifier = bert.Classifier(shape)
    return devices.parallel(lambda params, batch: classifier.apply({"params": params}, batch, {}), count)
