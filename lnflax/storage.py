"""How files reach the disk and come back: whole or not at all, after a power loss too, and as they were written.

A file is written beside its place, flushed to the disk, renamed, and its folder is flushed: the four steps without one
of which a crash leaves half a file, a rightly named file of zeros, or the old one (Pillai et al., OSDI 2014). Every
write of a run folder goes through `durable_write`.

`SHA256SUMS` of a folder, in the format of `sha256sum`, says what was written there. It is written before the file
that it speaks of, and until the next write names both that file and the one before: whichever of them a crash leaves
is right, and nothing else is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from lnflax.errors import InputError

SUMS = "SHA256SUMS"
ASIDE = ".damaged"

_SUM = re.compile(r"([0-9a-f]{64})  (\S+)")
_GONE = "does the disk, or the mount, still answer"
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EROFS: "make the file system writable",
    errno.EACCES: "allow this user to write there",
    errno.EPERM: "allow this user to write there",
}


class StorageError(OSError):
    """A disk or a mount that fails, `(errno, line)`: the line names the file and says what to do."""

    def __str__(self) -> str:
        return str(self.strerror)


class Damaged(InputError):
    """A file that is not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def telling(path: Path, what: str = "written") -> Iterator[None]:
    """What the system raises, as a line about the file.

    Raises:
        StorageError: in place of any other OSError.
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        number = error.errno or 0
        advice = _ADVICE[number] + "," if number in _ADVICE else f"{_GONE}? Then"
        line = f"{path} cannot be {what}: {reason}; {advice} give the same command again: what is finished is kept"
        raise StorageError(number, line) from error


def durable_write(path: Path, data: bytes) -> None:
    """Writes the whole file or leaves the old one; when it returns, the file outlives a power loss.

    Raises:
        InputError: a file lies where a folder should be, or a folder where the file should be.
        StorageError: the disk is full, read-only, gone, or fails.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path} is a folder where a file should be")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with telling(path):
        try:
            _write_flushed(temporary, data)
            os.replace(temporary, path)  # noqa: PTH105 - the one layer of system calls, which tests fail one by one
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)  # noqa: PTH108
            raise
        flush_folder(path.parent)


