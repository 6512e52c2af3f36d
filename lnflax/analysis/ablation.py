"""What a tuned model loses without its outliers: they are reset to the pretrained values, or zeroed.

The paper cites that BERT breaks without a few outlier weights (Kovaleva et al., 2021) and tunes them (section 3); here
the models of a cell are evaluated without theirs. The control is as many random scalars of the same LayerNorms,
treated alike, in several draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lnflax import cells, finished, masks, rules, variants
from lnflax.analysis import significance
from lnflax.analysis.comparison import Interval
from lnflax.analysis.entries import measured_on
from lnflax.analysis.evidence import Stored, sums_at
from lnflax.config import Config
from lnflax.errors import InputError
from lnflax.task_data import TaskData
from lnflax.variants import Leaves

PRETRAINED, ZERO = TREATMENTS = ("pretrained", "zero")
OUTLIERS, RANDOM = "outliers", "random"


@dataclasses.dataclass(frozen=True)
class Treatment:
    """`count` scalars of each LayerNorm set to something; of random ones, which draw."""

    count: int
    chosen: str
    to: str
    draw: int = 0


@dataclasses.dataclass(frozen=True)
class Change:
    """A metric less the tuned model's, as fractions: its mean over seeds, and a 95 % interval over seeds and
    examples together; None where a resample has no metric."""

    mean: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True)
class Effect:
    """What a treatment of so many scalars does: with outliers, with random scalars (the mean over draws, and the
    least and greatest of them), and the one less the other."""

    count: int
    to: str
    outliers: Change
    random: Change
    draws: tuple[float, float]
    contrast: Change


@dataclasses.dataclass(frozen=True)
class Ablation:
    """The effects of all treatments on the models of a cell."""

    cell: Mapping[str, Any]  # its results.json
    learning_rate: float
    seeds: tuple[int, ...]
    pool: str
    norms: int
    draws: int
    metric: str
    split: str
    examples: int
    tuned: float
    effects: tuple[Effect, ...]


def ablate(paths: Sequence[Path], counts: Sequence[int], draws: int) -> Ablation:
    """Evaluates the models of a cell without some of their LayerNorms' scalars.

    Args:
        paths: the deltas of one cell and rate, or the folder that they lie in, of which the selected rate's are taken.
        counts: how many scalars of each LayerNorm.
        draws: how many times as many random ones are drawn.

    Raises:
        InputError: a path is no delta of a run folder, or they are of several cells or rates, or the model or the data
            is another one than they were trained with.
    """
    own = finished.read(paths, "--deltas")
    cell, given, data = own.cell, own.config, own.data
    base = data.model.body
    treatments = [
        *(Treatment(count, OUTLIERS, to) for count in counts for to in TREATMENTS),
        *(Treatment(count, RANDOM, to, draw) for count in counts for draw in range(draws) for to in TREATMENTS),
    ]
    chosen = {way: _chosen(given, data, *way) for way in dict.fromkeys((t.count, t.chosen, t.draw) for t in treatments)}
    measure, split = measured_on(cell, cell["metric"])
    predictions = []
    for number in range(len(own.seeds)):
        tuned = own.tuned(number)
        changed = [treat(tuned, base, chosen[t.count, t.chosen, t.draw], t.to) for t in treatments]
        predictions.append(variants.predict(data, given, tuned, [{}, *changed])[split])
    examples = data.evals[split]
    stored = Stored(
        predictions=np.stack(predictions),
        labels=examples.labels,
        offsets=examples.label_offsets if data.task.tagged else None,
        seeds=list(own.seeds),
        rates=list(range(1 + len(treatments))),
        names=[*data.task.labels, *data.task.unseen],
    )
    tuned_score, effects = _effects(measure, split, cell["task"], stored, treatments)
    return Ablation(
        cell=cell,
        learning_rate=own.learning_rate,
        seeds=own.seeds,
        pool=given.options.outlier_pool,
        norms={"both": 2, "a": 1, "f": 1}[given.options.outlier_norms] * data.shape.num_hidden_layers,
        draws=draws,
        metric=cell["metric"],
        split=split,
        examples=examples.examples,
        tuned=tuned_score,
        effects=effects,
    )


def _chosen(given: Config, data: TaskData, count: int, chosen: str, draw: int) -> dict[str, np.ndarray]:
    """Which scalars, bool arrays by path: as the settings `outliers_N` and `random_norms_N` choose them."""
    if count == 0:
        return {}
    name = f"outliers_{count}" if chosen == OUTLIERS else f"random_norms_{count}"
    setting = cells.setting_of(given, data.shape, name)
    assert setting.mask is not None
    body = rules.unflatten(data.model.body)
    own = [(pattern, label) for pattern, label in setting.rules if not pattern.startswith("classifier/")]
    found = masks.choose(
        dataclasses.replace(setting.mask, per_seed=True), body, rules.label(body, own, name), seed=draw
    )
    return {path: mask for path, mask in rules.flatten(found).items() if mask is not None}


def treat(tuned: Leaves, base: Leaves, chosen: Leaves, to: str) -> dict[str, np.ndarray]:
    """The leaves that have chosen scalars, with these at their pretrained value or at zero."""
    new = {path: base[path] if to == PRETRAINED else np.zeros_like(base[path]) for path in chosen}
    return {path: np.where(mask, new[path], tuned[path]) for path, mask in chosen.items()}


def _effects(
    measure: str, split: str, task: str, stored: Stored, treatments: Sequence[Treatment]
) -> tuple[float, tuple[Effect, ...]]:
    """The tuned models' mean score, and the effect of each count and treatment; the first prediction is the tuned."""
    try:
        sums = [sums_at(measure, stored, place, stored.seeds) for place in stored.rates]
    except ValueError as error:
        raise InputError(f"--deltas: {task}: {error}") from error
    values = significance.resampled(("bootstrap", task, split), sums)
    scores = [own.whole for own in sums]
    places = {treatment: place for place, treatment in enumerate(treatments, start=1)}

    def change(own: Sequence[int], less: Sequence[int]) -> Change:
        """The mean of some predictions less the mean of others."""
        mean = float(np.mean([scores[i] for i in own]) - np.mean([scores[i] for i in less]))
        differences = np.mean([values[i] for i in own], axis=0) - np.mean([values[i] for i in less], axis=0)
        interval = significance.interval(significance.seed_means(("bootstrap seeds", task), differences))
        return Change(mean, None if np.isnan(interval).any() else interval)

    effects = []
    for count, to in dict.fromkeys((t.count, t.to) for t in treatments):
        outliers = [places[Treatment(count, OUTLIERS, to)]]
        drawn = [place for t, place in places.items() if (t.count, t.to, t.chosen) == (count, to, RANDOM)]
        each = [change([place], [0]).mean for place in drawn]
        against = change(outliers, [0]), change(drawn, [0])
        effects.append(Effect(count, to, *against, (min(each), max(each)), change(outliers, drawn)))
    return float(scores[0].mean()), tuple(effects)
