"""Who trains which cell: several processes share a workdir's cells out, each cell to one of them at a time.

A claim is a kernel lock (`flock`, through filelock) on a file of `WORKDIR/.claims`, which the kernel itself gives up
when its owner dies, however it dies: no claim outlives a process, and none is taken from a live one. What is written
in the file only says who; that it exists means nothing. It holds where the kernel keeps `flock`: on local file
systems, and on those that pass it to one server for all machines (NFS version 4 or with its lock daemon, Lustre
mounted with `flock`, GPFS, CephFS). Where it is not kept, taking a claim fails and says so; where it is kept by each
machine alone (Lustre with `localflock`, NFS with `local_lock`), only processes of one machine see one another, and
`--cells` is for several.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from lnflax.storage import StorageError, telling

FOLDER = ".claims"
STUDY = "study"  # the claim on what is not of one cell

_NO_LOCKS = (
    "this file system has no kernel locks; share the cells out with --cells=i/n, or take them all by --cells=1/1"
)
_UNKNOWN = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextlib.contextmanager
def claim(workdir: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether the claim is ours, which it stays until the block ends; with `wait` until it is.

    Raises:
        StorageError: the file system has no kernel locks, or the file cannot be made.
    """
    path = _path(workdir, name)
    lock = _acquire(path, wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            # The name goes before the lock: who waits for the lock of a nameless file is told so by filelock, and
            # asks again. At the end of a study nothing of its claims is left.
            with contextlib.suppress(OSError):
                path.unlink()
            lock.release()
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def _acquire(path: Path, wait: bool) -> filelock.BaseFileLock | None:
    """The lock, or None where another process has it."""
    lock = filelock.FileLock(path, blocking=wait, fallback_to_soft=False, on_acquired=_sign)
    with telling(path, "claimed"):
        while True:
            with contextlib.suppress(FileExistsError):
                path.parent.mkdir()
            try:
                lock.acquire()
                return lock
            except filelock.Timeout:
                return None
            except FileNotFoundError:  # another process has just tidied the folder up
                if not path.parent.parent.is_dir():
                    raise
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise
                raise StorageError(error.errno, f"{path}: {error.strerror}; {_NO_LOCKS}") from error


def holder(workdir: Path, name: str) -> str | None:
    """`HOST, process PID` of the claim's owner, or None where nobody has it."""
    path = _path(workdir, name)
    if not path.is_file():
        return None
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        with lock:
            return None
    except filelock.Timeout:
        with contextlib.suppress(OSError):
            return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
    return "another process"


def _path(workdir: Path, name: str) -> Path:
    return workdir / FOLDER / f"{name.replace('/', '.')}.lock"


def _sign(file: int) -> None:
    """Writes into the locked file whose it is, for people; a full disk is no reason not to work."""
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.write(file, f"{socket.gethostname()}, process {os.getpid()}\n".encode())
