"""Compiled programs: kept from one start to the next in JAX's persistent cache, and counted.

The key of a program is its text, the versions and options of the compiler and the kind of device (of a CPU, all its
features): no name and no folder of a study, so that every study of the same shapes finds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

OPTIONS: dict[str, Any] = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,  # small programs too: a second start compiles nothing
    "jax_persistent_cache_min_entry_size_bytes": -1,
    "jax_persistent_cache_enable_xla_caches": "none",  # they would put the folder's path into the keys
}
READY = "/jax/core/compile/backend_compile_duration"  # an event a program, compiled or found
FOUND = "/jax/compilation_cache/cache_hits"
CHECKED = "checked"  # a file as old as the last look for torn entries


def keep(folder: Path) -> str:
    """Switches the persistent cache on, before JAX compiles anything; what the user's environment says of it stands.

    Returns:
        Nothing, or why no program can be kept: then there is no cache, and every start compiles.
    """
    if not jax.config.values["jax_enable_compilation_cache"]:
        return ""
    place = jax.config.values["jax_compilation_cache_dir"] or str(folder)
    jax.config.update("jax_compilation_cache_dir", place)
    for name, value in OPTIONS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    if "://" in place:  # a user's own store, not of this machine
        return ""
    try:
        Path(place).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
        drop_torn(Path(place))
    except OSError as error:
        jax.config.update("jax_enable_compilation_cache", False)
        return f"compiled programs cannot be kept in {place}: {error}"
    return ""


def drop_torn(folder: Path) -> None:
    """Removes what a killed process has left half written since the last look.

    JAX would warn of such an entry at every start, compile, and never replace it.
    """
    stamp, now = folder / CHECKED, time.time()
    since = stamp.stat().st_mtime if stamp.exists() else 0.0
    for path in folder.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):  # another process may tidy up too
            if path.stat().st_mtime >= since and not _is_whole(path.read_bytes()):
                path.unlink()
    stamp.touch()
    os.utime(stamp, (now, now))


def _is_whole(entry: bytes) -> bool:
    """Whether the stream has its end; only zlib's is looked at, which JAX uses where zstandard is not installed."""
    if entry[:1] not in (b"\x78", b""):
        return True
    stream = zlib.decompressobj()
    try:
        stream.decompress(entry)
    except zlib.error:
        return False
    return stream.eof


@dataclasses.dataclass
class Programs:
    """How many programs were made ready, how many of them came from the cache, and the seconds it all took."""

    ready: int = 0
    found: int = 0
    seconds: float = 0.0

    @property
    def compiled(self) -> int:
        """Those that were compiled."""
        return self.ready - self.found

    def __str__(self) -> str:
        plural = "s"[: self.compiled != 1]
        return f"compiled {self.compiled} program{plural}, {self.found} from the cache ({self.seconds:.1f} s)"


@contextlib.contextmanager
def counted() -> Iterator[Programs]:
    """Counts the programs of everything inside; counts may lie in one another."""
    programs = Programs()

    def of_time(event: str, duration_secs: float, **_: Any) -> None:
        if event == READY:
            programs.ready += 1
            programs.seconds += duration_secs

    def of_event(event: str, **_: Any) -> None:
        programs.found += event == FOUND

    jax.monitoring.register_event_duration_secs_listener(of_time)
    jax.monitoring.register_event_listener(of_event)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(of_time)
        jax.monitoring.unregister_event_listener(of_event)
