"""Tables from the folder of a study: `python analyze.py tables --workdir=runs/table1 [--out=DIR]`. Trains nothing."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from lnflax.analysis.tables import Reading, make_tables
from lnflax.errors import InputError
from lnflax.selection import HOW


class _Parser(argparse.ArgumentParser):
    """Errors on one line, like those of the library."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _task_metric(text: str) -> tuple[str, str]:
    task, _, metric = text.partition("=")
    if not task or not metric:
        raise argparse.ArgumentTypeError(f"{text!r} is not TASK=METRIC")
    return task, metric


def _tables(flags: argparse.Namespace) -> str:
    reading = Reading(how=flags.select, ddof=flags.ddof, metrics=dict(flags.metric))
    return make_tables(flags.workdir, flags.out, reading, flags.published)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="analyze.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    tables = commands.add_parser("tables", help="the paper's Tables 1 to 4", allow_abbrev=False)
    tables.set_defaults(run=_tables)
    tables.add_argument("--workdir", required=True, help="the folder that train.py wrote")
    tables.add_argument("--out", help="also write table1.md, .csv, .tex and so on into this folder")
    tables.add_argument("--select", choices=HOW, default="mean", help="what chooses the learning rate")
    tables.add_argument("--ddof", type=int, default=1, help="std divides by n - ddof (default 1, the sample std)")
    tables.add_argument(
        "--metric",
        type=_task_metric,
        nargs="+",
        action="extend",
        default=[],
        metavar="TASK=METRIC",
        help="report another metric of a task, e.g. mrpc=accuracy",
    )
    tables.add_argument("--published", help="CSV of published numbers: setting,task,value[,std][,table]")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and prints its text; bad input is one line and exit code 2."""
    try:
        flags = _parse(arguments)
        text = flags.run(flags)
    except (InputError, OSError) as error:
        sys.stderr.write(f"analyze.py: {error}\n")
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that knows no ± gets a question mark rather than a traceback.
        sys.stdout.reconfigure(errors="replace")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
