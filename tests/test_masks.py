import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lnflax import bert, masks, rules, streams
from lnflax.bert import BertConfig
from lnflax.errors import InputError
from lnflax.settings import MaskRule

TINY = BertConfig(31, 8, 2, 2, 16, 10, 2)
NORMS = "bert/encoder/.*/LayerNorm/.*"
UNCASED = BertConfig(30522, 768, 12, 12, 3072, 512, 2)


def norms(**values):
    """Two LayerNorms under a mask, a frozen kernel and a head that trains whole."""
    tree = {
        "n": {"scale": np.zeros(3, np.float32), "bias": np.zeros(3, np.float32)},
        "m": {"scale": np.zeros(3, np.float32), "bias": np.zeros(3, np.float32)},
        "kernel": np.ones((2, 2), np.float32),
        "head": np.ones(2, np.float32),
    }
    for path, value in values.items():
        norm, leaf = path.split("_")
        tree[norm][leaf] = np.array(value, np.float32)
    return tree


LABELS = {
    "n": {"scale": "masked", "bias": "masked"},
    "m": {"scale": "masked", "bias": "masked"},
    "kernel": "frozen",
    "head": "trainable",
}


def chosen(rule, params, labels=LABELS, seed=0):
    mask = masks.choose(rule, params, labels, seed)
    return {path: np.flatnonzero(leaf).tolist() for path, leaf in rules.flatten(mask).items() if leaf is not None}


@functools.cache
def shapes(config):
    return bert.parameter_shapes(config)


def all_masked(params, scope=".*"):
    rest = [] if scope == ".*" else [(".*", "frozen")]
    return rules.label(params, [(scope, "masked"), *rest])


@pytest.mark.parametrize(
    ("size", "pool", "scale", "bias", "expected"),
    [
        # The mean of all six is 1.5: distances 0.5, 0.5, 7.5 and 1.5, 3.5, 1.5.
        (1, "pooled", [1, 1, 9], [0, -2, 0], ([2], [])),
        (2, "pooled", [1, 1, 9], [0, -2, 0], ([2], [1])),
        (3, "pooled", [1, 1, 9], [0, -2, 0], ([2], [0, 1])),  # a tie to the lower index
        (6, "pooled", [1, 1, 9], [0, -2, 0], ([0, 1, 2], [0, 1, 2])),
        # The mean is 0: all are as far away. Scale comes before bias.
        (1, "pooled", [1, -1, 1], [-1, 1, -1], ([0], [])),
        (4, "pooled", [1, -1, 1], [-1, 1, -1], ([0, 1, 2], [0])),
        # A mean of its own: of scale 3 (distances 2, 1, 3), of bias 1 (1, 1, 2).
        (2, "each", [1, 2, 6], [0, 0, 3], ([2], [2])),
        (4, "each", [1, 2, 6], [0, 0, 3], ([0, 2], [0, 2])),
        # Pooled, its mean is 2: distances 1, 0, 4 and 2, 2, 1.
        (4, "pooled", [1, 2, 6], [0, 0, 3], ([0, 2], [0, 1])),
    ],
)
def test_outliers_by_hand(size, pool, scale, bias, expected):
    params = norms(n_scale=scale, n_bias=bias, m_scale=bias, m_bias=scale)
    found = chosen(MaskRule("outliers", size, pool), params)
    assert list(found) == ["m/bias", "m/scale", "n/bias", "n/scale"]
    assert (found["n/scale"], found["n/bias"]) == expected


@pytest.mark.parametrize("leaf", ["scale", "bias"])
def test_outliers_of_one_leaf_alone(leaf):
    other = {"scale": "bias", "bias": "scale"}[leaf]
    labels = {**LABELS, **{norm: {leaf: "masked", other: "frozen"} for norm in "nm"}}
    params = norms(**{f"n_{leaf}": [0, 0, 3], f"n_{other}": [0, 900, 0], f"m_{leaf}": [-3, 0, 0]})
    assert chosen(MaskRule("outliers", 1, leaf), params, labels) == {f"m/{leaf}": [0], f"n/{leaf}": [2]}


