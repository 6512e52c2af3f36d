"""Deltas of whole LayerNorms as adapters of PEFT's LNTuning, and such adapters as deltas; nothing is unpickled.

An adapter of ours carries in the metadata of its weights what a delta says of its run, so that importing it gives the
same file again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lnflax import checkpoint, deltas, hugging_face, model_card, settings, storage, tensors
from lnflax.deltas import About, Delta
from lnflax.errors import InputError, check_choice
from lnflax.tasks import TASKS
from lnflax.tuned import Base, Model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX, TUNER = "base_model.model.", ".ln_tuning_layers"
OURS = "lnflax."  # before the fields of a delta's metadata
KEY = rf"{re.escape(PREFIX)}(.+?)({re.escape(TUNER)}|\.modules_to_save)?(\.default)?\.(weight|bias)"
NORM = r"(bert/.*/LayerNorm)/(scale|bias)"
TYPES = ("F32", "F16", "BF16")  # that float32 holds exactly
UNKNOWN = "peft"  # the setting of norms that no setting of ours names


def export(model: Model, delta: Path, folder: Path) -> str:
    """Writes an adapter of LNTuning for `PeftModel.from_pretrained`. What it has done, for people.

    Raises:
        InputError: the delta trains more than whole LayerNorms and the head, or none of them; transformers' class has
            no such pooling; the folder is there.
    """
    hugging_face.check_pooling(model, str(delta))
    own = deltas.read(delta)
    norms = _norms(own, str(delta))
    state = {_key(path): checkpoint.to_foreign(path, own.whole[path]) for path in own.whole}
    words = {f"{OURS}{field}": text for field, text in deltas.words(own.about).items()}
    told = {
        "peft_type": "LN_TUNING",
        "task_type": "TOKEN_CLS" if model.tagged else "SEQ_CLS",
        "base_model_name_or_path": model.base.name,
        "target_modules": [norm.replace("/", ".") for norm in norms],
        "modules_to_save": ["classifier"],
        "inference_mode": True,
    }
    files = {
        WEIGHTS: tensors.pack(state, {"format": "pt", **words}),
        CONFIG: f"{json.dumps(told, indent=2, ensure_ascii=False)}\n".encode(),
        "README.md": model_card.write(model, delta, model_card.PEFT).encode(),
    }
    storage.write_folder(folder, files.items())
    base = (
        f"{hugging_face.auto_class(model)}.from_pretrained({model.base.name!r}, num_labels={model.shape.num_outputs})"
    )
    return f"{folder}: {len(norms)} LayerNorms and the head; PeftModel.from_pretrained({base}, {str(folder)!r})\n"


def _norms(delta: Delta, where: str) -> list[str]:
    """The LayerNorms that it trains, by path."""
    way = "export the whole model by --to=hf"
    body = sorted(path for path in (*delta.whole, *delta.scalars) if path.startswith("bert/"))
    if other := [path for path in body if not re.fullmatch(NORM, path) or path in delta.scalars]:
        what = "a part of " if other[0] in delta.scalars else ""
        raise InputError(f"{where} trains {what}{other[0]}; LNTuning has whole LayerNorms alone; {way}")
    norms = sorted({path.rpartition("/")[0] for path in body})
    if not norms:
        raise InputError(f"{where} trains the head alone; LNTuning needs a LayerNorm; {way}")
    if lacking := [f"{norm}/{leaf}" for norm in norms for leaf in ("bias", "scale") if f"{norm}/{leaf}" not in body]:
        raise InputError(f"{where} does not train {lacking[0]}; LNTuning has whole LayerNorms alone; {way}")
    return norms


def _key(path: str) -> str:
    """A path as PEFT names it in its file."""
    module, _, leaf = checkpoint.to_name(path).rpartition(".")
    return f"{PREFIX}{module}{TUNER if path.startswith('bert/') else ''}.{leaf}"


def read(base: Base, folder: Path, out: Path, *, task: str | None, labels: tuple[str, ...] | None) -> str:
    """Writes an adapter as a delta's file. What it has done, for people.

    Args:
        base: the checkpoint that the adapter is of.
        folder: the adapter's.
        out: the file.
        task: what it answers, where the adapter does not say so itself.
        labels: names of its outputs; None for the task's own.

    Raises:
        InputError: it is no adapter of LNTuning, does not fit the base, or does not say what is needed.
    """
    if out.exists():
        raise InputError(f"{out} is there; give a new file")
    _check_config(folder)
    leaves, words = _leaves(folder)
    where = str(folder / WEIGHTS)
    if f"{OURS}task" in words:
        given = {name.removeprefix(OURS): text for name, text in words.items() if name.startswith(OURS)}
        about = deltas.about(folder / WEIGHTS, given)
    else:
        about = _about(base, leaves, where, task, labels)
    delta = Delta(about, leaves, {})
    _norms(delta, where)
    pooled = about.pooling == "pooler"
    changed = dict(deltas.changes(delta, base.body(about.pooling), base.sha256(pooled), where))
    head = {path: leaf.shape for path, leaf in deltas.head(delta).items()}
    outputs, width = len(about.labels) or 1, base.leaves["bert/embeddings/LayerNorm/scale"].size
    if head != (wanted := {"classifier/bias": (outputs,), "classifier/kernel": (width, outputs)}):
        raise InputError(f"{where}: its head has the shapes {head}; {wanted} are wanted")
    storage.durable_write(out, deltas.pack(delta))
    return f"{out}: {about.task}/{about.setting}, {len(changed)} leaves of LayerNorms and the head\n"


def _check_config(folder: Path) -> None:
    path = folder / CONFIG
    try:
        told = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    kind = told.get("peft_type") if isinstance(told, dict) else None
    if kind != "LN_TUNING":
        raise InputError(f"{path}: peft_type {kind!r}; allowed is LN_TUNING")
    if not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder} has no {WEIGHTS}; other formats can run code and are not read")


def _leaves(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The adapter's values by our paths, float32, and its metadata."""
    path, leaves = folder / WEIGHTS, {}
    with tensors.opened(path) as file:
        for key in file.keys():  # noqa: SIM118 - no mapping
            match = re.fullmatch(KEY, key)
            own = checkpoint.to_path(f"{match[1]}.{match[4]}") if match else ""
            own = own.removeprefix("bert/") if own.startswith("bert/classifier/") else own
            if not own or own in leaves:
                raise InputError(f"{path}: {key!r} is no parameter of a LayerNorm or of the head")
            if (kind := file.get_slice(key).get_dtype()) not in TYPES:
                raise InputError(f"{path}: {key!r} is {kind}; allowed are {', '.join(TYPES)}")
            value = np.asarray(file.get_tensor(key), np.float32)
            leaves[own] = checkpoint.to_foreign(own, value)
        return leaves, file.metadata() or {}


