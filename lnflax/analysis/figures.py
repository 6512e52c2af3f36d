"""How figures look, and how they reach the disk: PNG, PDF and SVG, with a caption beside them.

The colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lnflax.errors import InputError
from lnflax.storage import durable_write

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
GREY = "#7A7A7A"
INK = "#1b1b1b"  # of words, ticks and frames: the page replaces it by its own
WIDTH = 6.75  # inches of a text across two columns
DPI = 200

_HOVER = "hover: "

_STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs everywhere
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.dpi": DPI,
    "figure.constrained_layout.use": False,  # a canvas says its own layout; this one comes back at a second drawing
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "patch.linewidth": 0.6,
    "pdf.fonttype": 42,  # letters stay letters: type 3 fonts are refused by conferences
    "svg.fonttype": "none",
    "svg.hashsalt": "lnflax",  # the same figure gives the same bytes
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


class Figure(NamedTuple):
    """A figure, the name of its files, and what was measured, on which runs, with which command."""

    name: str
    canvas: Canvas
    caption: str


@contextlib.contextmanager
def style() -> Iterator[None]:
    """What is drawn inside looks like the other figures; a notebook's own style is left alone. Also a decorator.

    Raises:
        InputError: matplotlib is not there.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise InputError("figures need matplotlib: python -m pip install 'lnflax[figures]'") from error
    with matplotlib.rc_context(_STYLE):
        yield


def new_canvas(
    width: float = WIDTH, height: float = 3.0, layout: Literal["constrained"] | None = "constrained"
) -> Canvas:
    """An empty canvas of so many inches, without a window; called inside `style`.

    Without a layout the margins are the caller's: `constrained` takes as long as all the rest of a many-panelled
    figure.
    """
    from matplotlib.figure import Figure as Canvas

    return Canvas(figsize=(width, height), layout=layout)


def write_figures(out: Path | str, figures: Iterable[Figure]) -> list[Path]:
    """NAME.png, .pdf and .svg of each, and the caption in NAME.txt; the same figures give the same bytes."""
    written = []
    for figure in figures:
        forms = {
            "png": _drawn(figure.canvas, "png", {"Software": None}),
            "pdf": _drawn(figure.canvas, "pdf", {"CreationDate": None}),
            "svg": svg(figure.canvas).encode(),
            "txt": f"{figure.caption}\n".encode(),
        }
        for suffix, data in forms.items():
            written.append(Path(out) / f"{figure.name}.{suffix}")
            durable_write(written[-1], data)
    return written


def hover(artist: Artist, text: str) -> None:
    """What a reader sees who points at a line or a mark of the SVG."""
    artist.set_gid(f"{_HOVER}{text}")


def svg(canvas: Canvas) -> str:
    """The canvas as an `<svg>` element."""
    text = _drawn(canvas, "svg", {"Date": None, "Creator": None}).decode()
    # An artist's gid is the only word of ours that matplotlib writes into an SVG.
    text = re.sub(f'<g id="{_HOVER}([^"]*)">', r'<g class="hover"><title>\1</title>', text)
    return text[text.index("<svg") :]


@style()
def _drawn(canvas: Canvas, form: str, about: dict[str, None]) -> bytes:
    data = io.BytesIO()
    canvas.savefig(data, format=form, metadata=about)
    return data.getvalue()
