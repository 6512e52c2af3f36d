"""The GLUE server's submission: names, headers, what a class is called there, and what stands for no model."""

import dataclasses
import hashlib
import io
import zipfile

import numpy as np
import pytest

from lnflax import glue_server, serving, tasks, tuned
from lnflax.errors import InputError
from lnflax.tasks import TASKS
from tests import fake_hub, tiny

FILES = ["CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "QNLI.tsv"]
FILES += ["RTE.tsv", "WNLI.tsv", "AX.tsv"]
COUNTS = [1063, 1821, 1725, 1379, 390965, 9796, 9847, 5463, 3000, 146, 1104]
CONSTANTS = ["0", "0", "0", "0.000", "0", "neutral", "neutral", "not_entailment", "not_entailment", "0", "neutral"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tuned.open_base(str(tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")))


def model(base, task):
    """An untrained one of a task."""
    own, task = tuned.load(base), TASKS[task]
    outputs = task.num_outputs
    head = {
        "classifier/kernel": tiny.draw(f"{task.name}/kernel", (32, outputs), 1.0),
        "classifier/bias": np.zeros(outputs, np.float32),
    }
    shape = dataclasses.replace(own.shape, num_outputs=outputs)
    return tuned.Model(base, shape, {**own.params, **head}, task.labels, task.tagged, task, None)


def write_tests(folder, task, split, texts, order=None):
    """A test set as the hub has it: columns, `label` -1, `idx`."""
    columns = TASKS["mnli" if task == "ax" else task].columns
    order = list(range(len(texts))) if order is None else order
    table = {name: [texts[i][number] for i in order] for number, name in enumerate(columns)}
    tiny.write_split(folder, task, split, {**table, "label": [-1] * len(texts), "idx": order})


TEXTS = [("the film", "is old"), ("", "this"), ("never", "but why"), ("a", "b"), ("some are", "no")]


@pytest.fixture
def few(monkeypatch):
    """The server as if its sets were of five examples."""
    small = tuple(own._replace(examples=5) for own in glue_server.TABLES)
    monkeypatch.setattr(glue_server, "TABLES", small)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "glue"
    for task, split in (("rte", "test"), ("stsb", "test"), ("mnli", "test_matched"), ("ax", "test")):
        write_tests(folder, task, split, TEXTS, order=[3, 1, 0, 4, 2])
    write_tests(folder, "mnli", "test_mismatched", TEXTS[::-1])
    write_tests(folder, "cola", "test", [(f"{first} {second}",) for first, second in TEXTS])
    return folder


def rows(path):
    text = path.read_text("utf-8")
    assert text.endswith("\n")
    return text.splitlines()


def test_the_tables_are_the_servers():
    assert [own.file for own in glue_server.TABLES] == FILES
    assert [own.examples for own in glue_server.TABLES] == COUNTS
    assert [own.constant for own in glue_server.TABLES] == CONSTANTS


def test_without_models_of_the_tasks_all_is_constant(tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "predict", stand_in)
    said = glue_server.submit({}, "nowhere/at-all", tmp_path / "out", 16)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([*FILES, "submission.zip"])
    for file, count, constant in zip(FILES, COUNTS, CONSTANTS, strict=True):
        assert rows(tmp_path / "out" / file) == ["index\tprediction", *(f"{i}\t{constant}" for i in range(count))]
    assert said.splitlines()[4] == "QQP.tsv: 390,965 times 0: no model of qqp"
    assert said.splitlines()[-1] == f"{tmp_path / 'out' / 'submission.zip'} is what the server takes"


def stand_in(models, given, *, max_length):
    """What a text alone decides: the number of its letters."""
    for own in given:
        task, count = models[own["delta"]].task, len(own["text"]) + len(own["pair"] or "")
        yield {"label": task.labels[count % len(task.labels)]} if task.labels else {"score": count - 3.14159}


def test_predictions_are_in_the_order_of_idx_and_in_the_servers_words(base, data, few, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "predict", stand_in)
    models = {f"my {task}": model(base, task) for task in ("mnli", "rte", "stsb", "cola")}
    said = glue_server.submit(models, str(data), tmp_path / "out", 16)
    assert [len(a) + len(b) for a, b in TEXTS] == [14, 4, 12, 2, 10]
    head, found = "index\tprediction", {file: rows(tmp_path / "out" / file) for file in FILES}
    assert found["RTE.tsv"] == [head, *(f"{i}\tentailment" for i in range(5))]
    assert found["STS-B.tsv"] == [head, "0\t5.000", "1\t0.858", "2\t5.000", "3\t0.000", "4\t5.000"]
    named = ["contradiction", "neutral", "entailment", "contradiction", "neutral"]
    assert found["MNLI-m.tsv"] == found["AX.tsv"] == [head, *(f"{i}\t{name}" for i, name in enumerate(named))]
    assert found["MNLI-mm.tsv"] == [head, *(f"{i}\t{name}" for i, name in enumerate(named[::-1]))]
    assert found["CoLA.tsv"] == [head, "0\t1", "1\t1", "2\t1", "3\t1", "4\t1"]
    assert found["WNLI.tsv"] == [head, *(f"{i}\t0" for i in range(5))]
    assert said.splitlines()[:3] == [
        *("CoLA.tsv: 5 predictions of my cola", "SST-2.tsv: 5 times 0: no model of sst2"),
        "MRPC.tsv: 5 times 0: no model of mrpc",
    ]
    assert said.splitlines()[10] == "AX.tsv: 5 predictions of my mnli"


def test_the_zip_has_the_tables_flat_and_is_always_the_same(base, data, few, tmp_path):
    models = {"r": model(base, "rte"), "s": model(base, "stsb")}
    sums = []
    for name in ("one", "two"):
        glue_server.submit(models, str(data), tmp_path / name, 16)
        content = (tmp_path / name / "submission.zip").read_bytes()
        sums.append(hashlib.sha256(content).hexdigest())
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            assert file.namelist() == FILES
            for table in FILES:
                assert file.read(table) == (tmp_path / name / table).read_bytes()
    assert sums[0] == sums[1]


def test_predictions_are_what_predict_says(base, data, few, tmp_path):
    models = {"r": model(base, "rte"), "s": model(base, "stsb")}
    glue_server.submit(models, str(data), tmp_path / "out", 16)
    answers = list(serving.predict({"": models["r"]}, TEXTS, max_length=16))
    assert rows(tmp_path / "out" / "RTE.tsv")[1:] == [f"{i}\t{own['label']}" for i, own in enumerate(answers)]
    scores = [own["score"] for own in serving.predict({"": models["s"]}, TEXTS, max_length=16)]
    found = [float(row.split("\t")[1]) for row in rows(tmp_path / "out" / "STS-B.tsv")[1:]]
    np.testing.assert_allclose(found, np.clip(scores, 0, 5), atol=6e-4)


def test_what_is_no_submission_is_refused_and_nothing_is_written(base, data, few, tmp_path):
    rte = model(base, "rte")
    for models, reason in (
        ({"a": rte, "b": rte}, "--glue: 'a' and 'b' are both of rte; give one a task"),
        ({"p": model(base, "pos")}, "--glue: 'p' tags words, which is no task of GLUE's"),
        ({"": tuned.load(base)}, "--glue: the base alone is of no task; give the deltas of GLUE's tasks"),
        ({"q": model(base, "qnli")}, "data.path: .* has no qnli/"),
        ({"r": dataclasses.replace(rte, labels=("a", "b", "c"))}, "--glue: 'r' has the labels"),
    ):
        with pytest.raises(InputError, match=reason):
            glue_server.submit(models, str(data), tmp_path / "out", 16)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x").touch()
    with pytest.raises(InputError, match="there is there and not empty; give a new folder"):
        glue_server.submit({"r": rte}, str(data), tmp_path / "there", 16)
    assert not (tmp_path / "out").exists()


def test_a_set_of_another_size_is_refused(base, data, tmp_path):
    reason = "rte test: 5 examples; the server wants 3,000"
    with pytest.raises(InputError, match=reason):
        glue_server.submit({"r": model(base, "rte")}, str(data), tmp_path / "out", 16)


def test_an_answer_that_is_none_is_refused(base, data, few, tmp_path):
    broken = model(base, "stsb")
    broken = dataclasses.replace(broken, params={**broken.params, "classifier/bias": np.float32([np.nan])})
    with pytest.raises(InputError, match="stsb test: an example has no prediction: the model's answer is not finite"):
        glue_server.submit({"s": broken}, str(data), tmp_path / "out", 16)
    assert not (tmp_path / "out").exists()


def test_a_column_or_a_text_that_lacks_is_named(tmp_path):
    tiny.write_split(tmp_path, "rte", "test", {"sentence1": ["a"], "idx": [0]})
    with pytest.raises(InputError, match="rte test: no column 'sentence2'; there are sentence1, idx"):
        tasks.read_test("rte", "test", TASKS["rte"].columns, str(tmp_path))
    tiny.write_split(tmp_path, "cola", "test", {"sentence": ["a", None], "idx": [0, 1]})
    with pytest.raises(InputError, match="cola test: a text is missing"):
        tasks.read_test("cola", "test", ("sentence",), str(tmp_path))


def test_a_test_set_comes_from_the_hub(tmp_path):
    write_tests(tmp_path / "served" / "datasets" / "org" / "glue", "rte", "test", TEXTS, order=[4, 2, 3, 0, 1])
    code = "import sys; from lnflax import tasks; print(tasks.read_test('rte', 'test', sys.argv[1:], 'org/glue'))"
    with fake_hub.FakeHub(tmp_path / "served") as hub:
        more = {"HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        done = fake_hub.python(hub, tmp_path / "home", code, "sentence2", "sentence1", HF_HUB_OFFLINE="0", **more)
        assert [path for path in hub.asked if path.startswith("GET") and "parquet" in path] == [
            f"GET /datasets/org/glue/resolve/{hub.commit(tmp_path / 'served/datasets/org/glue')}/rte/"
            "test-00000-of-00001.parquet"
        ]
    assert (done.returncode, done.stdout) == (0, f"{([b for _, b in TEXTS], [a for a, _ in TEXTS])}\n")
