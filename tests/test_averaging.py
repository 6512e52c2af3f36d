"""The mean of a cell's seeds as one model: its values, its numbers, and what has no mean."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import deltas, metrics, process, results
from lnflax.analysis import averaging
from lnflax.deltas import About, Delta, Scalars
from lnflax.errors import InputError
from tests import plain, studies

ABOUT = About("rte", "mine", 0, 1e-3, 2, "0" * 64, "pooler", ("yes", "no"))


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """In this process JAX has been set up already."""
    monkeypatch.setattr(process, "set_up", lambda: "")


def delta(values, index, seed=0, **changes):
    about = dataclasses.replace(ABOUT, seed=seed, **changes)
    return Delta(about, {"a": np.float32(values)}, {"b": Scalars(np.int32(index), np.float32(values))})


def test_every_value_is_the_mean_and_of_no_single_run():
    own = averaging.mean([delta([1, 2], [3, 5]), delta([2, 4], [3, 5], seed=1), delta([6, 0], [3, 5], seed=2)])
    assert own.whole["a"].tolist() == own.scalars["b"].value.tolist() == [3, 2]
    assert own.scalars["b"].index.tolist() == [3, 5] and own.whole["a"].dtype == np.float32
    assert own.about == dataclasses.replace(ABOUT, seed=None)
    other = averaging.mean([delta([1, 2], [3, 5]), delta([2, 4], [3, 5], seed=1, epoch=3)])
    assert (other.about.epoch, other.about.learning_rate) == (None, 1e-3)


def test_the_mean_of_large_values_is_rounded_once():
    big = np.float32(3e38)
    assert averaging.mean([delta([big], [0]), delta([big], [0], seed=1)]).whole["a"].tolist() == [big]


def test_seeds_that_train_other_scalars_have_no_mean():
    with pytest.raises(InputError, match=r"rte/mine: its seeds train other scalars each.*random\.per_seed=False"):
        averaging.mean([delta([1, 2], [3, 5]), delta([1, 2], [3, 6], seed=1)])


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "w"
    studies.run(model, place, settings=("layernorms", "random"), learning_rates=(1e-3,))
    return place


def test_the_average_is_evaluated_as_the_runs_were(model, workdir, capsys):
    assert command.main(["average", str(workdir / "rte" / "layernorms")]) == 0
    said = capsys.readouterr().out
    path = workdir / "analysis" / "average-rte-layernorms.safetensors"
    assert said.splitlines()[-1] == str(path)
    own = deltas.read(path)
    record, _, arrays, _ = studies.cell(workdir, "rte", "layernorms")
    runs = [deltas.read(file) for file in results.chosen_deltas(workdir, record)]
    for name, value in own.whole.items():
        exact = (runs[0].whole[name].astype(np.float64) + runs[1].whole[name]) / 2
        np.testing.assert_array_equal(value, exact.astype(np.float32))
    _, base = plain.base(model)
    changed = dict(deltas.changes(own, base, own.about.base_sha256, "d"))
    predicted = plain.predict(model, {**base, **changed, **deltas.head(own)})
    score = metrics.compute(["accuracy"], predicted, arrays["labels/validation"])["accuracy"]
    told = json.loads((workdir / "analysis" / "average-rte-layernorms.json").read_text())
    scores = [run["last"]["accuracy"] for run in record["runs"]]
    assert told == {
        **{"format": 1, "task": "rte", "setting": "layernorms", "learning_rate": 1e-3, "seeds": [0, 1]},
        **{"average": {"accuracy": score}, "runs": {"accuracy": scores}},
    }
    row = [cell.strip() for cell in said.splitlines()[4].strip("|").split("|")]
    spread = f"{100 * np.mean(scores):.1f} ± {100 * np.std(scores, ddof=1):.1f}"
    assert row == ["accuracy", *(f"{100 * own:.1f}" for own in scores), spread, f"{100 * score:.1f}"]


def refused(capsys, *arguments):
    assert command.main(["average", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1
    return error


def test_what_cannot_be_averaged_is_refused(workdir, tmp_path, capsys):
    assert "rte/random: its seeds train other scalars each" in refused(capsys, workdir / "rte" / "random")
    assert "of a finished cell" in refused(capsys, workdir / "rte")
    shutil.copytree(workdir, tmp_path / "w")
    path = tmp_path / "w" / "rte" / "layernorms" / "results.json"
    record = json.loads(path.read_text())
    record["runs"][1]["delta"] = None
    path.write_text(json.dumps(record))
    (path.parent / "SHA256SUMS").unlink()
    assert "one seed has a delta at the selected rate; a mean needs two" in refused(capsys, path.parent)
