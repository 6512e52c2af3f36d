"""The memory of this machine: how much is left, and the most that this process has used."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

# The folders of control groups, and their files for the limit and the use, of version 2 and 1.
GROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available(root: Path = Path("/")) -> int:
    """Bytes that can be used without swapping, by the machine and by every control group that this process is in."""
    return min([_machine(root), *_groups(root)])


def _machine(root: Path) -> int:
    with contextlib.suppress(OSError, KeyError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        return _fields(lines)["MemAvailable:"] * 1024
    name = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE")


def _fields(lines: list[str]) -> dict[str, int]:
    """`NAME NUMBER …` a line."""
    split = (line.split() for line in lines)
    return {words[0]: int(words[1]) for words in split if len(words) > 1 and words[1].isdigit()}


def _groups(root: Path) -> Iterator[int]:
    """What is left to each group that has a limit; files that can be read again do not count as used."""
    for base, limit, used, cache in GROUPS:
        for folder in _folders(root, base):
            with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                spare = _fields((folder / "memory.stat").read_text().splitlines()).get(cache, 0)
                yield max(most - now + spare, 0)


def _folders(root: Path, base: str) -> list[Path]:
    """The folder of this process's group and of all groups above it; inside a container the topmost is its own."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    version_1 = base.endswith("/memory")
    own = ["/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if ("memory" in controllers.split(",")) if version_1 else not controllers:
            own.append(path)
    groups = {group for path in own for group in (Path(path), *Path(path).parents)}
    return [root / base / group.relative_to("/") for group in sorted(groups)]


def reset_peak() -> None:
    """Forgets the most that was used, where the system allows it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes of memory that this process has held, since the last reset or since it began."""
    with contextlib.suppress(OSError, KeyError):
        return _fields(Path("/proc/self/status").read_text().splitlines())["VmHWM:"] * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # bytes there, KiB elsewhere
