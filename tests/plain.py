"""What a model says of a development set one example a row, from all its parameters: no packing, no grid, no masks."""

import numpy as np

from lnflax import bert, checkpoint, config, rules, tasks, tokens
from lnflax.batches import Batch, Targets
from tests import studies, tiny


def base(model):
    """The shape of a checkpoint with a head of two outputs, and its body."""
    shape = checkpoint.read_config(model, pooling="pooler", num_outputs=2, dtype="float32")
    return shape, checkpoint.read_body(model, shape)


def predict(model, params):
    """Classes of the generated task's development set, for parameters by path."""
    given = config.parse(studies.given(model))
    texts = tasks.load(tasks.TASKS["rte"], given.data_path, given.eval_split, given.max_train_examples)
    encoded = tokens.encode(tokens.load_tokenizer(model), texts.evals["validation"], given.max_length)
    sizes = np.diff(encoded.offsets)
    ids, types = np.zeros((2, len(sizes), sizes.max()), np.int32)
    for row, (begin, size) in enumerate(zip(encoded.offsets, sizes, strict=False)):
        ids[row, :size], types[row, :size] = (part[begin : begin + size] for part in encoded[:2])
    there = (np.arange(ids.shape[1]) < sizes[:, None]).astype(np.int32)
    rows, zeros = np.arange(len(sizes), dtype=np.int32), np.zeros(len(sizes), np.int32)
    targets = Targets(rows, zeros, zeros, np.ones(len(sizes), np.float32))
    batch = Batch(ids, types, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape), there, targets)
    logits = tiny.jit(bert.Classifier(base(model)[0]).apply)({"params": rules.unflatten(params)}, batch, {})
    return np.argmax(np.asarray(logits), axis=-1)
