import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lnflax import bert, dropout, step
from lnflax.optimizer import OptimizerConfig
from tests import tiny

WORD = 2**32
STATE = 0x1234ABCD


def lowbias32(x):
    """The published mixer (hash-prospector, constants of 21f0aaad) in Python's own integers."""
    x ^= x >> 16
    x = x * 0x21F0AAAD % WORD
    x ^= x >> 15
    x = x * 0xD35A2D97 % WORD
    return x ^ x >> 15


def absorb(state, *words):
    for word in words:
        state = lowbias32(state ^ lowbias32((word + 0x9E3779B9) % WORD))
    return state


def unmix(x):
    """The mixer backwards: each of its steps undone."""
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0xD35A2D97, -1, WORD) % WORD
    x ^= x >> 15 ^ x >> 30
    x = x * pow(0x21F0AAAD, -1, WORD) % WORD
    return x ^ x >> 16


SAMPLES = (0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0x9E3779B9, 0xDEADBEEF, 0xFFFFFFFE, 0xFFFFFFFF)


def test_the_mixer_is_lowbias32():
    assert lowbias32(0) == 0
    assert dropout.mix(jnp.array(SAMPLES, jnp.uint32)).tolist() == [lowbias32(x) for x in SAMPLES]
    some = np.arange(0, WORD, 104729, dtype=np.uint64)
    assert dropout.mix(jnp.asarray(some.astype(np.uint32))).tolist() == [lowbias32(int(x)) for x in some]


def test_the_mixer_is_a_bijection():
    assert [unmix(lowbias32(x)) for x in SAMPLES] == list(SAMPLES)
    for start in (0, 2**31 - 2**17, WORD - 2**18):
        words = jnp.arange(2**18, dtype=jnp.uint32) + jnp.uint32(start)
        assert len(np.unique(dropout.mix(words))) == 2**18
        assert len(np.unique(dropout.fold(jnp.uint32(STATE), words))) == 2**18
        assert len(np.unique(dropout.fold(words, 7))) == 2**18


def test_fold_absorbs_words_in_order():
    state = jnp.uint32(STATE)
    for words in ((0,), (5, 0), (0, 5), (1, 2, 3)):
        ours = functools.reduce(dropout.fold, words, state)
        assert int(ours) == absorb(STATE, *words)
    assert dropout.fold(state, jnp.array([0, 2**31 - 1, 40], jnp.int32)).tolist() == [
        absorb(STATE, word) for word in (0, 2**31 - 1, 40)
    ]


def test_masks_are_the_hash_of_where_they_are_used():
    batch = tiny.batch(tiny.examples(5, 3, 4), ((2, 1), (0,)))
    ids, positions, rate = batch.example_ids, batch.positions, 0.3
    token = np.asarray(dropout.token_mask(jnp.uint32(STATE), ids, positions, 6, rate))
    scores = np.asarray(dropout.attention_mask(jnp.uint32(STATE), ids, positions, positions, 3, rate))
    threshold = round(rate * WORD)
    for row, column in np.ndindex(*ids.shape):
        example, position = int(ids[row, column]), int(positions[row, column])
        expected = [absorb(STATE, example, position, feature) >= threshold for feature in range(6)]
        assert token[row, column].tolist() == expected
        for head, key in np.ndindex(3, ids.shape[1]):
            bits = absorb(STATE, example, position, head, int(positions[row, key]))
            assert scores[row, head, column, key] == (bits >= threshold)


