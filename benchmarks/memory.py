"""Memory: what compiled programs say they need against what is measured, and how bert-base cells are cut to fit GPUs.

    python benchmarks/memory.py [--measured] [--planned]

Measured: MiniLM, batch 16, one example of 48 tokens a row, one CPU device; each cell in a fresh process, whose memory
is read before the first array and at its peak. The host's own copy of the weights is taken off. Planned: bert-base,
3 seeds × 7 rates, steps in 8 rows of 128 tokens, from shapes alone: no weight exists. The figures are those of XLA
for CPUs; a GPU's own compiler gives its own.
"""

import argparse
import ctypes
import functools
import gc
import subprocess
import sys
import time
from pathlib import Path

import jax

from lnflax import bert, cells, config, devices, host, memory, settings, shapes, trainer
from lnflax.bert import BertConfig
from lnflax.errors import InputError
from lnflax.grid import Chunks
from lnflax.memory import Cut, Size
from lnflax.step import Recipe

sys.path.pop(0)  # where `cell` would be found twice
sys.path.insert(0, str(Path(__file__).parents[1]))  # configs and benchmarks are files beside the package
from benchmarks import cell
from benchmarks.scaling import RATES, TASK, make_examples
from configs import base

BASE = BertConfig(
    vocab_size=30522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
    type_vocab_size=2,
)
BATCH, LENGTH = 16, 48
ALONE, GRID = Size(1, 1), Size(3, 7)
MEASURED = [
    *(
        (setting, size, Chunks(1, 1))
        for setting in ("frozen", "layernorms", "random", "full")
        for size in (ALONE, GRID)
    ),
    ("layernorms", GRID, Chunks(1, 7)),
    ("layernorms", GRID, Chunks(3, 7)),
]


def make_recipe(model: BertConfig, setting: str) -> Recipe:
    """A setting of the paper for a model of any size."""
    study = config.parse(base.get_config())
    rule = settings.make_setting(
        setting, study.options, layers=model.num_hidden_layers, hidden_size=model.hidden_size, user_rules={}
    )
    return cells.make_recipe(study, rule, model, bert.parameter_shapes(model))[0]


def spread(size: Size) -> devices.Plan:
    """So many runs on one device."""
    return devices.make_plan(size.seeds, size.rates, 1, devices.Work(0.0, 1e9, 0.0), split=False)


def measure_of(recipe: Recipe, rows: int, length: int) -> memory.Measure:
    """What training in steps of so many rows needs."""
    return memory.training(
        recipe, lambda plan: shapes.batch_shapes(recipe, (trainer.STEPS, len(plan.seeds[0])), rows, length, BATCH)
    )


def measure(setting: str, size: Size, chunks: Chunks) -> tuple[float, float]:
    """What the program says, and what the process takes, in MiB."""
    about = {"seeds": tuple(range(size.seeds)), "learning_rates": RATES[: size.rates], "packing": False}
    cut = Cut(size, chunks, recompute=False, need=0)
    own = functools.partial(cell.make_cell, setting, TASK, make_examples(3 * BATCH, LENGTH), cut=cut, **about)
    first = own().parts[0]
    weights = sum(x.nbytes for x in jax.tree.leaves((first.frozen, first.trained)))
    said = measure_of(first.recipe, BATCH, LENGTH)(spread(size), chunks, recompute=False)
    del first
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler has left
    host.reset_peak()
    before = host.peak()
    made = own()
    for _ in range(2):
        made.epoch()
    return said.need / 2**20, (host.peak() - before - weights) / 2**20


def print_measured() -> None:
    """A line a cell, each from a process of its own."""
    print(f"{'setting':12s} {'runs':>6s} {'at once':>8s} {'said':>9s} {'measured':>9s}  MiB")
    for setting, size, chunks in MEASURED:
        words = (setting, *map(str, (*size, chunks.seeds, chunks.rates)))
        line = [sys.executable, __file__, "--one", *words]
        print(subprocess.run(line, check=True, capture_output=True, text=True).stdout, end="", flush=True)


def print_one(setting: str, *numbers: str) -> None:
    """The line of one cell."""
    seeds, rates, *at_once = map(int, numbers)
    chunks = Chunks(*at_once)
    said, taken = measure(setting, Size(seeds, rates), chunks)
    names = f"{seeds}×{rates}", f"{chunks.seeds}×{chunks.rates}"
    print(f"{setting:12s} {names[0]:>6s} {names[1]:>8s} {said:9.0f} {taken:9.0f}  {taken / said:.2f}")


def print_planned() -> None:
    """A line a cell and memory."""
    every = Chunks(*GRID)
    for setting in ("layernorms", "random", "full"):
        measured = measure_of(make_recipe(BASE, setting), 8, 128)
        for memory_gib in (80, 24, 16, 8, 4, 2, 1):
            begin, limit = time.monotonic(), int(memory.SHARE * memory_gib * 2**30)
            try:
                cut = memory.cut_to_fit(f"bert-base/{setting}", GRID, spread, every, measured, limit)
                text = f"{memory.describe(cut)}, {memory.gib(cut.need)}"
            except InputError as error:
                text = str(error)
            print(f"{setting:12s} {memory_gib:3d} GiB: {text} ({time.monotonic() - begin:.0f} s)", flush=True)


def main() -> None:
    """Prints what is asked for, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", action="store_true")
    parser.add_argument("--planned", action="store_true")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print_one(*flags.one)
        return
    if flags.measured or not flags.planned:
        print_measured()
    if flags.planned or not flags.measured:
        print_planned()


if __name__ == "__main__":
    main()
