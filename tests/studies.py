"""Small studies of the tiny model in this process, and what they leave."""

import io
import json

from rich.console import Console

from configs import base
from lnflax import config, results, storage, study
from lnflax.progress import Reporter

GRID = {
    "data.path": "synthetic",
    "max_length": 32,
    "max_train_examples": 70,
    "seeds": (0, 1),
    "learning_rates": (1e-3, 3e-3),
    "epochs": 2,
}


def given(model, **fields):
    """The config of `configs/base.py` on the tiny model, small, and changed."""
    changed = base.get_config()
    changed.update_from_flattened_dict({"model.name": str(model), **GRID, **fields})
    return changed


def run(model, workdir, *, dry_run=False, **fields):
    """A study in this process; what it says."""
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=200))
    study.run(config.parse(given(model, **fields)), workdir, reporter, dry_run=dry_run)
    return said.getvalue()


def quiet():
    """A reporter whose words nobody reads."""
    return Reporter(Console(file=io.StringIO()))


def cell(workdir, task, setting="frozen"):
    """results.json, the lines of metrics.jsonl, the predictions and their metadata."""
    folder = workdir / task / setting
    return results.read_json(folder / "results.json"), results.read_metrics(folder), *results.read_predictions(folder)


def timeless(value):
    """Without seconds, which no two runs share."""
    if isinstance(value, dict):
        return {name: timeless(own) for name, own in value.items() if name not in ("seconds", "memory")}
    return [timeless(own) for own in value] if isinstance(value, list) else value


def content(workdir):
    """All that a study leaves, seconds aside; its sums are checked on the way."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name, data = str(path.relative_to(workdir)), path.read_bytes() if path.is_file() else None
        if path.name == storage.SUMS:
            data = b""
            storage_sums = storage.read_sums(path.parent)
            for own, sums in storage_sums.items():
                assert [storage.sha256((path.parent / own).read_bytes())] == sums
        elif path.suffix == ".json":
            data = timeless(json.loads(data))
        elif path.suffix == ".jsonl":
            data = [timeless(json.loads(line)) for line in data.splitlines()]
        found[name] = data
    return found
