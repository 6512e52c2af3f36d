import collections
import hashlib

import numpy as np
import pytest

from lnflax import streams


def test_literal_values():
    # The same for ever: a change here changes every study's data order and masks.
    name = ("order", "rte", 0, 1)
    expected = [15293866888622054719, 5574320951024483945, 14678738908021363127]
    assert streams.words(name, 3).tolist() == expected
    assert streams.permutation(name, 8).tolist() == [3, 4, 1, 6, 2, 0, 5, 7]
    assert streams.subset(("mask", "all", 0), 5, 100).tolist() == [0, 14, 16, 32, 84]
    assert streams.subset(("mask", "all", 0), 7, 10).tolist() == [1, 2, 3, 5, 7, 8, 9]


def test_words_are_philox_keyed_by_the_name():
    key = hashlib.sha256(b"'order'\x1f'rte'\x1f0\x1f1").digest()[:16]
    words = np.random.Philox(key=int.from_bytes(key, "little")).random_raw(5)
    assert streams.words(("order", "rte", 0, 1), 5).tolist() == words.tolist()
    assert streams.words(("order", "rte", 0, 1), 3).tolist() == words[:3].tolist()


def test_names_do_not_run_together():
    names = [("a", 1), ("a", 1, 1), ("a", 11), ("a", "1"), ("a1",), ("a", 2), ("b", 1)]
    assert len({streams.words(name, 1)[0] for name in names}) == len(names)


@pytest.mark.parametrize("part", [np.int64(0), True, 1.0, None])
def test_a_name_is_of_strings_and_integers(part):
    with pytest.raises(TypeError, match="str and int"):
        streams.words(("order", part), 1)


def test_words_are_uniform():
    bits = np.unpackbits(streams.words(("uniform",), 20_000).view(np.uint8)).reshape(-1, 64)
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / np.sqrt(bits.size)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(bits))


def test_permutations_are_uniform():
    counts = collections.Counter(tuple(streams.permutation(("p", i), 3).tolist()) for i in range(6000))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5  # chi-square, 5 degrees: p = 0.001


def test_a_permutation_holds_each_once():
    assert sorted(streams.permutation(("p",), 1000).tolist()) == list(range(1000))
    assert streams.permutation(("p",), 0).tolist() == []


@pytest.mark.parametrize(("count", "size"), [(0, 0), (0, 5), (1, 1), (5, 5), (3, 7), (50, 100), (51, 100), (999, 1000)])
def test_a_subset_is_exact_and_ascending(count, size):
    chosen = streams.subset(("s", count), count, size)
    assert chosen.dtype == np.int64
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert not count or (chosen[0] >= 0 and chosen[-1] < size)


def test_more_than_half_is_the_complement_of_the_rest():
    few, most = streams.subset(("s",), 30, 100), streams.subset(("s",), 70, 100)
    assert sorted([*few, *most]) == list(range(100))


@pytest.mark.parametrize("count", [2, 4])
def test_subsets_are_uniform(count):
    counts = collections.Counter(tuple(streams.subset(("s", i), count, 6).tolist()) for i in range(3000))
    assert len(counts) == 15
    assert sum((n - 200) ** 2 / 200 for n in counts.values()) < 36.1  # chi-square, 14 degrees: p = 0.001


@pytest.mark.parametrize(("count", "size"), [(4, 3), (-1, 3)])
def test_a_subset_that_cannot_be(count, size):
    with pytest.raises(ValueError, match=f"cannot draw {count} of {size}"):
        streams.subset(("s",), count, size)
