"""The figures of a study under their titles; each caption says what was measured, on which runs, with which command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lnflax.analysis import pictures
from lnflax.analysis.entries import Entry
from lnflax.analysis.figures import Figure
from lnflax.analysis.pictures import Course
from lnflax.analysis.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

RUNS = "report-curves-"  # before a task's name


def plates(
    tables: Sequence[Table], courses: Mapping[str, Sequence[Course]], command: str
) -> Iterator[tuple[str, Figure]]:
    """Each figure that the study has the cells for, and its title.

    Args:
        tables: of the study.
        courses: the cells of each task whose runs can be followed.
        command: the last words of every caption.
    """
    shown = {(entry.task, entry.setting): entry for table in tables for entry in table.shown}
    if scored := [entry for entry in shown.values() if entry.values[0].mean is not None]:
        caption = (
            f"Score against the share of the body that trains, without the head: {_bars(scored)} Marks of the same"
            f" share stand side by side; the dashed line is the score of full. {command}"
        )
        figure = Figure("report-scatter", pictures.ratio_and_score(scored), caption)
        yield "Score against trained parameters", figure
    for table in tables:
        if table.name == "table3":
            caption = "Score where the LayerNorms of one block train, by block from 1 at the input"
            yield "One block's LayerNorms", _of_table("report-blocks", pictures.blocks, caption, table, command)
        if table.name == "table4":
            caption = "Score by how many scalars of each LayerNorm train: those farthest from its mean, and random ones"
            yield "Outliers and random scalars", _of_table("report-sizes", pictures.sizes, caption, table, command)
    for task, own in courses.items():
        runs = sum(len({(line["seed"], line["learning_rate"]) for line in course.lines}) for course in own)
        caption = (
            f"{task}: {own[0].matrix.metric} on the development set after every epoch, {runs} runs of {len(own)} cells;"
            " a line a seed and rate, those of the selected rate thick; × is the last value of a run that diverged."
            f" {command}"
        )
        yield f"Learning curves of {task}", Figure(f"{RUNS}{task}", pictures.courses(own), caption)


def _of_table(name: str, draw: Callable[[Sequence[Entry]], Canvas], caption: str, table: Table, command: str) -> Figure:
    return Figure(name, draw(table.shown), f"{caption}: {_bars(table.shown)} {command}")


def _bars(entries: Sequence[Entry]) -> str:
    """What marks and bars are, and of which cells."""
    seeds = sorted({entry.seeds for entry in entries})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"the mean over {count} seed{'s' * (seeds != [1])} at the selected rate, {len(entries)} cells, on their"
        " development sets; bars are ± std over seeds."
    )
