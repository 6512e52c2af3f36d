"""ConfigDict to frozen, validated dataclasses; ConfigDict stops here. Every default is in `configs/base.py`."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lnflax import bert, heads, optimizer, selection, settings
from lnflax.errors import InputError, check_choice, nearest
from lnflax.optimizer import OptimizerConfig
from lnflax.settings import Options
from lnflax.tasks import TASKS

# Every field and its type; `object` where several are allowed and a check of its own follows.
TYPES: dict[str, type | dict[str, type]] = {
    "model": {"name": str, "pooling": str, "dtype": str},
    "data": {"path": str, "eval_split": str},
    "tasks": object,
    "settings": object,
    "rules": dict,
    "seeds": object,
    "learning_rates": object,
    "epochs": int,
    "batch_size": int,
    "max_length": int,
    "max_train_examples": int,
    "packing": bool,
    "frozen_dropout": bool,
    "report_epoch": str,
    "save_minutes": float,
    "save_deltas": str,
    "train_pooler": bool,
    "schedule": str,
    "head_init": str,
    "optimizer": {
        "eps": float,
        "epsilon_form": str,
        "b1": float,
        "b2": float,
        "weight_decay": float,
        "clip_norm": float,
        "warmup_ratio": float,
        "head_learning_rate": float,
    },
    "outliers": {"pool": str, "norms": str},
    "random": {"count": int, "scope": str, "per_seed": bool},
    "bitfit": {"scope": str},
}
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", dict: "a group of fields"}
SAVED = ("best", "all", "none")  # of the selected rate | of every run | of none
SAME = (
    *("epochs", "batch_size", "max_length", "max_train_examples", "packing", "frozen_dropout"),
    *("report_epoch", "save_minutes", "save_deltas", "schedule", "head_init"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """A study: tasks × settings × seeds × learning rates, and one protocol for all of them."""

    model_name: str
    pooling: str
    dtype: str
    data_path: str
    eval_split: str
    tasks: tuple[str, ...]
    settings: tuple[str, ...]
    rules: Mapping[str, tuple[tuple[str, str], ...]]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    epochs: int
    batch_size: int
    max_length: int
    max_train_examples: int
    packing: bool
    frozen_dropout: bool
    report_epoch: str
    save_minutes: float
    save_deltas: str
    schedule: str
    head_init: str
    warmup_ratio: float
    optimizer: OptimizerConfig
    options: Options
    record: dict[str, Any] = dataclasses.field(compare=False)  # the fields as given, for config.json

    def of_runs(self, seeds: Sequence[int], learning_rates: Sequence[float]) -> Config:
        """The same study over other seeds and rates."""
        record = {**self.record, "seeds": list(seeds), "learning_rates": list(learning_rates)}
        return dataclasses.replace(self, seeds=tuple(seeds), learning_rates=tuple(learning_rates), record=record)


def parse(given: ConfigDict) -> Config:
    """The config, checked.

    Raises:
        InputError: a field is missing, None, of a wrong type, or out of its range; the message names the field.
    """
    record = copy.deepcopy(given.to_dict())  # whose lists are the ConfigDict's own
    _check_types(record, TYPES)
    model, data, adam, outliers, random = (record[k] for k in ("model", "data", "optimizer", "outliers", "random"))
    config = Config(
        model_name=model["name"],
        pooling=model["pooling"],
        dtype=model["dtype"],
        data_path=data["path"],
        eval_split=data["eval_split"],
        tasks=_strings("tasks", record["tasks"]),
        settings=_strings("settings", record["settings"]),
        rules={name: _rules(name, rules) for name, rules in record["rules"].items()},
        seeds=_integers("seeds", record["seeds"]),
        learning_rates=_rates(record["learning_rates"]),
        options=Options(
            outlier_pool=outliers["pool"],
            outlier_norms=outliers["norms"],
            random_count=random["count"],
            random_scope=random["scope"],
            random_per_seed=random["per_seed"],
            bitfit_scope=record["bitfit"]["scope"],
            train_pooler=record["train_pooler"],
        ),
        optimizer=OptimizerConfig(**{k: v for k, v in adam.items() if k != "warmup_ratio"}),
        warmup_ratio=adam["warmup_ratio"],
        record=record,
        **{name: record[name] for name in SAME},
    )
    _check_choices(config)
    _check_ranges(config)
    return config


def of_record(record: Mapping[str, Any]) -> Config:
    """The config of a config.json, which has more fields than a config."""
    return parse(ConfigDict({name: value for name, value in record.items() if name in TYPES}))


def without_paths(record: dict[str, Any]) -> dict[str, Any]:
    """The record with folders named by their last part, so that results are the same on every machine."""
    model, data = record["model"], record["data"]
    return {
        **record,
        "model": {**model, "name": _short(model["name"])},
        "data": {**data, "path": _short(data["path"])},
    }


def _short(name: str) -> str:
    folder = Path(name or "/").expanduser()
    return folder.resolve().name if folder.is_dir() else name


def _check_types(record: dict[str, Any], types: Mapping[str, type | dict[str, type]], prefix: str = "") -> None:
    """The fields are exactly those of `types`. ml_collections lets None into any field, and files into any config."""
    for name in record:
        if name not in types:
            raise InputError(f"{prefix}{name}: there is no such field{nearest(name, types)}")
    for name, wanted in types.items():
        field = f"{prefix}{name}"
        if name not in record:
            raise InputError(f"{field}: the config lacks this field; configs/base.py has every default")
        value = record[name]
        if value is None:
            raise InputError(f"{field}: is None; give a value")
        kind = dict if isinstance(wanted, dict) else wanted
        fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
        if not fits or (isinstance(value, bool) and kind in (int, float)):
            raise InputError(f"{field}: {value!r} is not {WORDS[kind]}")
        if isinstance(wanted, dict):
            _check_types(value, wanted, f"{field}.")


def _sequence(field: str, values: Any) -> tuple:
    items = tuple(values) if isinstance(values, tuple | list) else (values,)
    if not items:
        raise InputError(f"{field}: is empty; give at least one")
    doubles = [item for i, item in enumerate(items) if item in items[:i]]
    if doubles:
        raise InputError(f"{field}: {doubles[0]!r} is given twice")
    return items


def _strings(field: str, values: Any) -> tuple[str, ...]:
    for value in (items := _sequence(field, values)):
        if not isinstance(value, str):
            raise InputError(f"{field}: {value!r} is not a name")
    return items


def _integers(field: str, values: Any) -> tuple[int, ...]:
    for value in (items := _sequence(field, values)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
            raise InputError(f"{field}: {value!r}; allowed are whole numbers from 0")
    return items


def _rates(values: Any) -> tuple[float, ...]:
    for value in (items := _sequence("learning_rates", values)):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value <= 0:
            raise InputError(f"learning_rates: {value!r}; allowed are numbers above 0")
    names = [f"{value:g}" for value in items]  # of the files that are a rate's own
    if twice := [value for value, name in zip(items, names, strict=True) if names.count(name) > 1]:
        raise InputError(f"learning_rates: {twice[0]!r} and {twice[1]!r} differ too little to have names of their own")
    return tuple(float(value) for value in items)


def _rules(name: str, rules: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(rules, tuple | list):
        raise InputError(f"rules.{name}: {rules!r} is not a list of (regex, label) pairs")
    for pair in rules:
        pieces = pair if isinstance(pair, tuple | list) else ()
        if len(pieces) != 2 or not all(isinstance(part, str) for part in pieces):
            raise InputError(f"rules.{name}: {pair!r} is not a (regex, label) pair")
    return tuple((pattern, label) for pattern, label in rules)


def _check_choices(c: Config) -> None:
    check_choice("model.pooling", c.pooling, bert.POOLINGS)
    check_choice("model.dtype", c.dtype, bert.DTYPES)
    check_choice("report_epoch", c.report_epoch, selection.REPORT_EPOCHS)
    check_choice("save_deltas", c.save_deltas, SAVED)
    check_choice("schedule", c.schedule, optimizer.SCHEDULES)
    check_choice("head_init", c.head_init, heads.INITS)
    check_choice("optimizer.epsilon_form", c.optimizer.epsilon_form, optimizer.EPSILON_FORMS)
    for task in c.tasks:
        check_choice("tasks", task, TASKS)
    settings.check_options(c.options)
    if c.options.train_pooler and c.pooling != "pooler":
        raise InputError(f"train_pooler: there is no pooler with model.pooling={c.pooling}")


def _check_ranges(c: Config) -> None:
    adam = c.optimizer
    least: dict[str, tuple[float, float]] = {
        "epochs": (c.epochs, 0),
        "batch_size": (c.batch_size, 1),
        "max_length": (c.max_length, 4),
        "max_train_examples": (c.max_train_examples, 0),
        "save_minutes": (c.save_minutes, 0),
        "optimizer.eps": (adam.eps, 0),
        "optimizer.weight_decay": (adam.weight_decay, 0),
        "optimizer.clip_norm": (adam.clip_norm, 0),
        "optimizer.head_learning_rate": (adam.head_learning_rate, 0),
    }
    for field, (value, lowest) in least.items():
        if not math.isfinite(value) or value < lowest:
            raise InputError(f"{field}: {value!r}; allowed are numbers from {lowest}")
    for field, value in {"b1": adam.b1, "b2": adam.b2, "warmup_ratio": c.warmup_ratio}.items():
        if not 0 <= value < 1:
            raise InputError(f"optimizer.{field}: {value!r}; allowed are numbers from 0 to below 1")