def test_each_norm_has_its_own_mean():
    params = norms(n_scale=[100, 100, 101], n_bias=[100, 100, 100], m_scale=[0, 0, 0], m_bias=[0, 7, 0])
    assert chosen(MaskRule("outliers", 1), params) == {"n/scale": [2], "n/bias": [], "m/scale": [], "m/bias": [1]}


def test_outliers_do_not_depend_on_the_seed():
    params = norms(n_scale=[1, 2, 6], m_bias=[5, 0, 0])
    rule = MaskRule("outliers", 2)
    assert chosen(rule, params, seed=0) == chosen(rule, params, seed=9)


def test_a_mask_is_a_full_tree_of_bool_and_none():
    params = norms()
    mask = masks.choose(MaskRule("random_norms", 2), params, LABELS, 0)
    flat = rules.flatten(mask)
    assert list(flat) == list(rules.flatten(params))
    assert flat["kernel"] is None and flat["head"] is None
    assert all(leaf.dtype == bool and leaf.shape == (3,) for leaf in flat.values() if leaf is not None)
    assert set(rules.flatten(masks.choose(None, params, LABELS, 0)).values()) == {None}


@pytest.mark.parametrize("size", [1, 7, 64, 1000, 1501])
def test_random_is_exactly_k(size):
    params = shapes(TINY)
    mask = masks.choose(MaskRule("random", size), params, all_masked(params), 0)
    assert sum(np.count_nonzero(leaf) for leaf in jax.tree.leaves(mask)) == size
    assert all(m.shape == p.shape for m, p in zip(jax.tree.leaves(mask), jax.tree.leaves(params), strict=True))


def test_more_than_there_is():
    with pytest.raises(InputError, match=r"random\.count: 13 scalars of 12; allowed are 1 … 12"):
        masks.choose(MaskRule("random", 13), norms(), LABELS, 0)


def reordered(tree):
    return {key: reordered(tree[key]) if isinstance(tree[key], dict) else tree[key] for key in reversed(tree)}


@pytest.mark.parametrize("kind", ["random", "random_norms", "outliers"])
def test_the_same_seed_gives_the_same_mask_in_every_order(kind):
    params = norms(n_scale=[1, 2, 1], m_bias=[3, 3, 3])
    first = masks.choose(MaskRule(kind, 3), params, LABELS, 4)
    for seed in (0, 1):
        masks.choose(MaskRule(kind, 3), params, LABELS, seed)
    again = masks.choose(MaskRule(kind, 3), reordered(params), reordered(LABELS), 4)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert masks.digest(first) == masks.digest(again)


@pytest.mark.parametrize("kind", ["random", "random_norms"])
def test_seeds_draw_anew_unless_they_share(kind):
    params = shapes(TINY)
    pattern = ".*" if kind == "random" else NORMS
    labels = all_masked(params, pattern)
    own, shared = MaskRule(kind, 5), MaskRule(kind, 5, per_seed=False)
    assert len({masks.digest(masks.choose(own, params, labels, seed)) for seed in range(5)}) == 5
    assert len({masks.digest(masks.choose(shared, params, labels, seed)) for seed in range(5)}) == 1


