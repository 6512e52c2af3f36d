"""Every call that a study makes of its disk fails in every way, and the study is none the worse for it."""

import dataclasses
import json
import shutil
import types

import pytest

from lnflax import config, storage, study, training
from tests import studies, tiny, toys
from tests.disk import Fault, Stopped
from tests.studies import content, timeless
from tests.toys import begin, run

SETTINGS = ("frozen", "layernorms")
KINDS = (
    *(("EIO", good) for good in (False, True)),
    *(("ENOSPC", good) for good in (False, True)),
    *(("short", good) for good in (False, True)),
    *(("kill", True), ("power", True)),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A study of a task, two settings, two seeds and rates, two epochs."""
    model = tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")
    return config.parse(studies.given(model, settings=SETTINGS))


@pytest.fixture
def toy(monkeypatch):
    toys.patch(monkeypatch)
    monkeypatch.setattr(study, "POLL_SECONDS", 0.0)


@pytest.fixture
def undisturbed(given, tmp_path, toy):
    """What the study leaves, its calls of the disk, and the places that make them."""
    workdir = tmp_path / "undisturbed" / "w"
    workdir.parent.mkdir()
    end, own = begin(given, workdir)
    assert end is None
    return content(workdir), own.calls, own.sites


def test_an_extension_that_is_stopped_anywhere_ends_as_one_that_is_not(given, tmp_path, toy):
    """A finished cell gets more runs; when the process dies, what was finished is there, and no run has two lines."""
    small = given.of_runs(given.seeds[:1], given.learning_rates)
    (tmp_path / "small").mkdir()
    assert begin(small, tmp_path / "small" / "w")[0] is None
    before = content(tmp_path / "small" / "w")
    shutil.copytree(tmp_path / "small", tmp_path / "grown")
    end, own = begin(given, tmp_path / "grown" / "w")
    assert end is None
    expected = content(tmp_path / "grown" / "w")
    for kind in ("kill", "power"):
        for number in range(1, own.calls + 1, 3):
            folder = shutil.copytree(tmp_path / "small", tmp_path / "disk")
            _, stopped = begin(given, folder / "w", Fault(kind, number))
            if kind == "power":
                stopped.lose_power()
            runs = json.loads((folder / "w" / "rte" / "layernorms" / "results.json").read_bytes())["runs"]
            assert timeless(runs) in [each["rte/layernorms/results.json"]["runs"] for each in (before, expected)]
            run(given, folder / "w")
            assert content(folder / "w") == expected, (kind, number)
            shutil.rmtree(folder)


@pytest.mark.parametrize("step", [13, pytest.param(1, marks=pytest.mark.slow)])
def test_every_call_fails_in_every_way_and_nothing_is_lost(given, undisturbed, tmp_path, step):
    """The one that fails is told of, or did no harm; the same command again ends as if nothing had been."""
    expected, calls, _ = undisturbed
    tried = survived = 0
    for kind, for_good in KINDS:
        for number in range(1, calls + 1, step):
            folder = tmp_path / "disk"
            folder.mkdir()
            end, own = begin(given, folder / "w", Fault(kind, number, for_good))
            tried += own.happened
            if kind == "power":
                own.lose_power()
            if isinstance(end, storage.StorageError):
                line = str(end)
                assert str(folder) in line and "give the same command again" in line and "\n" not in line
            elif kind in ("EIO", "ENOSPC"):
                assert end is None
            said = run(given, folder / "w")
            assert content(folder / "w") == expected, (kind, number)
            assert not [line for line in said if "damaged" in line], (kind, number)
            survived += own.happened
            shutil.rmtree(folder)
    print(f"\n{calls} calls of the disk, {tried} faults injected, {survived} survived")
    assert tried == survived > 0


def test_every_flush_and_rename_is_needed(given, undisturbed, tmp_path):
    """With any one of them taken out, some power loss costs something."""
    expected, calls, sites = undisturbed
    needed = sorted(site for site in sites if site[0] in ("fsync", "replace", "rename"))
    caught = [site for site in needed if not survives(given, expected, calls, tmp_path, site)]
    assert survives(given, expected, calls, tmp_path, None)
    print(f"\n{len(needed)} flushes and renames taken out, {len(caught)} caught")
    assert caught == needed and len(needed) >= 5


def test_what_is_set_aside_is_not_lost(given, tmp_path, toy):
    """A damaged state lies where it was or aside whenever the power fails, but not without its flush or its rename."""
    own = dataclasses.replace(given, save_minutes=1e-9)
    (tmp_path / "kept").mkdir()
    end, _ = begin(own, tmp_path / "kept" / "w", Fault("kill", 60))
    (state,) = (tmp_path / "kept").glob("w/rte/frozen/state/0*")
    assert isinstance(end, Stopped) and (state.parents[1] / "metrics.jsonl").read_bytes() == b""  # the first epoch
    noise = state.read_bytes()[:-8] + b"not this"
    (state.parent / f"999999-{'0' * 16}.safetensors").write_bytes(noise)
    sites = ("fsync", "flush_folder", "set_aside"), ("rename", "set_aside", "_set_aside")
    kept = [_is_kept(own, noise, tmp_path, without) for without in (None, *sites)]
    assert kept == [True, False, False]


def _is_kept(given, noise, tmp_path, without):
    for number in range(1, 80):
        folder = shutil.copytree(tmp_path / "kept", tmp_path / "disk")
        try:
            _, made = begin(given, folder / "w", Fault("power", number), without)
            assert without is None or without in made.sites or number < 5
            made.lose_power()
            if not any(path.read_bytes() == noise for path in folder.rglob("999999*")):
                return False
        finally:
            shutil.rmtree(folder)
    return True


def test_a_full_disk_is_told_before_the_first_step(given, tmp_path, toy, monkeypatch):
    monkeypatch.setattr(training.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=1000))
    monkeypatch.setattr(training.trainer, "train_steps", None)
    with pytest.raises(storage.StorageError, match=r"rte/frozen: this cell writes up to .* are free; free some space"):
        run(given, tmp_path / "w")


def test_nothing_is_written_where_a_mount_has_vanished(given, tmp_path, toy, monkeypatch):
    def vanish(*rest):
        if (tmp_path / "w").exists():
            (tmp_path / "w").rename(tmp_path / "elsewhere")
        return toys.train_steps(*rest)

    monkeypatch.setattr(training.trainer, "train_steps", vanish)
    with pytest.raises(storage.StorageError, match=r"w/config\.json is gone: is the folder still mounted\?"):
        run(given, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    (tmp_path / "elsewhere").rename(tmp_path / "w")
    monkeypatch.undo()


def survives(given, expected, calls, tmp_path, without):
    """Whether a study is whole after a power loss at its end, and after one at any call before."""
    for number in range(calls + 1, 0, -1):
        folder = tmp_path / "disk"
        folder.mkdir()
        try:
            _, own = begin(given, folder / "w", Fault("power", number), without)
            own.lose_power()
            if number > calls and content(folder / "w") != expected:
                return False
            said = run(given, folder / "w")
            if content(folder / "w") != expected or any("damaged" in line for line in said):
                return False
        except (AssertionError, OSError, ValueError):
            return False
        finally:
            shutil.rmtree(folder)
    return True
