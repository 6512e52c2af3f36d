"""lnflax against PyTorch with PEFT (`benchmarks/peer.py`): what a run and step costs, or a whole cell.

    python benchmarks/peft.py [--tasks=stsb,rte,cola] [--settings=layernorms,frozen,…] [--steps=20] [--rounds=3]
    python benchmarks/peft.py --one_core …
    python benchmarks/peft.py --whole [--tasks=stsb,rte] [--settings=layernorms] [--epochs=1] [--max_train_examples=N]

MiniLM, float32, batches of 16 on the CPU. lnflax trains a cell of 3 seeds × 7 rates, PEFT one run after another, on
the same examples in the same order: a random part of the task that makes an epoch of so many steps, padding and losses
included, compilation not. Both take turns in one process. Times are medians (min–max).

A time in which other processes used more than 5 % of the cores is measured again while there is patience: PyTorch's
threads wait for each other in a loop, and on a busy machine it is ten times slower, which is not what is asked here.
`others` is the most that was let pass. On a machine that is never quiet, `--one_core` measures CPU seconds of both on a
single core, which others disturb little; PyTorch's serial parts (drawing dropout) weigh less there.

The shares compare with the plain matrix product (the better of JAX and PyTorch, as in `benchmarks/limit.py`): 2
operations a weight of the blocks and token forwards, as many backwards in each block from the first one that trains,
twice as many where its weights do. Padding, attention's own products and dropout do not count as work; nor does it
count that lnflax computes what is below the first trained parameter once for all rates, so that it may pass 100 %.

`--whole`: from the start of the process to the results, imports, tokenization, compilation and evaluation included.
lnflax trains all 21 runs; PEFT does `--runs` in one process, and the others are taken to last as long. With
`--no_frozen_dropout` lnflax computes what is below the first trained parameter once (another protocol: without dropout
there).

--data is a folder of GLUE in the hub's layout (default: $LNFLAX_GLUE); without one, random tokens of the tasks'
lengths, and for whole cells lnflax's generated texts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

# The folder of a script comes first on its path, and there `peft` would be this file.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import limit, peer, quiet
from benchmarks.cell import FOLDER, make_cell
from lnflax import devices, results, streams, tasks
from lnflax.tokens import Encoded

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
RATE = 1e-3  # of PEFT's runs; one of the grid's
DRAWN = 4000  # examples where there is no data
AT = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
LENGTHS = {  # tokens of GLUE's training examples at these quantiles, MiniLM's tokenizer, cut at 128
    "cola": (4, 6, 7, 8, 9, 10, 10, 11, 12, 14, 17, 20, 25, 47),
    "sst2": (3, 4, 4, 5, 7, 8, 10, 13, 16, 21, 28, 34, 45, 66),
    "stsb": (10, 15, 16, 18, 19, 21, 23, 25, 28, 35, 51, 60, 75, 125),
    "qqp": (11, 17, 19, 21, 23, 25, 27, 30, 34, 39, 47, 55, 75, 128),
    "mnli": (5, 16, 19, 24, 29, 33, 37, 42, 47, 54, 64, 73, 101, 128),
    "qnli": (14, 27, 30, 35, 39, 43, 46, 51, 55, 61, 71, 81, 107, 128),
    "rte": (13, 29, 33, 40, 45, 50, 56, 62, 72, 103, 128, 128, 128, 128),
}


class Sample(NamedTuple):
    """What both sides train on: a random part of a task, and the whole training set, which decides shapes."""

    data: peer.Data
    whole: Encoded


# What is measured.


def make_sample(task: str, path: str, count: int) -> Sample:
    """`count` random examples of a task, the same on both sides."""
    if path:
        whole = peer.read(task, path, FOLDER).train
    else:
        whole = draw(task)
    chosen = streams.subset(("max_train_examples", task), min(count, len(whole.labels)), len(whole.labels))
    parts = [slice(*whole.offsets[i : i + 2]) for i in chosen]
    flat = (np.concatenate([values[part] for part in parts]) for values in (whole.tokens, whole.token_types))
    offsets = np.concatenate([[0], np.cumsum(whole.lengths[chosen])])
    return Sample(peer.Data(tasks.TASKS[task], Encoded.of_sentences(*flat, offsets, whole.labels[chosen]), {}), whole)


def draw(task: str) -> Encoded:
    """Random tokens and labels in examples as long as the task's."""
    random = np.random.default_rng(0)
    lengths = np.interp(random.random(DRAWN), AT, LENGTHS[task]).round().astype(np.int64)
    tokens = random.integers(1000, 30000, lengths.sum(), dtype=np.int32)
    labels = np.arange(DRAWN) % max(len(tasks.TASKS[task].labels), 1)
    kind = np.int32 if tasks.TASKS[task].labels else np.float32
    return Encoded.of_sentences(
        tokens, np.zeros_like(tokens), np.concatenate([[0], np.cumsum(lengths)]), labels.astype(kind)
    )