@pytest.mark.parametrize(("size", "pool"), [(3, "pooled"), (4, "each"), (16, "pooled"), (1, "pooled")])
def test_random_norms_has_n_in_every_norm(size, pool):
    params = shapes(TINY)
    labels = all_masked(params, NORMS)
    flat = rules.flatten(masks.choose(MaskRule("random_norms", size, pool), params, labels, 0))
    found = {}
    for path, leaf in flat.items():
        if leaf is not None:
            found.setdefault(path.rpartition("/")[0], []).append(int(np.count_nonzero(leaf)))
    assert len(found) == 4
    assert [sum(counts) for counts in found.values()] == [size] * 4
    assert pool == "pooled" or list(found.values()) == [[size // 2, size // 2]] * 4


def test_norms_and_leaves_draw_independently():
    wide = {"scale": np.zeros(500), "bias": np.zeros(500)}
    found = chosen(MaskRule("random_norms", 20, "each"), {**norms(), "n": wide, "m": wide})
    assert len({tuple(indices) for indices in found.values()}) == 4


def test_the_encoder_scope_leaves_the_embeddings_alone():
    params = shapes(TINY)
    mask = rules.flatten(masks.choose(MaskRule("random", 200), params, all_masked(params, "bert/encoder/.*"), 0))
    hit = [path for path, leaf in mask.items() if leaf is not None and leaf.any()]
    assert hit and all(path.startswith("bert/encoder/") for path in hit)


def test_where_a_uniform_draw_over_bert_base_falls():
    params = shapes(UNCASED)
    labels = rules.label(params, [("bert/.*", "masked"), ("classifier/.*", "trainable")])
    counts = {
        path: np.count_nonzero(leaf)
        for path, leaf in rules.flatten(masks.choose(MaskRule("random", 36_864), params, labels, 0)).items()
        if leaf is not None
    }
    assert sum(counts.values()) == 36_864
    assert counts["bert/embeddings/word_embeddings/embedding"] / 36_864 == pytest.approx(0.2141, abs=0.01)
    assert sum(count for path, count in counts.items() if "LayerNorm" in path) < 40


@pytest.mark.parametrize(
    ("rule", "scope", "seed", "expected"),
    [
        (MaskRule("random", 64), "bert/.*", 0, "5308df7277852bf441d253e243f24546137f274bc024f86c3a436ea4c8b6c640"),
        (MaskRule("random", 64), "bert/.*", 1, "5ba68b9e47ebdf1ded9044ae77327105e9805c09f41053fd6776efe8b8e431ea"),
        (
            MaskRule("random", 64),
            "bert/encoder/.*",
            0,
            "2143c99a63f20a19a1d1446e57bc7b4ec385f7cf7fc0e11c38fd4bafe0d8f5ed",
        ),
        (MaskRule("random_norms", 4), NORMS, 0, "fec83913de2be8bfd5c0034ab5acbdfa030a89df37d9403b624ef3bc0439723e"),
        (
            MaskRule("random_norms", 4, "each"),
            NORMS,
            0,
            "a90a685d1cd286805b899011fe41c1aee978c94911c122c66cc7e30b475936a0",
        ),
    ],
)
def test_literal_digests(rule, scope, seed, expected):
    # The same on every machine, for ever: a change here changes every study's masks.
    params = shapes(TINY)
    assert masks.digest(masks.choose(rule, params, all_masked(params, scope), seed)) == expected


def test_the_digest_by_hand():
    mask = {"b": np.array([[True, False], [False, True]]), "a": np.array([False, True]), "c": None}
    data = b"a" + bytes([1, 0, 0, 0]) + b"b" + bytes([0, 0, 0, 0, 3, 0, 0, 0])
    assert masks.digest(mask) == hashlib.sha256(data).hexdigest()


def test_a_random_mask_is_its_stream_over_the_paths_in_order():
    params = {"b": np.zeros((2, 3)), "a": np.zeros(4)}
    mask = masks.choose(MaskRule("random", 3), params, {"a": "masked", "b": "masked"}, 7)
    flat = np.concatenate([mask["a"], mask["b"].ravel()])
    assert np.flatnonzero(flat).tolist() == streams.subset(("mask", "all", 7), 3, 10).tolist()


def test_select_chooses_and_does_not_multiply():
    mask = {"a": np.array([True, False]), "b": None, "c": None, "d": np.array([True])}
    inside = {"a": jnp.array([1.0, jnp.nan]), "b": jnp.array([jnp.inf]), "c": None, "d": optax.MaskedNode()}
    outside = {"a": jnp.zeros(2), "b": jnp.zeros(1), "c": None, "d": optax.MaskedNode()}
    found = jax.jit(masks.select)(mask, inside, outside)
    assert found["a"].tolist() == [1.0, 0.0]
    assert found["b"].tolist() == [np.inf]
    assert found["c"] is None
    assert found["d"] == optax.MaskedNode()


def test_select_keeps_the_sign_of_zero():
    mask = {"a": np.array([False, True])}
    found = masks.select(mask, {"a": jnp.array([0.0, -0.0])}, {"a": jnp.array([-0.0, 0.0])})
    assert np.signbit(found["a"]).tolist() == [True, True]


def test_masks_are_made_on_the_host():
    mask = masks.choose(MaskRule("random", 2), norms(), LABELS, 0)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(mask))
