"""How large deltas are: bytes of the file of each setting, for the shapes of bert-base and a head of two outputs.

    python benchmarks/sizes.py

Values are drawn (normal), so that outliers fall on scales and biases alike: of real weights they fall on fewer leaves,
and the file has fewer names.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).parents[1]))

from configs import base
from lnflax import bert, config, deltas, masks, rules, settings
from lnflax.deltas import About, Delta, Scalars

SHAPE = bert.BertConfig(30522, 768, 12, 12, 3072, 512, 2)
SETTINGS = (
    *("frozen", "outliers_4", "outliers_16", "outliers_256", "random_norms_16", "single_norm_1"),
    *("ln_a", "ln_f", "layernorms", "bitfit", "random"),
)


def make(name: str, flat: dict[str, np.ndarray]) -> Delta:
    """A delta of the setting with these values."""
    options = config.parse(base.get_config()).options
    setting = settings.make_setting(name, options, layers=12, hidden_size=768, user_rules={})
    params = rules.unflatten(flat)
    labels = rules.label(params, setting.rules, name)
    kinds, chosen = rules.flatten(labels), rules.flatten(masks.choose(setting.mask, params, labels, 0))
    places = {path: np.flatnonzero(mask) for path, mask in chosen.items() if mask is not None and mask.any()}
    about = About("rte", name, 0, 1e-3, 20, "0" * 64, "pooler", ("entailment", "not_entailment"))
    return Delta(
        about,
        {path: leaf for path, leaf in flat.items() if kinds[path] == "trainable"},
        {p: Scalars(index.astype(np.int32), flat[p].reshape(-1)[index]) for p, index in places.items()},
    )


def main() -> None:
    """Prints a line a setting."""
    draw = np.random.default_rng(0)
    shapes = rules.flatten(bert.parameter_shapes(SHAPE))
    flat = {path: draw.normal(size=leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    for name in SETTINGS:
        own = make(name, flat)
        values = sum(leaf.nbytes for leaf in own.whole.values())
        values += sum(part.index.nbytes + part.value.nbytes for part in own.scalars.values())
        size = len(deltas.pack(own))
        print(f"{name:16} {size:9,} bytes, {values:9,} of them values, {size - values:7,} names")


if __name__ == "__main__":
    main()
