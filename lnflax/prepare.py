"""What a study needs from elsewhere, fetched ahead of it: `train.py --prepare`."""

from __future__ import annotations

from pathlib import Path

from lnflax import checkpoint, hub, tasks
from lnflax.config import Config
from lnflax.progress import Reporter
from lnflax.tasks import TASKS


def run(config: Config, reporter: Reporter) -> None:
    """Fetches the model and the data of every task, and says where they lie. Nothing else is read or written.

    Raises:
        InputError: one of them is not there and cannot be fetched; what came before it is kept.
    """
    found = [checkpoint.locate(config.model_name)]
    reporter.say(_line(f"model {config.model_name}", found[0]))
    for name in config.tasks:
        task = TASKS[name]
        place = tasks.locate(task, config.data_path, config.eval_split)
        reporter.say(_line(f"data {config.data_path or task.source}, {name}", place))
        if not isinstance(place, str):
            found.append(place)
    fetched = sum(one.fetched for one in found if isinstance(one, hub.Found))
    reporter.say(f"all is there; {_files(fetched)} fetched" if fetched else "all is there; nothing was to be fetched")


def _line(title: str, place: Path | hub.Found | str) -> str:
    if isinstance(place, str):
        return f"{title}: {'made' if place == 'synthetic' else 'there'} without the hub"
    if isinstance(place, Path):
        return f"{title}: a folder, taken as it is"
    how = f"{place.fetched} fetched" if place.fetched else "cached"
    return f"{title}: {_files(len(place.files))}, {hub.megabytes(place.size)}, {how}, in {place.folder}"


def _files(number: int) -> str:
    return f"{number} file{'s' * (number != 1)}"
