"""The engine: ordered `(regex, label)` rules over `/`-joined parameter paths, to a tree of labels.

It knows nothing of BERT: any tree of nested dicts will do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
from flax import traverse_util

from lnflax.errors import InputError, nearest

Tree = Any
Rules = Sequence[tuple[str, str]]
LABELS = ("trainable", "masked", "frozen")


def flatten(tree: Tree) -> dict[str, Any]:
    """Nested dicts to `{path: leaf}`, in the order of the paths. None is a leaf."""
    return dict(sorted(traverse_util.flatten_dict(tree, sep="/").items()))


def unflatten(flat: dict[str, Any]) -> Tree:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(flat, sep="/")


def label(params: Tree, rules: Rules, name: str = "rules") -> Tree:
    """A tree of labels in the shape of `params`: for each path the label of the first rule that matches it whole.

        {"a": {"kernel": …, "bias": …}}  with  [(".*/bias", "trainable"), (".*", "frozen")]
        gives  {"a": {"kernel": "frozen", "bias": "trainable"}}

    Raises:
        InputError: a label is unknown, a regex does not compile, a path is taken by no rule, or a rule takes no
            path (misspelt, or hidden behind the rules before it). `name` says whose rules they are.
    """
    return unflatten(_label_paths(flatten(params), rules, name))


def _label_paths(paths: Iterable[str], rules: Rules, name: str) -> dict[str, str]:
    patterns = []
    for pattern, given in rules:
        if given not in LABELS:
            hint = nearest(given, LABELS)
            raise InputError(f"{name}: label {given!r} of {pattern!r}; allowed are {', '.join(LABELS)}{hint}")
        try:
            patterns.append(re.compile(pattern))
        except re.error as error:
            raise InputError(f"{name}: {pattern!r} is not a regular expression: {error}") from error
    labels: dict[str, str] = {}
    taken: set[int] = set()
    for path in paths:
        rule = next((i for i, pattern in enumerate(patterns) if pattern.fullmatch(path)), None)
        if rule is None:
            raise InputError(f"{name}: no rule takes {path!r}; the rules are {[pattern for pattern, _ in rules]}")
        taken.add(rule)
        labels[path] = rules[rule][1]
    for i in range(len(rules)):
        if i not in taken:
            raise InputError(f"{name}: rule {rules[i][0]!r} takes no parameter; {_why_idle(patterns, i, labels)}")
    return labels


def _why_idle(patterns: Sequence[re.Pattern], idle: int, paths: Iterable[str]) -> str:
    """What stands in the way of a rule: the rule before it, or its spelling."""
    own = patterns[idle]
    for path in filter(own.fullmatch, paths):
        before = next(pattern.pattern for pattern in patterns if pattern.fullmatch(path))
        return f"{path!r} is taken by {before!r} before it"
    return nearest(own.pattern, paths).removeprefix("; ") or f"the paths are {_some(paths)}"


def _some(paths: Iterable[str]) -> str:
    first, *rest = list(paths)
    return f"{first!r}" + (f" and {len(rest)} more" if rest else "")


def is_none(leaf: Any) -> bool:
    """For `is_leaf`: None stands for what a tree leaves out."""
    return leaf is None


def split(params: Tree, labels: Tree) -> tuple[Tree, Tree]:
    """`(trained, frozen)`: two trees of the same paths, with None where the other has the leaf.

    {"a": 1, "b": 2} with {"a": "trainable", "b": "frozen"} gives ({"a": 1, "b": None}, {"a": None, "b": 2}).
    """
    trained = jax.tree.map(lambda label, leaf: None if label == "frozen" else leaf, labels, params)
    frozen = jax.tree.map(lambda label, leaf: leaf if label == "frozen" else None, labels, params)
    return trained, frozen


def merge(trained: Tree, frozen: Tree) -> Tree:
    """The inverse of `split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen, is_leaf=is_none)
