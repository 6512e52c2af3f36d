"""Table 1 of the paper: every module on the eight GLUE tasks (section 2.2). 72 cells, 1,512 runs.

    python train.py --config=configs/table1.py --workdir=runs/table1 --dry_run
    python train.py --config=configs/table1.py --workdir=runs/table1
    python analyze.py tables --workdir=runs/table1 --out=runs/table1/tables
    python analyze.py distributions --workdir=runs/table1 --out=runs/table1/analysis    # Figures 1 and 2
    python analyze.py report --workdir=runs/table1

Expected, by the paper: LayerNorms close to full fine-tuning with 0.034 % of its parameters, either of the two norms
close to both, the random control well below.
"""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tasks = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
    config.settings = ("full", "frozen", "mha", "ffn", "layernorms", "ln_a", "ln_f", "bitfit", "random")
    return config
