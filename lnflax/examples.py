"""What may be asked of models: a text, a pair, a list of words, or an object that names its parts; one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lnflax.errors import InputError, nearest
from lnflax.tuned import Model

TEXT, PAIR, TOKENS, DELTA, ID = "text", "pair", "tokens", "delta", "id"  # the names in an object
WORDS = {1: "one text", 2: "a pair of texts"}


class Example(NamedTuple):
    """Which model is asked, and what: a text, two texts, or a list of words."""

    name: str
    columns: tuple[Any, ...]


def read(models: Mapping[str, Model], given: Any) -> Example:
    """An example as it was given, checked.

    Args:
        models: by name; an example may leave the name out where there is one.
        given: a text; two texts; a list of words; or an object of `text` and `pair`, or of the task's own columns, or
            of `tokens`, with `delta`, the name of its model, and `id`.

    Raises:
        InputError: it is none of these, or not what its model wants; or it is an InputError, of who read it.
    """
    if isinstance(given, InputError):
        raise given
    name = _name(models, given)
    model = models[name]
    texts = _words(given) if model.tagged else _texts(model, given)
    for text in texts:
        _check_characters(text)
    return Example(name, (texts,) if model.tagged else tuple(texts))


def id_of(given: Any) -> dict[str, Any]:
    """`{"id": …}` where an example has one."""
    return {ID: given[ID]} if isinstance(given, Mapping) and ID in given else {}


def _name(models: Mapping[str, Model], given: Any) -> str:
    named = isinstance(given, Mapping) and given.get(DELTA) is not None
    if not named:
        if len(models) > 1:
            raise InputError(f"there are {len(models)} deltas: an example names its own as {DELTA!r}")
        return next(iter(models))
    name, known = given[DELTA], [name for name in models if name]
    if isinstance(name, str) and name in models:
        return name
    close = nearest(name, known) if isinstance(name, str) else ""
    raise InputError(f"{DELTA}: {name!r} is not known; allowed are {', '.join(known) or 'none: leave it out'}{close}")


def _words(given: Any) -> list[str]:
    words = given
    if isinstance(given, Mapping):
        if TOKENS not in given:
            raise InputError(f"there is no {TOKENS!r}, a list of words; there are {_some(given)}")
        words = given[TOKENS]
    if not isinstance(words, list | tuple):
        raise InputError(f"the model tags words, and wants a list of them, not {_kind(words)}")
    if wrong := [word for word in words if not isinstance(word, str)]:
        raise InputError(f"a word is {_kind(wrong[0])}, not a text")
    if not words:
        raise InputError("there are no words")
    return list(words)


def _texts(model: Model, given: Any) -> list[str]:
    columns = _columns(model, given)
    if wrong := [text for text in columns if not isinstance(text, str)]:
        raise InputError(f"a text is {_kind(wrong[0])}")
    wanted = (len(model.task.columns),) if model.task else (1, 2)
    if len(columns) not in wanted:
        name = model.task.name if model.task else "the model"
        words = " or ".join(WORDS[count] for count in wanted)
        raise InputError(f"{name} wants {words}, not {WORDS.get(len(columns), f'{len(columns)} texts')}")
    if not any(text.strip() for text in columns):
        raise InputError("the text is empty")
    return list(columns)


def _columns(model: Model, given: Any) -> tuple[Any, ...]:
    if isinstance(given, str):
        return (given,)
    if isinstance(given, list | tuple):
        return tuple(given)
    if not isinstance(given, Mapping):
        raise InputError(f"an example is a text, a pair, a list of words or an object, not {_kind(given)}")
    own = model.task.columns if model.task else ()
    if own and all(column in given for column in own):
        return tuple(given[column] for column in own)
    if TEXT not in given:
        also = f" (or {' and '.join(own)})" if own else ""
        raise InputError(f"there is no {TEXT!r}{also}; there are {_some(given)}")
    return (given[TEXT],) if given.get(PAIR) is None else (given[TEXT], given[PAIR])


def _check_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise InputError(f"a text has {half}, half of a character, at {error.start}") from error


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _some(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"
