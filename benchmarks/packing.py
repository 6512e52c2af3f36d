"""What packing saves: padding, and the time of a step, per task.

    python benchmarks/packing.py [--tasks=cola,sst2,stsb,rte] [--data=FOLDER] [--settings=layernorms] [--steps=20]

MiniLM, 3 seeds × 7 rates, batches of 16, real texts. Waste is 1 - real tokens / computed tokens over all steps of an
epoch; times are of the first steps of it, packed and one example a row, interleaved in one process, after a round that
compiles.
"""

import argparse
import os
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import cell
from lnflax import batches, checkpoint, devices, packing, task_data, tasks
from lnflax.tokens import Encoded


def first(encoded: Encoded, count: int) -> Encoded:
    """The first examples."""
    stop = int(encoded.offsets[count])
    return Encoded.of_sentences(
        encoded.tokens[:stop], encoded.token_types[:stop], encoded.offsets[: count + 1], encoded.labels[:count]
    )


def epoch_waste(task: str, encoded: Encoded, parts: int, packed: bool) -> tuple[float, int]:
    """Padding of a whole epoch, seeds with shapes of their own, and how many shapes there are."""
    study = cell.make_study(tasks=(task,), packing=packed, epochs=0)
    shape = checkpoint.read_config(cell.FOLDER, pooling="mean", num_outputs=1, dtype="float32")
    orders = task_data.all_orders(study, tasks.TASKS[task], encoded.examples)
    steps = batches.sizes(encoded, orders)
    rows = task_data.lay_rows(study, shape, steps, parts, together=False)
    own = steps.reshape(-1, 1, study.batch_size)
    index, _ = packing.assign(own, rows.shapes, rows.lay)
    computed = np.array([shape.tokens for shape in rows.shapes])[index].sum()
    return packing.waste(int(own.sum()), int(computed)), len(rows.shapes)


def main() -> None:
    """Prints a line a task and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="cola,sst2,stsb,rte")
    parser.add_argument("--settings", default="layernorms")
    parser.add_argument("--data", default=os.environ.get("LNFLAX_GLUE", ""))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    devices.use_cores()
    print("task  setting      waste: packed (shapes)  plain (shapes)   ms a run and step: packed   plain   ratio")
    for task in flags.tasks.split(","):
        whole = cell.read(task, flags.data)
        some = first(whole, min(flags.steps * 16, len(whole.labels)))
        for setting in flags.settings.split(","):
            pair = [cell.make_cell(setting, task, some, whole, packing=packed) for packed in (True, False)]
            rounds = [[1e3 * own.epoch() / own.run_steps for own in pair] for _ in range(flags.rounds + 1)][1:]
            packed, plain = (statistics.median(times) for times in zip(*rounds, strict=True))
            parts = pair[0].parts[0].plan.batch_parts
            shares = [epoch_waste(task, whole, parts, packed=own) for own in (True, False)]
            words = "".join(f"{share:12.1%} ({count})" for share, count in shares)
            print(f"{task:5s} {setting:12s} {words} {packed:20.1f} {plain:12.1f} {plain / packed:7.2f}", flush=True)


if __name__ == "__main__":
    main()