def test_a_step_folds_the_step_then_the_site():
    config = tiny.config(pooling="mean")  # which reads all tokens of the last block
    adam = OptimizerConfig(1e-6, "adam", 0.9, 0.999, 0, 0, 0)
    recipe = step.Recipe(config, (("classifier/bias", "trainable"),), adam)
    batch = tiny.batch(tiny.examples(4, 3))
    below, above = step.noise(recipe, batch, jnp.uint32(STATE), jnp.int32(9))
    assert set(above) == {"classifier"}  # what the head alone reads
    masks = below | above
    # Sites from the bottom: embeddings 0; of block i the weights, the attention's and the feed-forward's output.
    sites = {"embeddings": 0, "0/attention": 2, "0/ffn": 3, "1/attention": 5, "1/ffn": 6, "classifier": 7}
    threshold = round(0.1 * WORD)
    for site, number in sites.items():
        mask = np.asarray(masks[site])
        first = mask[1] if site == "classifier" else mask[1, 0]
        assert first.tolist() == [absorb(STATE, 9, number, 2, 0, feature) >= threshold for feature in range(12)]
    for i, number in ((0, 1), (1, 4)):
        assert masks[f"{i}/probs"][1, 2, 1].tolist() == [
            absorb(STATE, 9, number, 2, 1, 2, key) >= threshold for key in (0, 1, 2, 0)
        ]


