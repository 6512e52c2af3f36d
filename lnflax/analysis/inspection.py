"""What is in a delta's file, in words: the run, the body that it applies to, what it trains, what it changed most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lnflax import deltas, trained, tuned
from lnflax.analysis import distributions, formats, weight_tables, weights
from lnflax.analysis.formats import Grid
from lnflax.deltas import About, Delta
from lnflax.errors import InputError
from lnflax.wording import MISSING


def describe(path: Path, base: str | None, most: int) -> str:
    """Markdown.

    Args:
        path: the delta's file.
        base: the checkpoint that it is compared with; None for the one that its study names, if there is any.
        most: how many changed scalars are named.

    Raises:
        InputError: no such file, or no delta; the base that was asked for is not there, or another one.
    """
    delta = deltas.read(path)
    parts = [f"# {path.name}\n", formats.markdown(_about(path, delta.about)), "## What it holds\n", _contents(delta)]
    return "\n".join([*parts, "## What it changed most\n", _changes(path, delta, base, most)])


def _about(path: Path, about: About) -> Grid:
    rows: dict[str, Any] = {
        "task": about.task,
        "setting": about.setting,
        "seed": about.seed,
        "learning rate": None if about.learning_rate is None else f"{about.learning_rate:g}",
        "epoch": about.epoch,
        "labels": ", ".join(about.labels) or "a score",
        "pooling": about.pooling,
        "applies to the body": about.base_sha256,
        "bytes": f"{path.stat().st_size:,}",
    }
    return Grid(("of", "value"), tuple((name, _text(value)) for name, value in rows.items()), names=2)


def _text(value: Any) -> str:
    return MISSING if value is None else str(value)


def _contents(delta: Delta) -> str:
    """Leaves and scalars by kind of module."""
    sizes = {path: int(delta.whole[path].size) for path in delta.whole}
    sizes |= {path: len(part.index) for path, part in delta.scalars.items()}
    rows = []
    for kind in trained.GROUPS:
        own = [path for path in sizes if trained.group(path) == kind]
        if own:
            whole = sum(path in delta.whole for path in own)
            rows.append((kind, str(whole), str(len(own) - whole), f"{sum(sizes[path] for path in own):,}"))
    return formats.markdown(Grid(("module", "whole leaves", "leaves in part", "scalars"), tuple(rows)))


def _changes(path: Path, delta: Delta, base: str | None, most: int) -> str:
    name = base or tuned.base_of(path)
    if name is None:
        return "Not known without the checkpoint: give it by `--base`.\n"
    try:
        opened = tuned.open_base(name)
    except InputError as error:
        if base is not None:
            raise
        return f"Not known: the checkpoint that its study names is not there ({error}); give it by `--base`.\n"
    pooling = delta.about.pooling
    own = distributions.pairs(delta, opened.body(pooling), opened.sha256(pooling == "pooler"), str(path))
    change = weights.compare(own, most)
    if not change.largest:
        return f"Nothing of the body of {name}: the head alone is tuned.\n"
    return f"Of {name}. {weight_tables.LARGEST_NOTE}\n\n{formats.markdown(weight_tables.largest(change))}"
