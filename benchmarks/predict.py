"""Lines answered a second: `python -m lnflax predict`'s path against a plain PyTorch loop, and the memory of both.

    python benchmarks/predict.py [--lines=10000] [--data=FOLDER] [--rounds=3] [--one_core]

MiniLM with one head of two outputs on both sides, float32, 128 tokens at most, on all cores of the CPU; sentences of
SST-2's training set from a folder of GLUE in the hub's layout (--data, default $LNFLAX_GLUE; without one, lnflax's
generated ones). Timed: the file read, tokenized, answered, and written as JSON lines. PyTorch takes lines in order,
padded to the longest of their batch, as many a batch as come nearest to the tokens of lnflax's calls.

Each side is a fresh process, in turns. `first` is its first pass, with lnflax's compilations, nothing cached; `again`
the same file once more. `others` is what other processes used of the cores meanwhile: where it is not near 0, times
say little, and PyTorch's, whose threads wait for each other in a loop, less than lnflax's. Peak memory is that of the
process after both passes, with the lines and with a quarter of them. On a machine that is never quiet, `--one_core`
gives CPU seconds of both on a single core.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import quiet
from configs import demo
from lnflax import MAX_LENGTH, deltas, heads, process, tasks, tokens, tuned
from lnflax.deltas import About, Delta

ROOT = Path(__file__).parents[1]
FOLDER = Path(demo.minilm())
TASK = tasks.TASKS["sst2"]
SIDES = ("lnflax", "torch")
BATCHES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)


def make_inputs(folder: Path, data: str, count: int) -> None:
    """The lines, a quarter of them, and a delta of a head alone."""
    texts = tasks.load(TASK, data or "synthetic", "", count).train.columns[0]
    lines = [text.strip() + "\n" for text in itertools.islice(itertools.cycle(texts), count)]
    for name, own in (("all", lines), ("quarter", lines[: count // 4])):
        (folder / name).write_text("".join(own), "utf-8")
    base = tuned.open_base(str(FOLDER))
    about = About(TASK.name, "frozen", 0, 1e-3, 1, base.sha256(False), "mean", TASK.labels)
    head = heads.make_head(tuned.load(base).shape, init="normal", seed=0, task=TASK.name)
    deltas.write(folder / "delta", Delta(about, head, {}))


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of a pass, on one core those of the CPU, and what others used of the cores."""
    clock = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter
    begin = clock()
    _, others = quiet.watch(call)
    return {"seconds": clock() - begin, "others": others}


def lnflax_side(folder: Path, name: str) -> dict[str, Any]:
    """Two passes."""
    process.set_up()
    from lnflax import compiling, lines

    models = {"": tuned.apply(tuned.open_base(str(FOLDER)), folder / "delta")}

    def answer() -> None:
        lines.answer(models, str(folder / name), "text", str(folder / "lnflax.jsonl"), MAX_LENGTH)

    with compiling.counted() as programs:
        first = timed(answer)
    return {"first": first, "again": timed(answer), "compiling": programs.seconds, "programs": programs.compiled}


def torch_side(folder: Path, name: str) -> dict[str, Any]:
    """Two passes of a plain loop."""
    import torch

    from benchmarks import peer

    peer.use_all_cores()
    model = peer.Sentences(FOLDER, len(TASK.labels), "sdpa").eval()
    head = deltas.head(deltas.read(folder / "delta"))
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head["classifier/kernel"].T.copy()))
        model.classifier.bias.copy_(torch.from_numpy(head["classifier/bias"]))
    tokenizer = tokens.load_tokenizer(FOLDER)
    size = batch_size(tokenizer, folder / name)

    def answer() -> None:
        number = itertools.count(1)
        with (folder / name).open() as source, (folder / "torch.jsonl").open("w") as output, torch.inference_mode():
            for batch in batched(source, size):
                rows = tokenizer(batch, truncation=True, max_length=MAX_LENGTH, padding=True, return_tensors="pt")
                for share in torch.softmax(model(**rows), dim=-1).tolist():
                    label = TASK.labels[int(np.argmax(share))]
                    answer = {"line": next(number), "label": label}
                    answer["probabilities"] = dict(zip(TASK.labels, share, strict=True))
                    output.write(json.dumps(answer) + "\n")

    return {"first": timed(answer), "again": timed(answer), "batch": size}


