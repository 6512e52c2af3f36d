"""Exported folders without PyTorch: what is in them, what is refused, and that adapters come back as they went."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from lnflax import __main__ as command
from lnflax import deltas, model_card, results, tuned
from lnflax.deltas import About, Delta, Scalars
from tests import studies, tiny

PREFIX = "base_model.model."
BLOCK = "bert.encoder.layer.{}.output.LayerNorm"


@pytest.fixture(scope="module")
def workdir(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "w"
    studies.run(model, place, settings=("layernorms",), learning_rates=(1e-3,), epochs=1)
    return place


@pytest.fixture
def delta(workdir):
    return results.chosen_deltas(workdir, results.read_results(workdir, "rte", "layernorms"))[1]


def run(*arguments):
    return command.main([str(argument) for argument in arguments])


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("lnflax: ") and error.count("\n") == 1
    return error


def front_matter(folder):
    text = (folder / "README.md").read_text("utf-8")
    _, data, body = text.split("---\n", 2)
    return yaml.safe_load(data), body


def test_the_folder_for_transformers(model, delta, workdir, tmp_path, capsys):
    assert run("export", delta, tmp_path / "hf", "--to=hf") == 0
    said = capsys.readouterr().out
    assert said == f"{tmp_path / 'hf'}: AutoModelForSequenceClassification.from_pretrained({str(tmp_path / 'hf')!r})\n"
    names = ["README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == names
    told = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
    base = json.loads((model / "config.json").read_text("utf-8"))
    assert base.items() <= told.items()
    assert {name: told[name] for name in set(told) - set(base)} == {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {"0": "entailment", "1": "not_entailment"},
        "label2id": {"entailment": 0, "not_entailment": 1},
        "problem_type": "single_label_classification",
        "dtype": "float32",
    }
    ours = tuned.apply(tuned.open_base(str(model)), delta)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    assert state.keys() == tiny.foreign_state(ours.params).keys()
    for name, leaf in tiny.foreign_state(ours.params).items():
        assert state[name].tobytes() == leaf.tobytes() and state[name].shape == leaf.shape, name
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
    again = tuned.load(tuned.open_base(str(tmp_path / "hf")))
    assert not again.fresh and again.labels == ours.labels and again.shape == ours.shape
    assert all(leaf.tobytes() == again.params[path].tobytes() for path, leaf in ours.params.items())


def test_the_card_has_the_studys_numbers(delta, workdir, tmp_path):
    assert run("export", delta, tmp_path / "hf", "--to=hf") == 0
    data, body = front_matter(tmp_path / "hf")
    record = results.read_results(workdir, "rte", "layernorms")
    score = record["runs"][1]["last"]["accuracy"]
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", "text-classification")
    assert data["tags"] == ["lnflax", "bert", "rte", "layernorms"] and data["metrics"] == ["accuracy"]
    assert "datasets" not in data and "base_model" not in data  # generated texts, and a folder
    (found,) = data["model-index"][0]["results"]
    assert found == {
        "task": {"type": "text-classification"},
        "dataset": {"name": "rte", "type": "synthetic", "split": "validation"},
        "metrics": [{"type": "accuracy", "name": "accuracy", "value": score}],
    }
    assert f"accuracy of this run: {100 * score:.2f}" in body and "22,400 parameters 256 were trained" in body
    assert "- seed: 1\n- learning rate: 0.001\n- epoch: 1\n- steps of the whole run: 5\n" in body
    mean, std = record["selected"]["mean"], record["selected"]["std"]
    assert f"accuracy of the study at the rate 0.001: {100 * mean:.1f} ± {100 * std:.1f} (mean ± sample" in body
    assert "it was trained and measured on generated sentences" in body
    assert str(workdir.parent) not in body + str(data)


def test_without_its_study_the_card_says_so(model, delta, tmp_path):
    (tmp_path / "d.safetensors").write_bytes(delta.read_bytes())
    assert run("export", tmp_path / "d.safetensors", tmp_path / "hf", "--to=hf", f"--base={model}") == 0
    data, body = front_matter(tmp_path / "hf")
    assert "They are not known: the delta did not lie in the run folder" in body and "model-index" not in data


def test_the_adapter_has_the_names_that_peft_reads_and_comes_back_to_the_byte(model, delta, tmp_path):
    assert run("export", delta, tmp_path / "peft", "--to=peft") == 0
    told = json.loads((tmp_path / "peft" / "adapter_config.json").read_text("utf-8"))
    norms = [f"bert.encoder.layer.{i}.{part}.LayerNorm" for i in (0, 1) for part in ("attention.output", "output")]
    assert told == {
        **{"peft_type": "LN_TUNING", "task_type": "SEQ_CLS", "base_model_name_or_path": str(model)},
        **{"target_modules": norms, "modules_to_save": ["classifier"], "inference_mode": True},
    }
    state = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert set(state) == {
        *(f"{PREFIX}{norm}.ln_tuning_layers.{leaf}" for norm in norms for leaf in ("weight", "bias")),
        *(f"{PREFIX}classifier.{leaf}" for leaf in ("weight", "bias")),
    }
    own = deltas.read(delta)
    np.testing.assert_array_equal(state[f"{PREFIX}classifier.weight"], own.whole["classifier/kernel"].T)
    out = tmp_path / "back.safetensors"
    assert run("import", "--from=peft", tmp_path / "peft", out, f"--base={model}") == 0
    assert out.read_bytes() == delta.read_bytes()
    assert front_matter(tmp_path / "peft")[0]["library_name"] == "peft"


def test_a_card_of_another_cell_or_run_has_no_numbers(workdir, delta, tmp_path):
    own = deltas.read(delta).about
    assert model_card.find(delta, own).run["seed"] == 1
    for changes in ({"seed": 0}, {"seed": None}, {"setting": "full"}, {"learning_rate": 0.5}):
        assert model_card.find(delta, dataclasses.replace(own, **changes)) is None
    assert model_card.find(tmp_path / "deltas" / delta.name, own) is None


def about(base, **changes):
    own = About("rte", "mine", 0, 1e-3, 1, base.sha256(True), "pooler", ("entailment", "not_entailment"))
    return dataclasses.replace(own, **changes)


HEAD = {"classifier/bias": np.zeros(2, np.float32), "classifier/kernel": np.ones((32, 2), np.float32)}
NORM, ONES = "bert/encoder/layer/0/output/LayerNorm", np.ones(32, np.float32)


def test_what_an_export_cannot_say_is_refused_with_a_way_out(model, tmp_path, capsys):
    base = tuned.open_base(str(model))
    whole = {f"{NORM}/scale": ONES, f"{NORM}/bias": ONES}
    cases = {
        "the head alone; LNTuning needs a LayerNorm": Delta(about(base), HEAD, {}),
        f"does not train {NORM}/scale": Delta(about(base), {f"{NORM}/bias": ONES, **HEAD}, {}),
        "trains bert/pooler/dense/bias; LNTuning": Delta(
            about(base), {"bert/pooler/dense/bias": ONES, **whole, **HEAD}, {}
        ),
        f"trains a part of {NORM}/scale": Delta(
            about(base), HEAD, {f"{NORM}/scale": Scalars(np.int32([1]), np.float32([1]))}
        ),
        "has 'pooler' alone; train with --config.model.pooling=pooler": Delta(
            about(base, pooling="mean", base_sha256=base.sha256(False)), {**whole, **HEAD}, {}
        ),
    }
    for line, own in cases.items():
        (tmp_path / "d").unlink(missing_ok=True)
        deltas.write(tmp_path / "d", own)
        given = ("export", tmp_path / "d", tmp_path / "out", f"--base={model}")
        assert line in refused(capsys, *given, "--to=peft")
        assert not (tmp_path / "out").exists()
        if "pooling" in line:
            assert line in refused(capsys, *given, "--to=hf")
    assert "--to" in refused(capsys, "export", tmp_path / "d", tmp_path / "out")
    assert "invalid choice: 'onnx'" in refused(capsys, "export", tmp_path / "d", tmp_path / "out", "--to=onnx")


def write_adapter(folder, state, **fields):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LN_TUNING", **fields}))
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def foreign(*blocks, tuner=".ln_tuning_layers", saved="", kind=np.float32):
    """An adapter of some blocks' last norms, its values 0, 1, …"""
    names = [f"{PREFIX}{BLOCK.format(block)}{tuner}.{leaf}" for block in blocks for leaf in ("weight", "bias")]
    norms = {name: np.arange(32).astype(kind) + np.array(i, kind) for i, name in enumerate(names)}
    head = {"weight": np.arange(64).reshape(2, 32).astype(kind), "bias": np.array([1, 2], kind)}
    return norms | {f"{PREFIX}classifier{saved}.{leaf}": value for leaf, value in head.items()}


