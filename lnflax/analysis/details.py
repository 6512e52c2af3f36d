"""What stands under a table: a line of details a number, the same as rows of CSV, and notes on what they mean."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lnflax import wording
from lnflax.analysis import comparison, formats, significance
from lnflax.analysis.comparison import Against, Difference, Key, Samples, Support
from lnflax.analysis.entries import Entry, Reading, Value
from lnflax.analysis.formats import Grid
from lnflax.analysis.published import Number

CSV_FIELDS = (
    *("table", "setting", "task", "metric", "ratio", "learning_rate", "mean", "std", "n"),
    *("eval_examples", "diverged", "at_edge", "published", "published_std"),
    *("interval_low", "interval_high", "honest"),
    *("reference", "paired_seeds", "difference", "difference_low", "difference_high", "p", "p_holm", "mark"),
)
_HEADER = (
    *("setting", "task", "metric", "rate", "seeds", "dev size"),
    *("diverged", "at edge", "mean", "std", "95 % interval", "honest"),
)


def details(shown: Iterable[Entry], support: Support) -> Grid:
    """A line a number; with a reference also the difference to it."""
    against = support.against
    header: tuple[str, ...] = _HEADER
    if against:
        header = (*header, f"minus {against.setting}", "its 95 % interval", "p (Holm)", "verdict")
    lines = []
    for entry in shown:
        for value in entry.values:
            key = (entry.setting, entry.task, value.metric)
            line = (*_line(entry, value), *_sample_cells(support.samples, key))
            lines.append((*line, *_difference_cells(entry, support.differences.get(key), against)) if against else line)
    return Grid(header, tuple(lines), names=3)


def _line(entry: Entry, value: Value) -> tuple[str, ...]:
    rate = wording.MISSING if entry.learning_rate is None else f"{entry.learning_rate:g}"
    return (
        *(entry.setting, entry.task, value.metric, rate),
        str(value.n) if value.n == entry.seeds else f"{value.n} of {entry.seeds}",
        str(value.examples),
        f"{entry.diverged} of {entry.runs}" if entry.diverged else "0",
        "yes" if entry.at_edge else "no",
        *(wording.percent(value.mean, 2), wording.percent(value.std, 2)),
    )


def _sample_cells(samples: Samples, key: Key) -> tuple[str, str]:
    sample = samples.found.get(key)
    return (wording.span(sample.interval), wording.percent(sample.honest, 2)) if sample else (wording.MISSING,) * 2


def _difference_cells(entry: Entry, own: Difference | None, against: Against) -> tuple[str, ...]:
    if entry.setting == against.setting:
        return (*(wording.MISSING,) * 3, "reference")
    if own is None:
        return (wording.MISSING,) * 4
    return wording.signed(own.mean), wording.span(own.interval, wording.signed), _p(own.adjusted), own.mark


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def records(
    table: str, shown: Iterable[Entry], numbers: Mapping[tuple[str, str], Number], support: Support
) -> tuple[tuple[Any, ...], ...]:
    """The values of `CSV_FIELDS`, a row a number; a published number belongs to the first metric."""
    rows = []
    for entry in shown:
        published = numbers.get((entry.setting, entry.task))
        beside = [(published.mean, published.std) if published else (None, None), (None, None)]
        for value, number in zip(entry.values, beside, strict=False):
            key = (entry.setting, entry.task, value.metric)
            sample, other = support.samples.found.get(key), support.differences.get(key)
            rows.append(
                (
                    *(table, entry.setting, entry.task, value.metric, entry.ratio, entry.learning_rate),
                    *(value.mean, value.std, value.n, value.examples, entry.diverged, entry.at_edge, *number),
                    *((sample and sample.interval) or (None, None)),
                    sample.honest if sample else None,
                    support.against.setting if support.against and other else None,
                    *((other.seeds, other.mean, *other.interval) if other else (None,) * 4),
                    *((other.p, other.adjusted, other.mark) if other else (None,) * 3),
                )
            )
    return tuple(rows)


def sign_note(against: Against) -> str:
    """The footnote of a table whose numbers have signs."""
    sign = formats.SIGNS
    return (
        f"{sign[comparison.BETTER]} better, {sign[comparison.WORSE]} worse than {against.setting}"
        f" (Holm-adjusted p < {comparison.ALPHA:g});"
        f" {sign[comparison.ON_A_PAR]} on a par: the 95 % interval of the difference lies within"
        f" ±{_points(against)}, whatever p is; {sign[comparison.CANNOT_TELL]} cannot tell."
    )


def _points(against: Against) -> str:
    points = round(100 * against.margin, 10)
    return f"{points:g} point{'' if points == 1 else 's'}"


def notes(shown: Sequence[Entry], reading: Reading, support: Support) -> tuple[str, ...]:
    """How the table was read, what its intervals are, what its data can say at all, and what is missing."""
    chosen = {"mean": "the best mean over seeds", "first_seed": "the best score of the first seed"}[reading.how]
    epochs = " and ".join(dict.fromkeys(entry.report_epoch for entry in shown))
    lines = [
        f"Percent points, mean ± std over seeds (ddof {reading.ddof}) at the rate with {chosen}; "
        f"epoch reported: {epochs}."
    ]
    keys = [(entry.setting, entry.task, value.metric) for entry in shown for value in entry.values]
    if keys := [key for key in keys if key in support.samples.found]:
        lines.append(
            f"95 % intervals: bootstrap over seeds and dev examples together, {significance.RESAMPLES:,} resamples."
            f" Honest: the rate chosen on one half of the dev set and scored on the other, mean over"
            f" {significance.SPLITS} splits."
        )
        if support.against and (count := len(support.differences)):
            lines.append(
                f"Differences to {support.against.setting}: over the same seeds and examples, p adjusted over"
                f" {count} of this table (Holm)."
            )
        lines += [*_seed_limits(keys, support), *_example_limits(keys, support)]
    return (*lines, *_missing(shown, support))


def _seed_limits(keys: Iterable[Key], support: Support) -> list[str]:
    """The smallest p that the seeds allow, and where they are too few."""
    if support.against:
        counts = {own.seeds for own in support.differences.values()}
    else:
        counts = {len(support.samples.found[key].seeds) for key in keys}
    lines = []
    if several := sorted(counts - {1}):
        least = ", ".join(f"{significance.least_p(count):.2g} with {count} paired seeds" for count in several)
        lines.append(
            f"The smallest p that seeds alone allow (sign flips): {least}; a smaller one rests on the dev examples."
        )
    if 1 in counts:
        lines.append("Where there is one seed, interval and p are over examples: they speak of that seed alone.")
    rested = support.differences if support.against else {key: support.samples.found[key] for key in keys}
    if narrow := [f"{task}/{setting} {metric}" for (setting, task, metric), own in rested.items() if own.narrow]:
        what = "of the difference is" if support.against else "is"
        lines.append(
            f"Too few seeds for how much they differ, so that the interval {what} too narrow: {', '.join(narrow)}."
        )
    return lines


def _example_limits(keys: Sequence[Key], support: Support) -> list[str]:
    """The least difference that each development set can show."""
    found, against, shown = support.samples.found, support.against, []
    for task, metric in dict.fromkeys(key[1:] for key in keys):
        own = [key for key in keys if key[1:] == (task, metric)]
        pairs = list(itertools.combinations(own, 2))
        if against:
            pairs = [(key, (against.setting, task, metric)) for key in own if key in support.differences]
        least = comparison.least_difference((found[one], found[other]) for one, other in pairs)
        if least is not None:
            shown.append(f"{task} {metric} {wording.percent(least, 2)}")
    if not shown:
        return []
    kind = f"a setting and {against.setting}" if against else "two settings"
    return [
        f"The least difference between {kind} that the dev examples can show (80 % power, two-sided 5 %, median over"
        f" pairs), in points: {', '.join(shown)}."
    ]


def _missing(shown: Sequence[Entry], support: Support) -> list[str]:
    """Which numbers have no interval or no difference, and why."""
    faults, found, against = support.samples.faults, support.samples.found, support.against
    told = [faults[cell] for entry in shown if (cell := (entry.setting, entry.task)) in faults]
    lines = [f"No interval: {'; '.join(told)}."] if told else []
    if against is None:
        return lines
    for task in dict.fromkeys(entry.task for entry in shown if entry.setting != against.setting):
        if not any(key[:2] == (against.setting, task) for key in found):
            lines.append(f"No comparison for {task}: it has no {against.setting} with an interval.")
    for entry in shown:
        for value in entry.values:
            key, other = ((name, entry.task, value.metric) for name in (entry.setting, against.setting))
            if key != other and {key, other} <= set(found) and key not in support.differences:
                lines.append(f"No comparison for {entry.task}/{entry.setting}: no seed has both values.")
    return lines
