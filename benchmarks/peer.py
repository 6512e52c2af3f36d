"""The rival: a fine-tuning run in PyTorch with transformers and PEFT, one run at a time, as one writes it today.

    python -m benchmarks.peer --task=rte --setting=layernorms --data=FOLDER --epochs=1 --runs=2

prints the seconds and scores of whole runs as JSON (as a script it would find `benchmarks/peft.py` for `peft`).
`benchmarks/peft.py` compares it with lnflax. Token ids, the
order of examples, the schedule and the protocol are lnflax's own; heads and dropout are PyTorch's draws.
"""

import argparse
import dataclasses
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peft
import torch
import transformers
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lnflax import batches, metrics, optimizer, tasks, tokens
from lnflax.tokens import Encoded

BATCH = 16
EVAL_BATCH = 64
MAX_LENGTH = 128
WARMUP_RATIO = 0.1
LOG = 50  # steps between two looks at the loss


class Data(NamedTuple):
    """A task's token ids."""

    task: tasks.Task
    train: Encoded
    evals: dict[str, Encoded]


class Example(NamedTuple):
    """One example as tensors, before padding."""

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor


class Sentences(nn.Module):
    """BERT, the mean over an example's tokens, dropout, a linear head."""

    def __init__(self, folder: Path, outputs: int, attention: str) -> None:
        super().__init__()
        self.bert = transformers.BertModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=torch.float32, attn_implementation=attention
        )
        config = self.bert.config
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        nn.init.normal_(self.classifier.weight, std=config.initializer_range)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits, `[batch, outputs]`."""
        hidden = self.bert(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).last_hidden_state
        member = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return self.classifier(self.dropout((hidden * member).sum(1) / member.sum(1)))


@dataclasses.dataclass
class Run:
    """A model with what trains it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    examples: list[Example]
    labels: torch.Tensor
    steps: int = 0
    losses: list[float] = dataclasses.field(default_factory=list)  # what a log would show


def read(task: str, path: str, folder: Path, max_train_examples: int = 0) -> Data:
    """A task's texts as token ids, as lnflax makes them."""
    about = tasks.TASKS[task]
    texts = tasks.load(about, path, "", max_train_examples)
    tokenizer = tokens.load_tokenizer(folder)
    evals = {split: tokens.encode(tokenizer, part, MAX_LENGTH) for split, part in texts.evals.items()}
    return Data(about, tokens.encode(tokenizer, texts.train, MAX_LENGTH), evals)


def use_all_cores() -> None:
    """Threads for one product, and no talk."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def adapt(model: Sentences, setting: str) -> nn.Module:
    """The model with what the setting trains: LayerNorms through PEFT, the rest by `requires_grad`."""
    if setting == "full":
        return model
    if setting == "frozen":
        model.bert.requires_grad_(False)
        return model
    block = r"\d+" if setting in ("layernorms", "ln_a", "ln_f") else str(int(setting.removeprefix("single_norm_")) - 1)
    part = {"ln_a": r"attention\.", "ln_f": ""}.get(setting, r"(attention\.)?")
    target = rf"bert\.encoder\.layer\.{block}\.{part}output\.LayerNorm"
    config = peft.LNTuningConfig(target_modules=target, modules_to_save=["classifier"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unsupported layer type")  # LayerNorm has no in and out features
        return peft.get_peft_model(model, config)


def make_run(
    setting: str, data: Data, rate: float, seed: int, *, folder: Path, epochs: int = 1, attention: str = "sdpa"
) -> Run:
    """A fresh run: the checkpoint is read, the head drawn, the norms wrapped."""
    torch.manual_seed(seed)
    model = adapt(Sentences(folder, data.task.num_outputs, attention), setting).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, lr=rate, betas=(0.9, 0.999), eps=1e-6, fused=True)
    steps = epochs * batches.epoch_steps(len(data.train.labels), BATCH)
    factor = [*optimizer.schedule("linear", steps, WARMUP_RATIO).tolist(), 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: factor[min(step, steps)])
    return Run(model, adam, scheduler, to_examples(data.train), to_labels(data.train))


def to_examples(encoded: Encoded) -> list[Example]:
    """Views of the flat arrays."""
    sizes = encoded.lengths.tolist()
    ids, types = (torch.from_numpy(value.astype(np.int64)) for value in (encoded.tokens, encoded.token_types))
    return [Example(*pair) for pair in zip(ids.split(sizes), types.split(sizes), strict=True)]


def to_labels(encoded: Encoded) -> torch.Tensor:
    """Classes int64 or scores float32, `[examples]`."""
    return torch.from_numpy(encoded.labels.astype(np.float32 if encoded.labels.dtype.kind == "f" else np.int64))


def collate(examples: list[Example]) -> dict[str, torch.Tensor]:
    """A batch padded to its longest example."""
    ids = pad_sequence([example.input_ids for example in examples], batch_first=True)
    types = pad_sequence([example.token_type_ids for example in examples], batch_first=True)
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared error of one output, else cross-entropy."""
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits[:, 0], labels)
    return nn.functional.cross_entropy(logits, labels)


