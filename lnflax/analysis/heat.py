"""The colours of a heat map: of cividis, which colour-blind readers see as others do (Nuñez et al., 2018), with ink
that is read on each."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lnflax.analysis.grids import Matrix

STEPS = 33


class Scale:
    """Colours from the lowest to the highest score of some cells, fractions; both are None where there is none."""

    def __init__(self, matrices: Sequence[Matrix]) -> None:
        scores = [score for matrix in matrices for row in matrix.scores for score in row if score is not None]
        self.low, self.high = min(scores, default=None), max(scores, default=None)

    def style(self, score: float | None) -> str:
        """Background and ink of a score as CSS; nothing where there is none."""
        if score is None or self.low is None or self.high is None:
            return ""
        span = self.high - self.low
        step = round((STEPS - 1) * (score - self.low) / span) if span else STEPS - 1
        return "background:{};color:{}".format(*_colours()[step])

    def gradient(self) -> str:
        """The whole scale, from left to right, as CSS."""
        return f"background:linear-gradient(to right,{','.join(own for own, _ in _colours()[::8])})"


@functools.cache
def _colours() -> tuple[tuple[str, str], ...]:
    """Background and ink by step, from the lowest."""
    from matplotlib import colormaps, colors

    found = []
    for step in range(STEPS):
        red, green, blue, _ = colormaps["cividis"](step / (STEPS - 1))
        found.append((colors.to_hex((red, green, blue)), "#000" if luminance(red, green, blue) > 0.179 else "#fff"))
    return tuple(found)


def luminance(red: float, green: float, blue: float) -> float:
    """WCAG 2's relative luminance of sRGB in [0, 1]; black and white ink have equal contrast at 0.179."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (red, green, blue)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
