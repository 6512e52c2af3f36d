"""lnflax's side of the benchmarks: a cell that can be trained for an epoch, again and again."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs import base, demo
from lnflax import (
    batches,
    bert,
    cells,
    checkpoint,
    config,
    coverage,
    rules,
    settings,
    task_data,
    tasks,
    tokens,
    trainer,
)
from lnflax.memory import Cut
from lnflax.tokens import Encoded

FOLDER = Path(demo.minilm())


@dataclasses.dataclass
class Cell:
    """The parts of a cell, each on its devices with its states; `run_steps` of all runs an epoch."""

    parts: list[trainer.Trainer]
    states: list[Any]
    run_steps: int

    def epoch(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """All runs through the epoch, losses fetched: seconds."""
        begin = clock()
        for i, own in enumerate(self.parts):
            order = trainer.plan_epoch(own, 1)
            step = (order, 1, 0, lambda steps: None, lambda: False)
            self.states[i], _ = trainer.train_steps(own, self.states[i], *step)
        return clock() - begin


def make_study(**fields: Any) -> config.Config:
    """The paper's protocol for MiniLM, one epoch, a few fields changed; a group's field is written `model.dtype`."""
    given = base.get_config()
    given.update_from_flattened_dict({"epochs": 1, "model.name": str(FOLDER), "model.pooling": "mean"} | fields)
    return config.parse(given)


def make_cell(
    setting: str, task: str, train: Encoded, whole: Encoded | None = None, cut: Cut | None = None, **fields: Any
) -> Cell:
    """A cell of MiniLM over some examples; `whole` is the task's training set, whose steps decide the shapes.

    `cut` says how its runs are cut, where that is not left to the plan.
    """
    study = make_study(settings=(setting,), tasks=(task,), **fields)
    about = tasks.TASKS[task]
    shape = checkpoint.read_config(FOLDER, pooling=study.pooling, num_outputs=about.num_outputs, dtype=study.dtype)
    rule = settings.make_setting(
        setting, study.options, layers=shape.num_hidden_layers, hidden_size=shape.hidden_size, user_rules={}
    )
    body = checkpoint.read_body(FOLDER, shape)
    model = task_data.Model(body, checkpoint.body_sha256(body))
    shapes = rules.flatten(bert.parameter_shapes(shape))
    params = rules.unflatten({path: body.get(path, leaf) for path, leaf in shapes.items()})
    recipe, _ = cells.make_recipe(study, rule, shape, params)
    steps = [
        batches.sizes(examples, task_data.all_orders(study, about, examples.examples))
        for examples in (train, whole)
        if examples is not None
    ]
    rows = functools.cache(functools.partial(task_data.lay_rows, study, shape, np.concatenate(steps)))
    data = task_data.TaskData(about, shape, model, train, {}, {}, (), (), rows)
    cut, parts = cells.make_parts(f"{task}/{setting}", study, recipe, data, jax.local_device_count(), cut)
    recipe = dataclasses.replace(recipe, recompute=cut.recompute)
    whole_cell = coverage.cover(study.seeds, study.learning_rates)
    own = cells.Cell(data, rule, study, whole_cell, recipe, 1, cut, parts, {})
    made = [cells.make_trainer(own, part)[0] for part in parts]
    count = batches.epoch_steps(train.examples, study.batch_size)
    runs = len(study.seeds) * len(study.learning_rates)
    return Cell(made, [trainer.start(part) for part in made], runs * count)


def read(task: str, path: str) -> Encoded:
    """The training examples of a task of a GLUE folder."""
    texts = tasks.load(tasks.TASKS[task], path, "", 0)
    return tokens.encode(tokens.load_tokenizer(FOLDER), texts.train, 128)
