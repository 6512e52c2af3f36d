"""Runs that cost nothing in the place of a BERT's: what a study does with files is all that is left of it.

A run is two numbers. A step multiplies them by a number of its seed, rate and step; so whoever skips or repeats a step,
or takes another run's state, ends with other numbers.
"""

import types

import jax
import numpy as np

from lnflax import cells, ledger, storage, study, training
from lnflax.devices import Plan
from lnflax.masks import Mask
from lnflax.progress import Reporter
from lnflax.step import RunState
from lnflax.trainer import Totals
from tests.disk import Stopped, disk

STEPS = 5


def patch(monkeypatch):
    """Puts them in place; a study is planned only once for the same coverage."""
    monkeypatch.setattr(training, "make_trainer", make_trainer)
    monkeypatch.setattr(training, "evaluate", evaluate)
    own = {"start": start, "plan_epoch": plan_epoch, "train_steps": train_steps, "totals": totals, "owned": owned}
    monkeypatch.setattr(training, "trainer", types.SimpleNamespace(**own, unmoved=lambda *_: []))
    monkeypatch.setattr(ledger.metrics, "compute", compute)
    prepare, known = cells.prepare, {}

    def prepared(config, device_count, coverages=None):
        key = repr((config, device_count, coverages))
        if key not in known:
            known[key] = prepare(config, device_count, coverages)
        return known[key]

    monkeypatch.setattr(cells, "prepare", prepared)


def compute(names, predictions, labels):
    """The share of right answers, whatever is asked for."""
    return dict.fromkeys(names, float(np.mean(predictions == labels)))


class HostPlan(Plan):
    """Runs that stay where they are."""

    def to_runs(self, tree):
        return jax.tree.map(np.copy, tree)

    def of_runs(self, tree):
        return jax.tree.map(np.copy, tree)


def make_trainer(cell, part):
    config = part.config(cell.config)
    plan, masks = HostPlan(((0,),), ((0,),), 1), types.SimpleNamespace(chosen=None)
    own = types.SimpleNamespace(config=config, plan=plan, frozen=None, masks=masks)
    return own, dict(cell.data.evals)


def start(own):
    shape = (len(own.config.seeds), len(own.config.learning_rates))
    return RunState(np.ones(shape, np.float32), {"sum": np.zeros(shape, np.float32)})


def plan_epoch(own, number):
    return types.SimpleNamespace(order=np.zeros((STEPS, len(own.config.seeds), 1)))


def train_steps(own, runs, epoch, number, begin, advance, pause):
    losses = []
    seeds, rates = np.array(own.config.seeds)[:, None], np.array(own.config.learning_rates)[None]
    for step in range(begin, STEPS):
        t = (number - 1) * STEPS + step
        factor = (1 + 0.01 * np.sin(7 * seeds + 13 * t) + rates).astype(np.float32)
        runs = RunState(runs.values * factor, {"sum": runs.opt_state["sum"] + runs.values})
        losses.append(runs.values + runs.opt_state["sum"])
        advance(1)
        if pause():
            break
    return runs, np.stack(losses)


def owned(own, runs):
    return {"classifier": {"kernel": runs.values}}, [Mask(*[{"classifier": {"kernel": None}}] * 2)] * len(runs.values)


def totals(own, epoch):
    return Totals(np.full((STEPS, len(own.config.seeds)), 16), 100, 120)


def evaluate(recipe, plan, chunks, frozen, values, chosen, examples):
    noise = np.sin(np.arange(len(examples.labels)) * values[..., None] * 50)
    return (noise > 0).astype(np.float32), np.abs(noise).astype(np.float32)


class Quiet:
    """A console that keeps what is said and lays nothing out."""

    width = 100
    is_terminal = False

    def __init__(self):
        self.said = []

    def print(self, text, **_):
        self.said.append(str(text))


def run(given, workdir):
    """A study; what it says."""
    console = Quiet()
    study.run(given, workdir, Reporter(console))
    return console.said


def begin(given, workdir, fault=None, without=None):
    """A start on a disk with a fault; how it ended, and the disk."""
    with disk(workdir.parent, fault, without) as own:
        try:
            run(given, workdir)
            end = None
        except (storage.StorageError, Stopped) as error:
            end = error
    return end, own
