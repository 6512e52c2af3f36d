"""How the weights of a checkpoint are distributed by module (section 3, Figures 1 and 2), and what tuning makes of it.

A body is read one leaf at a time, so that a large one fits into little memory.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnflax import checkpoint, deltas, results
from lnflax.analysis import formats, weight_figures, weight_tables, weights
from lnflax.analysis.figures import write_figures
from lnflax.analysis.weight_tables import Tuned
from lnflax.analysis.weights import Pair
from lnflax.deltas import Delta
from lnflax.errors import InputError, check_choice
from lnflax.results import Study
from lnflax.storage import durable_write
from lnflax.tensors import Leaves

SETTING = "full"  # the paper's figures are of full fine-tuning


@dataclass(frozen=True)
class Wanted:
    """Which runs of a study: by task, setting (`SETTING` where None) and seed (where None the first with a delta)."""

    task: str | None = None
    setting: str | None = None
    seed: int | None = None


def of_model(name: str, out: Path | str | None = None) -> str:
    """A checkpoint's distributions as Markdown; with `out` tables and figures are also written there.

    Raises:
        InputError: there is no such checkpoint, or it cannot be read.
    """
    body = _open(checkpoint.find(name), "cls")  # that a checkpoint has a pooler is not asked for
    return _tell(body, [], f"Checkpoint: {name}.", _command("model", name, Wanted(), out), out)


def of_study(workdir: Path | str, wanted: Wanted | None = None, out: Path | str | None = None) -> str:
    """The same of a study's checkpoint and of the chosen runs of its cells, before and after.

    Raises:
        InputError: bad input, a delta of another checkpoint, or a run that is wanted and has no delta.
    """
    study, wanted = results.read_study(workdir), wanted or Wanted()
    if not study.config:
        raise InputError(f"workdir: {study.missing}")
    paths, lines = choose(workdir, study, wanted)
    model = study.config["model"]
    folder = checkpoint.find(model["name"])
    body = functools.cache(functools.partial(_open, folder))
    sha256 = functools.cache(lambda pooling: checkpoint.body_sha256(body(pooling)))
    runs = []
    for path in paths:
        delta = deltas.read(path)
        pooling = delta.about.pooling
        runs.append(_tuned(delta, body(pooling), sha256(pooling), str(path)))
    about = "\n\n".join([f"Checkpoint: {model['name']}.", *lines, *study.missing.splitlines()])
    return _tell(body(model["pooling"]), runs, about, _command("workdir", workdir, wanted, out), out)


def _open(folder: Path, pooling: str) -> Leaves:
    shape = checkpoint.read_config(folder, pooling=pooling, num_outputs=1, dtype="float32")
    return checkpoint.open_body(folder, shape)


def choose(workdir: Path | str, study: Study, wanted: Wanted) -> tuple[list[Path], list[str]]:
    """The deltas of the runs that are wanted, one a cell, and what is to be said of cells that have none.

    Raises:
        InputError: a task, setting or seed that the study does not have; no delta where a setting or seed is named.
    """
    given = {"task": wanted.task, "setting": wanted.setting}
    for field, name in given.items():
        if name is not None:
            check_choice(f"--{field}", name, dict.fromkeys(cell[field] for cell in study.cells))
    fields = {**given, "setting": wanted.setting or SETTING}
    cells = [cell for cell in study.cells if all(name in (None, cell[field]) for field, name in fields.items())]
    kept = {f"{cell['task']}/{cell['setting']}": results.kept_deltas(workdir, cell) for cell in cells}
    seeds = sorted({seed for own in kept.values() for seed in own})
    if seeds and wanted.seed is not None and wanted.seed not in seeds:
        raise InputError(f"--seed: {wanted.seed} has no delta; allowed are {', '.join(map(str, seeds))}")
    found = {
        name: own.get(next(iter(own)) if wanted.seed is None else wanted.seed) for name, own in kept.items() if own
    }
    paths = [path for path in found.values() if path]
    lacking = [name for name in kept if not found.get(name)]
    if paths:
        return paths, [f"Without a delta, not shown: {', '.join(lacking)}."] if lacking else []
    what = f"{wanted.task or 'any task'}/{fields['setting']}"
    line = f"no finished cell of {what} has deltas: train it with --config.save_deltas=best"
    if wanted != Wanted():
        have = [f"{cell['task']}/{cell['setting']}" for cell in study.cells if results.kept_deltas(workdir, cell)]
        raise InputError(f"workdir: {line}; cells that have some: {', '.join(have) or 'none'}")
    return [], [f"The checkpoint alone: {line}."]


def _tuned(delta: Delta, body: Leaves, sha256: str, where: str) -> Tuned:
    def leaves() -> Iterator[tuple[str, np.ndarray]]:
        return ((path, after) for path, _, after in pairs(delta, body, sha256, where))

    return Tuned(delta.about, weights.summarise(leaves), weights.compare(pairs(delta, body, sha256, where)))


def pairs(delta: Delta, body: Mapping[str, np.ndarray], sha256: str, where: str) -> Iterator[Pair]:
    """Every leaf of the body, in path order, before and after; the same object where the delta leaves it as it is.

    Raises:
        InputError: as `deltas.changes`.
    """
    changes = deltas.changes(delta, body, sha256, where)
    path, tuned = next(changes, ("", None))
    for own in sorted(body):
        before = after = body[own]
        if own == path and tuned is not None:
            after = tuned
            path, tuned = next(changes, ("", None))
        yield own, before, after


def _tell(body: Leaves, runs: list[Tuned], about: str, command: str, out: Path | str | None) -> str:
    before = weights.summarise(lambda: iter(body.items()))
    text = f"{about}\n\n{weight_tables.markdown(before, runs)}"
    if out is None:
        return text
    forms = {
        "distributions.md": text,
        "distributions.csv": formats.csv_text(weight_tables.CSV_FIELDS, weight_tables.records(before, runs)),
    }
    if runs:
        largest = weight_tables.largest_records(runs)
        forms["distributions-largest.csv"] = formats.csv_text(weight_tables.LARGEST_FIELDS, largest)
    for name, form in forms.items():
        durable_write(Path(out) / name, form.encode())
    figures = weight_figures.figures(before, runs, f"{about.splitlines()[0]} Command: {command}")
    written = [*(Path(out) / name for name in forms), *write_figures(out, figures)]
    return f"{text}\nWritten: {', '.join(map(str, written))}\n"


def _command(kind: str, source: Path | str, wanted: Wanted, out: Path | str | None) -> str:
    """The command that makes the same again."""
    given = {kind: source, **vars(wanted), "out": out}
    flags = [f"--{name}={value}" for name, value in given.items() if value is not None]
    return shlex.join(["python", "analyze.py", "distributions", *flags])
