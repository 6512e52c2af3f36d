"""The command line as a user meets it. Commands that fail are run in one process that forks, to save the imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors

from lnflax import results, selection, study
from tests import tiny
from tests.studies import GRID, cell, run

ROOT = Path(__file__).parents[1]
DEVICES = {"JAX_NUM_CPU_DEVICES": "4"}
# Runs each command line in a fork of its own, as `python train.py …` would: file descriptors, exit code and all.
FORKS = """
import json, os, runpy, sys, traceback, warnings
from pathlib import Path

import datasets, transformers
from lnflax import study

warnings.simplefilter("ignore")  # jax warns of forks; none of its devices has been touched yet


def run(arguments, place):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv, code = arguments, 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


for place, arguments in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        run(arguments, Path(place))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (Path(place) / "code").write_text(str(code))
"""


def snapshot(folder):
    """Every file's bytes, and every folder, below `folder`."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def overrides(**fields):
    return [f"--config.{name}={value}" for name, value in fields.items()]


def command(*arguments, environment=None):
    line, environment = [sys.executable, *arguments], os.environ | DEVICES | (environment or {})
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def model(place):
    return tiny.write_checkpoint(place / "model")


@pytest.fixture(scope="module")
def words(model):
    """The command of a small study, but for its workdir."""
    return ["train.py", "--config=configs/base.py", *overrides(**{"model.name": model, **GRID})]


@pytest.fixture(scope="module")
def trained(place, words):
    """The command itself, run whole: its workdir, and the finished process."""
    workdir = place / "runs" / "trained"
    environment = {"LNFLAX_CACHE": str(place / "cache")}
    return workdir, command(*words, f"--workdir={workdir}", environment=environment)


def test_a_study_says_what_trains_the_plan_and_the_outcome(trained):
    _, done = trained
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert next(line for line in lines if line.startswith("layernorms")).split()[:3] == ["layernorms", "8", "256"]
    plan = (
        "rte/layernorms: to do; 2 seeds × 2 rates (1×1 on each of 4 devices), 2 epochs × 5 steps of 16 examples in rows"
    )
    assert any(line.startswith(plan) for line in lines)
    assert any(line.startswith("rte/layernorms: accuracy ") and "± " in line for line in lines)


def test_the_files_of_a_study_are_the_contracts(trained):
    workdir, _ = trained
    names = {name for name, data in snapshot(workdir).items() if data is not None}
    own = ("trained.json", "metrics.jsonl", "results.json", "predictions.safetensors", "cost.json")
    rate = results.read_results(workdir, "rte", "layernorms")["selected"]["learning_rate"]
    kept = tuple(f"deltas/seed{seed}-lr{rate:g}.safetensors" for seed in (0, 1))
    sums = ("SHA256SUMS", "rte/layernorms/SHA256SUMS", "rte/layernorms/deltas/SHA256SUMS")
    assert names == {"config.json", "versions.json", *sums, *(f"rte/layernorms/{name}" for name in (*own, *kept))}
    for folder in (workdir, workdir / "rte" / "layernorms", workdir / "rte" / "layernorms" / "deltas"):
        assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder).returncode == 0
    record = results.read_json(workdir / "config.json")
    assert record["format"] == 1 and record["learning_rates"] == [0.001, 0.003] and record["tasks"] == ["rte"]
    versions = results.read_json(workdir / "versions.json")
    assert versions["devices"] == 4 and versions["platform"] == "cpu"
    assert {"python", "lnflax", "jax", "flax", "optax", "numpy"} < set(versions)


def test_trained_json_is_the_contracts(trained, model):
    told = results.read_json(trained[0] / "rte" / "layernorms" / "trained.json")
    assert set(told) == {
        *("format", "task", "setting", "model", "seeds", "body", "head", "trained", "ratio", "rules", "parameters"),
        *("groups", "masks", "with_head", "with_embeddings_norm", "reachable", "data"),
    }
    block = 4 * (32 * 32 + 32) + 2 * 32 + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 32
    embeddings = (len(tiny.vocabulary()) + 64 + 2) * 32 + 2 * 32
    assert told["body"] == embeddings + 2 * block + (32 * 32 + 32)
    assert (told["head"], told["trained"], told["ratio"]) == (66, 256, 256 / told["body"])
    assert told["seeds"] == [0, 1] and told["masks"] is None
    assert set(told["model"]) == {"name", "sha256"} and told["model"]["name"] == str(model)
    assert len(told["model"]["sha256"]) == 64
    assert [label for _, label in told["rules"]] == ["trainable", "frozen", "trainable"]
    for parameter in told["parameters"]:
        assert list(parameter) == ["path", "shape", "size", "label", "trained"]
        norm = parameter["path"].startswith("bert/encoder/") and "/LayerNorm/" in parameter["path"]
        trains = norm or parameter["path"].startswith("classifier/")
        assert parameter["label"] == ("trainable" if trains else "frozen")
        assert parameter["trained"] == [parameter["size"] * trains] * 2


