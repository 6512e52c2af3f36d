"""Where models and data lie: a folder, or the hub; and one line for whatever `datasets` raises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lnflax.errors import InputError


def folder(field: str, path: str, forms: str) -> Path | None:
    """The folder that a field names, or None where it is a hub id.

    Raises:
        InputError: it can only be a folder, and is not there; `forms` says what may be given.
    """
    found = Path(path).expanduser()
    if path and found.is_dir():
        return found
    if path.startswith(("/", ".", "~")) or path.count("/") > 1 or not path:
        raise InputError(f"{field}: no folder {path!r}; give {forms}")
    return None


def load(where: str, read: Callable[[Any], Any]) -> Any:
    """`read(datasets)`; importing it takes a second, which a study of generated data is spared.

    Raises:
        InputError: anything went wrong; the message names `where`.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        return read(datasets)
    except Exception as error:  # datasets raises what its readers raise
        reason = str(error.__cause__ or error).strip().splitlines()
        raise InputError(f"data.path: {where}: {reason[0] if reason else type(error).__name__}") from error
