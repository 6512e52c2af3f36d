"""`python -m lnflax predict` as a user meets it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lnflax import __main__, deltas, process, serving, tuned
from lnflax.deltas import About, Delta
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, and deltas of rte and stsb over it."""
    place = tmp_path_factory.mktemp("predict")
    base = tuned.open_base(str(tiny.write_checkpoint(place / "model")))
    for task, labels in (("rte", ("entailment", "not_entailment")), ("stsb", ())):
        outputs = len(labels) or 1
        about = About(task, "frozen", 0, 1e-3, 1, base.sha256(True), "pooler", labels)
        head = {
            "classifier/kernel": tiny.draw(task, (32, outputs), 1.0),
            "classifier/bias": np.zeros(outputs, np.float32),
        }
        deltas.write(place / f"{task}.safetensors", Delta(about, head, {}))
    return place


@pytest.fixture
def set_up(monkeypatch):
    """This process is."""
    monkeypatch.setattr(process, "set_up", lambda: "")


def command(place, *arguments, given=b""):
    """The finished process."""
    line = [sys.executable, "-m", "lnflax", "predict", *map(str, arguments)]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "LNFLAX_CACHE": str(place / "cache")}
    return subprocess.run(line, cwd=ROOT, env=environment, input=given, capture_output=True, timeout=300, check=False)


def test_lines_of_standard_input_are_answered_on_standard_output(place):
    given = 'the film\tis old\nhalf\n{"é"}\tthis'.encode()
    done = command(place, place / "rte.safetensors", f"--base={place / 'model'}", "--max_length=16", given=given)
    found = [json.loads(line) for line in done.stdout.decode().splitlines()]
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == ["warning: 1 of 3 lines have an error"]
    model = tuned.apply(tuned.open_base(str(place / "model")), place / "rte.safetensors")
    wanted = list(serving.predict({"": model}, [("the film", "is old"), ("half",), ('{"é"}', "this")], max_length=16))
    assert [own.pop("line") for own in found] == [1, 2, 3]
    assert found[1] == wanted[1] == {"error": "rte wants a pair of texts, not one text"}
    for own, other in ((found[0], wanted[0]), (found[2], wanted[2])):
        assert own["label"] == other["label"]
        assert own["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)


def test_several_deltas_answer_a_file_in_this_process(place, tmp_path, set_up, capsys):
    (tmp_path / "in.jsonl").write_text(
        '{"delta": "rte", "text": "the", "pair": "a"}\n{"delta": "s", "text": "the", "pair": "a"}\n', "utf-8"
    )
    named = [str(place / "rte.safetensors"), f"s={place / 'stsb.safetensors'}"]
    rest = [f"--base={place / 'model'}", f"--input={tmp_path / 'in.jsonl'}", f"--output={tmp_path / 'out'}"]
    assert __main__.main(["predict", *named, *rest, "--max_length=16"]) == 0
    first, second = map(json.loads, (tmp_path / "out").read_text("utf-8").splitlines())
    assert list(first) == ["line", "label", "probabilities"] and list(second) == ["line", "score"]
    assert capsys.readouterr() == ("", "")


BAD = {
    "no base": (["{rte}"], "--base is missing: a checkpoint's folder or hub id"),
    "no such delta": (["no.safetensors", "{base}"], "no.safetensors is not there"),
    "no such input": (
        ["{rte}", "{base}", "--input=no.txt"],
        "--input: no.txt cannot be read: No such file or directory",
    ),
    "too long": (
        ["{rte}", "{base}", "--max_length=65"],
        "max_length: 65; allowed are 4 … 64, the positions of the model",
    ),
    "no number": (["{rte}", "{base}", "--max_length=x"], "argument --max_length: 'x' is not a whole number from 1"),
    "one name": (["{rte}", "{rte}", "{base}"], "are both called 'rte'; give NAME=FILE"),
    "text for two": (["{rte}", "s={rte}", "{base}"], "--format: text names no delta, and there are 2; give jsonl"),
    "glue of the base": (
        ["{base}", "--glue=new"],
        "--glue: the base alone is of no task; give the deltas of GLUE's tasks",
    ),
    "no glue": (["{rte}", "{base}", "--glue=new", "--data=./no"], "data.path: no folder './no'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(place, tmp_path, set_up, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    arguments, reason = BAD[case]
    given = [own.format(rte=place / "rte.safetensors", base=f"--base={place / 'model'}") for own in arguments]
    assert __main__.main(["predict", *given]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("lnflax: ") and reason in said.err
    assert said.err.count("\n") == 1 and said.err.endswith("\n")
    assert list(tmp_path.iterdir()) == []
