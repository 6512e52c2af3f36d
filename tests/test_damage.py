"""Each file of a run folder is cut at many lengths and written over with noise: no reader believes it or falls over."""

import shutil

import pytest

from lnflax import config, results, storage, streams, study
from lnflax.analysis.tables import make_tables
from lnflax.errors import InputError
from tests import studies, tiny, toys
from tests.disk import Fault, Stopped
from tests.studies import content
from tests.toys import begin, run

CUTS, NOISES = 10, 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A toy study, whole, and one that was killed in its second cell; the config, and what the whole one holds."""
    place = tmp_path_factory.mktemp("damage")
    given = config.parse(studies.given(tiny.write_checkpoint(place / "model"), settings=("frozen", "layernorms")))
    with pytest.MonkeyPatch.context() as patch:
        toys.patch(patch)
        patch.setattr(study, "POLL_SECONDS", 0.0)
        for name in ("whole", "half"):
            (place / name).mkdir()
        assert begin(given, place / "whole" / "w")[0] is None
        assert isinstance(begin(given, place / "half" / "w", Fault("kill", 250))[0], Stopped)
        assert results.is_done(place / "half" / "w" / "rte" / "frozen")
        assert list((place / "half").rglob("state/0*"))
        yield place, given, content(place / "whole" / "w")


def damages(name, data):
    """What lies there instead: the beginning of it, at evenly spread lengths, or all with some bytes written over."""
    for number in range(CUTS):
        yield data[: number * len(data) // CUTS]
    for number in range(NOISES):
        size = 1 + number * 7
        noise = streams.words(("noise", name, number), size + 1)
        start = int(noise[0]) % max(len(data) - size, 1)
        made = data[:start] + (noise[1:] % 256).astype("uint8").tobytes() + data[start + size :]
        yield made if made != data else data + b"x"


def rows(text):
    """The rows of the table itself, by setting."""
    lines = [line for line in text.partition("### Details")[0].splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines]
    return {own[0]: own for own in cells if not own[0].startswith("--")}


@pytest.mark.parametrize("which", ["whole", "half"])
def test_a_damaged_file_is_named_or_made_anew_and_never_believed(made, tmp_path, which):
    place, given, expected = made
    right = rows(make_tables(place / "whole" / "w"))
    tried = told = 0
    for path in sorted(path for path in (place / which).rglob("*") if path.is_file() and ".claims" not in path.parts):
        name = path.relative_to(place / which)
        for data in damages(str(name), path.read_bytes()):
            folder = shutil.copytree(place / which, tmp_path / "disk")
            (folder / name).write_bytes(data)
            said = _tables(folder / "w", right) + _resume(given, folder / "w", expected, name)
            # Sums are only compared with, and what a write that was cut off left is not read at all.
            assert said or name.name == storage.SUMS or name.suffix == ".tmp", name
            tried, told = tried + 1, told + bool(said)
            shutil.rmtree(folder)
    print(f"\n{which}: {tried} damaged files, {told} told of")


def _tables(workdir, right):
    """Right rows, and a line about what is not there, or one line alone; whether it was told of."""
    try:
        text = make_tables(workdir)
    except (InputError, storage.StorageError) as error:
        assert str(workdir) in str(error) and "\n" not in str(error)
        return 1
    shown = rows(text)
    assert all(shown[setting] == right[setting] for setting in shown)
    return "Damaged: " in text or "is not what was written" in text


def _resume(given, workdir, expected, name):
    """All as it should be, with what was damaged beside it, or one line; whether it was told of."""
    try:
        said = run(given, workdir)
    except (InputError, storage.StorageError) as error:
        assert str(workdir) in str(error) and "\n" not in str(error)
        return 1
    here = {own: data for own, data in content(workdir).items() if storage.ASIDE not in own}
    # These of a finished cell are not made anew: its numbers are whole without them.
    own = str(name.relative_to("w")) if name.name == results.COST or results.DELTAS in name.parts else ""
    assert here == {path: data for path, data in expected.items() if path in here or path != own}, name
    return any("set aside" in line for line in said)
