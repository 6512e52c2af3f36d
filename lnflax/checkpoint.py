"""A pretrained checkpoint (hub or folder, safetensors) to Flax parameters; nothing else knows the foreign names."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from lnflax import bert, hub, rules, sources
from lnflax.bert import BertConfig
from lnflax.errors import InputError
from lnflax.tensors import Leaves

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
         "special_tokens_map.json", "added_tokens.json")  # fmt: skip
BUFFERS = r"(bert\.)?embeddings\.(position_ids|token_type_ids)"
HEADS = r"(cls|classifier|qa_outputs)\..*"  # of pretraining or of other tasks: ours starts fresh
VOCABULARY = "tokenizer.json or vocab.txt"
LEAVES = {"weight": "kernel", "gamma": "scale", "beta": "bias"}
POOLER = r"(bert\.)?pooler\.dense\.(weight|bias)"
CLASSIFIER = ("classifier.weight", "classifier.bias")
TAGGER = "ForTokenClassification"  # how the architecture's name of one that answers for words ends


def find(name: str) -> Path:
    """The folder of a checkpoint: `name` itself where it is a path, else a hub id, downloaded or from the cache.

    Raises:
        InputError: no such folder, or the hub has no such model, or cannot be reached.
    """
    found = locate(name)
    return found if isinstance(found, Path) else found.folder


def locate(name: str) -> Path | hub.Found:
    """The same, and what was fetched of a hub id."""
    if folder := sources.folder("model.name", name, "a checkpoint folder or a hub id"):
        return folder
    wanted = hub.Wanted("model", name, _files, ("config.json", "model.safetensors", VOCABULARY))
    return hub.fetch(f"model.name: {name!r} is no folder, and the hub did not give it", wanted)


def _files(names: Sequence[str]) -> dict[str, list[str]]:
    """Those of a checkpoint."""
    own = {name: [name] for name in FILES if name in names}
    return {**own, VOCABULARY: [name for name in ("tokenizer.json", "vocab.txt") if name in own]}


def read_config(folder: Path, *, pooling: str, num_outputs: int, dtype: str) -> BertConfig:
    """`config.json` of a checkpoint as the shape of our model, with the head that a task wants.

    Raises:
        InputError: the file is missing, is not JSON, misses a field, or describes another architecture.
    """
    path, raw = folder / "config.json", read_raw(folder)
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"model.name: {path}: position_embedding_type must be absolute")
    if (act := raw.get("hidden_act", "gelu")) not in list(bert.ACTIVATIONS):
        raise InputError(f"model.name: {path}: hidden_act {act!r}; allowed are {', '.join(bert.ACTIVATIONS)}")
    fields = BertConfig.__dataclass_fields__
    known: dict[str, Any] = {name: raw[name] for name in fields if raw.get(name) is not None}
    for name, value in known.items():
        kind = fields[name].type
        if kind == "int" and (type(value) is not int or value < 1):
            raise InputError(f"model.name: {path}: {name} {value!r}; must be a whole number from 1")
        if kind == "float" and (type(value) not in (int, float) or value < 0):
            raise InputError(f"model.name: {path}: {name} {value!r}; must be a number from 0")
    known["classifier_dropout"] = known.get("classifier_dropout", raw.get("hidden_dropout_prob", 0.1))
    known |= {"pooling": pooling, "num_outputs": num_outputs, "dtype": dtype}
    try:
        config = BertConfig(**known)
    except TypeError as error:
        raise InputError(f"model.name: {path}: {str(error).split(') ', 1)[-1]}") from error
    if config.hidden_size % config.num_attention_heads:
        heads = config.num_attention_heads
        raise InputError(f"model.name: {path}: hidden_size {config.hidden_size} does not divide by {heads} heads")
    return config


def read_raw(folder: Path) -> dict[str, Any]:
    """`config.json` of a BERT's checkpoint as it is.

    Raises:
        InputError: the file is missing, is not JSON, or describes another architecture.
    """
    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"model.name: {folder} has no config.json") from error
    except (OSError, ValueError) as error:
        raise InputError(f"model.name: {path} cannot be read: {error}") from error
    if not isinstance(raw, dict) or raw.get("model_type", "bert") != "bert":
        given = raw.get("model_type") if isinstance(raw, dict) else type(raw).__name__
        raise InputError(f"model.name: {path}: model_type {given!r}; allowed is bert")
    return raw


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model.name: {path} is damaged or no safetensors file: {error}") from error


def open_body(folder: Path, config: BertConfig) -> Leaves:
    """The body's parameters (`bert/…`), exactly those that the head uses, in path order: float32, kernels `[in, out]`.

    A pooler is read where the pooling needs one and may be absent elsewhere.

    Raises:
        InputError: the file is missing or damaged, or a parameter is missing, left over, or of a wrong shape.
    """
    path = _weights(folder)
    with _opened(path) as file:
        foreign = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    ours = {name: to_path(name) for name in foreign if is_of_body(name)}
    if config.pooling != "pooler":
        ours = {name: own for name, own in ours.items() if not own.startswith("bert/pooler/")}
    shapes = {p: s.shape for p, s in rules.flatten(bert.parameter_shapes(config)).items() if p.startswith("bert/")}
    if missing := sorted(set(shapes) - set(ours.values())):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = "; use model.pooling=cls or mean" if all(p.startswith("bert/pooler/") for p in missing) else ""
        raise InputError(f"model.name: {path} misses {missing[0]!r}{more}{hint}")
    if extra := sorted(name for name, own in ours.items() if own not in shapes):
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise InputError(f"model.name: {path} has {extra[0]!r}{more}, which config.json knows no place for")
    first = {own: name for name, own in reversed(ours.items())}
    if twice := [(first[own], name) for name, own in ours.items() if first[own] != name]:
        raise InputError(f"model.name: {path} has a parameter twice: {twice[0][0]!r} and {twice[0][1]!r}")
    for name, own in ours.items():
        wanted = shapes[own][::-1] if own.endswith("/kernel") else shapes[own]  # `[out, in]` there
        if foreign[name] != wanted:
            raise InputError(f"model.name: {path}: {name!r} has shape {foreign[name]}, config.json says {wanted}")
    names = dict(sorted(first.items()))
    return Leaves(functools.partial(_opened, path), names, lambda own, x: to_foreign(own, np.asarray(x, np.float32)))


def read_body(folder: Path, config: BertConfig) -> dict[str, np.ndarray]:
    """All of `open_body`, float32 by path.

    Raises:
        InputError: as there.
    """
    return dict(open_body(folder, config))


def has_pooler(folder: Path) -> bool:
    """Whether the checkpoint's file holds one.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _opened(_weights(folder)) as file:
        return sum(re.fullmatch(POOLER, name) is not None for name in file.keys()) == 2  # noqa: SIM118 - no mapping


