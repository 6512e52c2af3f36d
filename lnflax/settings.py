"""The paper's settings, written as rules: what trains besides the classifier (sections 2.1, 2.4 and 3.1).

A setting is data: ordered path rules, and a rule for the elementwise mask where it needs one. All hold for any
depth and width of encoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lnflax.errors import InputError, check_choice, nearest

BLOCK = r"bert/encoder/layer/\d+"
LN_A = rf"{BLOCK}/attention/output/LayerNorm"
LN_F = rf"{BLOCK}/output/LayerNorm"
LEAF = "/(kernel|bias)"

WHOLE: dict[str, tuple[str, ...]] = {
    "full": ("bert/.*",),
    "frozen": (),
    "mha": (rf"{BLOCK}/attention/(self/(query|key|value)|output/dense){LEAF}",),
    "ffn": (rf"{BLOCK}/(intermediate|output)/dense{LEAF}",),
    "layernorms": (rf"{BLOCK}/(attention/)?output/LayerNorm/(scale|bias)",),
    "ln_a": (rf"{LN_A}/(scale|bias)",),
    "ln_f": (rf"{LN_F}/(scale|bias)",),
    "bitfit": (rf"{BLOCK}/.*/bias",),
}
NUMBERED = {"single_norm": "K", "outliers": "N", "random_norms": "N"}
NAMES = (*WHOLE, "random", *(f"{name}_{letter}" for name, letter in NUMBERED.items()))

OUTLIER_POOLS = ("pooled", "scale", "bias", "each")
OUTLIER_NORMS = ("both", "a", "f")
RANDOM_SCOPES = ("all", "encoder")
BITFIT_SCOPES = ("blocks", "all")


@dataclasses.dataclass(frozen=True)
class Options:
    """The open choices of the settings; the defaults of `configs/base.py` are the paper's reading."""

    outlier_pool: str
    outlier_norms: str
    random_count: int
    random_scope: str
    random_per_seed: bool
    bitfit_scope: str
    train_pooler: bool


@dataclasses.dataclass(frozen=True)
class MaskRule:
    """Which scalars of the leaves labelled `masked` train.

    `kind` is `outliers` or `random_norms` (`size` scalars of each LayerNorm, over `pool`), or `random` (`size`
    scalars of all masked leaves together). `per_seed` draws anew for each seed.
    """

    kind: str
    size: int
    pool: str = "pooled"
    per_seed: bool = True


@dataclasses.dataclass(frozen=True)
class Setting:
    """A row of the paper's tables: its name, its rules, and its mask where not whole leaves train."""

    name: str
    rules: tuple[tuple[str, str], ...]
    mask: MaskRule | None = None


def make_setting(
    name: str, options: Options, *, layers: int, hidden_size: int, user_rules: Mapping[str, Sequence]
) -> Setting:
    """The setting called `name` for an encoder of `layers` blocks of width `hidden_size`.

    `user_rules` are the config's own settings, name to rules; they may not take a name of the contract.

    Raises:
        InputError: the name is unknown, its number does not fit the model, or an option does not fit the setting.
    """
    if name in user_rules:
        return _user_setting(name, user_rules[name])
    stem, _, digits = name.rpartition("_")
    pooler = (("bert/pooler/.*", "trainable"),) if options.train_pooler else ()
    if stem in NUMBERED and digits.isdecimal() and name == f"{stem}_{int(digits)}":
        own, mask = _numbered(name, stem, int(digits), options, layers, hidden_size)
    elif name == "random":
        scope = r"bert/.*" if options.random_scope == "all" else r"bert/encoder/.*"
        own = ((scope, "masked"),)
        mask = MaskRule("random", options.random_count or 4 * layers * hidden_size, per_seed=options.random_per_seed)
    elif name in WHOLE:
        whole = (r"bert/.*/bias",) if (name, options.bitfit_scope) == ("bitfit", "all") else WHOLE[name]
        own, mask = tuple((pattern, "trainable") for pattern in whole), None
    else:
        known = (*NAMES, *user_rules)
        raise InputError(f"settings: {name!r} is not known; allowed are {', '.join(known)}{nearest(name, known)}")
    rest = () if any(pattern == "bert/.*" for pattern, _ in own) else (("bert/.*", "frozen"),)
    return Setting(name, (*pooler, *own, *rest, ("classifier/.*", "trainable")), mask)


def is_reserved(name: str) -> bool:
    """Whether the contract owns the name, so that a config's own setting may not take it."""
    stem, _, digits = name.rpartition("_")
    return name in WHOLE or name == "random" or (stem in NUMBERED and digits.isdecimal())


def _user_setting(name: str, rules: Sequence) -> Setting:
    if is_reserved(name):
        raise InputError(f"rules: {name!r} is a setting of the paper; choose another name")
    own = tuple((str(pattern), str(label)) for pattern, label in rules)
    if any(label == "masked" for _, label in own):
        raise InputError(f"rules.{name}: label 'masked' needs a mask; allowed here are trainable, frozen")
    classifier = ("classifier/.*", "trainable")  # always; a config's rules are of the body
    return Setting(name, (classifier, *(rule for rule in own if rule != classifier)))


def _numbered(
    name: str, stem: str, number: int, options: Options, layers: int, hidden_size: int
) -> tuple[tuple[tuple[str, str], ...], MaskRule | None]:
    if stem == "single_norm":
        if not 1 <= number <= layers:
            raise InputError(
                f"settings: {name!r}: the model has {layers} blocks; allowed are single_norm_1 … single_norm_{layers}"
            )
        pattern = rf"bert/encoder/layer/{number - 1}/(attention/)?output/LayerNorm/(scale|bias)"
        return ((pattern, "trainable"),), None
    pool = options.outlier_pool
    most = hidden_size * (1 if pool in ("scale", "bias") else 2)
    if not 1 <= number <= most:
        raise InputError(
            f"settings: {name!r}: a LayerNorm has {most} scalars with outliers.pool={pool}; allowed are 1 … {most}"
        )
    if pool == "each" and number % 2:
        raise InputError(f"settings: {name!r}: outliers.pool=each takes N/2 of scale and of bias; N must be even")
    norms = {"both": rf"{BLOCK}/(attention/)?output/LayerNorm", "a": LN_A, "f": LN_F}[options.outlier_norms]
    leaves = pool if pool in ("scale", "bias") else "(scale|bias)"
    mask = MaskRule(stem, number, pool, per_seed=options.random_per_seed)
    return ((f"{norms}/{leaves}", "masked"),), mask


def check_options(options: Options) -> None:
    """Raises InputError, naming the config field, for an option that is not allowed."""
    check_choice("outliers.pool", options.outlier_pool, OUTLIER_POOLS)
    check_choice("outliers.norms", options.outlier_norms, OUTLIER_NORMS)
    check_choice("random.scope", options.random_scope, RANDOM_SCOPES)
    check_choice("bitfit.scope", options.bitfit_scope, BITFIT_SCOPES)
    if options.random_count < 0:
        raise InputError(f"random.count: {options.random_count}; allowed are 0 (as many as layernorms) and above")
