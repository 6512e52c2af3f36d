"""How numbers are written for people: on the terminal and in tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MISSING = "–"


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent points, without the sign: 0.8304 is 83.0."""
    if fraction is None:
        return MISSING
    # Adding 0.0 turns the -0.0 of a small negative number into 0.0.
    return f"{round(100 * fraction, digits) + 0.0:.{digits}f}"


def mean_std(mean: float | None, std: float | None) -> str:
    """`83.0 ± 0.4` from fractions; the mean alone where no deviation is known."""
    return percent(mean) if std is None else f"{percent(mean)} ± {percent(std)}"


def signed(fraction: float) -> str:
    """A difference in percent points with its sign: `+1.20`."""
    text = percent(fraction, 2)
    return text if text.startswith("-") else f"+{text}"


def span(interval: tuple[float, float] | None, write: Callable[[float], str] = lambda x: percent(x, 2)) -> str:
    """An interval of fractions: `[82.10, 84.00]`."""
    return MISSING if interval is None else f"[{write(interval[0])}, {write(interval[1])}]"


def ratio_percent(ratio: float) -> str:
    """The share of the body in percent: three decimals, and below 0.01 % two significant digits."""
    share = 100 * ratio
    decimals = 3 if share == 0 or share >= 0.01 else 1 - math.floor(math.log10(share))
    return f"{share:.{decimals}f}".rstrip("0").rstrip(".") + " %"


def count_range(counts: Sequence[int]) -> str:
    """`36,864`, or `36,860–36,864` where the counts differ."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
