"""What a process that runs models sets up before its first array: the machine, the libraries' manners, the cache."""

from __future__ import annotations

import logging
import os


def set_up() -> str:
    """Makes results repeatable, every core a device, libraries quiet, and programs kept; returns what went wrong.

    It imports JAX, and comes before anything else that does.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that there is no PyTorch is no news here
    from lnflax import compiling, devices, tokens

    devices.be_deterministic()
    devices.use_cores()
    for name in ("absl", "jax"):  # which greet at level INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # which logs what it raises
    return compiling.keep(tokens.cache_folder() / "xla")