def operations(setting: str, tokens: float) -> float:
    """Operations of a run's step over so many tokens, by the rule above."""
    about = json.loads((FOLDER / "config.json").read_text("utf-8"))
    hidden, blocks = about["hidden_size"], about["num_hidden_layers"]
    block = 4 * hidden**2 + 2 * hidden * about["intermediate_size"]
    below = {"frozen": blocks}.get(setting, int(setting.rpartition("_")[2]) - 1 if "single" in setting else 0)
    backward = (2 if setting == "full" else 1) * (blocks - below)
    return 2.0 * block * tokens * (blocks + backward)


def product_rate(tokens: int, clock: limit.Clock) -> float:
    """Operations a second of the plain product, the better library's."""
    return 1e9 * max(one(tokens, 384, 1536, seconds=0.1, clock=clock) for one in (limit.jax_rate, limit.torch_rate))


def compare(setting: str, sample: Sample, rounds: int, patience: float, clock: limit.Clock) -> None:
    """Prints the line of one task and setting."""
    data = sample.data
    steps = [peer.epoch_batches(data, seed, 1) for seed in SEEDS]
    count, tokens = len(steps[0]), len(data.train.tokens) / len(steps[0])
    run = peer.make_run(setting, data, RATE, SEEDS[0], folder=FOLDER)
    cell = make_cell(setting, data.task.name, data.train, sample.whole)
    cell.epoch()  # compiles every shape
    peer.train_steps(run, steps[0])
    theirs, ours, product, disturbed = [], [], [], 0.0
    deadline = time.perf_counter() + patience
    for turn in range(rounds):
        epoch = steps[turn % len(SEEDS)]
        for column, measure in (
            (theirs, lambda epoch=epoch: 1e3 * peer.train_steps(run, epoch, clock) / count),
            (ours, lambda: 1e3 * cell.epoch(clock)[0] / cell.run_steps),
            (product, lambda: product_rate(round(tokens), clock)),
        ):
            value, others = quiet.undisturbed(measure, deadline)
            column.append(value)
            disturbed = max(disturbed, others)
    columns = [f"{statistics.median(c):9.1f} {f'({min(c):.1f}–{max(c):.1f})':>14s}" for c in (theirs, ours)]
    least = 1e3 * operations(setting, tokens) / statistics.median(product)
    shares = [f"{least / statistics.median(c):6.0%}" for c in (theirs, ours)]
    gain = statistics.median(theirs) / statistics.median(ours)
    print(
        f"{data.task.name:5s} {setting:13s} {tokens:6.0f} {''.join(columns)} {gain:6.2f}  {''.join(shares)}"
        f" {1e-9 * statistics.median(product):8.0f} {disturbed:7.0%}",
        flush=True,
    )


# Whole cells.


