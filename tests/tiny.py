"""Small things that several tests build: a tiny BERT, its weights, its checkpoint folder, batches by hand."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
from safetensors.numpy import save_file

from lnflax import bert, rules, streams
from lnflax.batches import Batch, Targets
from lnflax.bert import BertConfig
from lnflax.masks import Mask
from lnflax.synthetic_words import FUNCTION_WORDS

# Compiles in half the time; for programs that run once or twice.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIZES = {
    "vocab_size": 61,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
}


def config(**changes):
    return BertConfig(**SIZES | changes)


def draw(name, shape, scale):
    """Uniform in (-scale, scale), float32, a function of the name alone: both sides of a comparison remake it."""
    count = int(np.prod(shape))
    raw = streams.words(("test", name), -(-count // 4)).astype("<u8").view("<u2")[:count]
    return ((raw.astype(np.float32) + np.float32(0.5)) / np.float32(2**15) - 1).reshape(shape) * np.float32(scale)


def weights(config, scale=0.3):
    """Every parameter by path, far from the values of an initialisation: no bias is 0, no scale is 1."""
    shapes = {path: leaf.shape for path, leaf in rules.flatten(bert.parameter_shapes(config)).items()}
    return {
        path: draw(path, shape, 0.3) + np.float32(path.endswith("LayerNorm/scale"))
        if "LayerNorm" in path
        else draw(path, shape, scale)
        for path, shape in shapes.items()
    }


def params(config):
    """The same as a tree."""
    return rules.unflatten(weights(config))


def whole_mask(mask):
    """A mask under which all leaves are stored whole: bool arrays, or None."""
    return Mask(mask, jax.tree.map(lambda leaf: None, mask, is_leaf=rules.is_none))


def foreign(path, prefix="bert."):
    """A path of ours to PyTorch's name."""
    name = re.sub(r"\.(kernel|scale|embedding)$", ".weight", path.removeprefix("bert/").replace("/", "."))
    return name if path.startswith("classifier/") else prefix + name


def foreign_state(flat, prefix="bert."):
    """Parameters by path to PyTorch's names and layout: kernels there are `[out, in]`."""
    return {
        foreign(path, prefix): np.ascontiguousarray(leaf.T) if path.endswith("/kernel") else leaf
        for path, leaf in flat.items()
    }


def write_folder(folder, config, state, **fields):
    """A checkpoint folder in the hub's layout; `fields` are added to config.json, and None takes one away."""
    folder.mkdir(parents=True, exist_ok=True)
    ours = ("pooling", "num_outputs", "dtype")
    raw = {key: value for key, value in dataclasses.asdict(config).items() if key not in ours}
    raw = {"model_type": "bert"} | raw | fields
    raw = {key: value for key, value in raw.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    save_file(state, folder / "model.safetensors")
    return folder


def batch(examples, layout=None, labels=None, length=None, spare=0):
    """Rows by hand from `(tokens, types)` of each example.

    `layout` lists the examples of each row, by default one a row; examples keep their ids and targets their order
    whatever the layout. `spare` adds targets of weight 0.
    """
    layout = [[i] for i in range(len(examples))] if layout is None else layout
    longest = max(sum(len(examples[i][0]) for i in row) for row in layout)
    rows = np.zeros((4, len(layout), length or longest), np.int32)
    place = {}
    for r, row in enumerate(layout):
        start = 0
        for i in row:
            tokens, types = examples[i]
            stop = start + len(tokens)
            rows[:, r, start:stop] = tokens, types, np.arange(len(tokens)), np.full(len(tokens), i + 1)
            place[i] = (r, start)
            start = stop
    row, position = np.array([place[i] for i in sorted(place)] + [(0, 0)] * spare, np.int32).T
    labels = np.arange(len(place), dtype=np.int32) % 2 if labels is None else np.asarray(labels)
    label = np.concatenate([labels, np.zeros(spare, labels.dtype)])
    weight = np.array([1] * len(place) + [0] * spare, np.float32)
    return Batch(*rows, Targets(row, position, label, weight))


def examples(*lengths):
    """Examples of these lengths for the tiny vocabulary; the second half of each is of type 1."""
    out = []
    for i, size in enumerate(lengths):
        tokens = 1 + (streams.words(("tokens", i), size) % np.uint64(SIZES["vocab_size"] - 1)).astype(np.int32)
        out.append((tokens, (np.arange(size) >= size // 2).astype(np.int32)))
    return out


SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary():
    """WordPiece tokens: the special ones and the generated tasks' function words; their content words are unknown."""
    return [*SPECIAL, *sorted(FUNCTION_WORDS)]


def write_tokenizer(folder, vocab):
    """A BERT tokenizer's files in the hub's layout; `vocab` lists the tokens by id."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    raw = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


def write_checkpoint(folder):
    """A whole random checkpoint of two blocks of width 32, tokenizer and all, for any generated task."""
    vocab = vocabulary()
    sizes = {"vocab_size": len(vocab), "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    shape = config(**sizes, max_position_embeddings=64)
    write_folder(write_tokenizer(folder, vocab), shape, foreign_state(weights(shape)))
    return folder


def write_split(folder, task, split, columns):
    """A split of a task in the hub's layout: `TASK/SPLIT-00000-of-00001.parquet`."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / task / f"{split}-00000-of-00001.parquet")