def test_results_json_is_the_contracts(trained):
    record, _, predictions, about = cell(trained[0], "rte", "layernorms")
    assert set(record) == {
        *("format", "task", "setting", "config", "metric", "report_epoch", "epochs", "steps", "train_examples"),
        *("eval_examples", "body", "trained", "ratio", "runs", "selected", "seconds"),
    }
    told = {name: record[name] for name in ("format", "task", "setting", "metric", "report_epoch", "epochs", "steps")}
    assert told == {
        "format": 1,
        "task": "rte",
        "setting": "layernorms",
        "metric": "accuracy",
        "report_epoch": "last",
        "epochs": 2,
        "steps": 10,
    }
    assert (record["train_examples"], record["eval_examples"]) == (70, {"validation": 384})
    assert record["config"]["model"]["name"] == "model" and str(trained[0].parent) not in json.dumps(record)
    assert set(record["selected"]) == {"learning_rate", "mean", "std", "n", "at_edge"}
    assert set(record["seconds"]) == {"total", "train", "eval"}
    runs = record["runs"]
    order = [(run["seed"], run["learning_rate"]) for run in runs]
    assert order == [(0, 0.001), (0, 0.003), (1, 0.001), (1, 0.003)]
    for i, one in enumerate(runs):
        assert list(one) == ["seed", "learning_rate", "status", "diverged_step", "last", "best", "delta"]
        assert (one["status"], one["diverged_step"]) == ("finished", None)
        selected = one["learning_rate"] == record["selected"]["learning_rate"]
        assert one["delta"] == (f"deltas/seed{i // 2}-lr{one['learning_rate']}.safetensors" if selected else None)
        for kind in ("last", "best"):
            assert list(one[kind]) == ["epoch", "train_loss", "eval_loss", "accuracy"]
            own = predictions[f"{kind}/validation"][i // 2, i % 2]
            assert one[kind]["accuracy"] == np.mean(own == predictions["labels/validation"])
        assert one["last"]["epoch"] == 2 and one["best"]["epoch"] in (1, 2)
    assert about == {
        "seeds": "[0, 1]",
        "learning_rates": "[0.001, 0.003]",
        "labels": '["entailment", "not_entailment"]',
    }
    kinds = {name: (array.dtype, array.shape) for name, array in predictions.items()}
    one = (np.dtype(np.int32), (2, 2, 384))
    labels = (np.dtype(np.int32), (384,))
    assert kinds == {"last/validation": one, "best/validation": one, "labels/validation": labels}


def test_cost_json_says_what_the_cell_took(trained):
    cost = results.read_json(trained[0] / "rte" / "layernorms" / "cost.json")
    told = {name: cost[name] for name in ("format", "parts", "devices", "batch_parts", "at_once", "recompute")}
    assert told == {
        **{"format": 1, "parts": 1, "devices": 4, "batch_parts": 1},
        **{"at_once": {"seeds": 1, "rates": 1}, "recompute": False},
    }
    assert 0 < cost["tokens"]["real"] <= cost["tokens"]["computed"]
    assert cost["waste"] == round(1 - cost["tokens"]["real"] / cost["tokens"]["computed"], 4)
    assert cost["memory"]["planned"] > 0 and cost["memory"]["peak"] > 2**24


def test_out_of_memory_halves_what_is_done_at_once_and_says_so(model, place, monkeypatch):
    whole, failed = study.CellTraining.run, []

    def short(own, state):
        if not failed:
            failed.append(own)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return whole(own, state)

    monkeypatch.setattr(study.CellTraining, "run", short)
    said = run(model, place / "short", epochs=1)
    assert "rte/layernorms: out of memory; again with 1 × 1 runs at once, " in said
    assert results.is_done(place / "short" / "rte" / "layernorms")
    monkeypatch.setattr(study.CellTraining, "run", lambda *_: (_ for _ in ()).throw(ValueError("another error")))
    with pytest.raises(ValueError, match="another error"):
        run(model, place / "other error", epochs=1)


def test_metrics_jsonl_has_a_line_a_run_and_epoch(trained):
    record, lines, *_ = cell(trained[0], "rte", "layernorms")
    fields = ["seed", "learning_rate", "epoch", "step", "train_loss", "eval_loss", "accuracy", "seconds"]
    assert [list(line) for line in lines] == [fields] * 8
    runs = [(0, 0.001), (0, 0.003), (1, 0.001), (1, 0.003)]
    order = [(line["epoch"], line["step"], line["seed"], line["learning_rate"]) for line in lines]
    assert order == [(1, 5, *run) for run in runs] + [(2, 10, *run) for run in runs]
    for own, line in zip(record["runs"], lines[4:], strict=True):
        assert own["last"] == {name: line[name] for name in own["last"]}


def test_another_workdir_gives_the_same_bytes(trained, model, place):
    workdir, other = trained[0], place / "other"
    run(model, other)
    for name in ("trained.json", "predictions.safetensors"):
        path = Path("rte", "layernorms", name)
        assert (workdir / path).read_bytes() == (other / path).read_bytes()
    (mine, mine_lines, *_), (theirs, their_lines, *_) = (cell(w, "rte", "layernorms") for w in (workdir, other))
    assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}
    assert [{**line, "seconds": 0} for line in mine_lines] == [{**line, "seconds": 0} for line in their_lines]
    assert (workdir / "config.json").read_bytes() == (other / "config.json").read_bytes()


