"""A table's three forms: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

DIVERGED_MARK = "†"
FEWER_MARK = "‡"
SIGNS = {"better": "▲", "worse": "▼", "on a par": "≈", "cannot tell": "?"}

_LATEX = {
    "\\": r"\textbackslash{}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "–": "--",
    "†": r"$^\dagger$",
    "‡": r"$^\ddagger$",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "≈": r"$\approx$",
}


@dataclass(frozen=True)
class Grid:
    """A table as text: the first `names` columns are names, the others numbers; `footnote` belongs under it."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1
    footnote: str = ""


def markdown(grid: Grid) -> str:
    """An aligned Markdown table, with its footnote as a paragraph under it."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (grid.header, *grid.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

    def line(cells: Iterable[str]) -> str:
        padded = [
            cell.ljust(width) if index < grid.names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if index < grid.names else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    text = "\n".join(line(cells) for cells in (lines[0], rule, *lines[1:])) + "\n"
    return f"{text}\n{grid.footnote}\n" if grid.footnote else text


def read_markdown(text: str) -> list[tuple[str, Grid]]:
    """The tables of a Markdown text, as `markdown` writes them, each with the last line of words before it."""
    found: list[tuple[str, list[list[str]]]] = []
    title, inside = "", False
    for line in map(str.strip, text.splitlines()):
        if line.startswith("|"):
            if not inside:
                found.append((title, []))
            cells = re.split(r"(?<!\\)\|", line[1:].removesuffix("|"))
            found[-1][1].append([cell.strip().replace("\\|", "|") for cell in cells])
        elif line:
            title = line.lstrip("# ")
        inside = line.startswith("|")
    grids = []
    for title, (header, rule, *rows) in found:
        names = next((place for place, mark in enumerate(rule) if mark.endswith(":")), len(rule))
        grids.append((title, Grid(tuple(header), tuple(map(tuple, rows)), names)))
    return grids


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def latex(grid: Grid) -> str:
    """A booktabs tabular, with its footnote as a last line across all columns."""
    header, *rows = [" & ".join(map(_escape, cells)) + r" \\" for cells in (grid.header, *grid.rows)]
    width = len(grid.header)
    note = rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {_escape(grid.footnote)}}} \\"
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * grid.names}{'r' * (width - grid.names)}}}",
            r"\toprule",
            header,
            r"\midrule",
            *rows,
            r"\bottomrule",
            *([note] if grid.footnote else []),
            r"\end{tabular}",
            "",
        ]
    )


def csv_text(fields: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with full precision: None is empty, a truth value is `true` or `false`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(fields)
    for row in rows:
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in row])
    return text.getvalue()
