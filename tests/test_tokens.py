import logging

import jax
import numpy as np
import pytest

from lnflax import tokens
from lnflax.errors import InputError
from lnflax.tasks import Texts
from tests import tiny

VOCAB = [*tiny.SPECIAL, "a", "b", "c", "d", "##d", "##s"]
CLS, SEP, UNK = 2, 3, 1
A, B, C, D, _D, _S = range(5, 11)


@pytest.fixture
def tokenizer(tmp_path):
    return tokens.load_tokenizer(tiny.write_tokenizer(tmp_path / "tokenizer", VOCAB))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LNFLAX_CACHE", str(folder))
    return folder


def texts(*columns, labels=None):
    return Texts(columns, np.arange(len(columns[0]), dtype=np.int32) if labels is None else labels)


def rows(encoded):
    """`(ids, types)` of each example."""
    spans = zip(encoded.offsets, encoded.offsets[1:], strict=False)
    return [(encoded.tokens[a:b].tolist(), encoded.token_types[a:b].tolist()) for a, b in spans]


def test_sentences(tokenizer):
    encoded = tokens.encode(tokenizer, texts(["a b", "ads As", "x"]), 8)
    assert rows(encoded) == [
        ([CLS, A, B, SEP], [0] * 4),
        ([CLS, A, _D, _S, A, _S, SEP], [0] * 7),
        ([CLS, UNK, SEP], [0] * 3),
    ]
    assert encoded.lengths.tolist() == [4, 7, 3]
    assert [array.dtype for array in encoded[:4]] == [np.int32, np.int32, np.int64, np.int32]


def test_pairs_have_two_types(tokenizer):
    encoded = tokens.encode(tokenizer, texts(["a b"], ["c"]), 8)
    assert rows(encoded) == [([CLS, A, B, SEP, C, SEP], [0, 0, 0, 0, 1, 1])]


def test_pairs_are_cut_longest_first(tokenizer):
    pair = texts(["a b c d a b", "a", "a b c d"], ["c", "a b c d a b", "d c b a"])
    encoded = tokens.encode(tokenizer, pair, 8)
    assert rows(encoded) == [
        ([CLS, A, B, C, D, SEP, C, SEP], [0] * 6 + [1] * 2),
        ([CLS, A, SEP, A, B, C, D, SEP], [0] * 3 + [1] * 5),
        ([CLS, A, B, SEP, D, C, B, SEP], [0] * 4 + [1] * 4),  # five places for four and four: the second has the odd
    ]


def test_a_sentence_is_cut_at_its_end(tokenizer):
    assert rows(tokens.encode(tokenizer, texts(["a b c d"]), 5)) == [([CLS, A, B, C, SEP], [0] * 5)]


def same(a, b):
    return all(x.dtype == y.dtype and (x == y).all() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_the_second_call_reads_the_cache(tokenizer, cache, monkeypatch):
    first = tokens.encode(tokenizer, texts(["a b", "c"]), 8)
    (file,) = cache.iterdir()
    assert file.name.startswith("tokens-") and file.suffix == ".safetensors"

    def fails(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokens, "_arrays", fails)
    assert same(first, tokens.encode(tokenizer, texts(["a b", "c"]), 8))
    # Labels are the task's, not the cache's.
    other = tokens.encode(tokenizer, texts(["a b", "c"], labels=np.array([1.5, 2.5], np.float32)), 8)
    assert other.labels.tolist() == [1.5, 2.5]
    with pytest.raises(AssertionError, match="tokenised again"):
        tokens.encode(tokenizer, texts(["a b", "d"]), 8)


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_cache_is_made_again(tokenizer, cache, damage):
    first = tokens.encode(tokenizer, texts(["a b", "c"]), 8)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert same(first, tokens.encode(tokenizer, texts(["a b", "c"]), 8))
    assert list(cache.iterdir()) == [file] and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_only_warns(tokenizer, cache, caplog):
    cache.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        encoded = tokens.encode(tokenizer, texts(["a"]), 8)
    assert rows(encoded) == [([CLS, A, SEP], [0] * 3)]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        f"cannot write the cache folder {cache}"
    ]
    assert cache.read_text() == "a file where the folder should be"


def test_the_key_is_of_the_content(tokenizer, tmp_path):
    def key(own=tokenizer, columns=(["a b", "c"],), length=8):
        return tokens._key(own, texts(*columns), length)

    twin = tokens.load_tokenizer(tiny.write_tokenizer(tmp_path / "twin", VOCAB))
    other = tokens.load_tokenizer(tiny.write_tokenizer(tmp_path / "other", [*VOCAB, "e"]))
    assert key() == key(own=twin)
    different = [
        key(),
        key(length=9),
        key(own=other),
        key(columns=(["a b", "d"],)),
        key(columns=(["a", "b c"],)),
        key(columns=(["a bc", ""],)),
        key(columns=(["c", "a b"],)),
        key(columns=(["a b"], ["c"])),
    ]
    assert len(set(different)) == len(different)


def test_the_key_does_not_change_by_using_the_tokenizer(tokenizer):
    before = tokens._key(tokenizer, texts(["a b"]), 8)
    tokens.encode(tokenizer, texts(["a b c d"], ["d"]), 6)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=4)
    assert tokens._key(tokenizer, texts(["a b"]), 8) == before


def test_the_cache_folder(monkeypatch, tmp_path):
    assert tokens.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LNFLAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tokens.cache_folder() == tmp_path / "xdg" / "lnflax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tokens.cache_folder() == tmp_path / "home" / ".cache" / "lnflax"


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path):
    # transformers would make one that knows its special tokens alone, and every word would be unknown.
    folder = tiny.write_tokenizer(tmp_path / "mute", VOCAB)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match=r"^model\.name: .*/mute has no tokenizer: no tokenizer\.json or vocab\.txt$"):
        tokens.load_tokenizer(folder)


def test_a_damaged_tokenizer_is_one_line(tmp_path):
    folder = tiny.write_tokenizer(tmp_path / "torn", VOCAB)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"^model\.name: .*/torn has no tokenizer that can be read: "):
        tokens.load_tokenizer(folder)
