"""What trains, said before step 1: the content of trained.json, and a short table of it for the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from lnflax import masks as masking
from lnflax import rules
from lnflax.results import FORMAT
from lnflax.settings import Setting
from lnflax.wording import count_range, ratio_percent

Tree = Any
Parameters = list[dict[str, Any]]

BLOCK = r"bert/encoder/layer/\d+"
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")
GROUPS = {
    **{name: f"bert/embeddings/{name}/embedding" for name in EMBEDDINGS},
    "embeddings_norm": "bert/embeddings/LayerNorm/.*",
    **{name: f"{BLOCK}/attention/self/{name}/.*" for name in ("query", "key", "value")},
    "attention_output": f"{BLOCK}/attention/output/dense/.*",
    "ln_a": f"{BLOCK}/attention/output/LayerNorm/.*",
    "intermediate": f"{BLOCK}/intermediate/dense/.*",
    "ffn_output": f"{BLOCK}/output/dense/.*",
    "ln_f": f"{BLOCK}/output/LayerNorm/.*",
    "pooler": "bert/pooler/.*",
    "classifier": "classifier/.*",
    "other": ".*",
}


def report(
    task: str,
    setting: Setting,
    params: Tree,
    labels: Tree,
    masks: Sequence[Tree],
    *,
    seeds: Sequence[int],
    model_name: str,
    model_sha256: str | None = None,
    options: Mapping[str, Any] | None = None,
    seen: Mapping[str, np.ndarray | None] | None = None,
) -> dict[str, Any]:
    """The content of trained.json: every parameter with its label, and how many scalars train.

    Args:
        task: the task's name.
        setting: what trains.
        params: the parameters, or their shapes.
        labels: the full tree of labels.
        masks: one elementwise mask a seed; None where a leaf is not masked.
        seeds: the seeds of the cell.
        model_name: the checkpoint's name.
        model_sha256: of its body; None where no checkpoint was read.
        options: the mask's options, as the config has them.
        seen: for each of `EMBEDDINGS` the rows that the training data uses, bool `[rows]`; None when unknown.

    Returns:
        `trained` and `ratio` are of the body, without the classifier. Beside them stands the same with the head
        (`with_head`), and as if the embeddings' LayerNorm trained too (`with_embeddings_norm`). `reachable` says,
        seed by seed, how many of the trained scalars can have a gradient: an embedding row that no example uses
        has none. It is None where that is unknown.
    """
    flat_masks = [rules.flatten(mask) for mask in masks]
    parameters = _parameters(params, labels, flat_masks, len(seeds))
    head = [parameter for parameter in parameters if group(parameter["path"]) == "classifier"]
    body = [parameter for parameter in parameters if group(parameter["path"]) != "classifier"]
    body_size, trained = _size(body), _one(_count(body, len(seeds)))
    idle_norm = [p for p in body if group(p["path"]) == "embeddings_norm" and p["label"] == "frozen"]

    def share(count: int) -> dict[str, Any]:
        return {"trained": count, "ratio": count / body_size}

    return {
        "format": FORMAT,
        "task": task,
        "setting": setting.name,
        "model": {"name": model_name, "sha256": model_sha256},
        "seeds": list(seeds),
        "body": body_size,
        "head": _size(head),
        **share(trained),
        "with_head": share(trained + _one(_count(head, len(seeds)))),
        "with_embeddings_norm": share(trained + _size(idle_norm)),
        "reachable": _reachable(body, flat_masks, len(seeds), seen or {}),
        "rules": [list(rule) for rule in setting.rules],
        "parameters": parameters,
        "groups": _groups(parameters, len(seeds)),
        "masks": _masks(setting, masks, options or {}),
    }


def _parameters(params: Tree, labels: Tree, masks: list[dict[str, Any]], seeds: int) -> Parameters:
    flat_labels = rules.flatten(labels)
    parameters = []
    for path, leaf in rules.flatten(params).items():
        label, size = flat_labels[path], int(np.prod(leaf.shape))
        if label == "masked":
            trained = [int(np.count_nonzero(mask[path])) for mask in masks]
        else:
            trained = [size if label == "trainable" else 0] * seeds
        if len(trained) != seeds:
            raise ValueError(f"{len(masks)} masks for {seeds} seeds")
        parameters.append({"path": path, "shape": list(leaf.shape), "size": size, "label": label, "trained": trained})
    return parameters


def group(path: str) -> str:
    """The kind of module that a parameter belongs to, one of `GROUPS`."""
    return next(name for name, pattern in GROUPS.items() if re.fullmatch(pattern, path))


def _groups(parameters: Parameters, seeds: int) -> dict[str, list[int]]:
    """Trained scalars by kind, a count a seed; kinds that the model does not have are left out."""
    members: dict[str, Parameters] = {}
    for parameter in parameters:
        members.setdefault(group(parameter["path"]), []).append(parameter)
    return {name: _count(members[name], seeds) for name in GROUPS if name in members}


def _size(parameters: Parameters) -> int:
    return sum(parameter["size"] for parameter in parameters)


def _count(parameters: Parameters, seeds: int) -> list[int]:
    return [sum(parameter["trained"][seed] for parameter in parameters) for seed in range(seeds)]


def _one(counts: list[int]) -> int:
    """The number that is the same for all seeds by construction."""
    if len(set(counts)) != 1:
        raise ValueError(f"the seeds train {counts} scalars; they should be equal")
    return counts[0]


def _reachable(
    body: Parameters, masks: list[dict[str, Any]], seeds: int, seen: Mapping[str, np.ndarray | None]
) -> list[int] | None:
    counts = _count(body, seeds)
    for parameter in body:
        path, name = parameter["path"], group(parameter["path"])
        if name not in EMBEDDINGS or not any(parameter["trained"]):
            continue
        used = seen.get(name)
        if used is None:
            return None
        for seed in range(seeds):
            rows = np.ones(parameter["shape"], bool) if parameter["label"] == "trainable" else masks[seed][path]
            counts[seed] -= int(np.count_nonzero(np.asarray(rows)[~np.asarray(used, bool)]))
    return counts


def _masks(setting: Setting, masks: Sequence[Tree], options: Mapping[str, Any]) -> dict[str, Any] | None:
    if setting.mask is None:
        return None
    digests = [masking.digest(mask) for mask in masks]
    return {"kind": setting.mask.kind, "options": dict(options), "sha256": digests}


def terminal_table(reports: Iterable[Mapping[str, Any]]) -> Group:
    """A row a cell for the terminal, and below it, in words, what each random mask hit."""
    reports = list(reports)
    # With one task its column says nothing.
    tasks = len({given["task"] for given in reports}) > 1
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    for name in (*(["task"] if tasks else []), "setting"):
        table.add_column(name, overflow="fold", vertical="bottom")
    for name in ("leaves", "trained", "ratio", "with\nhead", "with\nemb. norm", "reachable"):
        table.add_column(name, justify="right", overflow="fold", vertical="bottom")
    for given in reports:
        table.add_row(*([given["task"]] if tasks else []), given["setting"], *_row(given))
    return Group(table, *(_composition(given) for given in reports if (given["masks"] or {}).get("kind") == "random"))


def _row(given: Mapping[str, Any]) -> list[str]:
    body = [parameter for parameter in given["parameters"] if group(parameter["path"]) != "classifier"]
    leaves = sum(parameter["label"] != "frozen" for parameter in body)
    return [
        str(leaves),
        f"{given['trained']:,}",
        ratio_percent(given["ratio"]),
        *(ratio_percent(given[key]["ratio"]) for key in ("with_head", "with_embeddings_norm")),
        "unknown" if given["reachable"] is None else count_range(given["reachable"]),
    ]


def _composition(given: Mapping[str, Any]) -> str:
    groups = {name: counts for name, counts in given["groups"].items() if name != "classifier" and any(counts)}
    parts = (f"{name} {count_range(counts)}" for name, counts in groups.items())
    return f"{given['task']} {given['setting']}, drawn: {', '.join(parts)}"