def batched(source: Any, size: int) -> Iterator[list[str]]:
    """Lines without their ends."""
    while batch := [line.rstrip("\n") for line in itertools.islice(source, size)]:
        yield batch


def batch_size(tokenizer: Any, path: Path) -> int:
    """The lines of a batch whose padded tokens come nearest to those of lnflax's calls."""
    import jax

    from lnflax import evaluation

    lengths = [len(row) for row in tokenizer(path.read_text("utf-8").splitlines(), truncation=True)["input_ids"]]

    def padded(size: int) -> float:
        return statistics.mean(size * max(lengths[i : i + size]) for i in range(0, len(lengths), size))

    wanted = evaluation.TOKENS * min(len(os.sched_getaffinity(0)), 8) if jax.default_backend() == "cpu" else 0
    return min(BATCHES, key=lambda size: abs(padded(size) - wanted))


def measure(side: str, folder: Path, name: str) -> dict[str, Any]:
    """What a fresh process of one side prints."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"LNFLAX_CACHE": cache, "JAX_PLATFORMS": "cpu"}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        line = [sys.executable, __file__, f"--side={side}", f"--folder={folder}", f"--name={name}"]
        done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(side: str, rounds: list[dict[str, Any]], count: int, quarter: dict[str, Any]) -> None:
    """Prints the line of one side."""
    columns = []
    for passed in ("first", "again"):
        seconds = [own[passed]["seconds"] for own in rounds]
        middle = statistics.median(seconds)
        columns.append(f"{middle:7.1f} ({min(seconds):.1f}–{max(seconds):.1f}) {count / middle:7.0f}")
    others = max(own[passed]["others"] for own in rounds for passed in ("first", "again"))
    about = f"batches of {rounds[0]['batch']} lines" if side == "torch" else ""
    if side == "lnflax":
        compiling = statistics.median(own["compiling"] for own in rounds)
        about = f"{rounds[0]['programs']} programs compiled in {compiling:.1f} s of the first pass"
    memory = f"{quarter['peak']:6.0f} {statistics.median(own['peak'] for own in rounds):6.0f}"
    print(f"{side:7s} {columns[0]}  {columns[1]}  {memory}  {others:6.0%}  {about}", flush=True)


def differences(folder: Path) -> str:
    """How far the two files of answers are apart."""
    sides = [[json.loads(line) for line in (folder / f"{side}.jsonl").open("rb")] for side in SIDES]
    pairs = list(zip(*sides, strict=True))
    same = sum(a["label"] == b["label"] for a, b in pairs)
    most = max(abs(a["probabilities"][name] - b["probabilities"][name]) for a, b in pairs for name in TASK.labels)
    return f"labels alike: {same:,} of {len(pairs):,}; probabilities differ by {most:.1e} at most"


def main() -> None:
    """Prints a line a side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--data", default=os.environ.get("LNFLAX_GLUE", ""))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one_core", action="store_true", help="CPU seconds on one core")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.side:
        found = {"lnflax": lnflax_side, "torch": torch_side}[flags.side](flags.folder, flags.name)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    if flags.one_core:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the sides are of this process, and keep it
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        make_inputs(folder, flags.data, flags.lines)
        quarters = {side: measure(side, folder, "quarter") for side in SIDES}
        rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(flags.rounds):
            for side in SIDES:
                rounds[side].append(measure(side, folder, "all"))
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        kind = "CPU seconds" if flags.one_core else "seconds"
        print(f"{flags.lines:,} lines, {len(os.sched_getaffinity(0))} core(s), load {load}; {kind}: median (min–max)")
        print("        first pass        lines/s  again             lines/s   peak MB: 1/4, all  others")
        for side in SIDES:
            report(side, rounds[side], flags.lines, quarters[side])
        print(differences(folder))


if __name__ == "__main__":
    main()
