"""Table 2 of the paper: every module on two tasks of tagged words, with the cased BERT (section 2.2). 18 cells.

    python train.py --config=configs/table2.py --workdir=runs/table2 --dry_run
    python train.py --config=configs/table2.py --workdir=runs/table2
    python analyze.py tables --workdir=runs/table2 --out=runs/table2/tables
    python analyze.py report --workdir=runs/table2

Expected, by the paper: LayerNorms close to full fine-tuning here too, the random control below.
"""

from ml_collections import ConfigDict

from configs import table1, token


def get_config() -> ConfigDict:
    config = token.get_config()
    config.tasks = ("pos", "ner")
    config.settings = table1.get_config().settings
    return config
