"""Lines of a file or of standard input, answered by lines of JSON as they come, however many there are."""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import math
import os
import stat
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from lnflax import results, serving
from lnflax.errors import InputError
from lnflax.serving import WINDOW
from lnflax.tuned import Model

STANDARD = "-"
LONGEST = 2**20  # bytes of a line
HELD = 2**22  # bytes of the lines of a window, about


def named(deltas: Sequence[str]) -> dict[str, Path]:
    """Files of deltas by name, from arguments `FILE` or `NAME=FILE`.

    Without a name it is the task of a run folder's TASK/SETTING/deltas/FILE, else the file's name without its ending.

    Raises:
        InputError: two have one name.
    """
    found: dict[str, Path] = {}
    for given in deltas:
        name, sign, file = given.partition("=")
        if not sign or Path(given).is_file():
            name, file = _name(Path(given)), given
        if not name or not file:
            raise InputError(f"{given!r} is no delta; give FILE or NAME=FILE")
        if name in found:
            raise InputError(f"{found[name]} and {file} are both called {name!r}; give NAME=FILE")
        found[name] = Path(file)
    return found


def _name(path: Path) -> str:
    cell = results.cell_of_delta(path)
    return path.stem if cell is None else cell.parent.name


def answer(models: Mapping[str, Model], source: str, form: str | None, output: str, max_length: int) -> None:
    """Writes a line of JSON for each line: its number from 1 as `line`, and what `serving.predict` says.

    Args:
        models: by name.
        source: a file, or `-` for standard input.
        form: `text` (a pair with a tab between; words with spaces) or `jsonl`; None goes by the file's ending.
        output: a file, which is written anew, or `-` for standard output.
        max_length: tokens of an example.

    Raises:
        InputError: the file is not there, or is the output too; text for several models; or as `serving.predict`.
    """
    form = form or ("jsonl" if Path(source).suffix in (".jsonl", ".json") else "text")
    if form == "text" and len(models) > 1:
        raise InputError(f"--format: text names no delta, and there are {len(models)}; give jsonl")
    tagged = all(model.tagged for model in models.values())
    for name in {model.base.name for model in models.values() if model.fresh}:
        sys.stderr.write(f"warning: {name} has no head: a fresh one answers, which has learned nothing\n")
    with contextlib.ExitStack() as stack:
        lines = _windows(_open(stack, source))
        windows = ([_example(line, form, tagged) for line in window] for window in lines)
        answered = serving.answer_windows(models, windows, max_length=max_length)
        file = _create(stack, source, output)
        with _until_nobody_reads(file):
            _write(answered, file)


def _write(answered: Iterator[list[dict[str, Any]]], file: IO[bytes]) -> None:
    number = itertools.count(1)
    wrong = 0
    for answers in answered:
        file.write(b"".join(_line({"line": next(number), **answer}) for answer in answers))
        file.flush()
        wrong += sum("error" in answer for answer in answers)
    if wrong:
        sys.stderr.write(f"warning: {wrong:,} of {next(number) - 1:,} lines have an error\n")


def _line(answer: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:  # an id of halves of characters
        text = json.dumps(answer, allow_nan=False).encode()
    return text + b"\n"


@contextlib.contextmanager
def _until_nobody_reads(file: IO[bytes]) -> Iterator[None]:
    """Ends quietly where the other end of the pipe is closed, as `head` does it."""
    try:
        yield
    except BrokenPipeError:
        # What is buffered would be tried again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())


def _open(stack: contextlib.ExitStack, source: str) -> IO[bytes]:
    if source == STANDARD:
        if sys.stdin is None:
            raise InputError("--input: there is no standard input; give a file")
        return sys.stdin.buffer
    try:
        return stack.enter_context(Path(source).open("rb"))
    except OSError as error:
        raise InputError(f"--input: {source} cannot be read: {error.strerror}") from error


def _create(stack: contextlib.ExitStack, source: str, output: str) -> IO[bytes]:
    if output == STANDARD:
        return sys.stdout.buffer
    path = Path(output)
    if source != STANDARD and path.exists() and path.samefile(source):
        raise InputError(f"--output: {output} is the input")
    try:
        return stack.enter_context(path.open("wb"))
    except OSError as error:
        raise InputError(f"--output: {output} cannot be written: {error.strerror}") from error


def _example(line: bytes | InputError, form: str, tagged: bool) -> Any:
    """What a line asks: an example of `serving.predict`, or an InputError in its place."""
    if isinstance(line, InputError):
        return line
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        return InputError(f"the line is not UTF-8 ({error.reason} at byte {error.start + 1})")
    if form == "text":
        return text.split() if tagged else tuple(text.split("\t"))
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        return InputError(f"the line is not JSON ({error})")


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _windows(file: IO[bytes]) -> Iterator[list[bytes | InputError]]:
    """The lines of a file, a window at a time: of a pipe or a terminal, what has arrived."""
    lines = _read(file)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        yield from Arrivals(lines).windows()
        return
    window, held = [], 0
    for line in lines:
        window.append(line)
        held += _size(line)
        if _is_full(len(window), held):
            yield window
            window, held = [], 0
    if window:
        yield window


def _size(line: bytes | InputError) -> int:
    return len(line) if isinstance(line, bytes) else 0


def _is_full(lines: int, held: int) -> bool:
    return lines >= WINDOW or held >= HELD


def _read(file: IO[bytes]) -> Iterator[bytes | InputError]:
    """Lines as they are; of one that is too long the rest is passed over."""
    while line := file.readline(LONGEST):
        rest = line
        while len(rest) == LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST)
        yield line if rest is line else InputError(f"the line is longer than {LONGEST:,} bytes")


class Arrivals:
    """Lines that a thread of their own reads as they arrive; it waits while a window of them has not been fetched."""

    def __init__(self, lines: Iterator[bytes | InputError]) -> None:
        self._lines: collections.deque[bytes | InputError] = collections.deque()
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._ended, self._held = False, 0
        # A daemon: it may wait for a line that never comes when the answers are no longer read.
        threading.Thread(target=self._fill, args=(lines,), daemon=True).start()

    def _fill(self, lines: Iterator[bytes | InputError]) -> None:
        try:
            for line in lines:
                with self._changed:
                    self._changed.wait_for(lambda: not _is_full(len(self._lines), self._held))
                    self._lines.append(line)
                    self._held += _size(line)
                    self._changed.notify_all()
        except Exception as error:  # raised again where the lines are fetched
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def windows(self) -> Iterator[list[bytes | InputError]]:
        """What has arrived since the last window, at least a line.

        Raises:
            OSError: the lines could not be read to their end.
        """
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._ended)
                window = list(self._lines)
                self._lines.clear()
                self._held = 0
                self._changed.notify_all()
            if not window:
                break
            yield window
        if self._error is not None:
            raise self._error
