"""Run folders from literal predictions: what a study of these would have left, and nothing is trained."""

import json

import numpy as np

from configs import base
from lnflax import metrics, results


def folder(root, tasks=("rte",), settings=("full", "layernorms")):
    """A run folder without cells, and a config that asks for no run."""
    config = base.get_config().to_dict() | {"tasks": tasks, "settings": settings, "seeds": (), "learning_rates": ()}
    results.write_json(root / "config.json", {"format": 1, **config})
    return root


def cell(
    root,
    task,
    setting,
    predictions,
    labels,
    *,
    metric="accuracy",
    score=None,
    split="validation",
    best=None,
    offsets=None,
    names=("no", "yes"),
    rates=None,
    diverged=(),
    ratio=0.5,
):
    """A cell from predictions `[seeds, rates, targets]` and labels `[targets]`; `best` the same of the best epoch.

    `diverged` lists (seed, rate) by their places. `score` gives a run's metric, if `lnflax.metrics` does not.
    With `offsets` it is a cell of tagged words.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    score = score or (lambda own: metrics.compute([metric], own, labels)[metric])
    rates = rates or [10.0 ** (place - 3) for place in range(predictions.shape[1])]
    epochs = {"last": predictions, "best": predictions if best is None else np.asarray(best)}
    runs = []
    for place in np.ndindex(predictions.shape[:2]):
        stopped = place in diverged
        rows = {
            kind: {"epoch": 2, "train_loss": 0.5, "eval_loss": 0.6, metric: None if stopped else score(own[place])}
            for kind, own in epochs.items()
        }
        status = {"status": "diverged" if stopped else "finished", "diverged_step": 7 if stopped else None}
        runs.append({"seed": place[0], "learning_rate": rates[place[1]], **status, **rows, "delta": None})
    own = root / task / setting
    arrays = {f"{kind}/{split}": values for kind, values in epochs.items()} | {f"labels/{split}": labels}
    if offsets is not None:
        arrays[f"offsets/{split}"] = np.asarray(offsets, np.int32)
    about = {"seeds": list(range(len(predictions))), "learning_rates": rates, "labels": names}
    results.write_predictions(own, arrays, {name: json.dumps(values) for name, values in about.items()})
    value = {"format": 1, "task": task, "setting": setting, "metric": metric}
    value |= {"report_epoch": "last" if best is None else "best", "eval_examples": {split: len(labels)}}
    value |= {"ratio": ratio, "trained": round(1000 * ratio), "runs": runs}
    value |= {} if offsets is None else {"tags": {}}
    results.write_json(own / "results.json", value)
    return own


def right(count, labels, seeds=3):
    """Predictions of one rate that are right on the first `count` examples, `[seeds, 1, examples]`."""
    own = np.where(np.arange(len(labels)) < count, labels, 1 - np.asarray(labels)).astype(np.int32)
    return np.broadcast_to(own, (seeds, 1, len(labels))).copy()
