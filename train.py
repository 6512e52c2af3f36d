"""Trains a study: `python train.py --config=configs/glue.py:rte,layernorms --workdir=runs/rte`.

Any field of the config can be given on the command line: `--config.seeds='(0,)'`. With `--dry_run` it prints what
would train, and the plan, and trains nothing; with `--prepare` it fetches the model and the data, and needs no workdir.
Bad input is one line, and exit code 2.
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from lnflax import process
from lnflax.errors import InputError, nearest, raised_at

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, with its argument after a colon.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder that the results go to.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what trains and the plan; train nothing.")
CELLS = flags.DEFINE_string("cells", None, "i/n: train the i-th of n shares of the cells, without any lock.")
PREPARE = flags.DEFINE_bool("prepare", False, "Fetch the model and the data from the hub, where there is a network.")


class ConfigParser(flags.ArgumentParser):
    """ml_collections' own parser, with errors that a user can read: a config is a program and may raise anything."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def parse(self, argument: str) -> ConfigDict:
        """The config of `FILE[:ARGUMENT]`, and every `--config.FIELD` of the command line is one of its fields."""
        if not Path(argument.partition(":")[0]).is_file():
            raise InputLine(f"--config={argument}: there is no such file")
        try:
            config = self.inner.parse(argument)
            getattr(config, "items", None)  # raises for one that could not be read
        except Exception as error:
            place = raised_at(error, argument.partition(":")[0])
            raise InputLine(f"--config={argument}: {place}{_reason(error)}") from error
        if not isinstance(config, ConfigDict):
            raise InputLine(f"--config={argument}: get_config() gives no ConfigDict")
        for given in sys.argv:
            if match := re.match(r"--?(?:no)?config\.([^=]+)", given):
                _check_field(config, match[1])
        return config


class InputLine(Exception):
    """Bad input while the flags are parsed; no ValueError, which absl wraps in words of its own."""


def _reason(error: BaseException) -> str:
    """The error as the config raised it, out of ml_collections' wrapping."""
    if str(error).startswith(("Error whilst parsing config file", "Configuration is not available")):
        error = error.__cause__ or error.__context__ or error
    while error.args and isinstance(error.args[0], BaseException):
        error = error.args[0]
    if isinstance(error, SyntaxError):  # whose text repeats the place
        return f"{type(error).__name__}: {error.msg}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    text = text.partition(" Other fields present")[0]  # which lists the whole config
    return text or type(error).__name__


def _check_field(config: Any, path: str) -> None:
    for name in path.split("."):
        known = list(config) if isinstance(config, ConfigDict) else []
        if name not in known:
            raise InputLine(f"--config.{path}: there is no such field{nearest(name, known)}")
        config = config[name]


def fail(message: str, code: int = 2) -> NoReturn:
    """One line, and an exit code: 2 for bad input, 1 for a disk that fails, 75 for a study that was asked to stop."""
    sys.stderr.write(f"train.py: {' '.join(message.split())}\n")
    sys.exit(code)


def parse_flags(arguments: list[str]) -> list[str]:
    """The flags, errors on one line."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    flags.FLAGS["config"].parser = ConfigParser(flags.FLAGS["config"].parser)
    try:
        rest = flags.FLAGS(arguments)
    except (InputLine, flags.Error, ValueError, TypeError, KeyError, AttributeError) as error:
        fail(_reason(error))
    if len(rest) > 1:
        fail(f"{rest[1]!r} is not a flag; flags begin with --")
    for name in ("config",) if PREPARE.value else ("config", "workdir"):
        if not flags.FLAGS[name].value:
            fail(f"--{name} is missing")
    return rest


def main(_: list[str]) -> None:
    """Calls the library once."""
    trouble = process.set_up()
    from lnflax import config, interruption, prepare, study
    from lnflax.progress import Reporter

    reporter = Reporter()
    reporter.relay("lnflax")
    if trouble:
        reporter.warn(trouble)
    try:
        share = study.Share.parse(CELLS.value) if CELLS.value is not None else None
        given = config.parse(CONFIG.value)
        if PREPARE.value:
            prepare.run(given, reporter)
        else:
            study.run(given, Path(str(WORKDIR.value)), reporter, dry_run=DRY_RUN.value, share=share)
    except InputError as error:
        fail(str(error))
    except OSError as error:
        fail(str(error), 1)
    except (interruption.Interrupted, KeyboardInterrupt) as error:
        fail(str(error) or "interrupted before the first step", interruption.EXIT_CODE)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
