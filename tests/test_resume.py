"""A study that is stopped, shared, extended or changed: the done stays, what it lacks comes, the rest is refused."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from lnflax import claims, config, coverage, devices, identity, interruption, results, states, study, training
from lnflax.errors import InputError
from lnflax.interruption import Interrupted, Interruption
from lnflax.study import Share
from tests import studies, tiny
from tests.studies import content


def interrupt_at_save(patch, number):
    """A signal comes right before a save."""
    saves, whole = [], training.CellTraining._save

    def save(own, *rest):
        saves.append(own)
        if len(saves) == number:
            own.interruption.asked = "SIGTERM"
        whole(own, *rest)

    patch.setattr(training.CellTraining, "_save", save)


FIELDS = {"learning_rates": (1e-3, 2e-3, 3e-3), "save_minutes": 1e-9, "settings": ("layernorms", "random")}


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """An undisturbed study of three rates on four devices, so that devices hold repeats."""
    place = tmp_path_factory.mktemp("whole") / "w"
    studies.run(model, place, **FIELDS)
    return content(place)


@pytest.mark.parametrize("number", [1, 3, 4, 9])
def test_a_study_that_was_stopped_ends_as_one_that_was_not(model, whole, tmp_path, number):
    """In the middle of an epoch, at its end, and in the second cell; dropout on."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_save(patch, number)
        with pytest.raises(Interrupted, match="SIGTERM: saved; give the same command again to go on"):
            studies.run(model, tmp_path / "w", **FIELDS)
    (state,) = tmp_path.glob("w/rte/*/state/*.safetensors")
    assert state.stat().st_size < 200_000  # no frozen weight: the body alone has 22,400 scalars
    said = studies.run(model, tmp_path / "w", **FIELDS, dry_run=True)
    assert "under way, " in said and "left: " in said and "programs to compile" in said
    studies.run(model, tmp_path / "w", **FIELDS)
    assert content(tmp_path / "w") == whole


def test_a_state_is_what_trains_and_nothing_else(model, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_save(patch, 1)
        with pytest.raises(Interrupted):
            studies.run(model, tmp_path / "w", settings=("layernorms",))
    (state,) = tmp_path.glob("w/rte/layernorms/state/*.safetensors")
    found = states.read(tmp_path / "w" / "rte" / "layernorms").state
    runs = {name: array for name, array in found.arrays.items() if name.startswith("runs")}
    floats = [array for array in runs.values() if array.dtype == np.float32]  # values and Adam's two moments
    assert state.name.startswith("000001-") and sum(array.size for array in floats) == 4 * 3 * (256 + 66)
    assert all(array.shape[:2] == (2, 2) for array in runs.values())


def test_seeds_and_rates_join_a_finished_cell(model, tmp_path):
    """Old runs keep their bits; new ones are, within float32, those of a study that had them from the start."""
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    one = {"seeds": (1,), "learning_rates": (3e-3,), "settings": ("layernorms",)}
    all_of_them = {"seeds": (0, 1), "learning_rates": (1e-3, 3e-3), "settings": ("layernorms",)}
    studies.run(model, grown, **one)
    before, lines, arrays, _ = studies.cell(grown, "rte", "layernorms")
    said = studies.run(model, grown, **all_of_them)
    assert "rte/layernorms: 3 of 4 runs to do; 2 seeds × 2 rates" in said
    after, new_lines, new_arrays, about = studies.cell(grown, "rte", "layernorms")
    assert after["runs"][3] == before["runs"][0] and new_lines[:2] == lines and len(new_lines) == 8
    np.testing.assert_array_equal(new_arrays["last/validation"][1, 1], arrays["last/validation"][0, 0])
    assert (json.loads(about["seeds"]), json.loads(about["learning_rates"])) == ([0, 1], [1e-3, 3e-3])
    studies.run(model, whole, **all_of_them)
    expected, *_ = studies.cell(whole, "rte", "layernorms")
    assert [(run["seed"], run["learning_rate"]) for run in after["runs"]] == [
        (run["seed"], run["learning_rate"]) for run in expected["runs"]
    ]
    for own, other in zip(after["runs"], expected["runs"], strict=True):
        np.testing.assert_allclose(own["last"]["train_loss"], other["last"]["train_loss"], rtol=1e-3)
    told = results.read_json(grown / "config.json")
    assert (told["seeds"], told["learning_rates"]) == ([0, 1], [1e-3, 3e-3])
    assert "rte/layernorms: done; 2 seeds × 2 rates" in studies.run(model, grown, **one)  # fewer are there already


def test_a_cell_that_was_begun_otherwise_is_finished_so_and_then_extended(model, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_save(patch, 1)
        with pytest.raises(Interrupted):
            studies.run(model, tmp_path / "w", seeds=(0,), settings=("frozen",))
    said = studies.run(model, tmp_path / "w", seeds=(0, 1), settings=("frozen",))
    assert said.count("rte/frozen: accuracy ") == 2
    record, *_ = studies.cell(tmp_path / "w", "rte", "frozen")
    assert [(run["seed"], run["last"]["epoch"]) for run in record["runs"]] == [(0, 2), (0, 2), (1, 2), (1, 2)]


@pytest.fixture(scope="module")
def finished(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("finished") / "w"
    studies.run(model, place, settings=("frozen",), epochs=1)
    return place


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"epochs": 2}, "epochs is 1 there and 2 here"),
        ({"batch_size": 8}, "batch_size is 16 there and 8 here"),
        ({"optimizer.b1": 0.8}, "optimizer.b1 is 0.9 there and 0.8 here"),
        ({"report_epoch": "best"}, "report_epoch is 'last' there and 'best' here"),
        ({"max_train_examples": 60}, "max_train_examples is 70 there and 60 here"),
    ],
)
def test_a_field_that_changes_a_number_is_another_study(model, finished, fields, line):
    before = content(finished)
    with pytest.raises(InputError, match=f"holds another study: {line}"):
        studies.run(model, finished, settings=("frozen",), **{"epochs": 1, **fields})
    assert content(finished) == before


