"""The card of an exported model: what it is, what trained, and what its study measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lnflax import deltas, results
from lnflax.deltas import About
from lnflax.tuned import Model
from lnflax.wording import mean_std, percent, ratio_percent

NUMBERS = ("epoch", "train_loss", "eval_loss")  # of a run's row: what is no metric
UNKNOWN = "The delta was not in the folder of its study: its scores are not known."

TRANSFORMERS = """from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")"""
PEFT = """from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained("{base}", num_labels={outputs})
model = PeftModel.from_pretrained(base, "FOLDER")"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """The cell that a delta is of, and its run there, from results.json."""

    cell: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """The run's metrics at the reported epoch, as fractions."""
        row = self.run[self.cell["report_epoch"]]
        return {name: value for name, value in row.items() if name not in NUMBERS and value is not None}


def measured(delta: Path, about: About) -> Measured | None:
    """What a delta's study says of it, where the delta lies in its run folder."""
    folders = delta.resolve().parents
    if len(folders) < 4 or folders[0].name != results.DELTAS or not results.is_done(folders[1]):
        return None
    cell = results.read_results(folders[3], folders[2].name, folders[1].name)
    for run in cell["runs"]:
        if (run["seed"], run["learning_rate"]) == (about.seed, about.learning_rate):
            return Measured(cell, run)
    return None


def make(model: Model, delta: Path, library: str) -> str:
    """README.md: what the hub reads, then words.

    Args:
        model: the tuned model.
        delta: its delta's file.
        library: `transformers` or `peft`.
    """
    about = deltas.read(delta).about
    known = measured(delta, about)
    base = model.base.folder.name if Path(model.base.name).is_dir() else model.base.name
    auto = f"AutoModelFor{'TokenClassification' if model.tagged else 'SequenceClassification'}"
    form = {"transformers": TRANSFORMERS, "peft": PEFT}[library]
    parts = [
        f"---\n{_data(model, about, known, base, library).to_yaml()}\n---\n",
        f"# {base}, {about.setting} tuned on {about.task}\n",
        _trained(about, known, base),
        "## Scores\n",
        _scores(known) if known else f"{UNKNOWN}\n",
        "## How to open it\n",
        f"```python\n{form.format(auto=auto, base=base, outputs=model.shape.num_outputs)}\n```\n",
        _input(model),
    ]
    return "\n".join(parts)


def _data(model: Model, about: About, known: Measured | None, base: str, library: str) -> ModelCardData:
    kind = "token-classification" if model.tagged else "text-classification"
    source = model.task.source if model.task is not None and "/" in model.task.source else None
    found = known.scores if known else {}
    split = next(iter(known.cell["eval_examples"])) if known else None
    scores = [
        EvalResult(
            task_type=kind,
            dataset_type=source or about.task,
            dataset_name=about.task,
            dataset_config=about.task,
            dataset_split=split,
            metric_type=name,
            metric_value=value,
        )
        for name, value in found.items()
    ]
    return ModelCardData(
        library_name=library,
        pipeline_tag=kind,
        base_model=base if "/" in base else None,
        datasets=[source] if source else None,
        metrics=list(found) or None,
        tags=["lnflax", about.setting],
        model_name=f"{about.task}-{about.setting}" if scores else None,
        eval_results=scores or None,
    )


def _trained(about: About, known: Measured | None, base: str) -> str:
    share = ""
    if known:
        share = f": {known.cell['trained']:,} scalars of the body, {ratio_percent(known.cell['ratio'])}, and the head"
    lines = [
        f"What trained: `{about.setting}`{share}. Every other scalar is that of {base}, bit for bit.",
        f"The body's SHA-256 before tuning: `{about.base_sha256}`.",
    ]
    if about.seed is not None and about.learning_rate is not None:
        steps = f", {known.cell['steps']} updates in all" if known else ""
        lines.append(f"Seed {about.seed}, learning rate {about.learning_rate:g}, epoch {about.epoch}{steps}.")
    return "\n".join([*lines, "Made by lnflax.\n"])


def _scores(known: Measured) -> str:
    """This run's scores, and the mean over its cell's seeds."""
    cell = known.cell
    chosen, examples = cell["selected"], ", ".join(f"{split} {count}" for split, count in cell["eval_examples"].items())
    rows = "\n".join(f"| {name} | {percent(value)} |" for name, value in known.scores.items())
    text = (
        f"| metric, % | this run |\n|---|---:|\n{rows}\n\nExamples: {examples}; trained on {cell['train_examples']}.\n"
    )
    if chosen["mean"] is None:
        return text
    seeds = f"{cell['metric']} {mean_std(chosen['mean'], chosen['std'])} (mean and standard deviation of {chosen['n']}"
    return f"{text}\nThe study's number: {seeds} seeds at the rate {chosen['learning_rate']:g}).\n"


def _input(model: Model) -> str:
    if model.tagged:
        what = "sentences split into words; a word's first token answers for it"
    elif model.task is None:
        what = "texts"
    else:
        what = "a pair of texts" if len(model.task.columns) == 2 else "a text"
    answers = f"one of {', '.join(f'`{label}`' for label in model.labels)}" if model.labels else "a score"
    return f"It reads {what}, and answers {answers}.\n"
