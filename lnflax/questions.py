"""What models are asked: an example as it is given, checked against the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lnflax.errors import InputError, check_choice
from lnflax.tuned import Model


class Question(NamedTuple):
    """An example that can be answered: the model's name, its texts (one or two) or its words, and its own `id`."""

    model: str
    columns: tuple[Any, ...]
    echo: dict[str, Any]


def read(models: Mapping[str, Model], given: Any) -> Question:
    """An example as it is given.

    Args:
        models: by name; an example need not name the only one.
        given: a text, a pair of texts, or a list of words for a model that tags them; or a mapping with `text` (and
            `pair`), the task's own columns, or `tokens`, and if need be `delta`, the model's name, and an `id`.

    Raises:
        InputError: it is none of these, or not what its model wants.
    """
    if isinstance(given, InputError):
        raise given
    fields = given if isinstance(given, Mapping) else {}
    name = _name(models, fields)
    model = models[name]
    if model.tagged:
        words = fields.get("tokens") if isinstance(given, Mapping) else given
        return Question(name, (_words(words),), echo(given))
    texts = _texts(model, fields) if isinstance(given, Mapping) else given
    return Question(name, _sentences(model, texts), echo(given))


def echo(given: Any) -> dict[str, Any]:
    """What an answer repeats of its example: its `id`, a text or a number."""
    plain = isinstance(given, Mapping) and isinstance(given.get("id"), str | int | float)
    return {"id": given["id"]} if plain else {}


def _name(models: Mapping[str, Model], fields: Mapping[str, Any]) -> str:
    name = fields.get("delta")
    if name is None:
        if len(models) > 1:
            raise InputError(f"delta: the example names none; allowed are {', '.join(models)}")
        return next(iter(models))
    check_choice("delta", str(name), models)
    return str(name)


def _words(given: Any) -> list[str]:
    if not isinstance(given, list | tuple) or not given or not all(isinstance(word, str) for word in given):
        raise InputError(f"tokens: {_short(given)} is not a list of words")
    return [_plain("tokens", word) for word in given]


def _texts(model: Model, fields: Mapping[str, Any]) -> list[Any]:
    """The one or two texts of an object's fields."""
    own = model.task.columns if model.task is not None else ()
    names = [("text", *own[:1]), ("pair", *own[1:2])]
    found = [next((fields[name] for name in each if name in fields), None) for each in names]
    return found if found[1] is not None else found[:1]


def _sentences(model: Model, given: Any) -> tuple[str, ...]:
    texts = (given,) if isinstance(given, str) else given
    if not isinstance(texts, list | tuple) or not 0 < len(texts) <= 2 or not all(isinstance(x, str) for x in texts):
        raise InputError(f"text: {_short(given)} is not a text or a pair of texts")
    if model.task is not None and len(texts) != (wanted := len(model.task.columns)):
        raise InputError(f"text: {model.task.name} reads {('a text', 'a pair of texts')[wanted - 1]}, not {len(texts)}")
    if not any(text.strip() for text in texts):
        raise InputError("text: there is none")
    return tuple(_plain("text", text) for text in texts)


def _plain(field: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{field}: {text[error.start]!a} is no character") from error
    return text


def _short(given: Any, most: int = 40) -> str:
    text = ascii(given)
    return text if len(text) <= most else f"{text[:most]}…"
