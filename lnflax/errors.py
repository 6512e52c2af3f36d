"""Bad input is one clear line: the field, what was given, what is allowed, the nearest valid name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong. Commands print the message alone, on one line, and exit with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean X?` for the closest of `allowed`, or nothing when none is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(field: str, given: str, allowed: Iterable[str]) -> None:
    """Raises InputError when `given` is not one of `allowed`, naming the field and the nearest valid name."""
    names = list(allowed)
    if given not in names:
        raise InputError(f"{field}: {given!r} is not known; allowed are {', '.join(names)}{nearest(given, names)}")