def epoch_batches(data: Data, seed: int, epoch: int) -> list[np.ndarray]:
    """Which examples each step of an epoch holds, the same as in lnflax."""
    order = batches.epoch_order(data.task.name, seed, epoch, len(data.train.labels), BATCH)
    return [step[step != batches.NONE] for step in order]


def train_steps(run: Run, steps: list[np.ndarray], clock: Callable[[], float] = time.perf_counter) -> float:
    """One update for each of the steps' examples; the seconds, padding included."""
    run.model.train()
    begin = clock()
    for step in steps:
        batch = collate([run.examples[i] for i in step.tolist()])
        loss = loss_of(run.model(**batch), run.labels[torch.from_numpy(step)])
        loss.backward()
        run.optimizer.step()
        run.scheduler.step()
        run.optimizer.zero_grad(set_to_none=True)
        run.steps += 1
        if run.steps % LOG == 0:
            run.losses.append(loss.item())
    return clock() - begin


def evaluate(run: Run, dev: Encoded) -> np.ndarray:
    """Classes or scores in data order, `[examples]`, from batches of like lengths."""
    run.model.eval()
    examples = to_examples(dev)
    order = np.argsort(-dev.lengths, kind="stable")
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(order), EVAL_BATCH):
            logits = run.model(**collate([examples[i] for i in order[begin : begin + EVAL_BATCH].tolist()]))
            parts.append(logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1))
    predictions = torch.cat(parts).numpy()
    ordered = np.empty_like(predictions)
    ordered[order] = predictions
    return ordered


def whole_cell(
    setting: str, data: Data, runs: list[tuple[int, float]], *, folder: Path, epochs: int, attention: str = "sdpa"
) -> list[dict[str, Any]]:
    """Whole runs one after another, evaluated after each epoch: seconds and the last scores of each (seed, rate)."""
    records = []
    for seed, rate in runs:
        begin = time.perf_counter()
        run = make_run(setting, data, rate, seed, folder=folder, epochs=epochs, attention=attention)
        scores: list[dict[str, float]] = []
        for epoch in range(1, epochs + 1):
            train_steps(run, epoch_batches(data, seed, epoch))
            scores = [score(data.task, evaluate(run, dev), dev.labels) for dev in data.evals.values()]
        records.append({"seed": seed, "rate": rate, "seconds": time.perf_counter() - begin, "scores": scores})
    return records


def score(task: tasks.Task, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics."""
    sides = predictions.astype(np.float64), labels.astype(np.float64)
    return {name: metrics.METRICS[name](*sides) for name in task.metrics}


def main() -> None:
    """Whole runs of one cell, as JSON on the last line."""
    from configs import demo

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="rte")
    parser.add_argument("--setting", default="layernorms")
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--max_train_examples", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--runs", type=int, default=2, help="seeds 0, 1, …")
    parser.add_argument("--attention", default="sdpa", choices=("sdpa", "eager"))
    flags = parser.parse_args()
    use_all_cores()
    folder = Path(demo.minilm())
    data = read(flags.task, flags.data, folder, flags.max_train_examples)
    runs = [(seed, flags.rate) for seed in range(flags.runs)]
    records = whole_cell(flags.setting, data, runs, folder=folder, epochs=flags.epochs, attention=flags.attention)
    print(json.dumps(records))


if __name__ == "__main__":
    main()