def test_tables_print_the_row(trained):
    workdir, _ = trained
    done = command("analyze.py", "tables", f"--workdir={workdir}")
    assert (done.returncode, done.stderr) == (0, "")
    selected = cell(workdir, "rte", "layernorms")[0]["selected"]
    row = next(line for line in done.stdout.splitlines() if line.startswith("| layernorms "))
    assert f"{100 * selected['mean']:.1f} ± {100 * selected['std']:.1f}" in row


def test_mnli_has_both_development_sets(model, tmp_path):
    run(model, tmp_path, tasks=("mnli",), settings=("frozen",), epochs=1)
    record, lines, predictions, about = cell(tmp_path, "mnli")
    assert record["eval_examples"] == {"validation_matched": 384, "validation_mismatched": 384}
    metrics = ["train_loss", "eval_loss", "accuracy", "accuracy_mismatched"]
    assert list(record["runs"][0]["last"]) == ["epoch", *metrics]
    assert list(lines[0]) == ["seed", "learning_rate", "epoch", "step", *metrics, "seconds"]
    for split in record["eval_examples"]:
        assert predictions[f"last/{split}"].shape == (2, 2, 384)
        assert set(np.unique(predictions[f"last/{split}"])) <= {0, 1, 2}
    assert record["runs"][3]["last"]["accuracy_mismatched"] == np.mean(
        predictions["last/validation_mismatched"][1, 1] == predictions["labels/validation_mismatched"]
    )
    assert about["labels"] == '["entailment", "neutral", "contradiction"]'


def test_stsb_is_regression(model, tmp_path):
    run(model, tmp_path, tasks=("stsb",), settings=("frozen",), report_epoch="best")
    record, _, predictions, about = cell(tmp_path, "stsb")
    assert (record["metric"], record["report_epoch"]) == ("pearson", "best")
    assert record["selected"] == selection.select(record["runs"], "pearson", "best")
    assert list(record["runs"][0]["last"]) == ["epoch", "train_loss", "eval_loss", "pearson", "spearman"]
    assert {name: array.dtype for name, array in predictions.items()} == dict.fromkeys(predictions, np.float32)
    scores, labels = predictions["last/validation"][1, 0], predictions["labels/validation"]
    last = record["runs"][2]["last"]
    np.testing.assert_allclose(last["pearson"], np.corrcoef(scores, labels)[0, 1], atol=1e-6)
    np.testing.assert_allclose(last["eval_loss"], np.mean((scores - labels) ** 2), rtol=1e-5)
    assert about["labels"] == "[]"


