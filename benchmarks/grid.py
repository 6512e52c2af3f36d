"""What a run costs alone and inside a grid: seconds a run and step, per setting, interleaved in one process.

    python benchmarks/grid.py [--settings=frozen,single_norm_6,layernorms] [--length=48] [--rounds=3]

MiniLM, batch 16, one example a row, random tokens; alone is one seed and one rate, the grid 3 seeds × 7 rates. Both
go through the same program, batches made and losses fetched. The gain is the ratio of the medians.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

from lnflax import bert, checkpoint, config, devices, masks, rules, settings, trainer
from lnflax.step import Recipe
from lnflax.tokens import Encoded

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs are files beside the package, not a part of it
from configs import base, demo

RATES = (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
TASK = "rte"


def make_examples(count: int, length: int, vocabulary: int) -> Encoded:
    """Random sentences, all of the same length: every token is real."""
    tokens = np.random.default_rng(0).integers(0, vocabulary, count * length, dtype=np.int32)
    offsets = np.arange(0, count * length + 1, length, dtype=np.int64)
    return Encoded(tokens, np.zeros_like(tokens), offsets, np.arange(count, dtype=np.int32) % 2)


def make_trainer(setting: str, seeds: tuple, rates: tuple, length: int, steps: int) -> trainer.Trainer:
    """A cell of so many steps an epoch."""
    given = base.get_config()
    given.update(seeds=seeds, learning_rates=rates, epochs=1)
    study = config.parse(given)
    folder = Path(demo.minilm())
    shape = checkpoint.read_config(folder, pooling="mean", num_outputs=2, dtype="float32")
    rule = settings.make_setting(
        setting, study.options, layers=shape.num_hidden_layers, hidden_size=shape.hidden_size, user_rules={}
    )
    body = checkpoint.read_body(folder, shape)
    shapes = rules.flatten(bert.parameter_shapes(shape))
    params = rules.unflatten({path: body.get(path, leaf) for path, leaf in shapes.items()})
    labels = rules.label(params, rule.rules, setting)
    return trainer.make_trainer(
        study,
        Recipe(shape, tuple(rules.flatten(labels).items()), study.optimizer),
        devices.make_plan(len(seeds), len(rates), 1, study.batch_size),
        task=TASK,
        train=make_examples(steps * study.batch_size, length, shape.vocab_size),
        epochs=1,
        body=body,
        seed_masks=masks.gather([masks.choose(rule.mask, params, labels, seed) for seed in seeds]),
    )


def measure(setting: str, length: int, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds a run and step, one number a round: alone, and in the grid."""
    cells = [
        (make_trainer(setting, (0,), (1e-3,), length, 21), 21),
        (make_trainer(setting, (0, 1, 2), RATES, length, 3), 63),
    ]
    states = [trainer.start(cell) for cell, _ in cells]
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for i, (cell, run_steps) in enumerate(cells):
            begin = time.perf_counter()
            states[i], _ = trainer.train_epoch(cell, states[i], 1, (length,), lambda steps: None)
            if turn:  # the first compiles
                times[i].append(1e3 * (time.perf_counter() - begin) / run_steps)
    return times


def main() -> None:
    """Prints a line a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="frozen,single_norm_6,single_norm_3,layernorms,ln_f,bitfit,full")
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    print(f"{'setting':14s} {'alone':>20s} {'3×7 grid':>20s}  gain   (ms a run and step: median, min to max)")
    for setting in flags.settings.split(","):
        columns = measure(setting, flags.length, flags.rounds)
        alone, grid = (f"{statistics.median(c):7.1f} ({min(c):.1f}–{max(c):.1f})" for c in columns)
        gain = statistics.median(columns[0]) / statistics.median(columns[1])
        print(f"{setting:14s} {alone:>20s} {grid:>20s}  {gain:.2f}", flush=True)


if __name__ == "__main__":
    main()
