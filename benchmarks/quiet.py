"""Whether a measurement had the machine to itself: what others used of it meanwhile (Linux; elsewhere always 0)."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")
STAT = Path("/proc/stat")
IDLE = (3, 4)  # the fields idle and iowait
MOST = 0.05  # of all cores: what others may use of a measurement that counts
SPAN = 1.0  # seconds without others before one begins


class Clock(NamedTuple):
    """Seconds: on the wall, of all cores at work, of this process and its finished children."""

    wall: float
    busy: float
    own: float


def read() -> Clock:
    """The clocks now."""
    own = time.process_time()
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    own += children.ru_utime + children.ru_stime
    if not STAT.exists():
        return Clock(time.perf_counter(), own, own)
    ticks = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(ticks) - sum(ticks[i] for i in IDLE)
    return Clock(time.perf_counter(), busy / os.sysconf("SC_CLK_TCK"), own)


def share(begin: Clock, end: Clock) -> float:
    """What others used of all cores between two readings."""
    others = (end.busy - begin.busy) - (end.own - begin.own)
    return max(others / ((end.wall - begin.wall) * (os.cpu_count() or 1)), 0.0)


def watch(call: Callable[[], T]) -> tuple[T, float]:
    """What `call` gives, and what others used meanwhile."""
    begin = read()
    result = call()
    return result, share(begin, read())


def undisturbed(call: Callable[[], T], deadline: float) -> tuple[T, float]:
    """`watch`, from when others leave the machine alone, and again where they come back, until the deadline.

    After it (`time.perf_counter()`), whatever comes: the share tells.
    """
    while True:
        while time.perf_counter() < deadline and watch(lambda: time.sleep(SPAN))[1] > MOST:
            pass
        result, others = watch(call)
        if others <= MOST or time.perf_counter() > deadline:
            return result, others
