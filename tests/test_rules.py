import numpy as np
import pytest

from lnflax import rules
from lnflax.errors import InputError

LEAF = np.zeros(2)
TREE = {"a": {"kernel": LEAF, "bias": LEAF}, "b": {"c": {"bias": LEAF}}}


def test_labels_of_a_literal_tree():
    assert rules.label(TREE, [(".*/bias", "trainable"), (".*", "frozen")]) == {
        "a": {"kernel": "frozen", "bias": "trainable"},
        "b": {"c": {"bias": "trainable"}},
    }


def test_the_first_match_wins():
    given = [("a/bias", "masked"), (".*/bias", "trainable"), ("a/.*", "frozen")]
    assert rules.label(TREE, given) == {
        "a": {"kernel": "frozen", "bias": "masked"},
        "b": {"c": {"bias": "trainable"}},
    }


def test_a_match_is_of_the_whole_path():
    with pytest.raises(InputError, match=r"no rule takes 'b/c/bias'"):
        rules.label(TREE, [("a/.*", "frozen"), ("c/bias", "trainable"), ("b/c", "trainable")])


def test_any_tree_will_do():
    tree = {"encoder": {"h_0": {"w": LEAF}, "h_1": {"w": LEAF}}, "out": LEAF}
    assert rules.label(tree, [(r"encoder/h_1/\w", "trainable"), (".*", "frozen")]) == {
        "encoder": {"h_0": {"w": "frozen"}, "h_1": {"w": "trainable"}},
        "out": "frozen",
    }


@pytest.mark.parametrize(
    ("given", "both"),
    [
        # A path that no rule takes: the path, and the rules.
        ([("a/.*", "frozen")], ["mine", "'b/c/bias'", "['a/.*']"]),
        ([], ["mine", "'a/bias'", "[]"]),
        # A rule that takes no path: the rule, and the nearest path.
        ([(".*", "frozen"), ("a/kernle", "trainable")], ["mine", "'a/kernle'", "did you mean 'a/kernel'"]),
        ([(".*", "frozen"), ("zzzz", "trainable")], ["mine", "'zzzz'", "the paths are 'a/bias' and 2 more"]),
        # A rule behind others: the rule, and what takes its path.
        (
            [("b/.*", "frozen"), (".*/bias", "frozen"), ("a/bias", "trainable"), (".*", "frozen")],
            ["mine", "rule 'a/bias'", "'a/bias' is taken by '.*/bias' before it"],
        ),
        # A regex that does not compile: the regex, and why.
        ([("a/(kernel", "frozen")], ["mine", "'a/(kernel'", "unterminated subpattern"]),
        # An unknown label: the label with its rule, and the labels.
        (
            [("a/.*", "trainabel")],
            ["mine", "'trainabel' of 'a/.*'", "trainable, masked, frozen", "did you mean 'trainable'"],
        ),
    ],
)
def test_an_error_names_both_sides(given, both):
    with pytest.raises(InputError) as error:
        rules.label(TREE, given, "mine")
    assert "\n" not in str(error.value)
    for side in both:
        assert side in str(error.value)


def test_split_of_a_literal_tree():
    params = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    labels = {"a": {"kernel": "frozen", "bias": "trainable"}, "b": "masked"}
    assert rules.split(params, labels) == (
        {"a": {"kernel": None, "bias": 2}, "b": 3},
        {"a": {"kernel": 1, "bias": None}, "b": None},
    )


@pytest.mark.parametrize("label", ["frozen", "trainable", "masked"])
def test_merge_undoes_split(label):
    params = {"a": {"kernel": 1, "bias": 2}, "b": 3}
    labels = {"a": {"kernel": label, "bias": "trainable"}, "b": "frozen"}
    assert rules.merge(*rules.split(params, labels)) == params


def test_flatten_is_in_path_order_and_keeps_none():
    tree = {"b": 1, "a": {"d": None, "c": 2}}
    assert list(rules.flatten(tree).items()) == [("a/c", 2), ("a/d", None), ("b", 1)]
    assert rules.unflatten(rules.flatten(tree)) == tree
