"""Published numbers, from a CSV file of the user's: setting, task, value, and optionally table and std, in percent."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lnflax.errors import InputError, check_choice

FAMILIES = ("single_norm_N", "outliers_N", "random_norms_N")

_FAMILY = re.compile(r"^(single_norm|outliers|random_norms)_\d+$")
_TABLES = ("1", "2", "3", "4", "table1", "table2", "table3", "table4")


@dataclass(frozen=True)
class Number:
    """A published mean and, where given, its deviation, as fractions."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Published:
    """The numbers by (table, setting, task); the table is "" where the file does not say it."""

    numbers: dict[tuple[str, str, str], Number] = field(default_factory=dict)

    def find(self, table: str, setting: str, task: str) -> Number | None:
        """The number for a cell of a table: one given for this very table before one given for any."""
        return self.numbers.get((table, setting, task)) or self.numbers.get(("", setting, task))


def read_published(path: Path | str, settings: Iterable[str], tasks: Iterable[str]) -> Published:
    """Reads the file; a setting or task that is neither known nor of a family is an error that names the line."""
    settings, tasks = [*settings, *FAMILIES], list(tasks)
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"--published: {path}: {reason}") from error
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    if missing := [name for name in ("setting", "task", "value") if name not in (reader.fieldnames or ())]:
        raise InputError(f"--published: {path}, line 1: no column named {' or '.join(missing)}")
    numbers: dict[tuple[str, str, str], Number] = {}
    for row in reader:
        where = f"--published: {path}, line {reader.line_num}"
        cells = {name: (row.get(name) or "").strip() for name in ("table", "setting", "task", "value", "std")}
        if cells["table"]:
            check_choice(f"{where}: table", cells["table"], _TABLES)
        if not _FAMILY.match(cells["setting"]):
            check_choice(f"{where}: setting", cells["setting"], settings)
        check_choice(f"{where}: task", cells["task"], tasks)
        table = cells["table"] and f"table{cells['table'][-1]}"
        key = (table, cells["setting"], cells["task"])
        if key in numbers:
            raise InputError(f"{where}: a second value for {cells['setting']}, {cells['task']}")
        std = _fraction(f"{where}: std", cells["std"]) if cells["std"] else None
        numbers[key] = Number(_fraction(f"{where}: value", cells["value"]), std)
    return Published(numbers)


def _fraction(where: str, text: str) -> float:
    """Percent as a fraction, without the rounding error of the division: 82.1 is 0.821."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not -100 <= value <= 100:
        raise InputError(f"{where}: {text!r} is not a number of percent")
    return round(value / 100, 12)
