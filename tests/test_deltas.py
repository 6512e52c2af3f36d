"""What a run has trained, as a file: what is in it, that it gives back the run's own predictions, what is refused."""

import dataclasses
import json
import random
import tracemalloc

import numpy as np
import pytest

from lnflax import checkpoint, config, deltas, results, storage, tensors
from lnflax.deltas import About, Delta, Scalars
from lnflax.errors import InputError
from lnflax.gathered import Index
from lnflax.masks import Mask
from tests import plain, studies

ABOUT = About("rte", "layernorms", 1, 1e-3, 2, "0" * 64, "mean", ("yes", "no"))
NORM = "bert/encoder/layer/0/output/LayerNorm/scale"
KERNEL = "bert/encoder/layer/0/output/dense/kernel"


def literal():
    """A norm that trains whole, one of which two scalars train, a kernel with one gathered scalar, and a head."""
    values = {
        "a": {"scale": np.float32([1, 2, 3])},
        "b": {"scale": np.float32([4, 5, 6])},
        "c": {"kernel": np.float32([7, 0])},
        "d": {"kernel": None},
        "e": {"kernel": np.float32([0, 0])},
    }
    nothing = {name: dict.fromkeys(own) for name, own in values.items()}
    inside = nothing | {
        "b": {"scale": np.array([True, False, True])},
        "c": {"kernel": np.array([True, False])},
        "e": {"kernel": np.array([False, False])},
    }
    chosen = nothing | {
        "c": {"kernel": Index(np.int32([3, 4]), np.zeros((2, 1), np.int32))},  # the fourth of 2 × 2
        "e": {"kernel": Index(np.int32([4, 4]), np.zeros((2, 1), np.int32))},  # none of them
    }
    return deltas.make(ABOUT, values, Mask(inside, chosen))


def test_a_delta_has_whole_leaves_and_the_scalars_of_masked_ones():
    own = literal()
    assert {path: value.tolist() for path, value in own.whole.items()} == {"a/scale": [1, 2, 3]}
    found = {path: (part.index.tolist(), part.value.tolist()) for path, part in own.scalars.items()}
    assert found == {"b/scale": ([0, 2], [4, 6]), "c/kernel": ([3], [7])}
    assert all((part.index.dtype, part.value.dtype) == (np.int32, np.float32) for part in own.scalars.values())


def test_the_file_is_as_the_contract_says(tmp_path):
    path = tmp_path / deltas.name(1, 1e-3)
    deltas.write(path, literal())
    assert path == tmp_path / "deltas" / "seed1-lr0.001.safetensors"
    arrays, words = tensors.unpack(path.read_bytes())
    assert sorted(arrays) == ["a/scale", "b/scale.index", "b/scale.value", "c/kernel.index", "c/kernel.value"]
    assert words == {
        **{"format": "1", "task": "rte", "setting": "layernorms", "seed": "1", "learning_rate": "0.001"},
        **{"epoch": "2", "base_sha256": "0" * 64, "pooling": "mean", "labels": '["yes", "no"]'},
    }


def test_what_is_read_is_what_was_written(tmp_path):
    own = literal()
    deltas.write(tmp_path / "d", own)
    first = (tmp_path / "d").read_bytes()
    found = deltas.read(tmp_path / "d")
    assert found.about == ABOUT and sorted(found.whole) == ["a/scale"] and sorted(found.scalars) == sorted(own.scalars)
    deltas.write(tmp_path / "again", found)
    assert (tmp_path / "again").read_bytes() == first


def test_a_delta_of_no_single_run_says_so(tmp_path):
    about = dataclasses.replace(ABOUT, seed=None, learning_rate=None, epoch=None)
    deltas.write(tmp_path / "d", Delta(about, {"classifier/bias": np.float32([1, 2])}, {}))
    assert tensors.unpack((tmp_path / "d").read_bytes())[1]["seed"] == "null"
    assert deltas.read(tmp_path / "d").about == about


def body():
    return {NORM: np.float32([1, 1]), KERNEL: np.float32([[1, 2], [3, 4]])}


def test_changes_are_the_tuned_leaves_of_the_body_and_it_stays_as_it_is():
    head = {"classifier/kernel": np.float32([[9]])}
    own = Delta(ABOUT, {NORM: np.float32([5, 6]), **head}, {KERNEL: Scalars(np.int32([1, 2]), np.float32([7, 8]))})
    base = body()
    found = dict(deltas.changes(own, base, "0" * 64, "d"))
    assert {path: value.tolist() for path, value in found.items()} == {KERNEL: [[1, 7], [8, 4]], NORM: [5, 6]}
    assert all((base[path] == value).all() for path, value in body().items())
    assert deltas.head(own) == head


