"""A tuned model as a folder that transformers opens in PyTorch with no code of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lnflax import checkpoint, model_card, storage, tensors
from lnflax.errors import InputError
from lnflax.tuned import Model

WEIGHTS = "model.safetensors"
CLASSES = ("BertForSequenceClassification", "BertForTokenClassification")  # of sentences, of words
HEAD_FIELDS = ("num_labels", "id2label", "label2id", "problem_type", "architectures", "torch_dtype", "dtype")


def export(model: Model, delta: Path, folder: Path) -> str:
    """Writes the folder: config, weights, the base's tokenizer, a model card. What it has done, for people.

    Raises:
        InputError: the class of transformers has no such pooling, or the folder is there.
    """
    check_pooling(model, str(delta))
    storage.write_folder(folder, _files(model, delta))
    return f"{folder}: {auto_class(model)}.from_pretrained({str(folder)!r})\n"


def check_pooling(model: Model, where: str) -> None:
    """That transformers' class reads what the head was trained on: the pooler of a sentence, or a word's own token.

    Raises:
        InputError: it reads something else.
    """
    if model.shape.pooling != "pooler" and not model.tagged:
        raise InputError(
            f"{where}: its head reads the pooling {model.shape.pooling!r}, and {CLASSES[0]} has 'pooler' alone; "
            "train with --config.model.pooling=pooler, or answer by `python -m lnflax predict`"
        )


def class_of(model: Model) -> str:
    """The class of transformers that answers as the model does."""
    return CLASSES[model.tagged]


def auto_class(model: Model) -> str:
    """The class of transformers that opens the folder."""
    return f"AutoModelFor{class_of(model).removeprefix('BertFor')}"


def config(model: Model) -> dict[str, Any]:
    """`config.json`: the base's own fields, and the head's."""
    own = {name: value for name, value in checkpoint.read_raw(model.base.folder).items() if name not in HEAD_FIELDS}
    labels = dict(enumerate(model.labels or ("LABEL_0",)))
    kind = {} if model.tagged else {"problem_type": "single_label_classification" if model.labels else "regression"}
    return {
        **own,
        "model_type": "bert",
        "architectures": [class_of(model)],
        "id2label": labels,
        "label2id": {label: number for number, label in labels.items()},
        **kind,
        "dtype": "float32",
    }


def _files(model: Model, delta: Path) -> Iterator[tuple[str, bytes]]:
    state = {checkpoint.to_name(path): checkpoint.to_foreign(path, leaf) for path, leaf in model.params.items()}
    yield WEIGHTS, tensors.pack(state, {"format": "pt"})
    yield "config.json", f"{json.dumps(config(model), indent=2, ensure_ascii=False)}\n".encode()
    yield "README.md", model_card.write(model, delta, model_card.HF).encode()
    for name in checkpoint.FILES:
        if name not in (WEIGHTS, "config.json") and (model.base.folder / name).is_file():
            yield name, storage.read_bytes(model.base.folder / name)
