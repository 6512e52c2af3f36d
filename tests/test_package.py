"""The functions of the package, and the help of its commands."""

import numpy as np
import pytest

import lnflax
from lnflax import __main__ as command
from lnflax import results
from lnflax.errors import InputError
from tests import studies


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "w"
    studies.run(model, place, settings=("layernorms",), seeds=(0,), learning_rates=(1e-3,), epochs=1)
    return place


def test_a_model_is_loaded_tuned_and_asked(model, workdir):
    (path,) = results.chosen_deltas(workdir, results.read_results(workdir, "rte", "layernorms"))
    base = lnflax.load_model(model)
    before = {own: leaf.tobytes() for own, leaf in base.params.items()}
    tuned = lnflax.apply_delta(base, path)
    assert {own: leaf.tobytes() for own, leaf in base.params.items()} == before
    changed = [own for own, leaf in tuned.params.items() if leaf is not base.params[own]]
    norms = [own for own in tuned.params if own.startswith("bert/encoder/") and "LayerNorm" in own]
    assert len(norms) == 8 and sorted(changed) == sorted([*norms, "classifier/bias", "classifier/kernel"])
    again = lnflax.load_model(model, path)
    assert all(leaf.tobytes() == again.params[own].tobytes() for own, leaf in tuned.params.items())
    (one,) = lnflax.predict(tuned, [("the film", "is")], max_length=32)
    (other,) = lnflax.predict({"rte": again}, [{"text": "the film", "pair": "is"}], max_length=32)
    assert one == other and set(one["probabilities"]) == {"entailment", "not_entailment"}
    (plain,) = lnflax.predict(base, ["the film"], max_length=32)
    np.testing.assert_allclose(sum(plain["probabilities"].values()), 1, rtol=1e-6)


def test_the_runs_of_a_study_are_read(workdir):
    (run,) = lnflax.read_runs(workdir)
    assert (run["task"], run["setting"], run["seed"], run["learning_rate"]) == ("rte", "layernorms", 0, 1e-3)


def test_what_is_not_there_is_one_line(model, workdir):
    for name, delta, line in (
        ("/nowhere", None, "no folder '/nowhere'"),
        (model, workdir / "none.safetensors", "is not there"),
        (model, workdir / "config.json", "is not a whole safetensors file"),
    ):
        with pytest.raises(InputError, match=line):
            lnflax.load_model(name, delta)


@pytest.mark.parametrize("name", command.COMMANDS)
def test_help_shows_examples_that_the_command_takes(name, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main([name, "--help"])
    shown = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    assert ended.value.code == 0 and shown
    for line in shown:
        head, _, rest = line.strip().partition(f"python -m lnflax {name} ")
        assert head == "" and command._parse([name, *rest.split()]).command == name


def test_an_unknown_command_is_one_line(capsys):
    assert command.main(["predikt"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1 and "predict" in error