def _about(
    base: Base, leaves: Mapping[str, np.ndarray], where: str, task: str | None, labels: tuple[str, ...] | None
) -> About:
    """What is to be said of an adapter that PEFT has written."""
    if task is None:
        raise InputError(f"--task is missing: {where} does not say what it answers")
    check_choice("--task", task, TASKS)
    own = TASKS[task]
    if labels is None and own.tagged:
        raise InputError(f"--labels is missing: the tags of {task} are those of its training set, in their order")
    pooling = "cls" if own.tagged else "pooler"
    return About(
        task=task,
        setting=_setting(base, {path for path in leaves if path.startswith("bert/")}),
        seed=None,
        learning_rate=None,
        epoch=None,
        base_sha256=base.sha256(pooling == "pooler"),
        pooling=pooling,
        labels=own.labels if labels is None else labels,
    )


def _setting(base: Base, paths: set[str]) -> str:
    """The setting that trains exactly these leaves."""
    names = {name: settings.WHOLE[name] for name in ("layernorms", "ln_a", "ln_f")}
    blocks = {match[1] for path in base.leaves if (match := re.match(r"bert/encoder/layer/(\d+)/", path))}
    names |= {
        f"single_norm_{int(block) + 1}": (rf"bert/encoder/layer/{block}/(attention/)?output/LayerNorm/(scale|bias)",)
        for block in blocks
    }
    for name, patterns in names.items():
        if paths == {path for path in base.leaves if any(re.fullmatch(pattern, path) for pattern in patterns)}:
            return name
    return UNKNOWN
