"""Lines in and out: what arrives is answered at once, in order; what is wrong is answered in place."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lnflax import __main__ as command
from lnflax import deltas, lines, process, tuned
from lnflax.deltas import About, Delta
from lnflax.errors import InputError
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def started(monkeypatch):
    """In this process JAX has been set up already."""
    monkeypatch.setattr(process, "set_up", lambda: "")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")


def write_delta(path, checkpoint, task="cola", labels=("no", "yes"), pooling="pooler"):
    """A head alone."""
    base = tuned.open_base(str(checkpoint))
    about = About(task, "frozen", 0, 1e-3, 1, base.sha256(pooling == "pooler"), pooling, labels)
    outputs = len(labels) or 1
    head = {"classifier/bias": np.zeros(outputs, np.float32), "classifier/kernel": tiny.draw(task, (32, outputs), 3)}
    deltas.write(path, Delta(about, head, {}))
    return path


def test_deltas_are_called_by_their_files_or_as_they_are_told(tmp_path):
    inside = tmp_path / "w" / "rte" / "layernorms" / "deltas" / "seed0-lr0.1.safetensors"
    assert lines.named(["a.safetensors", f"b={inside}", str(inside)]) == {
        "a": Path("a.safetensors"),
        "b": inside,
        "rte/layernorms/seed0-lr0.1": inside,
    }
    with pytest.raises(InputError, match="two deltas are called 'a'; give NAME=FILE"):
        lines.named(["x/a.safetensors", "y/a.safetensors"])


def run(*arguments):
    return command.main(["predict", "--max_length=32", *map(str, arguments)])


def test_a_file_of_texts_is_answered_line_by_line(tmp_path, checkpoint):
    delta = write_delta(tmp_path / "d.safetensors", checkpoint)
    (tmp_path / "texts.txt").write_bytes(b"the\r\n\xff\na\tthe\n\nand")
    assert run(delta, f"--base={checkpoint}", f"--input={tmp_path / 'texts.txt'}", f"--output={tmp_path / 'o'}") == 0
    found = [json.loads(line) for line in (tmp_path / "o").read_text("utf-8").splitlines()]
    assert [own["line"] for own in found] == [1, 2, 3, 4, 5]
    assert [own.get("error") for own in found] == [
        None,
        "the line is not UTF-8 (invalid start byte at byte 1)",
        "text: cola reads a text, not 2",
        "text: there is none",
        None,
    ]
    for own in (found[0], found[4]):
        assert own["label"] == max(own["probabilities"], key=own["probabilities"].get) in ("no", "yes")


def test_json_lines_name_their_deltas_and_keep_their_ids(tmp_path, checkpoint):
    one = write_delta(tmp_path / "one.safetensors", checkpoint)
    two = write_delta(tmp_path / "two.safetensors", checkpoint, "stsb", ())
    words = write_delta(tmp_path / "words.safetensors", checkpoint, "pos", ("A", "B", "C"), "cls")
    given = [
        '{"delta": "one", "text": "the", "id": "\\ud83d"}',
        '{"delta": "2", "text": "the", "pair": "a", "id": 7}',
        '{"delta": "words", "tokens": ["the", "a"]}',
        '{"text": "the"}',
        '{"delta": "two", "text": NaN}',
        "[1]",
        "{",
        "[" * 100_000,
    ]
    (tmp_path / "i.jsonl").write_text("\n".join(given), "utf-8")
    flags = (f"--base={checkpoint}", f"--input={tmp_path / 'i.jsonl'}", f"--output={tmp_path / 'o'}")
    assert run(one, f"2={two}", words, *flags) == 0
    found = [json.loads(line) for line in (tmp_path / "o").read_text("utf-8").splitlines()]
    assert found[0]["id"] == "\ud83d" and found[0]["label"] in ("no", "yes")
    assert list(found[1]) == ["line", "id", "score"] and found[1]["id"] == 7
    assert len(found[2]["tags"]) == len(found[2]["probabilities"]) == 2 and set(found[2]["tags"]) <= {"A", "B", "C"}
    errors = [own["error"] for own in found[3:]]
    assert errors[0] == "delta: the example names none; allowed are one, 2, words"
    assert errors[1] == "the line is not JSON (NaN is not JSON)"
    assert errors[2] == "the line is no JSON object"
    assert all(error.startswith("the line is not JSON (") for error in errors[3:])


@pytest.mark.timeout(60)
def test_what_has_arrived_is_given_before_more_comes():
    end, begin = os.pipe()
    with os.fdopen(end, "rb") as source, os.fdopen(begin, "wb", buffering=0) as sink:
        windows = lines.arrived(source)
        for line in (b"one\n", b"two\n"):
            sink.write(line)
            assert next(windows) == [line]
        sink.write(b"half")
        sink.close()
        assert list(windows) == [[b"half"]]


def test_a_window_is_not_larger_than_asked_for():
    found = list(lines.arrived(io.BytesIO(b"x\n" * 100), most=7))
    assert max(map(len, found)) <= 7 and sum(map(len, found)) == 100


def test_a_source_that_fails_is_told_of_after_what_came_before():
    def broken():
        yield b"one\n"
        raise OSError(5, "Input/output error")

    windows = lines.arrived(broken())
    assert next(windows) == [b"one\n"]
    with pytest.raises(OSError, match="Input/output error"):
        next(windows)


def predict_process(*arguments):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "lnflax", "predict", *map(str, arguments), "--max_length=32"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=ROOT,
    )


@pytest.mark.timeout(300)
def test_the_command_answers_each_line_before_the_next_and_ends_quietly(tmp_path, checkpoint):
    delta = write_delta(tmp_path / "d.safetensors", checkpoint)
    with predict_process(delta, f"--base={checkpoint}") as child:
        for number, text in enumerate((b"the\n", b"a\n"), start=1):
            child.stdin.write(text)
            child.stdin.flush()
            assert json.loads(child.stdout.readline())["line"] == number
        child.stdout.close()  # as `head` does
        child.stdin.write(b"the\n" * 10)
        child.stdin.close()
        assert child.wait(60) == 0
        assert child.stderr.read() == b""


@pytest.mark.timeout(300)
def test_the_base_alone_says_that_its_head_is_fresh(tmp_path, checkpoint):
    bare = tiny.write_checkpoint(tmp_path / "bare")
    state = load_file(bare / "model.safetensors")
    save_file({name: x for name, x in state.items() if "classifier" not in name}, bare / "model.safetensors")
    with predict_process(f"--base={bare}") as child:
        out, error = child.communicate(b"the\n", 120)
    assert set(json.loads(out)["probabilities"]) == {"LABEL_0", "LABEL_1"} and child.returncode == 0
    assert error.decode() == f"warning: {bare} has no head; a fresh one, of seed 0 and two outputs, answers\n"


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1
    return error


def test_bad_input_is_one_line(tmp_path, checkpoint, capsys):
    delta, base = write_delta(tmp_path / "d", checkpoint), f"--base={checkpoint}"
    assert "--base is missing" in refused(capsys, delta)
    assert "none.txt cannot be read: No such file" in refused(capsys, delta, base, "--input=none.txt")
    (tmp_path / "i").write_text("the\n")
    given = f"--input={tmp_path / 'i'}"
    nowhere = f"--output={tmp_path / 'no' / 'o'}"
    assert "cannot be written: No such file" in refused(capsys, delta, base, given, nowhere)
    assert "is what is read" in refused(capsys, delta, base, given, f"--output={tmp_path / 'i'}")
    assert "the model has 64 positions" in refused(
        capsys, delta, base, given, "--max_length=65", f"--output={tmp_path / 'o'}"
    )
    assert "nothing.safetensors is not there" in refused(capsys, tmp_path / "nothing.safetensors", base)
    assert (tmp_path / "i").read_text() == "the\n"
