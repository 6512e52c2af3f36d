"""Trainers of a tiny BERT, for tests of the grid: what `cells` and `study` do, without texts and files."""

import jax
import numpy as np

from configs import base
from lnflax import config, devices, evaluation, masks, packing, rules, settings, trainer, work
from lnflax.devices import Work
from lnflax.grid import Chunks
from lnflax.packing import Shape
from lnflax.step import Recipe
from lnflax.tokens import Encoded
from lnflax.trainer import Rows
from tests import tiny

SETTINGS = (
    *("full", "frozen", "mha", "ffn", "layernorms", "ln_a", "ln_f", "bitfit", "random"),
    *("single_norm_1", "single_norm_2", "outliers_4", "random_norms_4"),
)


SINGLE = Chunks(1, 1)


def study(**fields):
    """A parsed config with a few fields changed; `optimizer.eps` is written `optimizer__eps`."""
    given = base.get_config()
    values = {"seeds": (0,), "learning_rates": (1e-2,), "batch_size": 8, "epochs": 1, "packing": False} | fields
    given.update_from_flattened_dict({name.replace("__", "."): value for name, value in values.items()})
    return config.parse(given)


def examples(count=24, outputs=2, shortest=3, longest=9):
    """Random sentences of the tiny vocabulary, with random labels."""
    lengths = shortest + (tiny.draw("lengths", (count,), 0.5) + 0.5) * (longest - shortest)
    offsets = np.concatenate([[0], np.cumsum(lengths.astype(int))]).astype(np.int64)
    tokens = ((tiny.draw("tokens", (int(offsets[-1]),), 0.5) + 0.5) * 60).astype(np.int32)
    labels = (tiny.draw("labels", (count,), 0.5) + 0.5) * (5 if outputs == 1 else outputs)
    return Encoded.of_sentences(
        tokens, np.zeros_like(tokens), offsets, labels.astype(np.float32 if outputs == 1 else np.int32)
    )


def make(setting, study, *, device_count=1, split=False, chunks=SINGLE, data=None, **model):
    """A trainer of the tiny BERT, and its body; rows are packed as the study says."""
    data = data or examples()
    shape = tiny.config(**model)
    rule = settings.make_setting(
        setting, study.options, layers=shape.num_hidden_layers, hidden_size=shape.hidden_size, user_rules={}
    )
    values = tiny.weights(shape)
    body = {path: value for path, value in values.items() if path.startswith("bert/")}
    labels = rules.label(rules.unflatten(values), rule.rules, setting)
    masks_of_seeds = drawn(setting, study, **model)
    recipe = Recipe(shape, tuple(rules.flatten(labels).items()), study.optimizer, gathered=masks.sizes(masks_of_seeds))
    own_work = Work(*(1e6 * part for part in work.of_step(recipe, 8 * 16)))  # as if of a model worth spreading
    plan = devices.make_plan(len(study.seeds), len(study.learning_rates), device_count, own_work, split=split)
    own = trainer.make_trainer(
        study,
        recipe,
        plan,
        chunks,
        task="rte",
        train=data,
        rows=make_rows(study, data, plan.batch_parts),
        epochs=study.epochs,
        body=body,
        seed_masks=masks_of_seeds,
    )
    return own, body


def drawn(setting, study, **model):
    """The masks as they are chosen, one tree of bool arrays a seed."""
    shape = tiny.config(**model)
    sizes = {"layers": shape.num_hidden_layers, "hidden_size": shape.hidden_size}
    rule = settings.make_setting(setting, study.options, **sizes, user_rules={})
    params = tiny.params(shape)
    labels = rules.label(params, rule.rules, setting)
    return [masks.choose(rule.mask, params, labels, seed) for seed in study.seeds]


def make_rows(study, data, parts):
    """One shape that holds every step: plain rows of a multiple of 8, or rows of 24 tokens, of which three suffice."""
    if not study.packing:
        return Rows(packing.plain, (Shape(-(-study.batch_size // parts) * parts, -(-data.lengths.max() // 8) * 8),))
    return Rows(packing.first_fit, (Shape(-(-4 // parts) * parts, 24),))


def train(own):
    """All epochs: the states, and the losses `[steps, seeds, rates]`."""
    states, losses = trainer.start(own), []
    for epoch in range(1, own.epochs + 1):
        plan = trainer.plan_epoch(own, epoch)
        states, own_losses = trainer.train_steps(own, states, plan, epoch, 0, lambda steps: None, lambda: False)
        losses.append(own_losses)
    return states, np.concatenate(losses)


def evaluate(own, states, data):
    """Predictions and losses of all runs on some examples, float32 `[seeds, rates, examples]`."""
    lay = packing.pack_all if own.config.packing else packing.plain_all
    laid = evaluation.prepare(own.recipe, own.plan, own.frozen, data, lay, knee=12)
    return evaluation.evaluate(own.recipe, own.plan, own.chunks, own.frozen, states.values, own.masks.chosen, laid)


def final(own, states):
    """Every parameter of every run after training: by path `[seeds, rates, …]`, read back from the devices."""
    flat, frozen, chosen = (
        rules.flatten(jax.device_get(tree)) for tree in (states.values, own.frozen, own.masks.chosen)
    )
    seeds, rates = own.plan.seeds, own.plan.rates
    shape = (max(map(max, seeds)) + 1, max(map(max, rates)) + 1)
    out = {}
    for path, value in flat.items():
        leaf = np.zeros((*shape, *(value.shape[3:] if frozen[path] is None else frozen[path].shape[1:])), np.float32)
        for seed, rate in np.ndindex(shape):
            group, i, j = own.plan.owner(seed, rate)
            device = group * own.plan.batch_parts
            leaf[seed, rate] = value[device, i, j] if frozen[path] is None else frozen[path][device]
            if chosen[path] is not None:
                where = chosen[path].flat[device, i]
                used = where < leaf[seed, rate].size
                leaf[seed, rate].reshape(-1)[where[used]] = value[device, i, j][used]
        out[path] = leaf
    return out


def dropout_free():
    """Fields of the model that switch dropout off."""
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
