"""A delta in its checkpoint's folder and out again: the same tensors, names, types and bytes as before."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lnflax import __main__ as command
from lnflax import checkpoint, deltas, tensors, tuned
from lnflax.deltas import About, Delta, Scalars
from tests import tiny

BLOCK = "bert/encoder/layer/0"
NORM, KERNEL = f"{BLOCK}/output/LayerNorm/scale", f"{BLOCK}/output/dense/kernel"
WORDS = "bert/embeddings/word_embeddings/embedding"


def shape(outputs=2, pooling="pooler"):
    return tiny.config(pooling=pooling, num_outputs=outputs)


def write_base(folder, kind=np.float32, prefix="bert.", rename=None, **more):
    """A checkpoint of the tiny model, its tensors of one type; `more` is written beside them."""
    flat = {path: leaf for path, leaf in tiny.weights(shape()).items() if path.startswith("bert/")}
    state = {name: leaf.astype(kind) for name, leaf in tiny.foreign_state(flat, prefix).items()}
    state = {(rename or str)(name): leaf for name, leaf in state.items()} | more
    tiny.write_tokenizer(folder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tiny.write_folder(folder, shape(), state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt", "of": "a test"})
    return folder


def values():
    """What the deltas below change: a norm whole, three scalars of a kernel, the last of a table, and the head."""
    whole = {NORM: tiny.draw("norm", (12,), 2)}
    scalars = {
        KERNEL: Scalars(np.int32([1, 7, 239]), np.float32([0.1, np.nan, -0.0])),
        WORDS: Scalars(np.int32([61 * 12 - 1]), np.float32([3])),
    }
    head = {"classifier/bias": np.float32([1, 2]), "classifier/kernel": tiny.draw("head", (12, 2), 1)}
    return {**whole, **head}, scalars


def write_delta(path, base, full=False):
    opened = tuned.open_base(str(base))
    whole, scalars = values()
    if full:
        whole, scalars = {**{p: leaf + 1 for p, leaf in opened.leaves.items()}, **whole}, {}
    about = About("rte", "mine", 1, 1e-3, 2, opened.sha256(True), "pooler", ("yes", "no"))
    deltas.write(path, Delta(about, whole, scalars))
    return path


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def stored(folder):
    """The tensors and metadata of a checkpoint's file."""
    with safe_open(folder / "model.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping


def there_and_back(tmp_path, base, full=False):
    delta = write_delta(tmp_path / "delta", base, full)
    assert run("apply", delta, tmp_path / "tuned", f"--base={base}") == 0
    assert run("revert", tmp_path / "tuned", tmp_path / "back") == 0
    return tmp_path / "tuned", tmp_path / "back"


KINDS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_apply_then_revert_gives_every_file_back_to_the_byte(tmp_path, kind, full):
    base = write_base(tmp_path / "base", KINDS[kind])
    _, back = there_and_back(tmp_path, base, full)
    names = sorted(path.name for path in base.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert sorted(path.name for path in back.iterdir()) == names
    own, words = stored(base)
    found, found_words = stored(back)
    assert found_words == words == {"format": "pt", "of": "a test"}
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in found.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in own.items()
    }
    for name in set(names) - {"model.safetensors"}:
        assert (back / name).read_bytes() == (base / name).read_bytes()


def test_the_tuned_folder_has_the_values_in_the_bases_own_names_and_nothing_else_changed(tmp_path):
    old = {"weight": "gamma", "bias": "beta"}

    def rename(name):
        stem, _, leaf = name.rpartition(".")
        return f"{stem}.{old[leaf]}" if "LayerNorm" in name else name

    base = write_base(tmp_path / "base", prefix="", rename=rename)
    place, _ = there_and_back(tmp_path, base)
    before, after = load_file(base / "model.safetensors"), load_file(place / "model.safetensors")
    assert set(after) - set(before) == {"classifier.weight", "classifier.bias"}
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    norm, kernel = "encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.dense.weight"
    assert changed == {norm, kernel, "embeddings.word_embeddings.weight"}
    whole, scalars = values()
    np.testing.assert_array_equal(after[norm], whole[NORM])
    np.testing.assert_array_equal(after["classifier.weight"], whole["classifier/kernel"].T)
    ours = after[kernel].T.reshape(-1)  # 20 × 12 there, 12 × 20 in the file
    assert (ours != before[kernel].T.reshape(-1)).nonzero()[0].tolist() == [1, 7, 239]
    np.testing.assert_array_equal(ours[scalars[KERNEL].index], scalars[KERNEL].value)
    assert (place / "delta.safetensors").read_bytes() == (tmp_path / "delta").read_bytes()


def test_a_head_of_the_bases_own_comes_back(tmp_path):
    own = {"classifier.weight": np.float16([[1] * 12] * 3), "classifier.bias": np.float16([4, 5, 6])}
    base = write_base(tmp_path / "base", **own)
    place, back = there_and_back(tmp_path, base)
    assert load_file(place / "model.safetensors")["classifier.bias"].tolist() == [1, 2]
    found = load_file(back / "model.safetensors")
    assert {name: (found[name].dtype, found[name].tolist()) for name in own} == {
        name: (np.float16, array.tolist()) for name, array in own.items()
    }


def test_the_tuned_folder_is_a_checkpoint_with_its_own_head(tmp_path):
    place, _ = there_and_back(tmp_path, write_base(tmp_path / "base"))
    model = tuned.load(tuned.open_base(str(place)))
    want = tuned.apply(tuned.open_base(str(tmp_path / "base")), tmp_path / "delta")
    assert model.params.keys() == want.params.keys()
    assert all(leaf.tobytes() == want.params[path].tobytes() for path, leaf in model.params.items())
    undo = deltas.read(place / "undo.safetensors")
    body = {path: leaf for path, leaf in model.params.items() if path.startswith("bert/")}
    assert undo.about.base_sha256 == checkpoint.body_sha256(body)


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1
    return error


def test_what_does_not_fit_is_refused_on_one_line_and_nothing_is_written(tmp_path, capsys):
    base = write_base(tmp_path / "base")
    delta, out = write_delta(tmp_path / "delta", base), tmp_path / "out"
    other = write_base(tmp_path / "other", np.float16)
    one, two = (tuned.open_base(str(place)).sha256(True) for place in (base, other))
    assert f"{delta} applies to the body {one}, not to {two}" in refused(capsys, "apply", delta, out, f"--base={other}")
    assert "--base is missing" in refused(capsys, "apply", delta, out)
    assert "delta.json is not there" in refused(capsys, "apply", tmp_path / "delta.json", out, f"--base={base}")
    assert f"{base} has no undo.safetensors" in refused(capsys, "revert", base, out)
    double = write_base(tmp_path / "double", np.float64)
    error = refused(capsys, "apply", write_delta(tmp_path / "d64", double), out, f"--base={double}")
    assert "is float64, which float32 cannot give back bit for bit" in error
    assert not out.exists() and not list(tmp_path.glob(".*"))
    assert f"{other} is there and not empty" in refused(capsys, "apply", delta, other, f"--base={base}")


def test_a_tuned_folder_that_was_changed_since_is_refused(tmp_path, capsys):
    place, _ = there_and_back(tmp_path, write_base(tmp_path / "base"))
    state = load_file(place / "model.safetensors")
    state["bert.pooler.dense.bias"][0] += 1
    save_file(state, place / "model.safetensors", metadata={"format": "pt"})
    assert "applies to the body" in refused(capsys, "revert", place, tmp_path / "again")


def test_broken_words_of_kinds_are_refused(tmp_path, capsys):
    place, _ = there_and_back(tmp_path, write_base(tmp_path / "base", np.float16))
    own, words = stored(place)
    assert set(json.loads(words["lnflax.kinds"]).values()) == {"float16"}
    for text in ("[", "[]", '{"a": "b"}', '{"a": 1}'):
        (place / "model.safetensors").write_bytes(tensors.pack(own, words | {"lnflax.kinds": text}))
        assert "lnflax.kinds of its metadata" in refused(capsys, "revert", place, tmp_path / "again")
