import errno
import json
import subprocess
import sys

import numpy as np
import pytest

from lnflax import results, storage
from lnflax.errors import InputError


def finished(task, setting):
    return {
        "format": 1,
        "task": task,
        "setting": setting,
        "metric": "accuracy",
        "report_epoch": "last",
        "ratio": 0.5,
        "eval_examples": {"validation": 10},
        "runs": [],
    }


def test_json_is_strict_utf8_and_in_the_order_given(tmp_path):
    value = {
        "format": results.FORMAT,
        "name": "naïve ±",
        "loss": float("nan"),
        "nested": {"inf": [float("inf"), -float("inf"), 1.5], "pair": (1, 2)},
        "scalar": np.float32(0.5),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "array": np.array([[1.0, np.nan], [2.0, np.inf]]),
        "rate": 1e-05,
        "none": None,
    }
    results.write_json(tmp_path / "deep" / "a.json", value)
    text = (tmp_path / "deep" / "a.json").read_text(encoding="utf-8")
    assert text.startswith('{\n  "format": 1,\n  "name": "naïve ±",\n  "loss": null,\n')
    assert "NaN" not in text and "Infinity" not in text and text.endswith("}\n")
    assert results.read_json(tmp_path / "deep" / "a.json") == {
        "format": 1,
        "name": "naïve ±",
        "loss": None,
        "nested": {"inf": [None, None, 1.5], "pair": [1, 2]},
        "scalar": 0.5,
        "count": 3,
        "flag": True,
        "array": [[1.0, None], [2.0, None]],
        "rate": 1e-05,
        "none": None,
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write_json(path, {"format": 1, "value": "old"})

    def broken(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", broken)
    with pytest.raises(storage.StorageError, match="No space left on device; free some space, give the same command"):
        results.write_json(path, {"format": 1, "value": "new"})
    assert results.read_json(path)["value"] == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SHA256SUMS", "a.json"]


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError):
        results.write_json(tmp_path / "a.json", {"format": 1, "value": {1, 2}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        ('{"format": 1, "runs": [', "is not whole JSON"),
        ("", "is not whole JSON"),
        ('{"format": 1, "loss": NaN}', "NaN is not JSON"),
        ('{"format": 2}', "has format 2; this version reads format 1"),
        ("{}", "has format None"),
        ("[1]", "has format None"),
    ],
)
def test_a_bad_json_file_is_one_line_that_names_it(tmp_path, content, message):
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        results.read_json(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "rte").write_text("a file")
    with pytest.raises(InputError, match="a file is in its place"):
        results.write_json(tmp_path / "rte" / "full" / "results.json", {"format": 1})
    assert (tmp_path / "rte").read_text() == "a file"


def test_a_folder_where_a_file_should_be(tmp_path):
    (tmp_path / "results.json").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        results.write_json(tmp_path / "results.json", {"format": 1})
    with pytest.raises(InputError, match="is a folder"):
        results.read_json(tmp_path / "results.json")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SHA256SUMS", "results.json"]


def test_metrics_are_lines(tmp_path):
    cell = results.cell_folder(tmp_path, "rte", "full")
    rows = [{"seed": 0, "loss": float("nan")}, {"seed": 1, "loss": np.float32(0.25)}, {"seed": 2, "loss": 1.0}]
    results.write_metrics(cell, rows[:1])
    results.write_metrics(cell, rows)
    text = (cell / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == '{"seed": 0, "loss": null}\n{"seed": 1, "loss": 0.25}\n{"seed": 2, "loss": 1.0}\n'
    assert results.read_metrics(cell)[1] == {"seed": 1, "loss": 0.25}
    results.write_metrics(cell, [])
    assert results.read_metrics(cell) == []


def test_a_cut_last_line_of_metrics_is_left_out_and_a_bad_one_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"seed": 0}\n{"seed": 1', encoding="utf-8")
    assert results.read_metrics(tmp_path) == [{"seed": 0}]
    (tmp_path / "metrics.jsonl").write_text('{"seed": 0}\nnonsense\n{"seed": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.jsonl is not whole: line 2 is not JSON"):
        results.read_metrics(tmp_path)


def test_predictions_come_back_whole(tmp_path):
    scores = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"last/validation": scores.T, "labels/validation": np.array([1, 0], np.int32)}
    metadata = {"seeds": "[0, 1]", "learning_rates": "[0.001]", "labels": "näh"}
    results.write_predictions(tmp_path, arrays, metadata)
    read, read_metadata = results.read_predictions(tmp_path)
    assert read_metadata == metadata and set(read) == set(arrays)
    np.testing.assert_array_equal(read["last/validation"], [[0, 3], [1, 4], [2, 5]])
    assert read["labels/validation"].dtype == np.int32
    with pytest.raises(TypeError, match="text to text"):
        results.write_predictions(tmp_path, arrays, {"seeds": [0, 1]})


def test_predictions_are_the_same_bytes_in_every_process(tmp_path):
    program = (
        "import pathlib, sys, numpy as np; from lnflax import results;"
        "results.write_predictions(pathlib.Path(sys.argv[1]), {'a': np.zeros(3), 'b': np.ones(2, np.int32)},"
        "{name: name for name in 'pqrstuvw'})"
    )
    files = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
        files.append((tmp_path / "predictions.safetensors").read_bytes())
    assert files[0] == files[1]
    end = 8 + int.from_bytes(files[0][:8], "little")
    assert list(json.loads(files[0][8:end])["__metadata__"]) == list("pqrstuvw")


def test_broken_predictions_are_one_line(tmp_path):
    with pytest.raises(InputError, match=r"predictions\.safetensors is not there"):
        results.read_predictions(tmp_path)
    results.write_predictions(tmp_path, {"a": np.zeros(100)}, {})
    path = tmp_path / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(InputError, match="is not what was written: its sum is not that of SHA256SUMS"):
        results.read_predictions(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()  # as of a folder that another program wrote
    with pytest.raises(InputError, match="is not a whole safetensors file"):
        results.read_predictions(tmp_path)


def test_a_study_is_read_in_the_configs_order(tmp_path):
    config = {"format": 1, "tasks": ["rte", "cola"], "settings": ["frozen", "full"]}
    results.write_json(tmp_path / "config.json", config)
    results.write_json(tmp_path / "versions.json", {"format": 1, "jax": "0.10.2"})
    for task, setting in [("cola", "full"), ("rte", "full"), ("rte", "b"), ("rte", "a"), ("rte", "frozen")]:
        cell = results.cell_folder(tmp_path, task, setting)
        results.write_json(cell / "results.json", finished(task, setting))
    for task, setting in [("cola", "frozen"), ("aside", "full")]:
        results.write_json(results.cell_folder(tmp_path, task, setting) / "trained.json", {"format": 1})
    (tmp_path / "figures" / "png").mkdir(parents=True)
    study = results.read_study(tmp_path)
    order = [("rte", "frozen"), ("rte", "full"), ("rte", "a"), ("rte", "b"), ("cola", "full")]
    assert [(cell["task"], cell["setting"]) for cell in study.cells] == order
    assert study.unfinished == (("cola", "frozen"), ("aside", "full"))
    assert study.config == config and study.versions["jax"] == "0.10.2"
    assert results.is_done(tmp_path / "rte" / "full") and not results.is_done(tmp_path / "cola" / "frozen")


def test_a_workdir_that_cannot_be_a_study(tmp_path):
    with pytest.raises(InputError, match="is not there"):
        results.read_study(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        results.read_study(tmp_path / "file")
    with pytest.raises(InputError, match=r"config\.json is not there"):
        results.read_study(tmp_path)
    results.write_json(tmp_path / "config.json", {"format": 1, "tasks": ["rte"], "settings": ["full"]})
    results.write_json(tmp_path / "rte" / "full" / "trained.json", {"format": 1})
    with pytest.raises(InputError, match="holds no finished cell; begun: rte/full"):
        results.read_study(tmp_path)


def test_results_of_another_cell_or_without_their_fields(tmp_path):
    path = tmp_path / "rte" / "full" / "results.json"
    results.write_json(path, finished("cola", "full"))
    with pytest.raises(InputError, match="is the result of cola/full: was it moved"):
        results.read_results(tmp_path, "rte", "full")
    results.write_json(path, {"format": 1, "task": "rte", "setting": "full", "metric": "accuracy"})
    with pytest.raises(InputError, match="lacks report_epoch, ratio, eval_examples, runs"):
        results.read_results(tmp_path, "rte", "full")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_cell_stays_inside_the_run_folder(tmp_path, name):
    with pytest.raises(InputError, match="cannot be the name of a folder"):
        results.cell_folder(tmp_path, "rte", name)
