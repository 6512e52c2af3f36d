"""A tuned model without its outliers: which scalars are treated, what comes of it, and what is refused."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import analyze
from lnflax import checkpoint, config, deltas, results, task_data, tasks, variants
from lnflax.analysis import ablation
from lnflax.errors import InputError
from tests import plain, studies, tiny

NORM = "bert/encoder/layer/0/output/LayerNorm"


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "w"
    studies.run(model, place, settings=("layernorms",), save_deltas="all")
    return place


def folder(workdir, task="rte"):
    return workdir / task / "layernorms" / "deltas"


def test_chosen_scalars_are_reset_or_zeroed_and_no_others():
    base = {"a/scale": np.float32([1, 2, 3]), "a/bias": np.float32([4, 5, 6])}
    tuned = {"a/scale": np.float32([1.5, 2.5, 3.5]), "a/bias": np.float32([4.5, 5.5, 6.5])}
    chosen = {"a/scale": np.array([True, False, False]), "a/bias": np.array([False, False, True])}
    back = ablation.treat(tuned, base, chosen, "pretrained")
    zero = ablation.treat(tuned, base, chosen, "zero")
    assert {path: value.tolist() for path, value in back.items()} == {"a/scale": [1, 2.5, 3.5], "a/bias": [4.5, 5.5, 6]}
    assert {path: value.tolist() for path, value in zero.items()} == {"a/scale": [0, 2.5, 3.5], "a/bias": [4.5, 5.5, 0]}
    assert ablation.treat(tuned, base, {}, "zero") == {}


@pytest.fixture(scope="module")
def tuned(model, workdir):
    """A run's model by path, its task, and the study's config."""
    own = deltas.read(results.chosen_deltas(workdir, results.read_results(workdir, "rte", "layernorms"))[1])
    _, base = plain.base(model)
    params = {**base, **dict(deltas.changes(own, base, checkpoint.body_sha256(base), "d")), **deltas.head(own)}
    given = config.parse(studies.given(model))
    return params, task_data.load(given, task_data.open_source(given), tasks.TASKS["rte"]), given


def test_variants_are_models_of_their_own(model, tuned):
    """Together and packed they say what each of them says alone and in plain rows."""
    params, data, given = tuned
    changed = [
        {},
        {f"{NORM}/scale": np.zeros(32, np.float32)},
        {f"{NORM}/scale": tiny.draw("scale", (32,), 2), "classifier/kernel": tiny.draw("kernel", (32, 2), 9)},
    ]
    found = variants.predict(data, given, params, changed)["validation"]
    assert found.shape == (3, 384) and found.dtype == np.int32
    for own, variant in zip(found, changed, strict=True):
        np.testing.assert_array_equal(own, plain.predict(model, {**params, **variant}))
    assert set(found[2].tolist()) == {0, 1}


def test_no_scalars_change_nothing_to_the_bit(workdir):
    made = ablation.ablate([folder(workdir)], [0], draws=2)
    assert len(made.effects) == 2 and made.seeds == (0, 1)
    for effect in made.effects:
        for change in (effect.outliers, effect.random, effect.contrast):
            assert (change.mean, change.interval) == (0, (0, 0))
        assert effect.draws == (0, 0)
    record = results.read_results(workdir, "rte", "layernorms")
    assert made.tuned == pytest.approx(record["selected"]["mean"], abs=1e-12)


def test_a_variant_without_changes_has_the_bits_of_the_model_itself(tuned):
    params, data, given = tuned
    scores = variants.predict(data, given, params, [{}, {NORM + "/scale": params[NORM + "/scale"].copy()}])
    np.testing.assert_array_equal(*scores["validation"])


def test_all_scalars_zeroed_leave_one_class(workdir):
    """Then a norm gives zeros whatever it reads; and all scalars are the same ones, outliers or drawn."""
    made = ablation.ablate([folder(workdir)], [64], draws=2)
    zeroed = next(effect for effect in made.effects if effect.to == "zero")
    assert made.tuned + zeroed.outliers.mean == pytest.approx(0.5, abs=1e-12)  # of two balanced classes
    for effect in made.effects:
        assert (effect.contrast.mean, effect.contrast.interval) == (0, (0, 0))


def test_outliers_are_those_of_the_pretrained_model(model, workdir):
    given = config.of_record(results.read_json(workdir / "config.json"))
    data = task_data.load(given, task_data.open_source(given), tasks.TASKS["rte"])
    found = ablation._chosen(given, data, 3, "outliers", 0)
    pooled = np.concatenate([data.model.body[f"{NORM}/{leaf}"] for leaf in ("scale", "bias")]).astype(np.float64)
    farthest = np.sort(np.argsort(-np.abs(pooled - pooled.mean()))[:3])
    own = np.concatenate([found.get(f"{NORM}/{leaf}", np.zeros(32, bool)) for leaf in ("scale", "bias")])
    np.testing.assert_array_equal(np.flatnonzero(own), farthest)
    drawn = [ablation._chosen(given, data, 3, "random", draw) for draw in (0, 0, 1)]
    sizes = [sum(int(mask.sum()) for mask in each.values()) for each in drawn]
    assert sizes == [12, 12, 12] and len({repr(sorted(map(str, each.items()))) for each in drawn}) == 2


def test_the_command_writes_table_and_figure(workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(analyze.process, "set_up", lambda: "")  # this process has been
    line = ["ablate", "--deltas", str(folder(workdir)), "--counts", "1", "8", "--draws", "2", "--out", str(tmp_path)]
    assert analyze.main(line) == 0
    said = capsys.readouterr().out
    assert "## rte, layernorms: accuracy without outliers" in said and "| 8" in said
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"ablation-rte-layernorms.{suffix}" for suffix in ("md", "csv", "png", "pdf", "svg", "txt")}
    lines = (tmp_path / "ablation-rte-layernorms.csv").read_text().splitlines()
    assert len(lines) == 5 and lines[1].startswith("rte,layernorms,accuracy,")
    caption = (tmp_path / "ablation-rte-layernorms.txt").read_text()
    assert "384 examples" in caption and "seeds 0, 1" in caption and "mean over 2 draws" in caption
    assert caption.endswith(f"Command: python analyze.py {' '.join(line)}\n")


def refused(*paths, counts=(1,)):
    with pytest.raises(InputError) as raised:
        ablation.ablate(list(paths), list(counts), draws=1)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_bad_input_is_one_line(workdir, tmp_path, model):
    every = sorted(folder(workdir).glob("*.safetensors"))
    assert refused(*every) == "--deltas: they are of the rates 0.001, 0.003; give one's"
    assert refused(tmp_path).endswith("is not WORKDIR/TASK/SETTING/deltas of a finished cell")
    assert refused(every[0], tmp_path / "x").startswith("--deltas: they are of several cells: ")
    assert "a LayerNorm has 64 scalars with outliers.pool=pooled; allowed are 1 … 64" in refused(every[0], counts=[65])
    assert refused(folder(workdir) / "seed7-lr0.1.safetensors").endswith("is not there")


def test_another_model_or_other_data_is_refused(workdir, tmp_path):
    other = tmp_path / "w"
    shutil.copytree(workdir, other)
    record = results.read_json(other / "config.json")
    changed = tiny.write_checkpoint(tmp_path / "other")
    path = changed / "model.safetensors"
    arrays = load_file(path)
    save_file({name: value + np.float32(name.endswith("value.bias")) for name, value in arrays.items()}, path)
    results.write_json(other / "config.json", record | {"model": record["model"] | {"name": str(changed)}})
    assert "applies to the body" in refused(folder(other))
    results.write_json(other / "config.json", record | {"max_length": 16})
    assert refused(folder(other)).startswith("data.path: rte train is ")