def test_a_diverging_rate_leaves_its_neighbours_alone(trained, model, tmp_path):
    said = run(model, tmp_path, learning_rates=(1e-3, 3e-3, 1e30))
    record, lines, predictions, _ = cell(tmp_path, "rte", "layernorms")
    whole = {(run["seed"], run["learning_rate"]): run for run in cell(trained[0], "rte", "layernorms")[0]["runs"]}
    nothing = {"train_loss": None, "eval_loss": None, "accuracy": None}
    for run_ in record["runs"]:
        if run_["learning_rate"] == 1e30:
            assert run_["status"] == "diverged" and 2 <= run_["diverged_step"] <= 5
            assert run_["last"] == {"epoch": 2, **nothing}
            continue
        other = whole[run_["seed"], run_["learning_rate"]]
        assert (run_["status"], run_["diverged_step"]) == ("finished", None)
        for kind in ("last", "best"):
            assert list(run_[kind]) == list(other[kind])
            np.testing.assert_allclose(list(run_[kind].values()), list(other[kind].values()), atol=1e-5, rtol=0)
    assert (predictions["last/validation"][:, 2] == -1).all() and (predictions["last/validation"][:, :2] >= 0).all()
    assert record["selected"]["learning_rate"] in (1e-3, 3e-3)
    assert [line["accuracy"] is None for line in lines] == [False, False, True] * 4
    for seed in (0, 1):
        assert f"warning: rte/layernorms: seed {seed}, rate 1e+30 diverged at step " in said
    done = command("analyze.py", "tables", f"--workdir={tmp_path}")
    assert "†" in next(line for line in done.stdout.splitlines() if line.startswith("| layernorms "))
    assert "2 of 6" in done.stdout and "diverged" in done.stdout


def test_a_development_set_that_is_missing_is_said(model, tmp_path):
    data = tmp_path / "data"
    columns = {"premise": ["who is"] * 20, "hypothesis": ["is it"] * 20, "label": [0, 1, 2, 1] * 5}
    for split in ("train", "validation_matched"):
        tiny.write_split(data, "mnli", split, columns)
    said = run(model, tmp_path / "w", dry_run=True, tasks=("mnli",), settings=("frozen",), **{"data.path": str(data)})
    assert "warning: mnli has no validation_mismatched: its metrics are null\n" in said
    assert not (tmp_path / "w").exists()