def _write_flushed(path: Path, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        view = memoryview(data)
        while len(view):  # a system call may write less than it is given
            view = view[os.write(file, view) :]
        os.fsync(file)
    finally:
        os.close(file)


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder outlive a power loss."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_folder(folder: Path) -> None:
    """The folder and those above it, each flushed to the one that holds it.

    Raises:
        InputError: a file is in its place.
        StorageError: it cannot be made.
    """
    if folder.is_dir():
        return
    if any(each.is_file() for each in (folder, *folder.parents)):
        raise InputError(f"{folder} cannot be a folder: a file is in its place")
    make_folder(folder.parent)
    with telling(folder, "made"):
        with contextlib.suppress(FileExistsError):  # another process has just made it
            os.mkdir(folder)  # noqa: PTH102
        flush_folder(folder.parent)


def remove(*paths: Path) -> None:
    """Takes files away; those that are not there are passed over. A power loss may bring them back."""
    for path in paths:
        with telling(path, "removed"), contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108


def remove_folder(folder: Path) -> None:
    """Takes a folder and the files in it away. A power loss may bring them back."""
    if not folder.is_dir():
        return
    remove(*(path for path in folder.iterdir() if not path.is_dir()))
    with telling(folder, "removed"):
        os.rmdir(folder)  # noqa: PTH106


def write_folder(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """A new folder of files by name, whole or not at all.

    Raises:
        InputError: the folder is there and not empty, or a file is in its place.
        StorageError: it cannot be written.
    """
    check_new(folder)
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.tmp")
    make_folder(beside)
    try:
        for name, data in files:
            durable_write(beside / name, data)
        with telling(folder):
            os.rename(beside, folder)  # noqa: PTH104
            flush_folder(folder.absolute().parent)
    except BaseException:
        with contextlib.suppress(OSError):
            remove_folder(beside)
        raise


def check_new(folder: Path) -> None:
    """That nothing is where a new folder should be.

    Raises:
        InputError: the folder is there and not empty, or a file is in its place.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is there and not empty; give a new folder")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} cannot be a folder: a file is in its place")


def sha256(data: bytes) -> str:
    """In hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> None:
    """`durable_write`, with the file's sum in `SHA256SUMS`; nothing is written where the same file lies there."""
    digest, sums = sha256(data), read_sums(path.parent)
    there = sha256(read_bytes(path)) if path.is_file() else None
    if there == digest and digest in sums.get(path.name, ()):
        return
    known = [own for own in sums.get(path.name, ()) if own == there]
    sums[path.name] = [*(own for own in known if own != digest), digest]
    _write_sums(path.parent, sums)
    durable_write(path, data)


def _write_sums(folder: Path, sums: dict[str, list[str]]) -> None:
    lines = "".join(f"{own}  {name}\n" for name in sorted(sums) for own in sums[name])
    durable_write(folder / SUMS, lines.encode())


def settle(folder: Path) -> None:
    """Lets `SHA256SUMS` name what lies there and nothing else: `sha256sum -c SHA256SUMS` then finds all in order."""
    sums = read_sums(folder)
    there = {name: sha256(read_bytes(folder / name)) for name in sums if (folder / name).is_file()}
    right = {name: [own] for name, own in there.items() if own in sums[name]}
    if right != sums:
        _write_sums(folder, right)


def read_sums(folder: Path) -> dict[str, list[str]]:
    """What may lie in a folder, by name; lines that are none are passed over: their files count as unsigned."""
    path = folder / SUMS
    text = read_bytes(path).decode(errors="replace") if path.is_file() else ""
    sums: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := _SUM.fullmatch(line):
            sums.setdefault(match[2], []).append(match[1])
    return sums


def read_bytes(path: Path) -> bytes:
    """The bytes as they lie there.

    Raises:
        InputError: no such file.
        StorageError: it cannot be read.
    """
    with _reading(path):
        return path.read_bytes()


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Errors of a file that is not there, and of a disk that fails, as `read_bytes` raises them."""
    try:
        with telling(path, "read"):
            yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            raise InputError(f"{path} is not there") from error
        if isinstance(error.__cause__, IsADirectoryError):
            raise InputError(f"{path} is a folder where a file should be") from error
        raise


def read(path: Path) -> bytes:
    """The bytes that were written; a file whose folder has no sum of it is taken as it is.

    Raises:
        Damaged: they are other bytes.
        InputError: no such file.
        StorageError: it cannot be read.
    """
    data = read_bytes(path)
    known = read_sums(path.parent).get(path.name)
    if known and sha256(data) not in known:
        raise Damaged(path, f"is not what was written: its sum is not that of {SUMS}")
    return data


def check(path: Path) -> None:
    """That the bytes are those that were written, as `read`, without holding them.

    Raises:
        Damaged: they are other bytes.
        InputError: no such file.
        StorageError: it cannot be read.
    """
    known = read_sums(path.parent).get(path.name)
    with _reading(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known and digest not in known:
        raise Damaged(path, f"is not what was written: its sum is not that of {SUMS}")


def set_aside(path: Path, folder: Path) -> Path:
    """Moves a damaged file to `NAME.damaged`, `NAME.damaged-2` and so on of a folder; returns where it lies."""
    names = (folder / f"{path.name}{ASIDE}{f'-{i}' * (i > 1)}" for i in range(1, 10**6))
    aside = next(name for name in names if not name.exists())
    with telling(path, "set aside"):
        os.rename(path, aside)  # noqa: PTH104
        flush_folder(folder)
    return aside


def stale(folder: Path) -> list[Path]:
    """What writes that were cut off have left in a folder."""
    return sorted(folder.glob(".*.tmp"))
