"""How the time of a cell grows: with its runs, its batch, the depth of what trains, and the devices.

    python benchmarks/scaling.py [--by=runs,batch,blocks,devices] [--setting=layernorms] [--tokens=28] [--rounds=3]

MiniLM; examples of random tokens, all of one length, so that every size does the same work a token; the plan of each
size is the study's own. Each line: milliseconds a step of all runs, and of a run, medians after a round that compiles.
`devices` measures each number in a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import cell
from lnflax import devices
from lnflax.tokens import Encoded

RATES = tuple(1e-5 * 1.5**i for i in range(21))
GRIDS = ((1, 1), (1, 3), (1, 7), (3, 7), (3, 21))
TASK = "rte"


def make_examples(count: int, length: int) -> Encoded:
    """Random tokens, all examples of one length."""
    tokens = np.random.default_rng(0).integers(1000, 30000, count * length, dtype=np.int32)
    offsets = np.arange(0, count * length + 1, length, dtype=np.int64)
    return Encoded.of_sentences(tokens, np.zeros_like(tokens), offsets, np.arange(count, dtype=np.int32) % 2)


def measure(setting: str, seeds: int, rates: int, batch: int, length: int, rounds: int) -> tuple[float, float]:
    """Milliseconds of a step of all runs, and of one run and step."""
    examples = make_examples(8 * batch, length)
    fields = {"seeds": tuple(range(seeds)), "learning_rates": RATES[:rates], "batch_size": batch}
    own = cell.make_cell(setting, TASK, examples, **fields)
    times = [own.epoch() for _ in range(rounds + 1)][1:]
    return 1e3 * statistics.median(times) / 8, 1e3 * statistics.median(times) / own.run_steps


def line(name: str, result: tuple[float, float]) -> None:
    """Prints one size."""
    print(f"{name:28s} {result[0]:10.1f} {result[1]:10.2f}", flush=True)


def main() -> None:
    """Prints a line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--by", default="runs,batch,blocks,devices")
    parser.add_argument("--setting", default="layernorms")
    parser.add_argument("--tokens", type=int, default=28, help="of an example")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    devices.use_cores()
    print(f"{flags.setting:28s} {'ms a step':>10s} {'a run':>10s}")
    for by in flags.by.split(","):
        if by == "runs":
            for seeds, rates in GRIDS:
                result = measure(flags.setting, seeds, rates, 16, flags.tokens, flags.rounds)
                line(f"{seeds * rates} runs ({seeds} × {rates})", result)
        if by == "batch":
            for batch in (1, 4, 16, 64):
                line(f"batch {batch}, 1 × 7 runs", measure(flags.setting, 1, 7, batch, flags.tokens, flags.rounds))
        if by == "blocks":
            for block in range(1, 7):
                result = measure(f"single_norm_{block}", 1, 7, 16, flags.tokens, flags.rounds)
                line(f"block {block}'s norms, 1 × 7 runs", result)
        if by == "devices":
            for count in range(1, (os.cpu_count() or 1) + 1):
                again = [sys.executable, __file__, "--by=one", f"--setting={flags.setting}"]
                subprocess.run(again, env=os.environ | {"JAX_NUM_CPU_DEVICES": str(count)}, check=True)
        if by == "one":
            result = measure(flags.setting, 1, 7, 16, flags.tokens, flags.rounds)
            line(f"{os.environ['JAX_NUM_CPU_DEVICES']} CPU devices, 1 × 7 runs", result)


if __name__ == "__main__":
    main()
