"""The README of an exported model: what it is, what its study has measured, how to open it, what is not known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lnflax import deltas, results, wording
from lnflax.tasks import Task
from lnflax.tuned import Model

HF, PEFT = "transformers", "peft"
# Names of the hub's own metrics, where they are not ours.
METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}
MISMATCHED = "_mismatched"
OTHER_RATE = ", which is not this run's"
NOT_METRICS = ("epoch", "train_loss", "eval_loss")
HUB_DATA = ("nyu-mll/glue", "lhoestq/conll2003")


@dataclasses.dataclass(frozen=True)
class Known:
    """What the run folder of a delta says: its cell's results.json, and the run's part of it."""

    cell: Mapping[str, Any]
    run: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, float]:
        """Every metric of the run's reported epoch that has a value."""
        reported = self.run[self.cell["report_epoch"]]
        return {name: value for name, value in reported.items() if name not in NOT_METRICS and value is not None}

    @property
    def data(self) -> str:
        """Where the data was read from, without folders; empty: the task's own source."""
        path: str = self.cell["config"]["data"]["path"]
        return path


def find(delta: Path, about: deltas.About) -> Known | None:
    """The run that a delta's file is of, where it lies in its run folder.

    Raises:
        InputError: the cell's results are damaged.
    """
    place = results.cell_of_delta(delta)
    if place is None or not results.is_done(place):
        return None
    if (place.parent.name, place.name) != (about.task, about.setting):
        return None
    cell = results.read_results(place.parents[1], about.task, about.setting)
    own = (about.seed, about.learning_rate, f"{results.DELTAS}/{delta.name}")
    for run in cell["runs"]:
        if (run["seed"], run["learning_rate"], run["delta"]) == own:
            return Known(cell, run)
    return None


def title(model: Model) -> str:
    """`all-MiniLM-L6-v2 with rte/layernorms`."""
    assert model.about is not None
    return f"{base_name(model)} with {model.about.task}/{model.about.setting}"


def base_name(model: Model) -> str:
    """The hub id of the base, or the name of its folder, without those above it."""
    return model.base.name if _is_hub(model) else model.base.folder.resolve().name


def _is_hub(model: Model) -> bool:
    return not Path(model.base.name).expanduser().is_dir()


def write(model: Model, delta: Path, library: str) -> str:
    """The card of a model with a delta.

    Args:
        model: the base with the delta.
        delta: the delta's file; its run folder, where it lies in one, gives the numbers.
        library: `HF`, for a whole model, or `PEFT`, for an adapter.

    Raises:
        InputError: the cell's results are damaged.
    """
    assert model.about is not None
    known = find(delta, model.about)
    parts = [
        f"---\n{_yaml(front_matter(model, known, library))}---",
        f"# {title(model)}",
        _trained(model, known),
        "## Results\n\n" + (_results(known) if known else _unknown()),
        "## Use\n\n" + _use(model, library),
        "## Not known\n\n" + _limits(model, known),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(model: Model, known: Known | None, library: str) -> dict[str, Any]:
    """The fields that the hub reads."""
    assert model.about is not None
    task = model.task
    data = _hub_data(task, known)
    fields: dict[str, Any] = {"library_name": library}
    fields["pipeline_tag"] = "token-classification" if model.tagged else "text-classification"
    if _is_hub(model):  # the hub takes ids of its own alone
        fields["base_model"] = model.base.name
    fields["tags"] = ["lnflax", "bert", model.about.task, model.about.setting]
    if library == PEFT:
        fields["tags"] += ["ln_tuning"]
    if data:
        fields["datasets"] = [data]
    if task:
        fields["metrics"] = list(dict.fromkeys(_metric(name) for name in task.metrics))
    if known and known.scores:
        fields["model-index"] = [{"name": title(model), "results": _index(model, known, data)}]
    return fields


def _yaml(fields: Mapping[str, Any]) -> str:
    import yaml  # of transformers; not needed where no card is written

    return str(yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True))


def _metric(name: str) -> str:
    own = name.removesuffix(MISMATCHED)
    return METRICS.get(own, own)


def _hub_data(task: Task | None, known: Known | None) -> str | None:
    """The data set of the hub that the run has read for certain: a folder may hold anything."""
    if task is None or known is None or task.source not in HUB_DATA or known.data not in ("", task.source):
        return None
    return task.source


def _source(task: Task | None, known: Known) -> str:
    return known.data or (task.source if task else "unknown")


