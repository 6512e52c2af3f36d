"""The GLUE server's files: exact names, headers and rows, from test sets in the hub's layout."""

import zipfile

import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import deltas, glue_server, process, serving, tuned
from lnflax.deltas import About, Delta
from lnflax.tasks import TASKS
from tests import tiny

FILES = (
    *("CoLA.tsv", "SST-2.tsv", "MRPC.tsv", "STS-B.tsv", "QQP.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"),
    *("QNLI.tsv", "RTE.tsv", "WNLI.tsv", "AX.tsv"),
)
WORDS = ("the", "a", "and", "of", "not", "is")


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """In this process JAX has been set up already."""
    monkeypatch.setattr(process, "set_up", lambda: "")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Test sets of three tasks and the diagnostic set; rows are not in the order of `idx`."""
    place = tmp_path_factory.mktemp("data") / "glue"
    label, idx = [-1, -1, -1], [2, 0, 1]
    tiny.write_split(place, "cola", "test", {"sentence": ["of", "the", "a"], "label": label, "idx": idx})
    pairs = {"sentence1": ["of", "the", "a"], "sentence2": ["not", "is", "and"], "label": label, "idx": idx}
    tiny.write_split(place, "stsb", "test", pairs)
    for folder, split in (("mnli", "test_matched"), ("mnli", "test_mismatched"), ("ax", "test")):
        columns = {"premise": ["of", "the", "a"], "hypothesis": ["not", "is", "and"], "label": label, "idx": idx}
        tiny.write_split(place, folder, split, columns)
    return place


def write_delta(path, checkpoint, task, scale=3):
    labels = TASKS[task].labels
    about = About(task, "frozen", 0, 1e-3, 1, tuned.open_base(str(checkpoint)).sha256(True), "pooler", labels)
    outputs = len(labels) or 1
    kernel = tiny.draw(task, (32, outputs), scale)
    deltas.write(
        path, Delta(about, {"classifier/bias": np.zeros(outputs, np.float32), "classifier/kernel": kernel}, {})
    )
    return path


def run(*arguments):
    return command.main(["predict", "--max_length=32", *map(str, arguments)])


def test_the_zip_has_every_file_and_models_answer_their_own(tmp_path, checkpoint, data, capsys):
    paths = {task: write_delta(tmp_path / f"{task}.safetensors", checkpoint, task) for task in ("cola", "stsb", "mnli")}
    out = tmp_path / "submission"
    assert run(*paths.values(), f"--base={checkpoint}", f"--glue={out}", f"--data={data}") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "CoLA.tsv: 3 answers of cola" and said[9] == "WNLI.tsv: no model, 0 for all 146"
    assert said[10] == "AX.tsv: 3 answers of mnli" and said[11] == str(out / "submission.zip")
    with zipfile.ZipFile(out / "submission.zip") as archive:
        assert tuple(archive.namelist()) == FILES
        texts = {name: archive.read(name).decode() for name in FILES}
    assert all((out / name).read_text() == text for name, text in texts.items())
    counts = {name: len(text.splitlines()) - 1 for name, text in texts.items()}
    assert counts == {
        **{"CoLA.tsv": 3, "SST-2.tsv": 1821, "MRPC.tsv": 1725, "STS-B.tsv": 3, "QQP.tsv": 390965, "MNLI-m.tsv": 3},
        **{"MNLI-mm.tsv": 3, "QNLI.tsv": 5463, "RTE.tsv": 3000, "WNLI.tsv": 146, "AX.tsv": 3},
    }
    assert texts["RTE.tsv"].startswith("index\tprediction\n0\tnot_entailment\n1\tnot_entailment\n")
    assert texts["QNLI.tsv"].splitlines()[-1] == "5462\tnot_entailment"
    base = tuned.open_base(str(checkpoint))

    def answers(task, examples):
        return list(serving.predict({"": tuned.apply(base, paths[task])}, examples, max_length=32))

    cola = [TASKS["cola"].labels.index(own["label"]) for own in answers("cola", ["the", "a", "of"])]
    assert texts["CoLA.tsv"] == "index\tprediction\n" + "".join(f"{i}\t{label}\n" for i, label in enumerate(cola))
    pairs = [("the", "is"), ("a", "and"), ("of", "not")]
    nli = [own["label"] for own in answers("mnli", pairs)]
    for name in ("MNLI-m.tsv", "MNLI-mm.tsv", "AX.tsv"):
        assert texts[name].splitlines() == ["index\tprediction", *(f"{i}\t{label}" for i, label in enumerate(nli))]
    scores = [min(max(own["score"], 0), 5) for own in answers("stsb", pairs)]
    assert texts["STS-B.tsv"].splitlines()[1:] == [f"{i}\t{score:.3f}" for i, score in enumerate(scores)]


def test_scores_stay_on_the_servers_scale(tmp_path, checkpoint, data):
    found = []
    for scale in (300, -300):
        delta = write_delta(tmp_path / f"d{scale}", checkpoint, "stsb", scale)
        out = tmp_path / f"out{scale}"
        assert run(delta, f"--base={checkpoint}", f"--glue={out}", f"--data={data}") == 0
        found += [line.split("\t")[1] for line in (out / "STS-B.tsv").read_text().splitlines()[1:]]
    assert set(found) == {"0.000", "5.000"}


def test_the_same_answers_are_the_same_bytes():
    files = {"a.tsv": b"index\tprediction\n0\t1\n"}
    assert glue_server._zip(files) == glue_server._zip(files)


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_line_and_writes_nothing(tmp_path, checkpoint, data, capsys):
    base, out = f"--base={checkpoint}", tmp_path / "out"
    flags = (base, f"--glue={out}", f"--data={data}")
    cola = write_delta(tmp_path / "cola.safetensors", checkpoint, "cola")
    assert "--glue: cola and again are both of cola; give one" in refused(capsys, cola, f"again={cola}", *flags)
    rte = write_delta(tmp_path / "rte.safetensors", checkpoint, "rte")
    assert f"--data: {str(data)!r} has no rte/test-*.parquet" in refused(capsys, rte, *flags)
    assert "--data: no folder './nowhere'" in refused(capsys, cola, base, f"--glue={out}", "--data=./nowhere")
    assert "--glue: the base is of no task; allowed are cola, mnli, mrpc" in refused(capsys, *flags)
    tiny.write_split(tmp_path / "more", "cola", "test", {"text": ["a"], "idx": [0]})
    given = (cola, base, f"--glue={out}", f"--data={tmp_path / 'more'}")
    assert "has no column 'sentence'; there are text, idx" in refused(capsys, *given)
    tiny.write_split(tmp_path / "empty", "cola", "test", {"sentence": ["a", ""], "idx": [0, 1]})
    given = (cola, base, f"--glue={out}", f"--data={tmp_path / 'empty'}")
    assert "--data: cola test, idx 1: text: there is none" in refused(capsys, *given)
    assert not out.exists() and not list(tmp_path.glob(".*"))
    out.mkdir()
    (out / "mine").write_text("x")
    assert f"{out} is there and not empty" in refused(capsys, cola, *flags)
