"""Trains a study: `python train.py --config=configs/glue.py:rte,layernorms --workdir=runs/rte`.

Any field of the config can be given on the command line: `--config.seeds='(0,)'`. With `--dry_run` it prints what
would train, and the plan, and trains nothing. Bad input is one line, and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with its argument after a colon.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that the results go to.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what trains and the plan; train nothing.")


def fail(message: str) -> None:
    """One line, exit code 2."""
    sys.stderr.write(f"train.py: {' '.join(str(message).split())}\n")
    sys.exit(2)


def parse_flags(arguments: list[str]) -> list[str]:
    """The flags, errors on one line."""
    try:
        rest = flags.FLAGS(arguments)
        if len(rest) > 1:
            fail(f"{rest[1]!r} is not a flag; flags begin with --")
        for name in ("config", "workdir"):
            if not flags.FLAGS[name].value:
                fail(f"--{name} is missing")
    except Exception as error:  # a config is a program: it may raise anything
        fail(_reason(error))
    return rest


def _reason(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text or type(error).__name__


def main(_: list[str]) -> None:
    """Calls the library once."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from lnflax import config, study
    from lnflax.errors import InputError
    from lnflax.progress import Reporter

    for name in ("absl", "datasets"):  # which greet at level INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        study.run(config.parse(CONFIG.value), Path(str(WORKDIR.value)), Reporter(), dry_run=DRY_RUN.value)
    except InputError as error:
        fail(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