def _index(model: Model, known: Known, data: str | None) -> list[dict[str, Any]]:
    """A result for each development set."""
    assert model.about is not None
    task, found = model.about.task, []
    first, *others = known.cell["eval_examples"]
    for split in (first, *others):
        own = {name: value for name, value in known.scores.items() if name.endswith(MISMATCHED) == (split in others)}
        if not own:
            continue
        where = {"name": task, "type": _source(model.task, known), "split": split}
        if data:
            where["config"] = task
        kind = "token-classification" if model.tagged else "text-classification"
        metrics = [{"type": _metric(name), "name": name, "value": value} for name, value in own.items()]
        found.append({"task": {"type": kind}, "dataset": where, "metrics": metrics})
    return found


def _trained(model: Model, known: Known | None) -> str:
    about = model.about
    assert about is not None
    what = f"A BERT fine-tuned by lnflax on the task `{about.task}` in the setting `{about.setting}`."
    if known:
        counts = [known.cell[name] for name in ("trained", "body", "ratio")]
        what += (
            f" Of the body's {counts[1]:,} parameters {counts[0]:,} were trained ({wording.ratio_percent(counts[2])}), "
            "and the classifier."
        )
    run = {"seed": about.seed, "learning rate": about.learning_rate, "epoch": about.epoch}
    steps = {"steps of the whole run": known.cell["steps"]} if known else {}
    rows = [f"- {name}: {value:g}" if isinstance(value, float) else f"- {name}: {value}" for name, value in
            {**run, **steps}.items() if value is not None]  # fmt: skip
    outputs = f"labels: {', '.join(about.labels)}" if about.labels else "one output, a score"
    return "\n".join(
        [
            what,
            "",
            f"- base: {base_name(model)}, whose body has the sha256 `{about.base_sha256}`",
            *rows,
            f"- {outputs}",
        ]
    )


def _results(known: Known) -> str:
    cell, chosen = known.cell, known.cell["selected"]
    lines = [f"On the development set, {_sizes(cell)}, at the {cell['report_epoch']} epoch; in percent points.", ""]
    own = chosen["learning_rate"] == known.run["learning_rate"]
    if chosen["mean"] is not None:
        mean = wording.mean_std(chosen["mean"], chosen["std"])
        rate = f"the rate {chosen['learning_rate']:g}{'' if own else OTHER_RATE}"
        seeds = f"mean ± sample standard deviation, n = {chosen['n']} seeds"
        lines.append(f"- {cell['metric']} of the study at {rate}: {mean} ({seeds})")
    lines += [f"- {name} of this run: {wording.percent(value, 2)}" for name, value in known.scores.items()]
    rates = len(cell["config"]["learning_rates"])
    if own and rates > 1:
        lines += ["", f"The rate was chosen of {rates} by the same set, so that these numbers flatter it a little."]
    return "\n".join(lines)


def _sizes(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{split} of {count:,} examples" for split, count in cell["eval_examples"].items())


def _unknown() -> str:
    return "They are not known: the delta did not lie in the run folder of its study when this was written."


def _use(model: Model, library: str) -> str:
    kind = "TokenClassification" if model.tagged else "SequenceClassification"
    if library == HF:
        code = (
            f"from transformers import AutoModelFor{kind}, AutoTokenizer\n\n"
            f'model = AutoModelFor{kind}.from_pretrained("FOLDER")\n'
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")'
        )
    else:
        code = (
            f"from peft import PeftModel\nfrom transformers import AutoModelFor{kind}\n\n"
            f'base = AutoModelFor{kind}.from_pretrained("{base_name(model)}", num_labels={len(model.labels) or 1})\n'
            'model = PeftModel.from_pretrained(base, "FOLDER")'
        )
    return f"{_input(model)}\n\n```python\n{code}\n```"


def _input(model: Model) -> str:
    if model.tagged:
        return (
            "Input: a sentence of words, split (`is_split_into_words=True`); the first token of a word answers for it, "
            "the others answer nothing."
        )
    if model.task is None:
        return "Input: text, as the task's own."
    columns = model.task.columns
    pair = "a pair of texts, in this order" if len(columns) == 2 else "one text"
    return f"Input: {pair} ({', '.join(columns)})."


def _limits(model: Model, known: Known | None) -> str:
    lines = [
        "- How it does on any other data than the development set, or on other languages and kinds of text.",
        "- What biases it has: of its base, of its data, or of both.",
    ]
    if known and known.data == "synthetic":
        lines.append("- What it is worth on real text: it was trained and measured on generated sentences.")
    elif known and not _hub_data(model.task, known):
        lines.append(f"- Where its data is from: it was read from `{_source(model.task, known)}`.")
    if known and known.cell["config"].get("max_length"):
        lines.append(f"- How it reads more than {known.cell['config']['max_length']} tokens: none it saw was longer.")
    return "\n".join(lines)
