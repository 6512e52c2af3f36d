"""Compiled programs are kept and counted: a second start compiles nothing and gives the same bits."""

import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from lnflax import compiling
from tests import tiny

ROOT = Path(__file__).parents[1]
FIELDS = {
    "data.path": "synthetic",
    "max_length": 32,
    "max_train_examples": 32,
    "learning_rates": (1e-3,),
    "epochs": 1,
}


def start(place, workdir, **environment):
    """A study of one run whose batch two devices share: `(programs compiled, found, the finished process)`."""
    fields = FIELDS | {"model.name": place / "model"}
    line = [
        *(sys.executable, "train.py", "--config=configs/base.py", f"--workdir={place / workdir}"),
        *("--config.seeds=(0,)", *(f"--config.{name}={value}" for name, value in fields.items())),
    ]
    own = {"JAX_NUM_CPU_DEVICES": "2", "LNFLAX_CACHE": str(place / "cache")} | environment
    done = subprocess.run(line, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled, found = re.search(r"^compiled (\d+) programs?, (\d+) from the cache", done.stdout, re.M).groups()
    return int(compiled), int(found), done


def files(place, workdir):
    """What a study wrote of numbers, but for seconds."""
    folder = place / workdir / "rte" / "layernorms"
    text = (folder / "metrics.jsonl").read_text() + (folder / "results.json").read_text()
    text = re.sub(r'"seconds": (\{[^}]*\}|[0-9.e-]+)', "", text)
    return text, (folder / "predictions.safetensors").read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("compiling")
    tiny.write_checkpoint(place / "model")
    return place


@pytest.fixture(scope="module")
def first(place):
    return start(place, "first")


def test_a_first_start_compiles(first):
    compiled, found, done = first
    assert compiled >= 4 and found == 0  # the states, training, evaluation, what has moved; and the heads' draws
    assert done.stderr == ""


def test_a_second_start_compiles_nothing_and_gives_the_same_bits(place, first):
    compiled, found, done = start(place, "second-with-another-name")
    assert (compiled, found) == (0, first[0])
    assert done.stderr == ""
    assert files(place, "second-with-another-name") == files(place, "first")


def test_a_folder_that_cannot_be_written_is_told_once_and_costs_only_time(place, first):
    (place / "a_file").write_text("not a folder")
    compiled, found, done = start(place, "without", LNFLAX_CACHE=str(place / "a_file" / "cache"))
    assert (compiled, found) == (first[0], 0)
    told = [line for line in done.stdout.splitlines() if "cannot be kept" in line]
    assert told == [line for line in told if line.startswith(f"warning: compiled programs cannot be kept in {place}")]
    assert len(told) == 1 and done.stdout.count("cannot write the cache folder") == 1 and done.stderr == ""
    assert files(place, "without") == files(place, "first")


KEEP = """
import sys, warnings
from pathlib import Path
import jax, numpy as np
from lnflax import compiling

print(repr(compiling.keep(Path(sys.argv[1]))), jax.config.jax_compilation_cache_dir)
with compiling.counted() as programs:
    jax.jit(lambda x: 2 * x)(np.ones(3))
print(programs.compiled, programs.found)
"""


def keep(folder, **environment):
    """What `keep` says in a process of its own, the folder that JAX then has, and the count of one small program."""
    line = [sys.executable, "-c", KEEP, str(folder)]
    done = subprocess.run(line, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    said, count = done.stdout.splitlines()
    return said, tuple(map(int, count.split()))


def test_the_users_own_folder_stands(tmp_path):
    said, count = keep(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert (said, count) == (f"'' {tmp_path / 'theirs'}", (1, 0))
    assert not (tmp_path / "ours").exists() and list((tmp_path / "theirs").glob("*-cache"))


def test_a_folder_that_moves_keeps_its_programs(tmp_path):
    assert keep(tmp_path / "here")[1] == (1, 0)
    (tmp_path / "here").rename(tmp_path / "there")
    assert keep(tmp_path / "there")[1] == (0, 1)


def test_who_wants_no_cache_has_none(tmp_path):
    said, count = keep(tmp_path / "ours", JAX_ENABLE_COMPILATION_CACHE="0")
    assert (said, count) == ("'' None", (1, 0))
    assert not (tmp_path / "ours").exists()


def test_a_torn_entry_goes_and_is_written_anew(tmp_path):
    """Without a word: `keep` wants nothing on stderr, where JAX would warn."""
    assert keep(tmp_path)[1] == (1, 0)
    (entry,) = tmp_path.glob("*-cache")
    entry.write_bytes(entry.read_bytes()[:-5])
    assert keep(tmp_path)[1] == (1, 0)
    assert keep(tmp_path)[1] == (0, 1)


def test_only_torn_entries_since_the_last_look_go(tmp_path):
    whole = zlib.compress(b"program")
    for name, data in {"whole": whole, "torn": whole[:-1], "empty": b"", "other": b"\x28\xb5\x2f\xfd"}.items():
        (tmp_path / f"{name}-cache").write_bytes(data)
    compiling.drop_torn(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"whole-cache", "other-cache", compiling.CHECKED}
    old = tmp_path / "old-cache"
    old.write_bytes(whole[:-1])
    os.utime(old, (1e9, 1e9))
    compiling.drop_torn(tmp_path)
    assert old.exists()


def test_counts_lie_in_one_another():
    with compiling.counted() as outer:
        jax.jit(lambda x: 3 * x)(np.ones(3))
        with compiling.counted() as inner:
            function = jax.jit(lambda x: 4 * x)
            function(np.ones(3))
            function(np.ones(3))
    jax.jit(lambda x: 5 * x)(np.ones(3))
    assert (outer.compiled, inner.compiled, outer.found) == (2, 1, 0)
    assert outer.seconds > inner.seconds > 0
    assert str(compiling.Programs(5, 4, 1.23)) == "compiled 1 program, 4 from the cache (1.2 s)"
