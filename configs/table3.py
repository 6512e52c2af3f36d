"""Table 3 of the paper: one block's pair of LayerNorms at a time (section 2.4). 56 cells, 1,176 runs.

    python train.py --config=configs/table3.py --workdir=runs/table3
    python analyze.py tables --workdir=runs/table3 --out=runs/table3/tables
    python analyze.py report --workdir=runs/table3    # with the profile over blocks

Expected, by the paper: a single block's norms (0.003 %) come close to all of them, the middle blocks closest. The
argument is the number of blocks of the model: `configs/table3.py:6` for a six-block one.
"""

from ml_collections import ConfigDict

from configs import base
from lnflax.errors import InputError


def get_config(blocks: str = "12") -> ConfigDict:
    if not blocks.isdecimal():
        raise InputError("give the model's number of blocks, as in configs/table3.py:12")
    config = base.get_config()
    config.tasks = ("cola", "mrpc", "stsb", "rte")
    config.settings = ("frozen", *(f"single_norm_{k}" for k in range(1, int(blocks) + 1)), "layernorms")
    return config
