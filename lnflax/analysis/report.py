"""The page of a study: one HTML file without any outside source, and its figures as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lnflax import wording
from lnflax.analysis import background, figures, formats, plates, troubles
from lnflax.analysis.comparison import Against
from lnflax.analysis.curves import read_course
from lnflax.analysis.entries import Reading
from lnflax.analysis.figures import Figure
from lnflax.analysis.formats import Grid
from lnflax.analysis.grids import Matrix, make_matrix
from lnflax.analysis.heat import Scale
from lnflax.analysis.inline import inline
from lnflax.analysis.pictures import Course
from lnflax.analysis.plates import RUNS
from lnflax.analysis.tables import TITLES, read_tables
from lnflax.errors import InputError
from lnflax.results import Study
from lnflax.storage import durable_write, read_bytes

if TYPE_CHECKING:
    from jinja2 import Template

FOLDER = "analysis"  # of the workdir, unless another is asked for
PAGE = "report.html"
TEMPLATE = "report.html.j2"
COMPUTED = ("distributions", "outliers", "ablation")  # beginnings of the names of what other commands leave


class Picture(NamedTuple):
    """A figure as the page shows it."""

    name: str
    title: str
    svg: str
    caption: str


class Part(NamedTuple):
    """A task's cells: how their runs went, where that is known, their matrices and the scale of these."""

    task: str
    courses: Picture | None
    matrices: list[Matrix]
    scale: Scale


class Computed(NamedTuple):
    """What another command has left in the folder: a picture, or tables, or both."""

    name: str
    picture: Picture | None
    grids: list[tuple[str, Grid]]


def make_report(
    workdir: Path | str,
    out: Path | str | None = None,
    reading: Reading | None = None,
    published: Path | str | None = None,
    against: Against | None = None,
) -> str:
    """Writes WORKDIR/analysis/report.html, or with `out` the page and its figures there; says where they lie.

    The page has the numbers of `make_tables`, read in the same way. What `distributions`, `outliers` and `ablation`
    have left in the folder is shown too.

    Raises:
        InputError: bad input, no finished cell, or a library that is missing, on one line.
    """
    template, reading = _template(), reading or Reading()
    study, tables = read_tables(workdir, reading, published, against)
    command = background.report_command(workdir, out, reading, published, against)
    matrices = [make_matrix(cell, reading) for cell in study.cells]
    courses, faults = _courses(workdir, study, matrices)
    told, untold = background.read_told(workdir, study.cells)
    drawn = dict(plates.plates(tables, courses, f"Command: {command}"))
    shown = {figure.name: _picture(figure, title) for title, figure in drawn.items()}
    folder = Path(workdir) / FOLDER if out is None else Path(out)
    page = template.render(
        name=Path(workdir).resolve().name,
        count=_count(study),
        troubles=troubles.find(workdir, study, matrices, reading, [*faults, *untold]),
        facts=background.facts(study, told),
        data=background.data(study, told),
        trained=background.trained(study, told),
        commands=[text for text in (background.train_command(study.config, workdir), command) if text],
        rules=study.config["rules"] if study.config else {},
        tables=tables,
        titles=TITLES,
        pictures=[own for name, own in shown.items() if not name.startswith(RUNS)],
        parts=list(_parts(matrices, shown)),
        computed=list(_computed(folder)),
    )
    durable_write(folder / PAGE, page.encode())
    written = [folder / PAGE]
    if out is not None:
        written += figures.write_figures(folder, drawn.values())
    return f"Written: {', '.join(map(str, written))}\n"


def _template() -> Template:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise InputError("the page needs jinja2: python -m pip install 'lnflax[figures]'") from error
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"zip": zip, "percent": wording.percent}
    return environment.get_template(TEMPLATE)


def _count(study: Study) -> dict[str, int]:
    runs = [run for cell in study.cells for run in cell["runs"]]
    done = {(cell["task"], cell["setting"]) for cell in study.cells}
    return {
        "done": len(done),
        "cells": len({*study.asked, *done, *study.unfinished}),
        "runs": len(runs),
        "diverged": sum(run["status"] == "diverged" for run in runs),
    }


def _courses(
    workdir: Path | str, study: Study, matrices: Sequence[Matrix]
) -> tuple[dict[str, list[Course]], list[str]]:
    """By task the cells whose runs can be followed, and why others cannot."""
    found: dict[str, list[Course]] = {}
    faults = []
    for cell, matrix in zip(study.cells, matrices, strict=True):
        try:
            found.setdefault(matrix.task, []).append(Course(matrix, read_course(workdir, cell)))
        except InputError as error:
            faults.append(str(error))
    return {task: own for task, own in found.items() if own}, faults


def _picture(figure: Figure, title: str) -> Picture:
    text = figures.svg(figure.canvas)
    return Picture(figure.name, title, inline(text, figure.name, title, f"{figure.name}-caption"), figure.caption)


def _parts(matrices: Sequence[Matrix], shown: Mapping[str, Picture]) -> Iterator[Part]:
    for task in dict.fromkeys(matrix.task for matrix in matrices):
        own = [matrix for matrix in matrices if matrix.task == task]
        yield Part(task, shown.get(f"{RUNS}{task}"), own, Scale(own))


def _computed(folder: Path) -> Iterator[Computed]:
    """NAME.svg with its caption NAME.txt, and the tables of NAME.md, by name."""
    if not folder.is_dir():
        return
    names = {path.stem for path in folder.iterdir() if path.suffix in (".svg", ".md")}
    for name in sorted(name for name in names if name.startswith(COMPUTED)):
        parts = {suffix: folder / f"{name}.{suffix}" for suffix in ("svg", "txt", "md")}
        text = {suffix: read_bytes(path).decode() for suffix, path in parts.items() if path.is_file()}
        picture = None
        if "svg" in text:
            title = name.replace("-", " ").capitalize()
            svg = inline(text["svg"], name, title, f"{name}-caption")
            picture = Picture(name, title, svg, text.get("txt", title).strip())
        yield Computed(name, picture, formats.read_markdown(text.get("md", "")))