def whole(task: str, setting: str, flags: argparse.Namespace) -> None:
    """Prints the line of one whole cell."""
    given = {"max_train_examples": flags.max_train_examples, "epochs": flags.epochs}
    path = flags.data or "synthetic"
    deadline = time.perf_counter() + flags.patience
    ours = {"model.name": FOLDER, "model.pooling": "mean", "data.path": path, **given}
    ours["frozen_dropout"] = not flags.no_frozen_dropout
    words = ["train.py", f"--config=configs/glue.py:{task},{setting}", "--workdir=work"]
    words += [f"--config.{name}={value}" for name, value in ours.items()]
    (seconds, found), others = quiet.undisturbed(lambda: start_to_end(words, task, setting), deadline)
    theirs = {"task": task, "setting": setting, "data": path, "rate": RATE, "runs": flags.runs, **given}
    words = ["-m", "benchmarks.peer", *(f"--{name}={value}" for name, value in theirs.items())]
    (measured, records), also = quiet.undisturbed(lambda: start_to_end(words), deadline)
    each = statistics.mean(record["seconds"] for record in records[min(1, len(records) - 1) :])
    total = measured + (len(found["runs"]) - len(records)) * each
    metric = found["metric"]
    scores = [
        [record["scores"][0][metric] for record in records],
        [run["last"][metric] for run in found["runs"] if run["learning_rate"] == RATE][: len(records)],
    ]
    words = [" ".join("—" if score is None else f"{score:.3f}" for score in side) for side in scores]
    print(
        f"{task:5s} {setting:13s} {measured:8.1f} {each:8.1f} {total:9.1f} {seconds:8.1f} {total / seconds:6.2f}"
        f" {max(others, also):7.0%}  {metric}: {words[0]} | {words[1]}",
        flush=True,
    )


def start_to_end(words: list[str], *cell: str) -> tuple[float, Any]:
    """Seconds of a Python program with nothing cached, and the results of its cell, else the JSON that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        words = [word.replace("--workdir=", f"--workdir={folder}/") for word in words]
        environment = os.environ | {"LNFLAX_CACHE": f"{folder}/cache"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        begin = time.perf_counter()
        done = subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True)
        seconds = time.perf_counter() - begin
        if done.returncode:
            sys.exit(done.stderr)
        return seconds, results.read_results(f"{folder}/work", *cell) if cell else json.loads(
            done.stdout.splitlines()[-1]
        )


def main() -> None:
    """Prints a line for each task and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="stsb,rte,cola")
    parser.add_argument("--settings", default="layernorms,frozen,single_norm_1,single_norm_3,single_norm_6,full")
    parser.add_argument("--data", default=os.environ.get("LNFLAX_GLUE", ""))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=120, help="seconds a line waits for a quiet machine")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--epochs", type=int, default=1, help="of whole cells")
    parser.add_argument("--max_train_examples", type=int, default=0, help="of whole cells; 0 is all")
    parser.add_argument("--runs", type=int, default=2, help="of PEFT in a whole cell")
    parser.add_argument(
        "--no_frozen_dropout", action="store_true", help="of lnflax's whole cells: features once for all"
    )
    parser.add_argument("--one_core", action="store_true", help="CPU seconds on one core")
    flags = parser.parse_args()
    if flags.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before either library makes its threads
    peer.use_all_cores()
    devices.use_cores()
    cells = [(task, setting) for task in flags.tasks.split(",") for setting in flags.settings.split(",")]
    if flags.whole:
        print(f"seconds; of PEFT's {len(SEEDS) * 7} runs {flags.runs} are measured, the others taken to last as long")
        print("                    PEFT:                       lnflax:")
        print("task  setting       measured  one run  all runs all runs  ratio  others  score at 1e-3: PEFT | lnflax")
        for task, setting in cells:
            whole(task, setting, flags)
        return
    source = "texts of --data" if flags.data else "random tokens of the tasks' lengths"
    cores = "CPU time on 1 core" if flags.one_core else f"{os.cpu_count()} cores"
    print(f"ms a run and step, {source}; {cores}, {jax.local_device_count()} JAX device(s)")
    print("             real                                                         share of the product")
    print("task  setting       tokens  PEFT, one run          lnflax, in the grid  ratio    PEFT lnflax GFLOP/s others")
    samples = {task: make_sample(task, flags.data, flags.steps * peer.BATCH) for task, _ in cells}
    for task, setting in cells:
        if flags.one_core:
            compare(setting, samples[task], flags.rounds, 0, time.process_time)
        else:
            compare(setting, samples[task], flags.rounds, flags.patience, time.perf_counter)


if __name__ == "__main__":
    main()
