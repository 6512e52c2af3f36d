"""A disk that fails on demand, under `lnflax.storage`: the system calls it makes are counted, and one of them fails.

What lies on it is the real folder. Beside it stands what would be left after a power loss: of a file what was flushed
to it, of a folder the names that it had when it was flushed last.
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import stat
import sys
from pathlib import Path

from lnflax import claims, storage

COUNTED = ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "rmdir")


class Stopped(BaseException):
    """The process is gone: no line of it runs on, whatever it would like to tidy up."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens at call `number`, from 1."""

    kind: str  # EIO, ENOSPC, short, kill, power
    number: int
    for_good: bool = False  # and at every call after it


class Disk:
    """Takes the place of `os` in `lnflax.storage`; a name that is not counted is the real one's."""

    def __init__(self, root, fault=None, without=None):
        self.root, self.fault, self.without = Path(root), fault, without
        self.calls, self.stopped, self.happened = 0, False, False
        self.sites = set()  # (operation, function, its caller)
        self.content, self.names, self.open_files = {}, {}, {}
        self.known = {}  # what lies at an inode's number now; the system gives the numbers of files that are gone again
        for path in (self.root, *self.root.rglob("*")):  # what lies there at first has been there for long
            self._flush(path)

    def __getattr__(self, name):
        return self._counted(name) if name in COUNTED else getattr(os, name)

    def _counted(self, name):
        def call(*arguments):
            if name == "open" and not arguments[1] & os.O_CREAT:
                return self._open(*arguments)
            self._count(name)
            if self.without is not None and self.without == self._site(name):
                return None
            if name == "write" and self._fails() and self.fault.kind == "short":
                self.happened = True
                return os.write(arguments[0], arguments[1][: max(len(arguments[1]) // 2, 1)])
            if hasattr(self, f"_{name}"):
                return getattr(self, f"_{name}")(*arguments)
            return getattr(os, name)(*arguments)

        return call

    def _site(self, name):
        frame = sys._getframe(2)
        return name, frame.f_code.co_name, frame.f_back.f_code.co_name

    def _fails(self):
        if self.fault is None:
            return False
        return self.calls == self.fault.number or (self.fault.for_good and self.calls > self.fault.number)

    def _count(self, name):
        if self.stopped:
            raise Stopped
        self.calls += 1
        frame = sys._getframe(2)
        self.sites.add((name, frame.f_code.co_name, frame.f_back.f_code.co_name))
        if not self._fails() or self.fault.kind == "short":
            return
        self.happened = True
        if self.fault.kind in ("kill", "power"):
            self.stopped = True
            raise Stopped
        number = getattr(errno, self.fault.kind)
        raise OSError(number, os.strerror(number))

    def _open(self, path, flags, mode=0o777):
        new = not Path(path).exists()
        file = os.open(path, flags, mode)
        self.open_files[file] = os.fspath(path)
        if new:
            self.known[os.fstat(file).st_ino] = object()
        return file

    def _own(self, number):
        return self.known.setdefault(number, object())

    def _fsync(self, file):
        self._flush(self.open_files[file], file)

    def _flush(self, path, file=None):
        found = Path(path).stat() if file is None else os.fstat(file)
        if stat.S_ISDIR(found.st_mode):
            entries = [entry for entry in os.scandir(path) if entry.name != claims.FOLDER]  # locks die with the power
            there = {entry.name: (self._own(entry.inode()), entry.is_dir()) for entry in entries}
            self.names[self._own(found.st_ino)] = there
        else:
            self.content[self._own(found.st_ino)] = Path(path).read_bytes()

    def _mkdir(self, path):
        path.mkdir()
        self.known[path.stat().st_ino] = object()

    def lose_power(self):
        """Leaves of the folder what was flushed."""
        tree = {}

        def keep(folder, place):
            for name, (own, is_folder) in self.names.get(folder, {}).items():
                if is_folder:
                    tree[f"{place}{name}"] = None
                    keep(own, f"{place}{name}/")
                else:
                    tree[f"{place}{name}"] = self.content.get(own, b"")

        keep(self._own(self.root.stat().st_ino), "")
        for entry in self.root.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name, data in tree.items():
            path = self.root / name
            path.mkdir() if data is None else path.write_bytes(data)


@contextlib.contextmanager
def disk(root, fault=None, without=None):
    """`lnflax.storage` on such a disk."""
    made = Disk(root, fault, without)
    storage.os = made
    try:
        yield made
    finally:
        storage.os = os
