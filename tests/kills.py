"""Kills a study at random moments, shares one between two processes, and compares what they leave with the undisturbed.

python -m tests.kills --kills=20
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lnflax import claims, results
from tests import studies, tiny

ROOT = Path(__file__).parents[1]
TASKS, SETTINGS = ("rte", "sst2"), ("frozen", "layernorms", "full")
FIELDS = {
    "data.path": "synthetic",
    "tasks": TASKS,
    "settings": SETTINGS,
    "max_length": 32,
    "max_train_examples": 320,
    "seeds": (0, 1),
    "learning_rates": (1e-3, 3e-3),
    "epochs": 2,
    "save_minutes": 0.001,  # in the middle of epochs too
}


class Bench:
    """A model, a folder for workdirs and a cache of programs, so that starts are quick."""

    def __init__(self, place):
        self.place = place
        model = tiny.write_checkpoint(place / "model")
        self.words = [f"--config.{name}={value}" for name, value in {"model.name": model, **FIELDS}.items()]
        own = {"LNFLAX_CACHE": str(place / "cache"), "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu"}
        self.environment = os.environ | own

    def start(self, name):
        line = [sys.executable, "train.py", "--config=configs/base.py", *self.words, f"--workdir={self.place / name}"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(line, cwd=ROOT, env=self.environment, text=True, **pipes)

    def whole(self, name):
        """Runs a study to its end: what it said, and the seconds that it trained."""
        started = self.start(name)
        self.wait_for_training(name, started)
        begin = time.monotonic()
        said = started.communicate()[0]
        assert started.returncode == 0, said
        return said, time.monotonic() - begin

    def wait_for_training(self, name, started):
        """Until it trains; one that finds nothing left to do ends at once, or before anyone has looked."""
        while not (self.place / name / claims.FOLDER).is_dir() and started.poll() is None:
            time.sleep(0.01)

    def held_by(self, name, process):
        """TASK/SETTING of the cell that a process trains."""
        for path in (self.place / name / claims.FOLDER).glob("*.*.lock"):
            with contextlib.suppress(FileNotFoundError):
                if path.read_text().endswith(f" {process.pid}\n"):
                    return path.stem.replace(".", "/")
        return None

    def content(self, name):
        """What is left of a study, seconds aside; a damaged file or a state would be among it."""
        return studies.content(self.place / name)


def kill_at_random(bench, expected, seconds, kills, seed=0):
    """Kills studies so often; how many studies that took."""
    draw, killed, studies = random.Random(seed), 0, 0
    while killed < kills:
        studies += 1
        name = f"killed{studies}"
        while killed < kills:
            started = bench.start(name)
            bench.wait_for_training(name, started)
            try:
                started.wait(draw.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                started.kill()
                killed += 1
            said = started.communicate()[0]
            if started.returncode == 0:
                break
            assert started.returncode == -9, said
        bench.whole(name)
        assert bench.content(name) == expected, name
    return studies


def share(bench, expected):
    """Two processes on one workdir: the seconds that it took, and how many cells each trained."""
    begin, started = time.monotonic(), [bench.start("shared"), bench.start("shared")]
    said = [own.communicate()[0] for own in started]
    seconds = time.monotonic() - begin
    assert [own.returncode for own in started] == [0, 0], said
    assert bench.content("shared") == expected
    trained = [[line.split(":")[0] for line in text.splitlines() if ": accuracy " in line] for text in said]
    every = sorted(f"{task}/{setting}" for task in TASKS for setting in SETTINGS)
    assert sorted(trained[0] + trained[1]) == every, said
    return seconds, [len(own) for own in trained]


def take_over(bench, expected):
    """One of two processes is killed while it trains a cell, and the other trains it: which cell that was."""
    for attempt in range(20):
        name = f"taken{attempt}"
        first, second = bench.start(name), bench.start(name)
        while not (held := bench.held_by(name, first)) or not bench.held_by(name, second):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.001)
        first.kill()
        first.communicate()
        undone = not results.is_done(bench.place / name / held)
        said = second.communicate()[0]
        assert second.returncode == 0, said
        assert bench.content(name) == expected
        if undone:
            assert f"{held}: accuracy " in said, said
            return held
    raise AssertionError("the first process was always quicker than its end")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place))
        bench.whole("first")  # compiles
        begin = time.monotonic()
        _, seconds = bench.whole("undisturbed")
        alone, expected = time.monotonic() - begin, bench.content("undisturbed")
        studies = kill_at_random(bench, expected, seconds, flags.kills)
        print(f"{flags.kills} kills of {studies} studies: every cell equals the undisturbed one's")
        together, cells = share(bench, expected)
        print(f"two processes trained {cells[0]} and {cells[1]} cells; {together / alone:.2f} × one process's time")
        print(f"one was killed at {take_over(bench, expected)}: the other took it over")


if __name__ == "__main__":
    main()
