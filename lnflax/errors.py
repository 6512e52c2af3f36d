"""Bad input is one clear line: the field, what was given, what is allowed, the nearest valid name."""

from __future__ import annotations

import argparse
import difflib
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """The user's input is wrong. Commands print the message alone, on one line, and exit with 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class OneLineParser(argparse.ArgumentParser):
    """Flags whose errors are an InputError's one line."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise InputError(message)


def nearest(name: str, allowed: Iterable[str]) -> str:
    """`; did you mean X?` for the closest of `allowed`, or nothing when none is close."""
    match = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""


def check_choice(field: str, given: str, allowed: Iterable[str]) -> None:
    """Raises InputError when `given` is not one of `allowed`, naming the field and the nearest valid name."""
    names = list(allowed)
    if given not in names:
        raise InputError(f"{field}: {given!r} is not known; allowed are {', '.join(names)}{nearest(given, names)}")


def raised_at(error: BaseException, file: str) -> str:
    """`line 3: `, where a user's Python file went wrong, or `OTHER.py, line 3: ` for one that it imports.

    Nothing where neither did: an InputError is said to the user on purpose, other errors are of the library's own.
    """
    own = Path(file).resolve()
    for link in _chain(error):
        if isinstance(link, InputError):
            return ""
        calls = [(Path(call.filename).resolve(), call.lineno) for call in traceback.extract_tb(link.__traceback__)]
        first = next((number for number, (path, _) in enumerate(calls) if path == own), len(calls))
        mine = [call for call in calls[first:] if not _is_installed(call[0])]
        if isinstance(link, SyntaxError) and link.filename and link.lineno:  # no call: it was never run
            mine.append((Path(link.filename).resolve(), link.lineno))
        if mine:
            path, line = mine[-1]
            return f"line {line}: " if path == own else f"{path}, line {line}: "
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_installed(path: Path) -> bool:
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    return path.name.startswith("<") or any(path.is_relative_to(place) for place in places | {Path(__file__).parent})