def read_head(folder: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...], bool]:
    """A classifier of the checkpoint's own: its leaves by path, what its outputs are called, whether it tags words.

    No leaves where the checkpoint has none; no names of a regression.

    Raises:
        InputError: a file is missing or damaged.
    """
    with _opened(_weights(folder)) as file:
        if not set(CLASSIFIER) <= set(file.keys()):
            return {}, (), False
        weight, bias = (np.asarray(file.get_tensor(name), np.float32) for name in CLASSIFIER)
    raw = read_raw(folder)
    named = raw.get("id2label") or {}
    count = len(bias)
    labels = tuple(str(named.get(str(i), f"LABEL_{i}")) for i in range(count)) if count > 1 else ()
    tagged = any(str(name).endswith(TAGGER) for name in raw.get("architectures") or ())
    return {"classifier/bias": bias, "classifier/kernel": to_foreign("classifier/kernel", weight)}, labels, tagged


def read_tensors(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Everything in the checkpoint's file as it is: tensors by their foreign names, of their own types; its metadata.

    Raises:
        InputError: the file is missing or damaged.
    """
    with _opened(_weights(folder)) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping


def _weights(folder: Path) -> Path:
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"model.name: {folder} has no model.safetensors (other formats are not read)")
    return path


def is_of_body(name: str) -> bool:
    """Whether a foreign name is a parameter of a body: no buffer, and no head's."""
    return re.fullmatch(f"{BUFFERS}|{HEADS}", name) is None


def to_name(path: str) -> str:
    """A path of ours to PyTorch's name today, the inverse of `to_path`.

    `bert/encoder/layer/0/output/LayerNorm/scale` gives `bert.encoder.layer.0.output.LayerNorm.weight`.
    """
    return re.sub(r"\.(kernel|scale|embedding)$", ".weight", path.replace("/", "."))


def to_foreign(path: str, value: np.ndarray) -> np.ndarray:
    """A value of ours as PyTorch has it, kernels `[out, in]`; and the other way round, since it transposes."""
    return np.ascontiguousarray(value.T) if path.endswith("/kernel") else value


def to_path(name: str) -> str:
    """A foreign name to our path.

    `bert.encoder.layer.0.output.dense.weight` and `encoder.layer.0.output.dense.weight` both give
    `bert/encoder/layer/0/output/dense/kernel`; `LayerNorm.gamma` and `LayerNorm.weight` both give `LayerNorm/scale`.
    """
    *module, leaf = name.removeprefix("bert.").split(".")
    leaf = LEAVES.get(leaf, leaf)
    if leaf == "kernel" and module:
        leaf = {"LayerNorm": "scale"}.get(module[-1], "embedding" if "embeddings" in module[-1] else "kernel")
    return "/".join(["bert", *module, leaf])


def body_sha256(body: Mapping[str, np.ndarray]) -> str:
    """The body's identity: in path order the UTF-8 path, then its values as little-endian float32 in C order.

    Each leaf is asked for once, and let go before the next.
    """
    sha = hashlib.sha256()
    for path in sorted(body):
        sha.update(path.encode())
        sha.update(np.ascontiguousarray(body[path], "<f4").data)
    return sha.hexdigest()
