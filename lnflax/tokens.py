"""Texts to token ids, once, with the checkpoint's own tokenizer; cached by content under the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lnflax.errors import InputError
from lnflax.tasks import Texts

VOCABULARIES = ("tokenizer.json", "vocab.txt")
FORM = 1  # of the cached files; raised when their content changes its meaning


class Asked(NamedTuple):
    """What examples are asked, end to end: example i is asked `offsets[i]:offsets[i + 1]` of the targets."""

    label: np.ndarray  # which of the labels, int64 [targets], ascending
    place: np.ndarray  # the token that answers, counted from its example's first, int64 [targets]
    offsets: np.ndarray  # int64 [examples + 1]


class Encoded(NamedTuple):
    """Examples end to end: example i is `offsets[i]:offsets[i + 1]` of the flat arrays, and so are its labels.

    A sentence has one label, which its first token answers; a sentence of tagged words has one a word, which the
    word's first token answers if there is one.
    """

    tokens: np.ndarray  # int32 [tokens]
    token_types: np.ndarray  # int32 [tokens]
    offsets: np.ndarray  # int64 [examples + 1]
    labels: np.ndarray  # int32 classes or float32 scores [labels]
    label_offsets: np.ndarray  # int64 [examples + 1]
    asked: Asked

    @classmethod
    def of_sentences(
        cls, tokens: np.ndarray, token_types: np.ndarray, offsets: np.ndarray, labels: np.ndarray
    ) -> Encoded:
        """Examples of one label each."""
        every = np.arange(len(labels) + 1)
        return cls(tokens, token_types, offsets, labels, every, Asked(every[:-1], np.zeros_like(every[:-1]), every))

    @property
    def examples(self) -> int:
        """How many there are."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 `[examples]`."""
        return np.diff(self.offsets)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder.

    Raises:
        InputError: the folder has none that can be read.
    """
    import transformers

    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make an empty one
        raise InputError(f"model.name: {folder} has no tokenizer: no {' or '.join(VOCABULARIES)}")
    try:
        return transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"model.name: {folder} has no tokenizer that can be read: {error}") from error


def cache_folder() -> Path:
    """Where token ids are kept: `$LNFLAX_CACHE`, else `lnflax` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LNFLAX_CACHE") or Path(base) / "lnflax")


def encode(tokenizer: Any, texts: Texts, max_length: int) -> Encoded:
    """`tokenize`, from the cache where it has them."""
    path = cache_folder() / f"tokens-{_key(tokenizer, texts, max_length)}.safetensors"
    try:
        return _encoded(texts, load_file(path))
    except (FileNotFoundError, SafetensorError, OSError, TypeError):
        pass
    made = _arrays(tokenizer, texts, max_length)
    content = save(made)
    keep(path, lambda file: file.write(content))
    return _encoded(texts, made)


def tokenize(tokenizer: Any, texts: Texts, max_length: int) -> Encoded:
    """The token ids of all examples, pairs cut longest first.

    A word's tag is asked of its first token. One without any, or whose first is cut away, is not asked for.
    """
    return _encoded(texts, _arrays(tokenizer, texts, max_length))


def _encoded(texts: Texts, arrays: dict[str, np.ndarray]) -> Encoded:
    make = _of_words if texts.tagged else Encoded.of_sentences
    return make(**arrays, labels=texts.labels)


def _of_words(
    tokens: np.ndarray, token_types: np.ndarray, offsets: np.ndarray, words: np.ndarray, counts: np.ndarray, labels: Any
) -> Encoded:
    """From the word of each token, -1 for none, and the words of each example."""
    example = np.repeat(np.arange(len(counts)), np.diff(offsets))
    place = np.arange(len(tokens)) - offsets[example]
    before = np.concatenate([[-1], words[:-1]])
    first = (words >= 0) & ((words != before) | (place == 0))
    label_offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    asked_of = np.bincount(example[first], minlength=len(counts))
    asked = Asked(
        label=label_offsets[example[first]] + words[first],
        place=place[first],
        offsets=np.concatenate([[0], np.cumsum(asked_of)]).astype(np.int64),
    )
    return Encoded(tokens, token_types, offsets, labels, label_offsets, asked)


def _arrays(tokenizer: Any, texts: Texts, max_length: int) -> dict[str, np.ndarray]:
    rows = tokenizer(
        *texts.columns,
        truncation="longest_first",
        max_length=max_length,
        return_token_type_ids=True,
        is_split_into_words=texts.tagged,
    )
    lengths = [len(row) for row in rows["input_ids"]]
    words = {}
    if texts.tagged:
        of_tokens = [-1 if word is None else word for i in range(len(lengths)) for word in rows.word_ids(i)]
        words = {"words": np.array(of_tokens, np.int32), "counts": np.array([len(own) for own in texts.columns[0]])}
    return {
        **words,
        "tokens": np.concatenate([np.asarray(row, np.int32) for row in rows["input_ids"]]),
        "token_types": np.concatenate([np.asarray(row, np.int32) for row in rows["token_type_ids"]]),
        "offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    }


def _key(tokenizer: Any, texts: Texts, max_length: int) -> str:
    """sha256 of everything that the token ids depend on."""
    import tokenizers
    import transformers

    sha = hashlib.sha256(f"{FORM} {max_length} {tokenizers.__version__} {transformers.__version__}".encode())
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    del state["truncation"], state["padding"]  # left over from the last call, and set anew by each
    sha.update(json.dumps(state).encode())
    for column in texts.columns:
        sha.update(f"\x1e{len(column)}".encode())
        for text in column:
            if texts.tagged:
                sha.update(f"\x1d{len(text)}".encode())
            for word in text if texts.tagged else [text]:
                raw = word.encode("utf-8", "surrogatepass")
                sha.update(f"\x1f{len(raw)}\x1f".encode() + raw)
    return sha.hexdigest()


def keep(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """A file of the cache, whole or not at all; a cache that cannot be written costs time, not the study."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            write(file)
        Path(file.name).replace(path)
    except OSError as error:
        _warn(f"cannot write the cache folder {path.parent}: {error}")


@functools.cache
def _warn(text: str) -> None:
    """Once, however many splits it is said of."""
    logging.getLogger(__name__).warning(text)