def read_back(tmp_path, model, state, *flags):
    write_adapter(tmp_path / "a", state)
    assert run("import", "--from=peft", tmp_path / "a", tmp_path / "d", f"--base={model}", "--task=rte", *flags) == 0
    return deltas.read(tmp_path / "d")


@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("tuner", "saved"), [(".ln_tuning_layers", ""), (".ln_tuning_layers.default", ".modules_to_save.default")]
)
def test_an_adapter_of_pefts_own_is_read(model, tmp_path, tuner, saved, kind):
    own = read_back(tmp_path, model, foreign(0, 1, tuner=tuner, saved=saved, kind=kind))
    base = tuned.open_base(str(model))
    labels = ("entailment", "not_entailment")
    assert own.about == About("rte", "ln_f", None, None, None, base.sha256(True), "pooler", labels)
    assert sorted(own.whole) == [
        *(f"bert/encoder/layer/{i}/output/LayerNorm/{leaf}" for i in (0, 1) for leaf in ("bias", "scale")),
        "classifier/bias",
        "classifier/kernel",
    ]
    assert own.whole[f"{NORM}/bias"].tolist() == [float(i + 1) for i in range(32)]
    assert own.whole["classifier/kernel"].T.tolist() == np.arange(64).reshape(2, 32).tolist()


