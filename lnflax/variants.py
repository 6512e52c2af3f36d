"""One tuned model with some of its values changed in several ways, evaluated together as the runs of a grid.

What the variants share is computed once: everything below the first leaf that differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from lnflax import devices, evaluation, grid, ledger, packing, rules, work
from lnflax.config import Config
from lnflax.step import Recipe
from lnflax.task_data import TaskData

ALONE = grid.Chunks(1, 1)  # an evaluation has nothing to gain from more at once but memory to lose
ALWAYS = "classifier/kernel"  # something must differ for there to be a prefix below it

Leaves = Mapping[str, np.ndarray]


def predict(data: TaskData, config: Config, params: Leaves, variants: Sequence[Leaves]) -> dict[str, np.ndarray]:
    """What each variant says of each development set: `[variants, labels]` in data order, int32 classes (-1 where a
    logit was not finite) or float32 scores.

    Args:
        data: the task.
        config: the study's.
        params: every parameter by path, the head's too.
        variants: of each the leaves that are not those of `params`.
    """
    own = {ALWAYS, *(path for variant in variants for path in variant)}
    labels = tuple((path, "trainable" if path in own else "frozen") for path in sorted(params))
    recipe = Recipe(data.shape, labels, config.optimizer)
    cost = work.of_step(recipe, evaluation.TOKENS)
    cpu = jax.default_backend() == "cpu"
    plan = devices.make_plan(1, len(variants), jax.local_device_count(), cost, split=cpu)
    _, frozen = recipe.split(rules.unflatten(dict(params)))
    frozen = devices.put_copies(frozen, plan.devices)
    stacked = {path: np.stack([variant.get(path, params[path]) for variant in variants])[None] for path in own}
    values = plan.of_runs(rules.unflatten({path: stacked.get(path) for path in params}))
    nowhere = rules.unflatten(dict.fromkeys(params))  # no scalars are gathered
    lay = packing.pack_all if config.packing else packing.plain_all
    found = {}
    for split, examples in data.evals.items():
        laid = evaluation.prepare(recipe, plan, frozen, examples, lay, work.knee(data.shape))
        answers, losses = evaluation.evaluate(recipe, plan, ALONE, frozen, values, nowhere, laid)
        asked = examples.asked.label
        rows = zip(answers[0], losses[0], strict=True)
        found[split] = np.stack([ledger.classes(*row, asked) for row in rows]) if data.task.labels else answers[0]
    return found
