"""Answers to streams of examples: those of the study itself, in order, errors in place, the base placed once."""

import itertools
import json

import jax
import numpy as np
import pytest

import lnflax
from lnflax import devices, questions, results, serving, tasks, tuned
from lnflax.errors import InputError
from tests import studies, tiny

TASKS = ("rte", "stsb", "pos")
LENGTH = studies.GRID["max_length"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def workdir(checkpoint, tmp_path_factory):
    place = tmp_path_factory.mktemp("study") / "w"
    for task in TASKS:
        studies.run(checkpoint, place / task, tasks=(task,), settings=("layernorms",), seeds=(0,), epochs=1)
    return place


def delta_of(workdir, task):
    (path,) = results.chosen_deltas(workdir / task, results.read_results(workdir / task, task, "layernorms"))
    return path


@pytest.fixture(scope="module")
def models(checkpoint, workdir):
    base = tuned.open_base(str(checkpoint))
    return {task: tuned.apply(base, delta_of(workdir, task)) for task in TASKS}


def given(task):
    """The development examples as a user has them."""
    texts = tasks.load(tasks.TASKS[task], "synthetic", "", 70).evals["validation"]
    return texts.columns[0] if task == "pos" else list(zip(*texts.columns, strict=True))


def stored(workdir, task):
    record, _, arrays, words = studies.cell(workdir / task, task, "layernorms")
    place = [run["learning_rate"] for run in record["runs"]].index(record["selected"]["learning_rate"])
    return arrays["last/validation"][0, place], json.loads(words["labels"])


def test_answers_are_the_predictions_of_the_run(models, workdir):
    found = list(serving.predict({"": models["rte"]}, given("rte"), max_length=LENGTH))
    numbers, names = stored(workdir, "rte")
    assert [own["label"] for own in found] == [names[number] for number in numbers]
    for own in found:
        assert list(own["probabilities"]) == names and sum(own["probabilities"].values()) == pytest.approx(1)
        assert max(own["probabilities"], key=own["probabilities"].get) == own["label"]


def test_scores_are_those_of_the_run(models, workdir):
    found = list(serving.predict({"": models["stsb"]}, given("stsb"), max_length=LENGTH))
    np.testing.assert_allclose([own["score"] for own in found], stored(workdir, "stsb")[0], rtol=0, atol=1e-5)


def test_tags_are_those_of_the_run_and_a_word_without_a_token_has_none(models, workdir):
    examples = given("pos")
    found = list(serving.predict({"": models["pos"]}, examples, max_length=LENGTH))
    numbers, names = stored(workdir, "pos")
    tags = [tag for own in found for tag in own["tags"]]
    assert [len(own["tags"]) for own in found] == [len(words) for words in examples]
    assert tags == [None if number < 0 else names[number] for number in numbers]
    (cut,) = serving.predict({"": models["pos"]}, [["the"] * 100], max_length=LENGTH)
    assert cut["tags"][LENGTH - 2 :] == cut["probabilities"][LENGTH - 2 :] == [None] * (102 - LENGTH)
    assert None not in cut["tags"][: LENGTH - 2] and all(0 < p <= 1 for p in cut["probabilities"][: LENGTH - 2])


def test_packed_in_windows_and_one_by_one_are_the_same(models):
    examples = given("rte")[:40]
    alone = list(serving.predict({"": models["rte"]}, examples, max_length=LENGTH, window=1))
    packed = list(serving.predict({"": models["rte"]}, examples, max_length=LENGTH, window=33))
    for one, other in zip(alone, packed, strict=True):
        values = list(zip(one["probabilities"].values(), other["probabilities"].values(), strict=True))
        np.testing.assert_allclose(*np.transpose(values), rtol=0, atol=1e-5)


def test_each_line_is_served_by_the_delta_that_it_names_in_order(models):
    lines = [
        *({"delta": "rte", "text": a, "pair": b, "id": i} for i, (a, b) in enumerate(given("rte")[:20])),
        *(
            {"delta": "stsb", "sentence1": a, "sentence2": b, "id": f"s{i}"}
            for i, (a, b) in enumerate(given("stsb")[:20])
        ),
        *({"delta": "pos", "tokens": words} for words in given("pos")[:20]),
    ]
    mixed = [line for three in zip(lines[:20], lines[20:40], lines[40:], strict=True) for line in three]
    found = list(serving.predict(models, mixed, max_length=LENGTH, window=16))
    for line, own in zip(mixed, found, strict=True):
        fields = {name: value for name, value in line.items() if name != "delta"}
        (alone,) = serving.predict({"": models[line["delta"]]}, [fields], max_length=LENGTH)
        assert own.keys() == alone.keys() and own.get("id") == line.get("id")
        for name in ("label", "tags"):
            assert own.get(name) == alone.get(name)
        assert own.get("score") == pytest.approx(alone.get("score"), abs=1e-5)


PAIR = ["the", "a"]
BAD = {
    "a number": (7, "text: 7 is not a text or a pair of texts"),
    "nothing": (None, "text: None is not a text or a pair of texts"),
    "one text": ("the", "text: rte reads a pair of texts, not 1"),
    "three": (["a", "b", "c"], "text: ['a', 'b', 'c'] is not a text or a pair of texts"),
    "not texts": (["a", 1], "text: ['a', 1] is not a text or a pair of texts"),
    "empty": (["", " "], "text: there is none"),
    "no text": ({"txt": "a"}, "text: [None] is not a text or a pair of texts"),
    "half a character": (["the", "\ud800"], r"text: '\ud800' is no character"),
    "another delta": ({"text": "a", "pair": "b", "delta": "rta"}, "delta: 'rta' is not known; allowed are rte"),
    "an error": (InputError("the line is not JSON"), "the line is not JSON"),
}


def test_what_is_wrong_is_answered_in_place_and_stops_nothing(models):
    one = {"rte": models["rte"]}
    lines = list(itertools.chain.from_iterable((PAIR, example) for example, _ in BAD.values()))
    found = list(serving.predict(one, lines, max_length=LENGTH))
    assert all(own == found[0] and "label" in own for own in found[::2])
    for (_, line), own in zip(BAD.values(), found[1::2], strict=True):
        assert list(own) == ["error"] and own["error"].startswith(line)


def test_examples_of_words_and_of_several_models_are_checked(models):
    pos = {"pos": models["pos"]}
    for example in ("the", [], [1], {"tokens": "the"}, {"text": "the"}):
        with pytest.raises(InputError, match=r"tokens: .* is not a list of words"):
            questions.read(pos, example)
    with pytest.raises(InputError, match="delta: the example names none; allowed are rte, stsb, pos"):
        questions.read(models, PAIR)
    assert questions.read(pos, {"tokens": ["a"], "id": [1]}) == questions.Question("pos", (["a"],), {})
    (own,) = serving.predict({"rte": models["rte"]}, [{"id": 5, "text": 1}], max_length=LENGTH)
    assert own["id"] == 5 and "error" in own


def test_the_base_is_put_on_the_devices_once(models, monkeypatch):
    put, kept = [], devices.put_copies
    monkeypatch.setattr(devices, "put_copies", lambda leaf, count: put.append(leaf) or kept(leaf, count))
    lines = [{"delta": "rte", "text": "a", "pair": "the"}, {"delta": "stsb", "text": "a", "pair": "the"}]
    list(serving.predict(models, lines * 3, max_length=LENGTH, window=2))
    base = models["rte"].base
    of_base = [leaf for leaf in put if any(leaf is own for own in base.leaves.values())]
    assert len({id(leaf) for leaf in put}) == len(put)
    norms = 2 * 2 * 2  # of two blocks, scale and bias
    assert len(of_base) == len(base.leaves) - norms  # both deltas replace the same leaves
    assert len(put) - len(of_base) == 2 * (norms + 2)


def test_windows_of_all_sizes_have_few_shapes(models, monkeypatch):
    shapes, lay = set(), serving.lay

    def record(*given):
        made = lay(*given)
        shapes.add(tuple(leaf.shape[2:] for leaf in jax.tree.leaves(made.batch)))
        return made

    monkeypatch.setattr(serving, "lay", record)
    examples = given("rte")
    stream = iter(examples)
    for size in (1, 2, 3, 5, 9, 17, 40, 80, 100):
        window = list(itertools.islice(stream, size))
        list(serving.predict({"": models["rte"]}, window, max_length=LENGTH))
    assert 1 < len(shapes) <= 4


def test_examples_are_asked_for_a_window_at_a_time(models):
    asked = []

    def examples():
        for number in range(10):
            asked.append(number)
            yield PAIR

    found = serving.predict({"": models["rte"]}, examples(), max_length=LENGTH, window=3)
    assert asked == [] and "label" in next(found)
    assert asked == [0, 1, 2]
    assert len(list(found)) == 9


def test_more_tokens_than_positions_are_refused(models):
    with pytest.raises(InputError, match="max_length: 65; the model has 64 positions"):
        serving.predict({"": models["rte"]}, [], max_length=65)


def test_the_functions_of_the_package(checkpoint, workdir):
    path = delta_of(workdir, "rte")
    base = lnflax.load_model(checkpoint)
    assert base.labels == ("LABEL_0", "LABEL_1") and base.own_head
    model = lnflax.apply_delta(base, path)
    again = lnflax.load_model(checkpoint, path)
    assert all(leaf.tobytes() == again.params[own].tobytes() for own, leaf in model.params.items())
    shared = [path for path, leaf in model.params.items() if leaf is base.params.get(path)]
    assert len(shared) == len(base.params) - 2 - 8  # a head and eight leaves of norms are its own
    (found,) = lnflax.predict(model, [PAIR], max_length=LENGTH)
    (plain,) = lnflax.predict(base, ["the"], max_length=LENGTH)
    assert set(found["probabilities"]) == {"entailment", "not_entailment"}
    assert set(plain["probabilities"]) == {"LABEL_0", "LABEL_1"}
    with pytest.raises(InputError, match="is not there"):
        lnflax.load_model(checkpoint, workdir / "none.safetensors")