def test_rates_at_the_ends():
    words = jnp.array([0, 1, WORD // 2 - 1, WORD // 2, WORD - 1], jnp.uint32)
    assert dropout.kept(words, 0.0).all()
    assert dropout.kept(words, 0.5).tolist() == [False, False, False, True, True]
    assert dropout.kept(words, 1.0).tolist() == [False, False, False, False, True]


def test_a_mask_depends_on_no_layout():
    config = tiny.config(pooling="mean")  # which reads all tokens of the last block
    examples = tiny.examples(5, 3, 7, 4)
    state = jnp.uint32(STATE)
    batches = [tiny.batch(examples), tiny.batch(examples, ((2, 1), (3, 0)), length=17)]
    plain, packed = (bert.dropout_masks(config, batch, state) for batch in batches)
    assert plain.keys() == packed.keys()
    np.testing.assert_array_equal(plain.pop("classifier"), packed["classifier"])
    for i, (tokens, _) in enumerate(examples):
        size, (rows, columns) = len(tokens), np.nonzero(batches[1].example_ids == i + 1)
        own = slice(columns[0], columns[0] + size)
        for site, mask in plain.items():
            if site.endswith("probs"):
                ours, theirs = packed[site][rows[0], :, own, own], mask[i, :, :size, :size]
            else:
                ours, theirs = packed[site][rows[0], own], mask[i, :size]
            np.testing.assert_array_equal(ours, theirs, err_msg=site)


# --- Distribution. Each bound is 5 sigma of a fair draw: about one in two million. ---

EXAMPLES, POSITIONS, FEATURES, HEADS = 16, 64, 256, 4


@functools.cache
def words():
    """The words behind a token mask, uint32 `[examples, positions, features]`, by the code that makes the mask."""
    return grid(dropout.token_mask, FEATURES)


def grid(make, size, state=STATE):
    """`make`'s words for every example and position: `kept` is replaced by the word itself."""
    ids = np.arange(1, EXAMPLES + 1, dtype=np.int32)[:, None] + np.zeros((1, POSITIONS), np.int32)
    positions = np.arange(POSITIONS, dtype=np.int32)[None] + np.zeros((EXAMPLES, 1), np.int32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "kept", lambda state, rate: state)
        return np.asarray(make(jnp.uint32(state), ids, positions, size, 0.0))


def token_words(*path):
    """The token words of a state reached by folding `path`."""
    state = int(functools.reduce(dropout.fold, path[1:], jnp.uint32(path[0])))
    return grid(dropout.token_mask, FEATURES, state)


@functools.cache
def attention_words():
    def make(state, ids, positions, heads, rate):
        return dropout.attention_mask(state, ids, positions, positions, heads, rate)

    return grid(make, HEADS)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("source", [words, attention_words])
def test_the_share_that_is_kept(source, rate):
    kept = np.asarray(dropout.kept(jnp.asarray(source()), rate))
    sigma = np.sqrt(rate * (1 - rate) / kept.size)
    assert kept.size >= 2**18
    assert abs(kept.mean() - (1 - rate)) < 5 * sigma


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_every_feature_position_and_example_is_kept_alike(rate):
    kept = np.asarray(dropout.kept(jnp.asarray(words()), rate))
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        count = kept.size // kept.shape[axis]
        z = (kept.mean(others) - (1 - rate)) / np.sqrt(rate * (1 - rate) / count)
        assert np.abs(z).max() < 5
        # And no more alike than by chance: the squares of n such z sum to n, with variance 2n.
        assert abs((z**2).sum() - z.size) < 5 * np.sqrt(2 * z.size)


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
@pytest.mark.parametrize("source", [words, attention_words])
def test_every_byte_is_uniform(source, shift):
    counts = np.bincount((source().ravel() >> np.uint32(shift)) & np.uint32(255), minlength=256)
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi2 - 255) < 5 * np.sqrt(2 * 255)


PAIRS = {
    "features": lambda: (words()[..., :-1], words()[..., 1:]),
    "positions": lambda: (words()[:, :-1], words()[:, 1:]),
    "examples": lambda: (words()[:-1], words()[1:]),
    "feature and position": lambda: (words()[:, :-1, 1:], words()[:, 1:, :-1]),
    "position and example": lambda: (words()[:-1, 1:], words()[1:, :-1]),
    "heads": lambda: (attention_words()[:, :-1], attention_words()[:, 1:]),
    "keys": lambda: (attention_words()[..., :-1], attention_words()[..., 1:]),
    "queries": lambda: (attention_words()[..., :-1, :], attention_words()[..., 1:, :]),
    "query and key": lambda: upper(attention_words(), attention_words().swapaxes(2, 3)),
    "attention and tokens": lambda: (attention_words()[:, 0], words()[..., :POSITIONS]),
    "seeds": lambda: (token_words(1, 0, 0), token_words(2, 0, 0)),
    "steps": lambda: (token_words(STATE, 6, 0), token_words(STATE, 7, 0)),
    "sites": lambda: (token_words(STATE, 6, 0), token_words(STATE, 6, 1)),
    "step and site": lambda: (token_words(STATE, 6, 7), token_words(STATE, 7, 6)),
    "site and example": lambda: (token_words(STATE, 6, 0)[1:], token_words(STATE, 6, 1)[:-1]),
    "distant steps": lambda: (token_words(STATE, 0, 0), token_words(STATE, 2**16, 0)),
}


def upper(a, b):
    """What lies above the diagonal: elsewhere each pair would be met twice, or with itself."""
    above = np.triu(np.ones(a.shape[-2:], bool), 1)
    return a[..., above], b[..., above]


@pytest.mark.parametrize("pair", PAIRS)
def test_neighbours_are_uncorrelated(pair):
    first, second = (x.ravel() for x in PAIRS[pair]())
    assert first.size >= 2**16
    bound = 5 / np.sqrt(first.size)
    for rate in (0.1, 0.5):
        a, b = ((np.asarray(dropout.kept(jnp.asarray(x), rate)) - (1 - rate)) for x in (first, second))
        assert abs((a * b).mean() / (rate * (1 - rate))) < bound, rate
    # Every bit of one against the same bit of the other.
    differ = np.array([((first ^ second) >> np.uint32(bit) & np.uint32(1)).mean() for bit in range(32)])
    assert np.abs(2 * differ - 1).max() < bound
    # And no word of one is a word of the other shifted along: equal words are as rare as by chance.
    assert (first == second).sum() <= 5


def test_streams_do_not_run_into_each_other():
    """Two seeds' words as sets: as many in common as two random sets have."""
    a, b = token_words(1, 0, 0).ravel(), token_words(2, 0, 0).ravel()
    expected = a.size * b.size / WORD
    assert abs(len(np.intersect1d(a, b)) - expected) < 5 * np.sqrt(expected) + 1


def test_a_mask_is_the_same_compiled():
    batch = tiny.batch(tiny.examples(4, 3))
    eager = bert.dropout_masks(tiny.config(), batch, jnp.uint32(STATE))
    compiled = jax.jit(bert.dropout_masks, static_argnums=0)(tiny.config(), batch, jnp.uint32(STATE))
    for site, mask in eager.items():
        np.testing.assert_array_equal(compiled[site], mask, err_msg=site)
