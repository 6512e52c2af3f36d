"""What a study says while it works: one moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import datetime
import logging
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PLAIN_WIDTH = 160  # columns, where no terminal says how wide it is
PLAIN_SECONDS = 30.0  # between two lines of one cell where there is no terminal


class Reporter:
    """The one door for words to the user; a cell's progress is `start`, `advance`, `finish`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        if console is None and not self.console.is_terminal:
            self.console.width = PLAIN_WIDTH
        self._bar: Progress | None = None
        self._title, self._total, self._done, self._before = "", 0, 0, 0
        self._began = self._spoke = time.monotonic()

    def say(self, text: object) -> None:
        """A line, or a table, that stays."""
        self.console.print(text, markup=False, soft_wrap=isinstance(text, str))

    def warn(self, text: str) -> None:
        """A line that asks for attention."""
        self.say(f"warning: {text}")

    def relay(self, logger: str) -> None:
        """What is logged there, from level INFO on, are words to the user as well."""
        own = logging.getLogger(logger)
        own.setLevel(logging.INFO)
        own.propagate = False
        own.addHandler(_Relay(self))

    def start(self, title: str, steps: int, done: int = 0) -> None:
        """A cell of so many steps begins, or goes on after those that are done."""
        self._title, self._total, self._done, self._before = title, steps, done, done
        self._began = self._spoke = time.monotonic()
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), console=self.console, transient=True)
            self._bar.add_task(title, total=steps, completed=done, text="compiling")
            self._bar.start()

    def advance(self, epoch: str, steps: int) -> None:
        """So many steps more are done."""
        self._done += steps
        now = time.monotonic()
        speed = (self._done - self._before) / max(now - self._began, 1e-9)
        left = datetime.timedelta(seconds=round((self._total - self._done) / max(speed, 1e-9)))
        text = f"epoch {epoch}  step {self._done}/{self._total}  {speed:.2f} steps/s  {left} left"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, text=text)
        elif now - self._spoke >= PLAIN_SECONDS:
            self._spoke = now
            self.say(f"{self._title}  {text}")

    def finish(self) -> None:
        """The cell is over, well or not."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Relay(logging.Handler):
    def __init__(self, reporter: Reporter) -> None:
        super().__init__()
        self.reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.reporter.warn(text)
        else:
            self.reporter.say(text)
