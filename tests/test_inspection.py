"""What `inspect` says of a delta's file."""

import shutil

import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import deltas, tuned
from lnflax.deltas import About, Delta, Scalars
from tests import studies, tiny

NORM = "bert/encoder/layer/1/output/LayerNorm/scale"
WORDS = "bert/embeddings/word_embeddings/embedding"


@pytest.fixture
def checkpoint(tmp_path):
    return tiny.write_checkpoint(tmp_path / "model")


def write_delta(path, checkpoint):
    base = tuned.open_base(str(checkpoint))
    norm = base.leaves[NORM].copy()
    norm[3] -= 2
    row = np.int32([32 * 4 + 7])  # the eighth of the fifth word
    moved = base.leaves[WORDS].reshape(-1)[row] + np.float32(0.5)
    head = {"classifier/bias": np.zeros(2, np.float32), "classifier/kernel": np.zeros((32, 2), np.float32)}
    about = About("rte", "mine", None, 1e-3, 2, base.sha256(True), "pooler", ("yes", "no"))
    deltas.write(path, Delta(about, {NORM: norm, **head}, {WORDS: Scalars(row, moved)}))
    return path, base


def inspect(capsys, *arguments):
    assert command.main(["inspect", *map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return lines, rows


def test_all_that_a_delta_says_and_what_it_changed_most(tmp_path, checkpoint, capsys):
    path, base = write_delta(tmp_path / "d.safetensors", checkpoint)
    lines, rows = inspect(capsys, path, f"--base={checkpoint}", "--top=2")
    assert lines[0] == "# d.safetensors"
    for row in (
        *(["task", "rte"], ["setting", "mine"], ["seed", "–"], ["learning rate", "0.001"], ["epoch", "2"]),
        *(["labels", "yes, no"], ["pooling", "pooler"], ["applies to the body", base.sha256(True)]),
        ["bytes", f"{path.stat().st_size:,}"],
        *(["word_embeddings", "0", "1", "1"], ["ln_f", "1", "0", "32"], ["classifier", "2", "0", "66"]),
    ):
        assert row in rows
    before = [float(base.leaves[NORM][3]), float(base.leaves[WORDS][4, 7])]
    assert rows[-2] == [NORM, "3", f"{before[0]:.4f}", f"{before[0] - 2:.4f}", "-2.0000"]
    assert rows[-1] == [WORDS, "4, 7", f"{before[1]:.4f}", f"{before[1] + 0.5:.4f}", "0.5000"]


def test_without_the_checkpoint_the_rest_is_told(tmp_path, checkpoint, capsys):
    path, _ = write_delta(tmp_path / "d.safetensors", checkpoint)
    lines, _ = inspect(capsys, path)
    assert lines[-1] == "Not known without the checkpoint: give it by `--base`."


def test_a_delta_in_its_study_knows_its_checkpoint(tmp_path, checkpoint, capsys):
    studies.run(checkpoint, tmp_path / "w", settings=("frozen",), seeds=(0,), learning_rates=(1e-3,), epochs=1)
    (path,) = (tmp_path / "w" / "rte" / "frozen" / "deltas").glob("*.safetensors")
    lines, rows = inspect(capsys, path)
    assert lines[-1] == f"Nothing of the body of {checkpoint}: the head alone is tuned."
    assert ["seed", "0"] in rows
    shutil.move(checkpoint, tmp_path / "moved")
    lines, _ = inspect(capsys, path)
    assert lines[-1].startswith("Not known: the checkpoint that its study names is not there (model.name: no folder")


def test_bad_input_is_one_line(tmp_path, checkpoint, capsys):
    path, _ = write_delta(tmp_path / "d.safetensors", checkpoint)
    other = tiny.write_folder(tmp_path / "other", tiny.config(), tiny.foreign_state(tiny.weights(tiny.config())))
    for line, *given in (
        ("applies to the body", path, f"--base={other}"),
        ("no folder", path, "--base=/nowhere"),
        ("is not there", tmp_path / "none"),
        ("'0' is not a whole number from 1", path, "--top=0"),
        ("is no delta of format 1", checkpoint / "model.safetensors"),
    ):
        assert command.main(["inspect", *map(str, given)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("lnflax: ") and error.count("\n") == 1 and line in error
