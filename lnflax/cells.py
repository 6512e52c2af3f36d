"""A config to its cells: for each (task, setting) the data, the labels, the recipe and the plan, all checked first.

Nothing is trained or written here, so that bad input costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from lnflax import (
    batches,
    bert,
    coverage,
    devices,
    evaluation,
    features,
    grid,
    masks,
    memory,
    packing,
    rules,
    settings,
    shapes,
    task_data,
    tasks,
    trained,
    trainer,
    work,
)
from lnflax.bert import BertConfig
from lnflax.config import Config
from lnflax.coverage import Coverage
from lnflax.evaluation import Evaluation
from lnflax.grid import Chunks
from lnflax.memory import Cut, Size
from lnflax.packing import Shape
from lnflax.settings import Setting
from lnflax.step import Recipe
from lnflax.task_data import Model, TaskData
from lnflax.tasks import TASKS
from lnflax.trainer import Rows, Trainer

Tree = Any
UNCUT = Cut(Size(0, 0), Chunks(0, 0), False, 0)  # of a cell that has nothing to train
SHARED_SHAPE = 1.1  # what seeds of one shape cost more by their padding


@dataclasses.dataclass(frozen=True)
class Part:
    """Runs of a cell that train together: by the places of their seeds and rates in the cell's lists."""

    seeds: tuple[int, ...]
    rates: tuple[int, ...]
    plan: devices.Plan
    chunks: Chunks
    rows: Rows

    def config(self, config: Config) -> Config:
        """The config of these runs alone."""
        seeds, rates = self.seeds, self.rates
        return config.of_runs([config.seeds[i] for i in seeds], [config.learning_rates[i] for i in rates])


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number ± deviation of a table: all runs of one task and setting.

    `config` has the seeds and rates of the whole cell; the runs that it lacks are in parts, which train one after
    another; a cell that is done has none.
    """

    data: TaskData
    setting: Setting
    config: Config
    coverage: Coverage
    recipe: Recipe
    epochs: int
    cut: Cut
    parts: tuple[Part, ...]
    report: dict[str, Any]  # what trains: the content of trained.json

    @property
    def name(self) -> str:
        """TASK/SETTING."""
        return f"{self.data.task.name}/{self.setting.name}"

    @property
    def epoch_steps(self) -> int:
        """Updates of an epoch."""
        return batches.epoch_steps(self.data.train.examples, self.config.batch_size)


def prepare(
    config: Config, device_count: int, coverages: Mapping[tuple[str, str], Coverage] | None = None
) -> list[Cell]:
    """All cells of a study, in the order tasks, then settings.

    Args:
        config: the study's.
        device_count: how many devices there are.
        coverages: of each (task, setting), what it has and lacks; all of the config's runs where it is not given.

    Raises:
        InputError: anything of the config does not fit the model, the data or the devices.
    """
    source = task_data.open_source(config)
    for name in config.settings:
        setting_of(config, source.shape, name)
    whole = coverage.cover(config.seeds, config.learning_rates)
    cells = []
    for name in config.tasks:
        asked = {setting: (coverages or {}).get((name, setting), whole) for setting in config.settings}
        seeds = tuple(dict.fromkeys(seed for each in asked.values() for seed in each.seeds))
        data = task_data.load(config.of_runs(seeds, config.learning_rates), source, TASKS[name])
        cells += [
            make_cell(config, data, setting_of(config, data.shape, setting), asked[setting], device_count)
            for setting in config.settings
        ]
    return cells


def make_trainer(cell: Cell, part: Part) -> tuple[Trainer, dict[str, Evaluation]]:
    """What a part of a cell needs on its devices: for training, and for each development set."""
    config, data, knee = cell.config, cell.data, work.knee(cell.data.shape)
    own, model = part.config(config), data.model
    made = trainer.make_trainer(
        own,
        cell.recipe,
        part.plan,
        part.chunks,
        task=data.task.name,
        train=data.train,
        rows=part.rows,
        epochs=cell.epochs,
        body=model.body,
        seed_masks=seed_masks(cell.setting, cell.recipe, model, own.seeds),
    )
    if not config.frozen_dropout and cell.recipe.cut:
        known = features.load(cell.recipe, part.plan, made.frozen, data.train, model.sha256, knee)
        made = trainer.with_features(made, known)
    lay = packing.pack_all if config.packing else packing.plain_all
    evals = {
        split: evaluation.prepare(cell.recipe, part.plan, made.frozen, examples, lay, knee)
        for split, examples in data.evals.items()
    }
    return made, evals


def seed_masks(setting: Setting, recipe: Recipe, model: Model, seeds: tuple[int, ...]) -> list[Tree]:
    """One elementwise mask a seed."""
    params = _params(recipe.model, model)
    return [masks.choose(setting.mask, params, recipe.label_tree, seed) for seed in seeds]


def setting_of(config: Config, shape: BertConfig, name: str) -> Setting:
    """The setting called `name`, for the study's model.

    Raises:
        InputError: there is none, or it does not fit the model.
    """
    options = config.options
    if shape.pooling != "pooler":
        options = dataclasses.replace(options, train_pooler=False)
    return settings.make_setting(
        name,
        options,
        layers=shape.num_hidden_layers,
        hidden_size=shape.hidden_size,
        user_rules=config.rules,
    )


def _params(shape: BertConfig, model: Model) -> Tree:
    """The full tree: values for the body, shapes for the head."""
    flat = rules.flatten(bert.parameter_shapes(shape))
    return rules.unflatten({path: model.body.get(path, leaf) for path, leaf in flat.items()})


def make_cell(
    config: Config, data: TaskData, setting: Setting, coverage: Coverage, device_count: int, cut: Cut | None = None
) -> Cell:
    """A cell with the runs that it lacks in parts, cut as given or so that they fit the memory.

    Raises:
        InputError: not even one run fits; the message names the cell.
    """
    own, model, params = config.of_runs(coverage.seeds, coverage.rates), data.model, _params(data.shape, data.model)
    recipe, drawn = make_recipe(own, setting, data.shape, params)
    report = trained.report(
        data.task.name,
        setting,
        params,
        recipe.label_tree,
        drawn,
        seeds=own.seeds,
        model_name=config.model_name,
        model_sha256=model.sha256,
        options=_mask_options(config, setting),
        seen=task_data.seen(data),
    )
    report |= {"data": data.contents}
    name = f"{data.task.name}/{setting.name}"
    cut, parts = _parts(name, own, recipe, data, coverage, device_count, cut)
    recipe = dataclasses.replace(recipe, recompute=cut.recompute)
    epochs = config.epochs or tasks.paper_epochs(data.task, setting.name)
    return Cell(data, setting, own, coverage, recipe, epochs, cut, parts, report)


def _parts(
    name: str,
    config: Config,
    recipe: Recipe,
    data: TaskData,
    coverage: Coverage,
    device_count: int,
    cut: Cut | None,
) -> tuple[Cut, tuple[Part, ...]]:
    """The parts of every rectangle of runs that are lacking; all are cut as the first is."""
    parts: list[Part] = []
    for rectangle in coverage.lacking:
        cut, own = make_parts(name, config.of_runs(*coverage.of(rectangle)), recipe, data, device_count, cut)
        seeds, rates = rectangle
        parts += [
            dataclasses.replace(
                part, seeds=tuple(seeds[i] for i in part.seeds), rates=tuple(rates[i] for i in part.rates)
            )
            for part in own
        ]
    return cut or UNCUT, tuple(parts)


def recut(cell: Cell, cut: Cut) -> Cell:
    """The cell with its runs cut in another way, on as many devices."""
    return make_cell(cell.config, cell.data, cell.setting, cell.coverage, jax.local_device_count(), cut)


def make_recipe(config: Config, setting: Setting, shape: BertConfig, params: Tree) -> tuple[Recipe, list[Tree]]:
    """What trains, and one elementwise mask a seed; `params` needs values only for outliers (`masks.choose`)."""
    labels = rules.label(params, setting.rules, f"settings: {setting.name}")
    drawn = [masks.choose(setting.mask, params, labels, seed) for seed in config.seeds]
    flat = tuple(rules.flatten(labels).items())
    return Recipe(shape, flat, config.optimizer, config.frozen_dropout, gathered=masks.sizes(drawn)), drawn


def make_parts(
    name: str, config: Config, recipe: Recipe, data: TaskData, device_count: int, cut: Cut | None = None
) -> tuple[Cut, tuple[Part, ...]]:
    """How the runs of a cell are cut to fit the memory, unless it is given, and the parts with their plans.

    Seeds that train one after another have shapes of their own, with less padding than shared ones: a CPU, which
    gains nothing from computing them together, does so unless cores would idle. An accelerator wants all the runs
    that it can hold.

    Raises:
        InputError: not even one run fits; the message names the cell.
    """
    platform, whole = jax.default_backend(), Size(len(config.seeds), len(config.learning_rates))
    tokens = int(config.batch_size * data.train.lengths.mean())
    own = work.of_step(recipe, tokens)

    def spread(size: Size) -> devices.Plan:
        return devices.make_plan(size.seeds, size.rates, device_count, own, split=platform == "cpu")

    def rows_of(size: Size) -> Rows:
        return data.rows(spread(size).batch_parts, size.seeds > 1)

    single = Size(1, whole.rates)
    one, every = (devices.load(spread(size), own) for size in (single, whole))
    first = single if platform == "cpu" and whole.seeds * one <= SHARED_SHAPE * every else whole
    if cut is None:
        plan = spread(first)
        want = grid.default_chunks(platform, tokens // plan.batch_parts, len(plan.rates[0]))
        there = memory.budget(plan.devices) - evaluation.reserve(recipe, plan, data.evals.values())
        rows = rows_of(first)
        largest = max(rows.shapes, key=lambda shape: shape.tokens)
        targets = batches.capacity(data.train, config.batch_size, largest)
        cut = _cut(name, recipe, first, spread, want, largest, targets, there)
    parts = []
    for seeds, rates in memory.parts(whole, cut.part):
        size = Size(len(seeds), len(rates))
        parts.append(Part(tuple(seeds), tuple(rates), spread(size), cut.chunks, rows_of(size)))
    return cut, tuple(parts)


def _cut(
    name: str,
    recipe: Recipe,
    runs: Size,
    spread: memory.Spread,
    want: Chunks,
    largest: Shape,
    targets: int,
    there: int,
) -> Cut:
    """The cut that fits; programs are compiled only where a bound from shapes does not settle it."""
    plan = spread(runs)
    tokens, held = largest.tokens // plan.batch_parts, memory.rectangle(plan)
    most = memory.bound(recipe, held, want, tokens, largest.length, trainer.STEPS)
    if most <= there:
        return Cut(runs, Chunks(min(want.seeds, held.seeds), min(want.rates, held.rates)), False, most)

    def batches_of(plan: devices.Plan) -> batches.Batch:
        lead = (trainer.STEPS, len(plan.seeds[0]))
        return shapes.batch_shapes(recipe, lead, largest.rows // plan.batch_parts, largest.length, targets)

    return memory.cut_to_fit(name, runs, spread, want, memory.training(recipe, batches_of), there)


def _mask_options(config: Config, setting: Setting) -> dict[str, Any]:
    """The fields of the config that chose the mask."""
    outliers, random = config.record["outliers"], config.record["random"]
    kinds = {"random": random, "outliers": outliers, "random_norms": {**outliers, "per_seed": random["per_seed"]}}
    return kinds[setting.mask.kind] if setting.mask else {}
