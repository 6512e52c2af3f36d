"""What a run costs alone and inside a grid: milliseconds a run and step, per setting, interleaved in one process.

    python benchmarks/grid.py [--settings=frozen,single_norm_6,layernorms] [--tokens=28] [--rounds=3]

MiniLM, batch 16, examples of random tokens, packed; alone is one seed and one rate, the grid 3 seeds × 7 rates. Both go
through the same programs, batches made and losses fetched. The gain is the ratio of the medians.
"""

import argparse
import statistics
import sys
from pathlib import Path

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import cell
from benchmarks.scaling import TASK, make_examples
from lnflax import devices


def measure(setting: str, length: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds a run and step, one number a round: alone, and in the grid."""
    pair = (
        cell.make_cell(setting, TASK, make_examples(21 * 16, length), seeds=(0,), learning_rates=(1e-3,)),
        cell.make_cell(setting, TASK, make_examples(3 * 16, length)),
    )
    times = [[1e3 * own.epoch() / own.run_steps for own in pair] for _ in range(rounds + 1)][1:]
    alone, grid = zip(*times, strict=True)
    return list(alone), list(grid)


def main() -> None:
    """Prints a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="frozen,single_norm_6,single_norm_3,layernorms,ln_f,bitfit,random,full")
    parser.add_argument("--tokens", type=int, default=28, help="of an example")
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    devices.use_cores()
    print(f"{'setting':14s} {'alone':>20s} {'3×7 grid':>20s}  gain   (ms a run and step: median, min to max)")
    for setting in flags.settings.split(","):
        columns = measure(setting, flags.tokens, flags.rounds)
        alone, grid = (f"{statistics.median(c):7.1f} ({min(c):.1f}–{max(c):.1f})" for c in columns)
        gain = statistics.median(columns[0]) / statistics.median(columns[1])
        print(f"{setting:14s} {alone:>20s} {grid:>20s}  {gain:.2f}", flush=True)


if __name__ == "__main__":
    main()