BAD = {
    "unknown task": (["--config.tasks=rtee"], "tasks: 'rtee' is not known; allowed are cola, sst2, mrpc, stsb, qqp, "),
    "unknown task of glue.py": (["--config=configs/glue.py:rtee,full"], "tasks: 'rtee' is not known"),
    "unknown setting": (["--config.settings=layernorm"], "settings: 'layernorm' is not known; allowed are full, fro"),
    "unknown field": (["--config.sedes=(0,)"], "--config.sedes: there is no such field; did you mean 'seeds'?"),
    "unknown field of a group": (["--config.model.nme=x"], "--config.model.nme: there is no such field; did you mean"),
    "unknown flag": (["--wrokdir=x"], "Unknown command line flag 'wrokdir'"),
    "no flag": (["more"], "'more' is not a flag"),
    "single_norm too deep": (["--config.settings=single_norm_7"], "settings: 'single_norm_7': the model has 2 blocks"),
    "too many outliers": (["--config.settings=outliers_5000"], "settings: 'outliers_5000': a LayerNorm has 64 scalars"),
    "no data folder": (["--config.data.path={place}/none"], "data.path: no folder '{place}/none'"),
    "no data on the hub": (["--config.data.path=none"], "data.path: 'none', rte: HF_HUB_OFFLINE is set; the cache d"),
    "data is a file": (["--config.data.path={place}/a_file"], "data.path: no folder '{place}/a_file'"),
    "data is empty": (["--config.data.path={place}/empty"], "data.path: '{place}/empty' has no rte/SPLIT-*.parquet"),
    "data is damaged": (["--config.data.path={place}/torn"], "data.path: '{place}/torn', rte: "),
    "no such split": (["--config.data.eval_split=tset"], "data.eval_split: 'synthetic' has no 'tset' of rte; it has "),
    "no model folder": (["--config.model.name={place}/none"], "model.name: no folder '{place}/none'"),
    "no model on the hub": (["--config.model.name=none"], "model.name: 'none' is no folder, and the hub"),
    "model is a file": (["--config.model.name={place}/a_file"], "model.name: no folder '{place}/a_file'"),
    "model is empty": (["--config.model.name={place}/empty"], "model.name: {place}/empty has no config.json"),
    "model cut short": (["--config.model.name={place}/short"], "model.name: {place}/short/model.safetensors is dam"),
    "tokenizer missing": (["--config.model.name={place}/mute"], "model.name: {place}/mute has no tokenizer"),
    "too long": (["--config.max_length=65"], "max_length: 65; the model has 64 positions"),
    "another study": (["--workdir={place}/theirs"], "workdir: {place}/theirs holds another study: epochs is 7 there"),
    "broken config.json": (["--workdir={place}/broken"], "{place}/broken/config.json is not whole JSON"),
    "workdir is a file": (["--workdir={place}/a_file"], "workdir: {place}/a_file is a file"),
    "workdir below a file": (["--workdir={place}/a_file/w"], "workdir: {place}/a_file is a file"),
    "task is a file": (["--workdir={place}/blocked"], "workdir: {place}/blocked/rte is a file"),
    "no learning rate": (["--config.learning_rates=()"], "learning_rates: is empty"),
    "negative rate": (["--config.learning_rates=(-1.0,)"], "learning_rates: -1.0; allowed are numbers above 0"),
    "rate is text": (["--config.learning_rates=('a',)"], "learning_rates: 'a'; allowed are numbers above 0"),
    "seed twice": (["--config.seeds=(0,0)"], "seeds: 0 is given twice"),
    "negative epochs": (["--config.epochs=-1"], "epochs: -1; allowed are numbers from 0"),
    "wrong type": (["--config.epochs=many"], "flag --config.epochs=many: "),
    "wrong type of a list": (["--config.seeds=many"], "seeds: 'many'; allowed are whole numbers from 0"),
    "wrong truth": (["--config.train_pooler=maybe"], "flag --config.train_pooler=maybe: "),
    "value missing": (["--config.epochs"], "Missing value for flag --config.epochs"),
    "rules no rules": (['--config.rules={{"a":1}}'], "rules.a: 1 is not a list of (regex, label) pairs"),
    "no config file": (["--config={place}/none.py"], "--config={place}/none.py: there is no such file"),
    "config is a folder": (["--config=configs"], "--config=configs: there is no such file"),
    "config raises": (["--config={place}/raises.py"], "--config={place}/raises.py: line 2: no such luck"),
    "config is no Python": (["--config={place}/syntax.py"], "--config={place}/syntax.py: line 3: SyntaxError: "),
    "config imports nothing": (
        ["--config={place}/lost.py"],
        "--config={place}/lost.py: line 2: No module named 'no_such_module'",
    ),
    "config misnames": (["--config={place}/misnamed.py"], "--config={place}/misnamed.py: line 3: name 'nme' is not d"),
    "config imports what raises": (
        ["--config={place}/imports.py"],
        "--config={place}/imports.py: {place}/helper_of_tests.py, line 3: division by zero",
    ),
    "config imports no Python": (
        ["--config={place}/imports_text.py"],
        "--config={place}/imports_text.py: {place}/text_of_tests.py, line 1: SyntaxError: ",
    ),
    "config raises from another error": (
        ["--config={place}/twice.py"],
        "--config={place}/twice.py: line 5: seeds are wanted",
    ),
    "config reads nothing": (
        ["--config={place}/reads.py"],
        "--config={place}/reads.py: line 2: [Errno 2] No such file",
    ),
    "config is no config": (["--config={place}/returns.py"], "--config={place}/returns.py: get_config() gives no"),
    "config has a typo": (["--config={place}/typo.py"], '--config={place}/typo.py: line 6: Key "sedes" does not exist'),
    "config has a None": (["--config={place}/none_field.py"], "epochs: is None; give a value"),
    "config lacks fields": (["--config={place}/scratch.py"], "model: the config lacks this field"),
    "glue without a cell": (["--config=configs/glue.py:rte"], "--config=configs/glue.py:rte: give TASK,SETTING"),
    "token without a cell": (["--config=configs/token.py:pos"], "--config=configs/token.py:pos: give pos or ner,SET"),
    "ragged corpus": (
        ["--config.tasks=pos", "--config.data.path={place}/ragged"],
        "data.path: {place}/ragged/train.txt, line 3: 3 columns, not 2: 'c Z more'",
    ),
    "corpus of another scheme": (
        ["--config.tasks=ner", "--config.data.path={place}/scheme"],
        "data.path: train, sentence 1: tag 'S-X' is of an unknown scheme; known are IOB1 and IOB2",
    ),
    "corpus is empty": (
        ["--config.tasks=ner", "--config.data.path={place}/no_words"],
        "data.path: {place}/no_words/train.txt: no sentences",
    ),
    "corpus is another folder": (
        ["--config.tasks=pos", "--config.data.path={place}/empty"],
        "data.path: '{place}/empty' has no 'train' of pos; it has nothing",
    ),
    "table3 without a number": (["--config=configs/table3.py:x"], "--config=configs/table3.py:x: give the model's num"),
    "no workdir": (["--workdir="], "--workdir is missing"),
}
BASED = "from configs import base\n\n\ndef get_config():\n    c = base.get_config()\n    {}\n    return c\n"
OWN = "[('.*/query/bias', 'trainable'), ('bert/.*', 'frozen'), ('classifier/.*', 'trainable')]"
HERE = "import sys\nfrom pathlib import Path\nsys.path.insert(0, str(Path(__file__).parent))\n"
CONFIGS = {
    "raises": "def get_config():\n    raise RuntimeError('no such\\nluck')\n",
    "syntax": "import os\n\ndef get_config(:\n    pass\n",
    "lost": "import os\nimport no_such_module\n",
    "misnamed": "def get_config():\n    value = 1\n    return value + nme\n",
    "imports": f"{HERE}import helper_of_tests\n\ndef get_config():\n    return helper_of_tests.half(0)\n",
    "helper_of_tests": "def half(x):\n    one = 1\n    return one / x\n",
    "imports_text": f"{HERE}import text_of_tests\n\ndef get_config():\n    pass\n",
    "text_of_tests": "these are words\n",
    "twice": (
        "def get_config():\n    try:\n        return {}['seeds']\n    except KeyError as error:\n"
        "        raise ValueError('seeds are wanted') from error\n"
    ),
    "reads": "def get_config():\n    return open('/none/of/it')\n",
    "returns": "def get_config():\n    return None\n",
    "typo": BASED.format("c.sedes = (0,)"),
    "none_field": BASED.format("c.epochs = None"),
    "scratch": "from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({'epochs': 'x'})\n",
    "own": BASED.format(f"c.rules, c.settings = {{'queries': {OWN}}}, ('queries',)"),
}


