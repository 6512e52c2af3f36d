"""One cell, or a few, of the paper's experiments on tagged words: `configs/token.py:pos|ner,SETTING`.

    python train.py --config=configs/token.py:pos,layernorms --workdir=runs/pos

trains the LayerNorms of bert-base-cased to tag parts of speech in NLTK's treebank sample, three seeds and seven
learning rates in one program, and prints accuracy ± deviation at the selected rate. A corpus of one's own, column
files or JSON lines of `tokens` and `tags`, is `--config.data.path=FOLDER`.
"""

from ml_collections import ConfigDict

from configs import base
from lnflax.errors import InputError


def get_config(cell: str = "pos,layernorms") -> ConfigDict:
    task, comma, setting = cell.partition(",")
    if not (task and comma and setting):
        raise InputError("give pos or ner,SETTING, as in configs/token.py:pos,layernorms")
    config = base.get_config()
    config.model.name = "google-bert/bert-base-cased"
    config.tasks = (task,)
    config.settings = (setting,)
    return config