REFUSED = {
    "another body": (Delta(ABOUT, {}, {}), "1" * 64, f"d applies to the body {'0' * 64}, not to {'1' * 64}"),
    "another width": (Delta(ABOUT, {NORM: np.float32([5])}, {}), "0" * 64, r"d: .*scale has shape \(1,\).*\(2,\)"),
    "an unknown leaf": (Delta(ABOUT, {"bert/x": np.float32([5])}, {}), "0" * 64, "d: the model has no bert/x"),
    "outside": (
        Delta(ABOUT, {}, {KERNEL: Scalars(np.int32([4]), np.float32([0]))}),
        "0" * 64,
        "d: .*kernel has 4 scalars; the delta has one at 4",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_delta_that_does_not_fit_is_refused(case):
    own, sha256, line = REFUSED[case]
    with pytest.raises(InputError, match=line):
        dict(deltas.changes(own, body(), sha256, "d"))


WORDS = {
    **{"format": "1", "task": "rte", "setting": "full", "seed": "1", "learning_rate": "0.001", "epoch": "2"},
    **{"base_sha256": "0" * 64, "pooling": "mean", "labels": "[]"},
}
BROKEN = {
    "foreign": ({"a": np.float32([1])}, {}, "is no delta of format 1"),
    "no seed": ({}, {name: word for name, word in WORDS.items() if name != "seed"}, "its metadata lack seed"),
    "no number": ({}, WORDS | {"epoch": "two"}, "epoch of its metadata is not JSON"),
    "no rate": ({}, WORDS | {"learning_rate": "0.0"}, "learning_rate of its metadata is '0.0'"),
    "no epoch": ({}, WORDS | {"epoch": "-1"}, "epoch of its metadata is '-1'"),
    "doubles": ({"a": np.float64([1])}, WORDS, "a is F64; a delta has F32 there"),
    "no index": ({"a.value": np.float32([1])}, WORDS, "a.value is there, and a.index is not"),
    "no value": ({"a.index": np.int32([1])}, WORDS, "a.index is there, and a.value is not"),
    "falling": (
        {"a.index": np.int32([2, 1]), "a.value": np.float32([1, 2])},
        WORDS,
        "a has no ascending index with as many values",
    ),
    "negative": ({"a.index": np.int32([-1]), "a.value": np.float32([1])}, WORDS, "a has no ascending index"),
    "too few": ({"a.index": np.int32([0]), "a.value": np.float32([1, 2])}, WORDS, "a has no ascending index"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_is_no_delta_is_refused(tmp_path, case):
    arrays, words, line = BROKEN[case]
    (tmp_path / "d").write_bytes(tensors.pack(arrays, words))
    with pytest.raises(InputError, match=line) as raised:
        deltas.read(tmp_path / "d")
    assert str(tmp_path / "d") in str(raised.value)


def corrupted(good, number):
    """The file cut, with flipped bits, or with another header: another one for each number."""
    draw = random.Random(number)
    kind, size, data = number % 5, int.from_bytes(good[:8], "little"), bytearray(good)
    if kind == 0:
        return good[: draw.randrange(len(good))]
    if kind == 1:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        return bytes(data)
    header = json.loads(good[8 : 8 + size])
    words = header.pop("__metadata__")
    own = header[draw.choice(sorted(header))]
    if kind == 2:
        own["shape"] = [draw.choice([2**62, -1, 0, 10**9, 1.5, "x", None])] * draw.randint(1, 3)
    elif kind == 3:
        own["data_offsets"] = [draw.randint(-5, 2**40), draw.randint(0, 2**63)]
    else:
        words[draw.choice(sorted(words))] = draw.choice(
            ["", "[]", "null", "1e999", "[" * 9999, "9" * 400, "NaN", '"x"']
        )
    text = json.dumps({"__metadata__": words, **header}).encode()
    return len(text).to_bytes(8, "little") + text + good[8 + size :]


@pytest.mark.slow
def test_a_corrupted_file_is_refused_or_read_to_what_it_holds(tmp_path):
    """10,000 of them; none takes more memory than its size justifies."""
    deltas.write(tmp_path / "d", literal())
    good, refused = (tmp_path / "d").read_bytes(), 0
    (tmp_path / "SHA256SUMS").unlink()  # a file from elsewhere has none
    tracemalloc.start()
    for number in range(10_000):
        data = corrupted(good, number)
        (tmp_path / "d").write_bytes(data)
        try:
            found = deltas.read(tmp_path / "d")
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            arrays = tensors.unpack(data)[0]
            values = {**found.whole, **{f"{path}.value": part.value for path, part in found.scalars.items()}}
            assert all(np.array_equal(arrays[path], value, equal_nan=True) for path, value in values.items())
            assert all((np.diff(part.index) > 0).all() for part in found.scalars.values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 7_000 < refused < 10_000 and peak < 2**20


def test_a_damaged_file_is_refused(tmp_path):
    deltas.write(tmp_path / "d", literal())
    (tmp_path / "d").write_bytes((tmp_path / "d").read_bytes()[:-1])
    with pytest.raises(storage.Damaged, match="is not what was written"):
        deltas.read(tmp_path / "d")
    (tmp_path / "e").write_bytes(b"noise")
    with pytest.raises(storage.Damaged, match="is not a whole safetensors file"):
        deltas.read(tmp_path / "e")


SETTINGS = ("full", "frozen", "layernorms", "random", "outliers_4")


@pytest.fixture(scope="module")
def trained(model, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "w"
    studies.run(model, place, settings=SETTINGS)
    return place


def predict(model, own, sha256):
    """What the base with a delta says of each development example."""
    _, base = plain.base(model)
    assert checkpoint.body_sha256(base) == sha256
    return plain.predict(model, {**base, **dict(deltas.changes(own, base, sha256, "d")), **deltas.head(own)})


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_delta_gives_the_predictions_of_its_run(model, trained, setting):
    record, _, arrays, _ = studies.cell(trained, "rte", setting)
    paths = results.chosen_deltas(trained, record)
    assert len(paths) == 2
    place = [run["learning_rate"] for run in record["runs"][:2]].index(record["selected"]["learning_rate"])
    sha256 = results.read_json(trained / "rte" / setting / "trained.json")["model"]["sha256"]
    for seed, path in enumerate(paths):
        own = deltas.read(path)
        assert own.about == About(
            **{"task": "rte", "setting": setting, "seed": seed, "epoch": 2, "base_sha256": sha256},
            **{"learning_rate": record["selected"]["learning_rate"], "pooling": "pooler"},
            labels=("entailment", "not_entailment"),
        )
        np.testing.assert_array_equal(predict(model, own, sha256), arrays["last/validation"][seed, place])


def test_a_delta_has_what_the_setting_trains_and_nothing_else(trained):
    found = {}
    for setting in SETTINGS:
        record, *_ = studies.cell(trained, "rte", setting)
        own = deltas.read(results.chosen_deltas(trained, record)[0])
        scalars = sum(part.index.size for part in own.scalars.values())
        found[setting] = (sum(value.size for value in own.whole.values()), scalars)
    assert found == {
        **{"full": (22_400 + 66, 0), "frozen": (66, 0), "layernorms": (256 + 66, 0)},
        **{"random": (66, 256), "outliers_4": (66, 16)},
    }


def files(workdir, setting="layernorms"):
    return sorted(path.name for path in (workdir / "rte" / setting / "deltas").glob("*.safetensors"))


def test_the_selected_rates_deltas_are_kept_or_all_or_none(model, tmp_path):
    names = [f"seed{seed}-lr{rate}.safetensors" for seed in (0, 1) for rate in ("0.001", "0.003")]
    for asked, count in (("best", 2), ("all", 4), ("none", 0)):
        studies.run(model, tmp_path / asked, settings=("layernorms",), epochs=1, save_deltas=asked)
        record, *_ = studies.cell(tmp_path / asked, "rte", "layernorms")
        chosen = [run["learning_rate"] == record["selected"]["learning_rate"] for run in record["runs"]]
        kept = {"best": [n for n, own in zip(names, chosen, strict=True) if own], "all": names, "none": []}[asked]
        assert files(tmp_path / asked) == kept and len(kept) == count
        assert [run["delta"] for run in record["runs"] if run["delta"]] == [f"deltas/{name}" for name in kept]
        assert (tmp_path / asked / "rte" / "layernorms" / "deltas").exists() == (asked != "none")
    with pytest.raises(InputError, match=r"rte/layernorms has no deltas: train it with --config\.save_deltas=best"):
        results.chosen_deltas(tmp_path / "none", record)


def test_the_best_epochs_delta_is_of_that_epoch(model, tmp_path):
    """Where accuracy falls after the first epoch, its values are kept, though training went on."""
    studies.run(model, tmp_path / "w", settings=("full",), epochs=3, report_epoch="best", save_deltas="all")
    record, _, arrays, _ = studies.cell(tmp_path / "w", "rte", "full")
    epochs = []
    for run in record["runs"]:
        own = deltas.read(tmp_path / "w" / "rte" / "full" / run["delta"])
        epochs.append(own.about.epoch)
        place = run["seed"], [1e-3, 3e-3].index(run["learning_rate"])
        found = predict(model, own, own.about.base_sha256)
        np.testing.assert_array_equal(found, arrays["best/validation"][place])
    assert epochs == [run["best"]["epoch"] for run in record["runs"]] and set(epochs) - {3}


def test_an_extension_keeps_what_is_selected_and_says_what_it_lacks(model, tmp_path):
    """Ties go to the smaller rate, and neither of these learns anything."""
    one = {"seeds": (0,), "learning_rates": (1e-9,), "settings": ("frozen",)}
    more = {"seeds": (0, 1), "learning_rates": (1e-9, 1e-8), "settings": ("frozen",)}
    names = ["seed0-lr1e-09.safetensors", "seed1-lr1e-09.safetensors"]
    for asked, kept in (("best", names), ("none", names[1:])):
        studies.run(model, tmp_path / asked, **one, save_deltas=asked)
        said = studies.run(model, tmp_path / asked, **more)
        assert files(tmp_path / asked, "frozen") == kept
        assert ("rte/frozen: seeds 0 have no delta at the selected rate" in said) == (asked == "none")


def test_rates_that_would_share_a_file_are_refused():
    with pytest.raises(InputError, match=r"learning_rates: 0\.0012345678 and 0\.0012345679 differ too little"):
        config.parse(studies.given("m", learning_rates=(0.0012345678, 0.0012345679)))
