"""`python -m lnflax predict` against a plain loop in PyTorch: lines a second, and memory as the input grows.

    python benchmarks/predict.py [--data=FOLDER] [--lines=10000] [--rounds=3]

MiniLM with a fresh head on the CPU, lines of sst2's training set (a folder of GLUE in the hub's layout; default:
$LNFLAX_GLUE). Both read the same file, tokenize, and give probabilities, in order; they take turns in one process.
PyTorch's batches hold as many tokens as ours, padding counted: lines in their order, as many as fit. `command` is the
whole process, imports and compilation included (its cache of programs is empty), and its peak of resident memory.
`others` is the most that other processes used of the machine meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import quiet
from benchmarks.cell import FOLDER
from lnflax import devices, lines, serving, tasks, tuned

ROOT = Path(__file__).parents[1]
LENGTH = 128


def batches(tokenizer: Any, texts: list[str], most: int) -> Iterator[Any]:
    """Padded batches in order, each of at most so many tokens."""
    import torch

    ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    begin = 0
    while begin < len(ids):
        end, longest = begin, 0
        while end < len(ids) and max(longest, len(ids[end])) * (end - begin + 1) <= most:
            longest, end = max(longest, len(ids[end])), end + 1
        own = tokenizer.pad({"input_ids": ids[begin:end]}, return_tensors="pt")
        yield {**own, "token_type_ids": torch.zeros_like(own["input_ids"])}
        begin = end


def loop(network: Any, tokenizer: Any, source: Path, most: int) -> np.ndarray:
    """Probabilities, `[lines, labels]`."""
    import torch

    found = []
    with torch.inference_mode():
        for batch in batches(tokenizer, source.read_text("utf-8").splitlines(), most):
            found.append(network(**batch).logits.softmax(-1).numpy())
    return np.concatenate(found)


def ours(model: tuned.Model, source: Path, out: Path) -> np.ndarray:
    """The same, through the lines that the command reads and writes."""
    lines.answer({"": model}, str(source), "text", str(out), LENGTH)
    rows = (json.loads(line)["probabilities"].values() for line in out.read_text("utf-8").splitlines())
    return np.array([tuple(row) for row in rows])


def command(source: Path, out: Path, cache: Path) -> tuple[float, float]:
    """Seconds and MiB of the whole process."""
    given = [sys.executable, "-m", "lnflax", "predict", f"--base={FOLDER}", f"--input={source}", f"--output={out}"]
    began = time.perf_counter()
    child = subprocess.Popen(given, cwd=ROOT, env={**os.environ, "LNFLAX_CACHE": str(cache)}, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"predict ended with {status}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def make_network(model: tuned.Model) -> Any:
    """The same weights in PyTorch."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    network = transformers.AutoModelForSequenceClassification.from_pretrained(str(FOLDER), num_labels=2)
    head = {name: np.array(model.params[f"classifier/{name}"]) for name in ("kernel", "bias")}
    with torch.no_grad():
        network.classifier.weight.copy_(torch.tensor(head["kernel"].T.copy()))
        network.classifier.bias.copy_(torch.tensor(head["bias"]))
    return network.eval()


def main() -> None:
    """Prints both, and the command's memory at a quarter, the whole, and four times the lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("LNFLAX_GLUE"))
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    if not flags.data:
        parser.error("--data: give a folder of GLUE in the hub's layout")
    texts = tasks.load(tasks.TASKS["sst2"], flags.data, "", 0).train.columns[0]
    model = tuned.load(tuned.open_base(str(FOLDER)))
    network, most = make_network(model), serving.SIZES[-1] * jax.local_device_count()
    with tempfile.TemporaryDirectory() as place:
        source, out = Path(place) / "lines.txt", Path(place) / "out.jsonl"
        source.write_text("\n".join(text.strip() or "." for text in texts[: flags.lines]) + "\n", "utf-8")
        tokenizer = model.base.tokenizer()
        difference = np.abs(ours(model, source, out) - loop(network, tokenizer, source, most)).max()
        print(f"{flags.lines} lines, batches of {most} tokens; probabilities differ by at most {difference:.1e}")
        seconds: dict[str, list[float]] = {"lnflax": [], "PyTorch": []}
        for _ in range(flags.rounds):
            for name, call in {
                "lnflax": lambda: ours(model, source, out),
                "PyTorch": lambda: loop(network, tokenizer, source, most),
            }.items():
                began = time.perf_counter()
                _, others = quiet.watch(call)
                seconds[name].append(time.perf_counter() - began)
                print(f"{name}: {flags.lines / seconds[name][-1]:.0f} lines/s (others {others:.0%})")
        ratio = statistics.median(seconds["PyTorch"]) / statistics.median(seconds["lnflax"])
        print(f"PyTorch / lnflax, medians: {ratio:.2f}")
        for count in (flags.lines // 4, flags.lines, 4 * flags.lines):
            own = (texts * (count // len(texts) + 1))[:count]
            source.write_text("\n".join(text.strip() or "." for text in own) + "\n", "utf-8")
            spent, peak = command(source, out, Path(place) / f"cache{count}")
            print(f"command, {count} lines: {spent:.1f} s, {count / spent:.0f} lines/s, peak {peak:.0f} MiB")


if __name__ == "__main__":
    devices.use_cores()
    main()
