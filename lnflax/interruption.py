"""SIGTERM and Ctrl-C ask a study to save and stop; a second signal does not ask."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 75  # sysexits' EX_TEMPFAIL: nothing is wrong, the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """The study has saved its state and stops because it was asked to."""


class Interruption:
    """Notes a signal while its block runs: `with Interruption() as interruption: … interruption.check()`."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, _: FrameType | None) -> None:
        self.asked = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def check(self) -> None:
        """Raises Interrupted where a signal has come; to be called where everything is saved."""
        if self.asked:
            raise Interrupted(f"{self.asked}: saved; give the same command again to go on")
