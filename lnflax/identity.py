"""A workdir belongs to one protocol: what of a study may differ from what lies there, and what makes it another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lnflax import coverage, results
from lnflax.errors import InputError
from lnflax.results import CONTENTS
from lnflax.task_data import TaskData

EXTENDS = ("tasks", "settings", "seeds", "learning_rates")  # more of them join a study
GROWS = ("rules", CONTENTS)  # what both have must be the same
NUMBERS_NOTHING = ("format", "save_minutes", "save_deltas", "model.name", "data.path")  # no number depends on them


def record(config: Mapping[str, Any], data: Iterable[TaskData]) -> dict[str, Any]:
    """The content of config.json: the fields, and what the model and the data are, wherever they lie."""
    found: dict[str, dict[str, Any]] = {"model": {}, "data": {}}
    for own in data:
        found["model"][own.shape.pooling] = own.model.sha256
        found["data"][own.task.name] = own.contents
    return results.plain({"format": results.FORMAT, **config, CONTENTS: found})


def read(workdir: Path) -> dict[str, Any] | None:
    """What the workdir belongs to: its config.json; where that is lost or damaged, what a finished cell tells of it.

    Raises:
        Damaged: config.json is, and there is no finished cell.
        InputError: config.json is another program's.
    """
    damaged = None
    try:
        return results.read_json(workdir / results.CONFIG)
    except results.Damaged as error:
        damaged = error
    except InputError:
        if (workdir / results.CONFIG).exists():
            raise
    for path in sorted(workdir.glob(f"*/*/{results.RESULTS}")):
        task, setting = path.parts[-3:-1]
        if not results.damage(workdir, task, setting):
            return _of_cell(workdir, task, setting)
    if damaged:
        raise results.Damaged(damaged.path, f"{damaged.reason}; move it away to begin a study in this folder")
    return None


def _of_cell(workdir: Path, task: str, setting: str) -> dict[str, Any]:
    found = results.read_results(workdir, task, setting)["config"]
    if not (workdir / task / setting / results.TRAINED).exists():
        return found
    told = results.read_json(workdir / task / setting / results.TRAINED)
    # How the body was pooled for this task is not told, so its sum is not compared.
    return found | {CONTENTS: {"model": {}, "data": {task: told["data"]}}}


def check(workdir: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compares two records, of which either may be without contents.

    Raises:
        InputError: a field differs on which a number depends; the message names it and both values.
    """
    either, both = set(there) | set(here), set(there) & set(here)
    for field in sorted(either - {*EXTENDS} - ({CONTENTS} - both)):
        _compare(workdir, field, there.get(field), here.get(field), field in GROWS)  # a field that one lacks differs


def _compare(workdir: Path, field: str, there: Any, here: Any, grows: bool) -> None:
    if field in NUMBERS_NOTHING or there == here:
        return
    if isinstance(there, dict) and isinstance(here, dict):
        names = set(there) & set(here) if grows else set(there) | set(here)
        for name in sorted(names):
            _compare(workdir, f"{field}.{name}", there.get(name), here.get(name), grows)
        return
    if field.startswith(CONTENTS):
        field = f"the content of {field.removeprefix(f'{CONTENTS}.')} (SHA-256)"
    raise InputError(f"workdir: {workdir} holds another study: {field} is {there!r} there and {here!r} here")


def join(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a study that grows: what is there and what comes to it."""
    grown = {field: list(coverage.merge(there[field], here[field])) for field in EXTENDS}
    contents = _union(there.get(CONTENTS, {}), here[CONTENTS])  # a record that was told by a cell may lack it
    return {**here, **grown, "rules": {**there["rules"], **here["rules"]}, CONTENTS: contents}


def _union(there: Any, here: Any) -> Any:
    if not isinstance(there, dict) or not isinstance(here, dict):
        return here
    both = {name: _union(there[name], here[name]) for name in there if name in here}
    return {**there, **here, **both}
