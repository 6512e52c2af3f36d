"""Table 4 of the paper: N outliers of each LayerNorm against as many random scalars (section 3.1). 40 cells, 840 runs.

    python train.py --config=configs/table4.py --workdir=runs/table4
    python analyze.py tables --workdir=runs/table4 --out=runs/table4/tables
    python analyze.py report --workdir=runs/table4    # with the curve over N
    python analyze.py outliers --workdir=runs/table4 --out=runs/table4/analysis
    python analyze.py ablate --deltas runs/table4/stsb/outliers_256/deltas --out=runs/table4/analysis

Expected, by the paper: outliers do better than random scalars of the same norms, and 4 a norm better than none.
"""

from ml_collections import ConfigDict

from configs import base

COUNTS = (4, 16, 64, 256)


def get_config() -> ConfigDict:
    config = base.get_config()
    config.tasks = ("cola", "mrpc", "stsb", "rte")
    config.settings = (
        "frozen",
        *(f"{kind}_{count}" for count in COUNTS for kind in ("outliers", "random_norms")),
        "layernorms",
    )
    return config
