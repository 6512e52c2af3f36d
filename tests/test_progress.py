import io
import logging

import pytest
from rich.console import Console
from rich.table import Table

from lnflax import progress
from lnflax.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when told."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def plain(width=60):
    file = io.StringIO()
    return Reporter(Console(file=file, width=width)), file


def test_off_a_terminal_a_line_now_and_then(clock):
    reporter, file = plain()
    reporter.start("rte/full", 100)
    for seconds, steps in ((10, 5), (20, 5), (10, 10), (20, 20), (1, 30)):
        clock[0] += seconds
        reporter.advance("1/2", steps)
    reporter.finish()
    assert file.getvalue().splitlines() == [
        "rte/full  epoch 1/2  step 10/100  0.33 steps/s  0:04:30 left",
        "rte/full  epoch 1/2  step 40/100  0.67 steps/s  0:01:30 left",
    ]


def test_a_quick_cell_says_nothing_off_a_terminal(clock):
    reporter, file = plain()
    reporter.start("rte/full", 2)
    reporter.advance("1/1", 2)
    reporter.finish()
    assert file.getvalue() == ""


def test_days_are_said(clock):
    reporter, file = plain()
    reporter.start("qqp/full", 10001)
    clock[0] += 3600
    reporter.advance("1/5", 100)
    assert "0.03 steps/s  4 days, 3:00:36 left" in file.getvalue()


def test_each_cell_counts_anew(clock):
    reporter, file = plain()
    for title in ("rte/full", "rte/frozen"):
        reporter.start(title, 4)
        clock[0] += 40
        reporter.advance("1/1", 2)
        reporter.finish()
    assert file.getvalue().splitlines() == [
        "rte/full  epoch 1/1  step 2/4  0.05 steps/s  0:00:40 left",
        "rte/frozen  epoch 1/1  step 2/4  0.05 steps/s  0:00:40 left",
    ]


def test_finish_twice_and_without_a_start_is_nothing():
    for terminal in (False, True):
        file = io.StringIO()
        reporter = Reporter(Console(file=file, force_terminal=terminal, width=80))
        reporter.finish()
        reporter.start("rte/full", 2)
        reporter.advance("1/1", 1)
        reporter.finish()
        once = file.getvalue()
        reporter.finish()
        assert file.getvalue() == once


def test_a_terminal_has_one_moving_line_that_goes():
    file = io.StringIO()
    reporter = Reporter(Console(file=file, force_terminal=True, width=120))
    reporter.start("rte/full", 4)
    reporter.advance("1/2", 2)
    reporter.finish()
    assert "rte/full" in file.getvalue() and "compiling" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # the line is erased


def test_words_come_out_as_they_are():
    reporter, file = plain(width=20)
    reporter.say("rules [bold] stay, and a long line is not broken")
    reporter.warn("something")
    table = Table("name", "count", box=None)
    table.add_row("full", "1,000")
    reporter.say(table)
    lines = file.getvalue().splitlines()
    assert lines[:2] == ["rules [bold] stay, and a long line is not broken", "warning: something"]
    assert [line.split() for line in lines[2:]] == [["name", "count"], ["full", "1,000"]]


def test_what_is_logged_is_said():
    reporter, file = plain()
    reporter.relay("of_this_test")
    log = logging.getLogger("of_this_test.room")
    log.info("fetching %s", "weights")
    log.warning("the hub is down")
    log.debug("not for users")
    assert file.getvalue().splitlines() == ["fetching weights", "warning: the hub is down"]