def test_a_model_is_its_weights_and_not_its_name(finished, tmp_path):
    finished = shutil.copytree(finished, tmp_path / "w")
    same = tiny.write_checkpoint(tmp_path / "moved")
    assert "rte/frozen: done" in studies.run(same, finished, settings=("frozen",), epochs=1, save_minutes=3.0)
    shape = tiny.config(vocab_size=len(tiny.vocabulary()), hidden_size=32, num_attention_heads=4, intermediate_size=64,
                        max_position_embeddings=64)  # fmt: skip
    other = tiny.write_folder(same, shape, tiny.foreign_state(tiny.weights(shape, scale=0.2)))
    with pytest.raises(InputError, match=r"study: the content of model\.pooler \(SHA-256\) is '[0-9a-f]{64}' there"):
        studies.run(other, finished, settings=("frozen",), epochs=1)


def test_config_json_is_made_anew_from_a_finished_cell(model, finished, tmp_path):
    own = shutil.copytree(finished, tmp_path / "w")
    (own / "config.json").write_text("noise")
    with pytest.raises(InputError, match="holds another study: epochs is 1 there and 2 here"):
        studies.run(model, own, settings=("frozen",), epochs=2)
    said = studies.run(model, own, settings=("frozen",), epochs=1)
    assert "config.json is not what was written: its sum is not that of SHA256SUMS; set aside as" in said
    anew, before = (results.read_json(place / "config.json") for place in (own, finished))
    assert {**anew, "model": 0} == {**before, "model": 0}


def test_what_is_not_ours_is_named_and_left_alone(model, finished):
    (finished / "notes.txt").write_text("mine")
    said = studies.run(model, finished, settings=("frozen",), epochs=1)
    assert f"warning: workdir: {finished / 'notes.txt'} is no file of a study; it is left alone" in said
    assert (finished / "notes.txt").read_text() == "mine"
    (finished / "notes.txt").unlink()


def test_rules_of_a_users_own_join_a_study_and_do_not_change(workdir="w"):
    there = {"rules": {"a": [["x", "frozen"]]}}
    identity.check(workdir, there, {"rules": {"b": [["y", "frozen"]]}})
    with pytest.raises(InputError, match=r"rules\.a is \[\['x', 'frozen'\]\] there and \[\] here"):
        identity.check(workdir, there, {"rules": {"a": []}})


def test_coverage():
    whole = coverage.cover((0, 1), (0.1, 0.2))
    assert whole.lacking == (((0, 1), (0, 1)),) and whole.runs == 4
    assert coverage.cover((0, 1), (0.1,), ((0, 1), (0.1, 0.2))).lacking == ()
    grown = coverage.cover((0, 1), (0.1, 0.2), ((1,), (0.2,)))
    assert (grown.seeds, grown.rates, grown.lacking) == ((0, 1), (0.1, 0.2), (((0,), (0, 1)), ((1,), (0,))))
    assert grown.of(grown.lacking[1]) == ((1,), (0.1,))
    beside = coverage.cover((2,), (0.3,), ((0, 1), (0.1,)))
    assert (beside.seeds, beside.rates, beside.runs) == ((0, 1, 2), (0.1, 0.3), 4)


@pytest.mark.parametrize(
    ("text", "places"), [("1/2", [0, 2, 4]), ("2/2", [1, 3]), ("0/2", [1, 3]), ("1/1", [*range(5)])]
)
def test_a_share_of_the_cells(text, places):
    share = Share.parse(text)
    assert [place for place in range(5) if share.has(place)] == places


@pytest.mark.parametrize("text", ["", "2", "3/2", "-1/2", "1/0", "a/b", "1/2/3"])
def test_a_share_that_is_none(text):
    with pytest.raises(InputError, match="--cells="):
        Share.parse(text)


def test_shares_train_their_cells_without_a_claim(model, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("a claim was taken")

    fields = {"settings": ("frozen", "ln_a", "ln_f"), "epochs": 1}
    given = config.parse(studies.given(model, **fields))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(claims, "claim", refuse)
        for text, done in (("1/2", ["frozen", "ln_f"]), ("2/2", ["frozen", "ln_a", "ln_f"])):
            study.run(given, tmp_path / "w", studies.quiet(), share=Share.parse(text))
            assert sorted(path.parent.name for path in tmp_path.glob("w/rte/*/results.json")) == done


def test_a_second_signal_is_not_ours():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    ctrl_c = signal.getsignal(signal.SIGINT)  # which is ignored where the tests run in the background of a shell
    try:
        with Interruption() as own:
            own.check()
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Interrupted, match="SIGTERM: saved"):
                own.check()
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == ["theirs"]
        assert signal.getsignal(signal.SIGINT) is ctrl_c
    finally:
        signal.signal(signal.SIGTERM, before)
    assert interruption.EXIT_CODE == os.EX_TEMPFAIL


def test_runs_come_back_to_their_devices():
    plan = devices.make_plan(3, 3, 4, devices.Work(1.0, 1.0, 1.0), split=False)
    runs = {"a": np.arange(18.0).reshape(3, 3, 2), "b": np.arange(9.0).reshape(3, 3)}
    there = plan.of_runs(runs)
    assert jax.tree.leaves(there)[0].shape[0] == plan.devices
    for name, own in plan.to_runs(there).items():
        np.testing.assert_array_equal(own, runs[name])
