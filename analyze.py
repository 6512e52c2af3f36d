"""Tables, figures and pages from the folder of a study: `python analyze.py tables --workdir=runs/table1 [--out=DIR]`.

It trains nothing.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from lnflax import process
from lnflax.analysis.comparison import Against
from lnflax.analysis.curves import make_curves
from lnflax.analysis.entries import Reading
from lnflax.analysis.grids import make_grids
from lnflax.analysis.report import make_report
from lnflax.analysis.tables import make_tables
from lnflax.errors import InputError, OneLineParser
from lnflax.selection import HOW


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


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _ablate(flags: argparse.Namespace) -> str:
    if flags.draws < 1:
        raise InputError("--draws: 0; allowed are whole numbers from 1")
    if trouble := process.set_up():
        sys.stderr.write(f"warning: {trouble}\n")
    from lnflax.analysis.ablation_views import make_ablation  # with JAX, after it has been set up

    return make_ablation(flags.deltas, list(dict.fromkeys(flags.counts)), flags.draws, flags.out)


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


def _distributions(flags: argparse.Namespace) -> str:
    from lnflax.analysis import distributions  # with JAX, whose second tables are spared

    wanted = distributions.Wanted(flags.task, flags.setting, flags.seed)
    if flags.workdir is not None:
        return distributions.of_study(flags.workdir, wanted, flags.out)
    for name in ("task", "setting", "seed"):
        if getattr(flags, name) is not None:
            raise InputError(f"--{name}: --model does not read it; give --workdir")
    return distributions.of_model(flags.model, flags.out)


def _outliers(flags: argparse.Namespace) -> str:
    from lnflax.analysis.outliers import make_outliers  # with JAX

    names = ("workdir", "model", "out", "count", "task", "setting")
    given = {name: getattr(flags, name) for name in names}
    return make_outliers(**{name: value for name, value in given.items() if value is not None})


def _add_tables(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_tables)
    parser.add_argument("--workdir", required=True, help="the folder that train.py wrote")
    parser.add_argument("--out", help="also write the view's files (table1.md, .csv, .tex; grid.md, .csv; curves.csv)")
    parser.add_argument(
        "--view", choices=VIEWS, default="paper", help="the paper's tables, each cell's rate by seed, or every epoch"
    )
    _add_reading(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_report)
    parser.add_argument("--workdir", required=True, help="the folder that train.py wrote")
    parser.add_argument(
        "--out", help="where the page goes, and its figures too (default: WORKDIR/analysis, no figures)"
    )
    _add_reading(parser)


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


def _add_source(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the folder that train.py wrote: its checkpoint and its deltas")
    source.add_argument("--model", help="a checkpoint alone: a hub id or a folder")


def _add_distributions(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_distributions)
    _add_source(parser)
    parser.add_argument("--task", help="the cells of this task (default all)")
    parser.add_argument("--setting", help="the cells of this setting (default full)")
    parser.add_argument("--seed", type=int, help="the run of this seed (default the first)")
    parser.add_argument("--out", help="also write distributions.md, .csv and the figures distributions-*")


def _add_outliers(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_outliers)
    _add_source(parser)
    parser.add_argument("--task", help="read the deltas of this task alone")
    parser.add_argument("--setting", help="read the deltas of this setting alone")
    parser.add_argument("--count", type=int, help="how many scalars of each LayerNorm the rules choose (default 16)")
    parser.add_argument("--out", help="also write outliers-*.md, .csv and the figures there")


def _add_ablate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_ablate)
    what = "WORKDIR/TASK/SETTING/deltas (the selected rate's runs), or files of it"
    parser.add_argument("--deltas", required=True, nargs="+", type=Path, metavar="PATH", help=what)
    parser.add_argument(
        "--counts", nargs="+", type=_count, default=[4, 16, 64], metavar="N", help="scalars of each LayerNorm"
    )
    parser.add_argument("--draws", type=_count, default=3, help="draws of as many random scalars (default 3)")
    parser.add_argument("--out", help="also write ablation-TASK-SETTING as .md, .csv and a figure")


COMMANDS = {
    "tables": (_add_tables, "the paper's Tables 1 to 4, and what they are read from"),
    "report": (_add_report, "one page of all that a study says"),
    "distributions": (_add_distributions, "weights by module and block, before and after tuning (Figures 1 and 2)"),
    "outliers": (_add_outliers, "the outliers of each LayerNorm, and how far a study moved them"),
    "ablate": (_add_ablate, "what tuned models lose without their LayerNorms' outliers"),
}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = OneLineParser(prog="analyze.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (add, text) in COMMANDS.items():
        add(commands.add_parser(name, help=text, allow_abbrev=False))
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
