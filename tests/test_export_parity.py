"""Exported models of sentences in PyTorch: every setting, and a regression; PEFT likewise, both ways."""

import numpy as np
import pytest

from lnflax import __main__ as command
from lnflax import deltas, tuned
from tests import exported
from tests.parity import cases

pytestmark = exported.MARKS
CELLS = [*(("rte", setting) for setting in exported.SETTINGS), ("stsb", "ln_a")]
ADAPTERS = [cell for cell in CELLS if cell[1] in exported.NORMS]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The delta of each cell."""
    place, found = tmp_path_factory.mktemp("study"), {}
    for task in dict(CELLS):
        settings = tuple(setting for name, setting in CELLS if name == task)
        own = exported.train(place / task, task, settings)
        found |= {(task, setting): path for setting, path in own.items()}
    return found


@pytest.mark.parametrize("cell", CELLS, ids="/".join)
def test_the_exported_folder_answers_as_ours(paths, tmp_path, cell):
    exported.check_the_folder(paths[cell], tmp_path)


@pytest.mark.parametrize("cell", ADAPTERS, ids="/".join)
def test_the_adapter_answers_as_ours_and_comes_back_to_the_bit(paths, tmp_path, cell):
    exported.check_the_adapter(paths[cell], tmp_path)


@pytest.mark.parametrize("cell", CELLS, ids="/".join)
def test_applied_and_reverted_the_checkpoints_file_is_the_same(paths, tmp_path, cell):
    exported.check_the_way_back(paths[cell], tmp_path)


def test_the_exported_tokenizer_reads_as_ours(paths, tmp_path):
    transformers = pytest.importorskip("transformers")
    path = paths["rte", "layernorms"]
    assert command.main(["export", str(path), str(tmp_path / "hf"), "--to=hf"]) == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    rows = tokenizer(
        *exported.sentences(), truncation="longest_first", max_length=128, padding=True, return_tensors="np"
    )
    _, batch = exported.ours(tuned.apply(exported.base(), path), exported.sentences())
    np.testing.assert_array_equal(rows["input_ids"], batch.tokens)
    np.testing.assert_array_equal(rows["attention_mask"], batch.example_ids > 0)


def test_what_peft_has_trained_and_saved_comes_in_to_the_bit(tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    norms = r".*layer\.\d+\.(attention\.)?output\.LayerNorm"
    config = peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=norms, modules_to_save=["classifier"])
    network = peft.get_peft_model(exported.open_network(cases.minilm_folder(), False, num_labels=2), config)
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    tokenizer = exported.base().tokenizer()
    rows = tokenizer(*(part[:8] for part in exported.sentences()), padding=True, return_tensors="pt")
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
    mine, batch = exported.ours(tuned.apply(exported.base(), out), exported.sentences())
    assert np.abs(mine - exported.theirs(network.eval(), batch, False)).max() <= exported.LOGITS
