"""Lines in, lines out: what `predict` reads from a file or from standard input, and the JSON lines that it answers."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lnflax import results, serving
from lnflax.errors import InputError
from lnflax.tuned import Model

STANDARD = "-"
JSON_ENDINGS = (".jsonl", ".json")


def named(deltas: Sequence[str]) -> dict[str, Path]:
    """The files of arguments `FILE` or `NAME=FILE`, by name.

    By itself a delta is called by its file's stem, and one in its run folder `TASK/SETTING/STEM`.

    Raises:
        InputError: two have one name.
    """
    files: dict[str, Path] = {}
    for given in deltas:
        name, found, file = given.partition("=")
        path = Path(file if found and not Path(given).exists() else given)
        name = name if found and not Path(given).exists() else _name(path)
        if name in files:
            raise InputError(f"{given}: two deltas are called {name!r}; give NAME=FILE")
        files[name] = path
    return files


def _name(path: Path) -> str:
    folders = path.resolve().parents
    if len(folders) > 3 and folders[0].name == results.DELTAS:
        return f"{folders[2].name}/{folders[1].name}/{path.stem}"
    return path.stem


def answer(models: Mapping[str, Model], source: str, form: str | None, output: str, max_length: int) -> None:
    """Answers the lines of a file, in order: `{"line": 1, …}` a line (see `serving.predict`).

    What has arrived is answered at once, however slowly the next line comes; what is wrong with a line is its answer.

    Args:
        models: by name.
        source: a file, or `-` for standard input.
        form: `text` (a text a line, a pair with a tab between, words with spaces between) or `jsonl` (an object a
            line); None: by the file's ending.
        output: a file, or `-` for standard output.
        max_length: tokens of an example, at most.

    Raises:
        InputError: a file cannot be opened.
    """
    if form is None:
        form = "jsonl" if source.endswith(JSON_ENDINGS) else "text"
    if source == output != STANDARD:
        raise InputError(f"--output: {output} is what is read; give another file")
    with _opened(source, "rb", sys.stdin) as lines, _opened(output, "wb", sys.stdout) as out:
        windows = ([_example(models, form, line) for line in window] for window in arrived(lines))
        number = 0
        try:
            for found in serving.answers(models, windows, max_length):
                out.writelines(_line(number + i, own) for i, own in enumerate(found, start=1))
                out.flush()
                number += len(found)
        except BrokenPipeError:  # whoever reads the answers has enough of them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def arrived(lines: IO[bytes], most: int = serving.WINDOW) -> Iterator[list[bytes]]:
    """Lines in windows of what has arrived, at most so many; at least one, for which it waits."""
    ready: queue.Queue[bytes | OSError | None] = queue.Queue(2 * most)

    def fetch() -> None:
        try:
            for line in lines:
                ready.put(line)
            ready.put(None)
        except OSError as error:
            ready.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    last: bytes | OSError | None = b""
    while isinstance(last, bytes):
        window = []
        last = ready.get()
        while isinstance(last, bytes):
            window.append(last)
            if len(window) == most or ready.empty():
                break
            last = ready.get()
        if window:
            yield window
    if last is not None:
        raise last


def _example(models: Mapping[str, Model], form: str, line: bytes) -> Any:
    """A line as `questions.read` takes it; what is wrong with it is an InputError in its place."""
    try:
        text = line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        return InputError(f"the line is not UTF-8 ({error.reason} at byte {error.start + 1})")
    if form == "text":
        if all(model.tagged for model in models.values()):
            return text.split()
        return text.split("\t") if "\t" in text else text
    try:
        found = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        return InputError(f"the line is not JSON ({error})")
    return found if isinstance(found, dict) else InputError("the line is no JSON object")


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _line(number: int, found: Mapping[str, Any]) -> bytes:
    text = json.dumps(results.plain({"line": number, **found}), ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode(errors="backslashreplace")  # half a surrogate pair, which is JSON so


@contextlib.contextmanager
def _opened(name: str, mode: str, standard: Any) -> Iterator[Any]:
    if name == STANDARD:
        yield standard.buffer
        return
    try:
        file = Path(name).open(mode)  # noqa: SIM115 - closed below; errors of opening are the user's
    except OSError as error:
        raise InputError(f"{name} cannot be {'read' if mode == 'rb' else 'written'}: {error.strerror}") from error
    with file:
        yield file