def bad_things(place):
    """What the bad commands name."""
    (place / "a_file").write_text("not a folder")
    (place / "empty").mkdir()
    (place / "torn" / "rte").mkdir(parents=True)
    for split in ("train", "validation"):
        (place / "torn" / "rte" / f"{split}-00000-of-00001.parquet").write_text("not parquet")
    for name, text in {"ragged": "a X\nb Y\nc Z more\n", "scheme": "a O\nb S-X\n", "no_words": "\n"}.items():
        (place / name).mkdir()
        (place / name / "train.txt").write_text(text)
    weights = tiny.write_checkpoint(place / "short") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tiny.write_checkpoint(place / "mute") / "vocab.txt").unlink()
    (place / "theirs").mkdir()
    (place / "broken").mkdir()
    (place / "broken" / "config.json").write_text("{")
    (place / "blocked").mkdir()
    (place / "blocked" / "rte").write_text("not a folder")
    for name, text in CONFIGS.items():
        (place / f"{name}.py").write_text(text)


@pytest.fixture(scope="module")
def outcomes(place, words, trained):
    """Each bad command, and the good ones that train nothing: `(exit code, stdout, stderr)`, by name."""
    bad_things(place)
    record = json.loads((trained[0] / "config.json").read_text())
    (place / "theirs" / "config.json").write_text(json.dumps({**record, "epochs": 7}))
    lines = {}
    for name, (arguments, _) in BAD.items():
        own = [argument.format(place=place) for argument in arguments]
        rest = words[2:] if not any(argument.startswith("--config=") for argument in own) else []
        line = ["train.py", "--config=configs/base.py", f"--workdir={place}/runs/bad", *rest]
        names = {argument.partition("=")[0] for argument in own}  # a list that is given twice is joined
        lines[name] = [part for part in line if part.partition("=")[0] not in names] + own
    lines["nothing"] = ["train.py"]
    lines["prepare"] = [part for part in (*words, "--prepare") if not part.startswith("--workdir")]
    lines["again"] = [*words, f"--workdir={trained[0]}"]
    lines["dry run"] = [*words, f"--workdir={place}/runs/dry", "--dry_run"]
    changed = overrides(**{"model.name": place / "model", "data.path": "synthetic", "max_length": 32})
    lines["own setting"] = ["train.py", f"--config={place}/own.py", f"--workdir={place}/dry", "--dry_run", *changed]
    before = snapshot(place)
    folder = place.parent / f"{place.name}-said"
    for number in range(len(lines)):
        (folder / str(number)).mkdir(parents=True)
    jobs = [(str(folder / str(number)), line) for number, line in enumerate(lines.values())]
    environment = os.environ | DEVICES | {"LNFLAX_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # of the config files
    started = [sys.executable, "-c", FORKS]
    subprocess.run(started, input=json.dumps(jobs), cwd=ROOT, env=environment, text=True, check=True)
    after = snapshot(place)
    changed_files = sorted(name for name in before | after if before.get(name, "") != after.get(name, ""))
    assert not changed_files, "commands that train nothing have written or lost files"
    said = [tuple((Path(own) / name).read_text("utf-8") for name in ("code", "out", "err")) for own, _ in jobs]
    return dict(zip(lines, said, strict=True))


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_nothing_is_written(outcomes, place, name):
    code, out, err = outcomes[name]
    assert err.startswith(f"train.py: {BAD[name][1].format(place=place)}")
    assert err.count("\n") == 1 and err.endswith("\n") and len(err) < 400
    assert (code, out) == ("2", "")


def test_no_argument_at_all(outcomes):
    assert outcomes["nothing"] == ("2", "", "train.py: --config is missing\n")


def test_the_same_command_again_does_nothing(outcomes):
    code, out, err = outcomes["again"]
    assert (code, err) == ("0", "")
    assert "rte/layernorms: done; 2 seeds × 2 rates" in out and "accuracy" not in out


def test_prepare_wants_no_workdir_and_leaves_folders_alone(outcomes, model):
    code, out, err = outcomes["prepare"]
    assert (code, err) == ("0", "")
    assert out.splitlines() == [
        f"model {model}: a folder, taken as it is",
        "data synthetic, rte: made without the hub",
        "all is there; nothing was to be fetched",
    ]


def test_dry_run_says_the_counts_and_the_plan(outcomes):
    code, out, err = outcomes["dry run"]
    assert (code, err) == ("0", "")
    assert next(line for line in out.splitlines() if line.startswith("layernorms")).split()[:3] == [
        *("layernorms", "8", "256")
    ]
    assert "rte/layernorms: to do; 2 seeds × 2 rates (1×1 on each of 4 devices), 2 epochs × 5 steps of 16" in out


def test_a_config_adds_a_setting(outcomes):
    code, out, err = outcomes["own setting"]
    assert (code, err) == ("0", "")
    assert next(line for line in out.splitlines() if line.startswith("queries")).split()[:3] == ["queries", "2", "64"]


def test_a_bad_command_by_itself(place):
    done = command("train.py", "--config=configs/base.py", "--config.sedes=(0,)", f"--workdir={place}/runs/bad")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.py: --config.sedes: there is no such field; did you mean 'seeds'?\n"


def test_a_bad_command_where_jax_looks_for_its_devices_itself(place, model):
    """That there is no accelerator is no news, and stays off the one line."""
    fields = ("--config=configs/base.py", f"--config.model.name={model}", f"--workdir={place}/runs/bad")
    done = command("train.py", *fields, environment={"JAX_PLATFORMS": ""})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.py: max_length: 128; the model has 64 positions\n"


def test_predictions_open_with_safetensors_alone(trained):
    path = trained[0] / "rte" / "layernorms" / "predictions.safetensors"
    with safetensors.safe_open(path, framework="np") as file:
        assert set(file.keys()) == {"last/validation", "best/validation", "labels/validation"}
        assert file.metadata()["seeds"] == "[0, 1]"