def test_norms_that_no_setting_names_and_labels_of_ones_own(model, tmp_path):
    own = read_back(tmp_path, model, foreign(1), "--labels=a,b")
    assert (own.about.setting, own.about.labels) == ("peft", ("a", "b"))


def test_what_is_no_adapter_of_lntuning_is_refused(model, tmp_path, capsys):
    def check(line, state, *flags, task="--task=rte", name="a", **fields):
        folder = write_adapter(tmp_path / name, state, **fields)
        given = ("import", "--from=peft", folder, tmp_path / "d", f"--base={model}", *([task] if task else []))
        assert line in refused(capsys, *given, *flags)
        assert not (tmp_path / "d").exists()

    good = foreign(0, 1)
    check("peft_type 'LORA'; allowed is LN_TUNING", good, name="lora", peft_type="LORA")
    check("--task is missing", good, name="task", task=None)
    check("--task: 'rtf' is not known", good, name="rtf", task="--task=rtf")
    check("--labels is missing: the tags of pos", good, name="pos", task="--task=pos")
    check("its head has the shapes", good, "--labels=a,b,c", name="labels")
    check("is no parameter of a LayerNorm or of the head", good | {"bert.x": ONES}, name="key")
    lora = {f"{PREFIX}bert.encoder.layer.0.output.dense.ln_tuning_layers.weight": np.ones((32, 64), np.float32)}
    check("LNTuning has whole LayerNorms alone", good | lora, name="dense")
    other = {f"{PREFIX}{BLOCK.format(0)}.ln_tuning_layers.weight": np.ones(31, np.float32)}
    check("has shape (31,); the model's has (32,)", good | other, name="shape")
    check("the model has no bert/encoder/layer/7/output", foreign(7), name="seven")
    double = {f"{PREFIX}{BLOCK.format(0)}.ln_tuning_layers.weight": np.ones(32)}
    check("is F64; allowed are F32, F16, BF16", good | double, name="double")
    folder = write_adapter(tmp_path / "bin", good)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    given = ("import", "--from=peft", folder, tmp_path / "d", f"--base={model}", "--task=rte")
    assert "has no adapter_model.safetensors; other formats can run code" in refused(capsys, *given)
    (folder / "adapter_model.safetensors").write_bytes(b"noise")
    assert "is not a whole safetensors file" in refused(capsys, *given)
    (folder / "adapter_config.json").write_text("{")
    assert "is not JSON" in refused(capsys, *given)
