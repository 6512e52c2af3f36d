"""One cell, or a few, of the paper's sentence experiments: `configs/glue.py:TASK,SETTING`.

    python train.py --config=configs/glue.py:rte,layernorms --workdir=runs/rte

trains the LayerNorms of bert-base-uncased on RTE, three seeds and seven learning rates in one program, and prints
accuracy ± deviation at the selected rate.
"""

from ml_collections import ConfigDict

from configs import base
from lnflax.errors import InputError


def get_config(cell: str = "rte,layernorms") -> ConfigDict:
    task, comma, setting = cell.partition(",")
    if not (task and comma and setting):
        raise InputError("give TASK,SETTING, as in configs/glue.py:rte,layernorms")
    config = base.get_config()
    config.tasks = (task,)
    config.settings = (setting,)
    return config
