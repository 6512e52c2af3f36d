"""The outliers of a checkpoint's LayerNorms as tables and figures, and how far a study moved them. Trains nothing."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lnflax import checkpoint, results, selection, task_data, wording
from lnflax.analysis import figures, formats, outlier_choice, outlier_figures, outlier_moves
from lnflax.analysis.formats import Grid
from lnflax.analysis.outlier_choice import LEAVES, RULES, Outliers
from lnflax.analysis.outlier_moves import Move, Moves
from lnflax.errors import InputError, check_choice
from lnflax.storage import durable_write
from lnflax.task_data import Model

COUNT = 16
PUBLISHED = (308, 381)  # of bert-base (Kovaleva et al., Findings of ACL 2021)
BERT_BASE = 768  # its width
TOP = 12  # dimensions of the table of recurrence
LISTED = 32  # dimensions of a line; the CSV has all
LETTERS = {(True, False): "s", (False, True): "b", (True, True): "sb"}  # scale, bias


class Table(NamedTuple):
    """A section: what it shows, as grids between words, and all of it as rows of CSV."""

    name: str
    title: str
    parts: tuple[Grid | str, ...]
    fields: tuple[str, ...]
    records: list[tuple[Any, ...]]

    def markdown(self) -> str:
        """Title, grids and words."""
        parts = [formats.markdown(part) if isinstance(part, Grid) else f"{part}\n" for part in self.parts]
        return "\n".join([f"## {self.title}\n", *parts])


def make_outliers(
    workdir: Path | str | None = None,
    model: str | None = None,
    out: Path | str | None = None,
    count: int = COUNT,
    task: str | None = None,
    setting: str | None = None,
) -> str:
    """The outliers of a checkpoint as Markdown; with `out` also written there: `outliers-NAME.md`, `.csv` and figures.

    Args:
        workdir: a run folder: its checkpoint, and what its deltas say of how far outliers moved.
        model: a checkpoint folder or hub id, in place of a run folder.
        out: a folder.
        count: how many scalars of each LayerNorm the rules choose; even.
        task, setting: of the cells whose deltas are read; every one where not given.

    Raises:
        InputError: bad input, on one line.
    """
    if (workdir is None) == (model is None):
        raise InputError("outliers: give --workdir or --model, one of them")
    command = _command(workdir, model, count, task, setting)
    if workdir is None:
        for flag, given in (("--task", task), ("--setting", setting)):
            if given is not None:
                raise InputError(f"{flag}: a model alone has no cells; give --workdir")
        outliers, moves, name = outlier_choice.find(_models(str(model))("cls").body, count), Moves((), ()), str(model)
    else:
        outliers, moves, name = _of_study(workdir, count, task, setting)
    about = (
        f"{name}: {len(outliers.norms)} LayerNorms of {outliers.width} dimensions; "
        f"the rules choose {count} scalars of each, 3σ as many as there are. Command: `{command}`."
    )
    tables = [_dimensions(outliers), _recurrence(outliers), _overlap(outliers)]
    if workdir is not None:
        tables.append(_movement(moves))
    text = f"# Outliers\n\n{about}\n\n" + "\n".join(table.markdown() for table in tables)
    if out is None:
        return text
    drawn = outlier_figures.draw(outliers, moves.found, about)
    written = []
    for table in tables:
        forms = {"md": table.markdown(), "csv": formats.csv_text(table.fields, table.records)}
        for suffix, form in forms.items():
            written.append(Path(out) / f"outliers-{table.name}.{suffix}")
            durable_write(written[-1], form.encode())
    written += figures.write_figures(out, drawn)
    return f"{text}\nWritten: {', '.join(map(str, written))}\n"


def _command(workdir: Path | str | None, model: str | None, count: int, task: str | None, setting: str | None) -> str:
    given = {"workdir": workdir, "model": model, "count": count, "task": task, "setting": setting}
    flags = (f" --{name}={value}" for name, value in given.items() if value is not None)
    return f"python analyze.py outliers{''.join(flags)}"


def _models(name: str) -> Any:
    """Gives the body of a checkpoint as so pooled; each is read once."""
    folder = checkpoint.find(name)

    @functools.cache
    def read(pooling: str) -> Model:
        shape = checkpoint.read_config(folder, pooling=pooling, num_outputs=1, dtype="float32")
        return task_data.read_model(folder, shape)

    return read


def _of_study(workdir: Path | str, count: int, task: str | None, setting: str | None) -> tuple[Outliers, Moves, str]:
    """The outliers of a study's checkpoint, how its cells moved them, and the checkpoint's name."""
    study = results.read_study(workdir)
    for field, given in (("task", task), ("setting", setting)):
        if given is not None:
            check_choice(f"--{field}", given, dict.fromkeys(cell[field] for cell in study.cells))
    cells = [cell for cell in study.cells if task in (None, cell["task"]) and setting in (None, cell["setting"])]
    if not cells:
        raise InputError(f"workdir: {workdir} has no finished cell {task}/{setting}")
    if not study.config:
        raise InputError(f"workdir: {study.missing}")
    name, pooling = study.config["model"]["name"], study.config["model"]["pooling"]
    models = _models(name)
    outliers = outlier_choice.find(models(pooling).body, count)
    moves = outlier_moves.read(workdir, cells, outliers, models)
    if (task or setting) and not moves.found:
        raise InputError(f"workdir: {' '.join(moves.notes)}")
    return outliers, moves._replace(notes=(*moves.notes, *study.missing.splitlines())), name


def _dimensions(outliers: Outliers) -> Table:
    """What each rule chooses of each LayerNorm."""
    rows, records = [], []
    for i, norm in enumerate(outliers.norms):
        for rule in RULES:
            own = outliers.chosen[rule][i]
            scale, bias = own.sum(axis=1)
            rows.append((norm.name, rule, str(scale), str(bias), _listed(own)))
            for leaf, dimension in zip(*np.nonzero(own), strict=True):
                value = outliers.values[i, leaf, dimension]
                records.append((norm.block, norm.kind, rule, dimension, LEAVES[leaf], value))
    note = (
        "1a is the attention's LayerNorm of the first block, 1f its feed-forward's. 308s is the scale of dimension "
        "308, 308b its bias, 308sb both; dimensions count from 0. pooled, scale, bias: the scalars farthest from the "
        "mean, among scale and bias together or one of them; each: half of them of scale and half of bias, by a mean "
        "of their own. 3σ: all that are farther from the mean than 3 standard deviations of the same scalars. A pooled "
        "mean lies between the scales and the biases: small scales and positive biases are near it."
    )
    grid = Grid(("norm", "rule", "scales", "biases", "dimensions"), tuple(rows), names=5)
    fields = ("block", "norm", "rule", "dimension", "leaf", "value")
    return Table("dimensions", "The chosen dimensions", (grid, note), fields, records)


def _listed(chosen: np.ndarray) -> str:
    """`12s 45b 308sb`."""
    dims = np.flatnonzero(chosen.any(axis=0))
    shown = [f"{d}{LETTERS[bool(chosen[0, d]), bool(chosen[1, d])]}" for d in dims[:LISTED]]
    if rest := len(dims) - len(shown):
        shown.append(f"… {rest} more")
    return " ".join(shown) or wording.MISSING


def _recurrence(outliers: Outliers) -> Table:
    """In how many LayerNorms the most recurrent dimensions are chosen, against chance."""
    counts = {rule: outlier_choice.recurrence(outliers.chosen[rule]) for rule in RULES}
    chances = {rule: outlier_choice.chance(outliers.chosen[rule]) for rule in RULES}
    most = outlier_choice.top(outliers, TOP)
    rows = [(str(dimension), *(str(counts[rule][dimension]) for rule in RULES)) for dimension in most]
    rares = {rule: own.rare for rule, own in chances.items()}
    beyond = {rule: None if rare is None else int((counts[rule] >= rare).sum()) for rule, rare in rares.items()}
    rows += [
        ("expected by chance", *(f"{own.expected:.1f}" for own in chances.values())),
        ("rare by chance from", *(wording.MISSING if rare is None else str(rare) for rare in rares.values())),
        ("dimensions from there", *(wording.MISSING if many is None else str(many) for many in beyond.values())),
    ]
    note = (
        f"In how many of the {len(outliers.norms)} LayerNorms a dimension is chosen, by its scale, its bias or both; "
        f"the {TOP} dimensions with the largest sum over the rules. By chance: as many scales and biases of each "
        "LayerNorm, drawn at random. From the rare count on: by chance, some dimension or other reaches it with a "
        f"probability of at most {outlier_choice.RARE}."
    )
    fields = ("dimension", "rule", "norms", "expected", "rare_from")
    records = [
        (dimension, rule, counts[rule][dimension], *chances[rule])
        for dimension in range(outliers.width)
        for rule in RULES
    ]
    grid = Grid(("dimension", *RULES), tuple(rows))
    return Table("recurrence", "Dimensions that recur", (grid, note), fields, records)


def _overlap(outliers: Outliers) -> Table:
    """The rules against each other, and against the published dimensions."""
    index = outlier_choice.overlap(outliers)
    rows = [(rule, *(_number(value, ".2f") for value in line)) for rule, line in zip(RULES, index, strict=True)]
    note = (
        "The Jaccard index of two rules' dimensions (those of both over those of either), its mean over the LayerNorms "
        "in which either chooses any."
    )
    pairs = itertools.product(zip(RULES, index, strict=True), enumerate(RULES))
    records = [(rule, other, None if math.isnan(line[j]) else line[j]) for (rule, line), (j, other) in pairs]
    parts = (Grid(("rule", *RULES), tuple(rows)), note, *_published(outliers))
    return Table("overlap", "Overlap", parts, ("rule", "other", "jaccard"), records)


def _published(outliers: Outliers) -> tuple[Grid | str, ...]:
    names, source = " and ".join(map(str, PUBLISHED)), "Kovaleva et al. (2021)"
    if outliers.width != BERT_BASE:
        return (
            f"The dimensions that {source} name, {names}, are of bert-base, which is {BERT_BASE} wide; this model is "
            f"{outliers.width} wide, so there is nothing to compare.",
        )
    counts = {rule: outlier_choice.recurrence(chosen) for rule, chosen in outliers.chosen.items()}
    rows = [(str(dimension), *(str(counts[rule][dimension]) for rule in RULES)) for dimension in PUBLISHED]
    note = f"In how many of the {len(outliers.norms)} LayerNorms the dimensions are chosen that {source} name: {names}."
    return Grid(("dimension", *RULES), tuple(rows)), note


MOVE_FIELDS = (
    *("task", "setting", "seed", "learning_rate", "epoch", "rule", "norm", "outliers", "others"),
    *("outliers_moved", "others_moved", "ratio", "outliers_relative", "others_relative", "relative_ratio"),
)


def _movement(moves: Moves) -> Table:
    """How far outliers moved against the others, over seeds."""
    header = (
        *("task", "setting", "rate", "rule", "norms", "seeds", "scalars", "outliers", "others", "ratio"),
        *("outliers, relative", "others, relative", "ratio, relative"),
    )
    grid = Grid(header, tuple(_move_row(own) for own in outlier_moves.by_cell(moves.found).values()), names=5)
    note = (
        "Mean |after - before| of the outliers and of the other scalars that the rule chose them among, of those that "
        "the setting trains, over the attention's (a) or the feed-forward's (f) LayerNorms; relative: over the mean "
        "|before| of the same scalars. scalars: how many outliers and others, of all seeds. Mean ± sample deviation "
        "over the seeds at the selected rate; a ratio is of one seed's own numbers, and "
        f"{wording.MISSING} where no others train, or none moved."
    )
    records = [
        (
            *(*move[:7], move.outliers.scalars, move.others.scalars, move.outliers.moved, move.others.moved),
            *(move.ratio, move.outliers.relative, move.others.relative, move.relative_ratio),
        )
        for move in moves.found
    ]
    parts: Sequence[Grid | str] = (grid, note) if moves.found else ()
    return Table("movement", "How far outliers moved", (*parts, *moves.notes), MOVE_FIELDS, records)


def _move_row(own: list[Move]) -> tuple[str, ...]:
    first = own[0]
    columns = (
        *([move.outliers.moved for move in own], [move.others.moved for move in own], [move.ratio for move in own]),
        *([move.outliers.relative for move in own], [move.others.relative for move in own]),
        [move.relative_ratio for move in own],
    )
    about = (first.task, first.setting, f"{first.learning_rate:g}", first.rule, first.kind, str(len(own)))
    scalars = (str(sum(part.scalars for part in parts)) for parts in zip(*(move[-2:] for move in own), strict=True))
    return (*about, " / ".join(scalars), *(_spread(selection.summary(values)) for values in columns))


def _spread(summary: Mapping[str, Any]) -> str:
    """`0.0123 ± 0.0004`; the mean alone of one seed."""
    if summary["mean"] is None:
        return wording.MISSING
    mean = f"{summary['mean']:.3g}"
    return mean if summary["std"] is None else f"{mean} ± {summary['std']:.2g}"


def _number(value: float, form: str) -> str:
    return wording.MISSING if math.isnan(value) else f"{value:{form}}"
