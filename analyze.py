"""Tables or a page from the folder of a study: `python analyze.py tables|report --workdir=runs/table1 [--out=DIR]`."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from typing import NoReturn

from lnflax.analysis.comparison import Against
from lnflax.analysis.curves import make_curves
from lnflax.analysis.entries import Reading
from lnflax.analysis.grids import make_grids
from lnflax.analysis.report import make_report
from lnflax.analysis.tables import make_tables
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


# The flags that a view reads; every other one is refused, so that none is ignored.
VIEWS = {
    "paper": ("select", "ddof", "metric", "published", "reference", "margin"),
    "grid": ("select", "ddof", "metric"),
    "curves": (),
}


def _points(text: str) -> float:
    """A margin in points as a fraction."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of points from 0 to 100")
    return value / 100


def _tables(flags: argparse.Namespace) -> str:
    for name in VIEWS["paper"]:
        if name not in VIEWS[flags.view] and getattr(flags, name) not in (None, []):
            raise InputError(f"--{name}: --view={flags.view} does not read it")
    against = _against(flags)
    if flags.view == "curves":
        return make_curves(flags.workdir, flags.out)
    if flags.view == "grid":
        return make_grids(flags.workdir, flags.out, _reading(flags))
    return make_tables(flags.workdir, flags.out, _reading(flags), flags.published, against)


def _report(flags: argparse.Namespace) -> str:
    return make_report(flags.workdir, flags.out, _reading(flags), flags.published, _against(flags))


def _reading(flags: argparse.Namespace) -> Reading:
    given = {"how": flags.select, "ddof": flags.ddof, "metrics": dict(flags.metric)}
    return Reading(**{name: value for name, value in given.items() if value is not None})


def _against(flags: argparse.Namespace) -> Against | None:
    if flags.margin is not None and flags.reference is None:
        raise InputError("--margin: there is nothing to compare without --reference")
    margin = {} if flags.margin is None else {"margin": flags.margin}
    return None if flags.reference is None else Against(flags.reference, **margin)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="analyze.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    tables = commands.add_parser(
        "tables", help="the paper's Tables 1 to 4, and what they are read from", allow_abbrev=False
    )
    tables.set_defaults(run=_tables)
    tables.add_argument("--workdir", required=True, help="the folder that train.py wrote")
    tables.add_argument("--out", help="also write the view's files (table1.md, .csv, .tex; grid.md, .csv; curves.csv)")
    tables.add_argument(
        "--view", choices=VIEWS, default="paper", help="the paper's tables, each cell's rate by seed, or every epoch"
    )
    _add_reading(tables)

    report = commands.add_parser("report", help="one page of all that a study says", allow_abbrev=False)
    report.set_defaults(run=_report)
    report.add_argument("--workdir", required=True, help="the folder that train.py wrote")
    report.add_argument(
        "--out", help="where the page goes, and its figures too (default: WORKDIR/analysis, no figures)"
    )
    _add_reading(report)
    return parser.parse_args(arguments)


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """The flags that say how runs are read."""
    parser.add_argument("--reference", metavar="SETTING", help="compare every setting with this one, e.g. full")
    parser.add_argument(
        "--margin", type=_points, metavar="POINTS", help="how far from the reference is on a par (default 1)"
    )
    parser.add_argument("--select", choices=HOW, help="what chooses the learning rate (default mean)")
    parser.add_argument("--ddof", type=int, help="std divides by n - ddof (default 1, the sample std)")
    parser.add_argument(
        "--metric",
        type=_task_metric,
        nargs="+",
        action="extend",
        default=[],
        metavar="TASK=METRIC",
        help="report another metric of a task, e.g. mrpc=accuracy",
    )
    parser.add_argument("--published", help="CSV of published numbers: setting,task,value[,std][,table]")


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
