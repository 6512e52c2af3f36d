"""Answers of served models: those of their runs, in order, whatever is asked beside them."""

import dataclasses
import json

import numpy as np
import pytest

from lnflax import compiling, devices, results, serving, tasks, tuned
from lnflax.errors import InputError
from lnflax.tokens import Encoded
from tests import studies, tiny

TASKS = {"rte": "layernorms", "stsb": "frozen", "pos": "frozen"}  # and the setting of each
LENGTH = studies.GRID["max_length"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tuned.open_base(str(tiny.write_checkpoint(tmp_path_factory.mktemp("model") / "model")))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    place = tmp_path_factory.mktemp("trained") / "w"
    few = {"learning_rates": (1e-3,), "epochs": 2}
    studies.run(base.folder, place, tasks=("rte",), settings=("layernorms",), **few)
    studies.run(base.folder, place, tasks=("stsb", "pos"), settings=("frozen",), **few)
    return place


@pytest.fixture(scope="module")
def models(base, trained):
    """The model of seed 0 of each task, and of rte's seed 1."""
    found = {task: tuned.apply(base, deltas_of(trained, task)[0]) for task in TASKS}
    return {**found, "rte1": tuned.apply(base, deltas_of(trained, "rte")[1])}


def deltas_of(trained, task):
    return results.chosen_deltas(trained, studies.cell(trained, task, TASKS[task])[0])


def texts(task):
    """The development examples as they are asked."""
    columns = tasks.load(tasks.TASKS[task], "synthetic", "", 70).evals["validation"].columns
    return columns[0] if task == "pos" else list(zip(*columns, strict=True))


def ask(models, given, max_length=LENGTH, **more):
    return list(serving.predict(models, given, max_length=max_length, **more))


def numbers(answers):
    """All that answers say in numbers, end to end."""
    values = [own.get("probabilities", own.get("score")) for own in answers]
    values = [list(own.values()) if isinstance(own, dict) else own for own in values]
    return np.hstack(values)


def stored(trained, task):
    """What the run of seed 0 has predicted."""
    return studies.cell(trained, task, TASKS[task])[2]["last/validation"][0, 0]


def test_classes_are_those_of_the_run(models, trained):
    answers = ask({"": models["rte"]}, texts("rte"))
    names = ("entailment", "not_entailment")
    assert [names.index(own["label"]) for own in answers] == stored(trained, "rte").tolist()
    assert len({own["label"] for own in answers}) == 2
    for own in answers:
        assert list(own["probabilities"]) == list(names)
        assert sum(own["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert max(own["probabilities"], key=own["probabilities"].get) == own["label"]


def test_scores_are_those_of_the_run(models, trained):
    answers = ask({"": models["stsb"]}, texts("stsb"))
    assert all(list(own) == ["score"] for own in answers)
    np.testing.assert_allclose(numbers(answers), stored(trained, "stsb"), rtol=1e-5, atol=1e-5)


def test_tags_are_those_of_the_run(models, trained):
    asked = texts("pos")
    answers = ask({"": models["pos"]}, asked)
    assert [own["tokens"] for own in answers] == asked
    tags = models["pos"].labels
    found = [-1 if tag is None else tags.index(tag) for own in answers for tag in own["tags"]]
    assert found == stored(trained, "pos").tolist()
    assert len(set(found)) > 1


@pytest.mark.parametrize("task", TASKS)
def test_packed_with_others_is_as_alone(models, task):
    some = texts(task)[:24]
    together = ask({"": models[task]}, some)
    alone = [answer for example in some for answer in ask({"": models[task]}, [example])]
    np.testing.assert_allclose(numbers(together), numbers(alone), rtol=1e-5, atol=1e-5)


def test_a_sentences_probabilities_are_the_softmax_of_its_logits(models):
    """A head that reads nothing says its bias of everything."""
    head = {"classifier/kernel": np.zeros((32, 2), np.float32), "classifier/bias": np.log(np.float32([1, 3]))}
    model = dataclasses.replace(models["rte"], params={**models["rte"].params, **head})
    (answer,) = ask({"": model}, [("a", "b")])
    assert answer["label"] == "not_entailment"
    assert answer["probabilities"] == pytest.approx({"entailment": 0.25, "not_entailment": 0.75}, abs=1e-6)


def test_deltas_in_any_order_answer_as_each_alone(models):
    given = [
        {"delta": name, "id": number, **({"tokens": own} if name == "pos" else {"text": own[0], "pair": own[1]})}
        for number in range(15)
        for name, own in ((name, texts(name.rstrip("1"))[number]) for name in ("pos", "rte", "stsb", "rte1"))
    ]
    answers = ask(models, given)
    assert [own["id"] for own in answers] == [own["id"] for own in given]
    for name, model in models.items():
        mine = [own for own in given if own["delta"] == name]
        alone = ask({name: model}, mine)
        found = [answer for own, answer in zip(given, answers, strict=True) if own["delta"] == name]
        assert [list(own) for own in found] == [list(own) for own in alone]
        np.testing.assert_allclose(numbers(found), numbers(alone), rtol=1e-5, atol=1e-5)
    seeds = [[a for own, a in zip(given, answers, strict=True) if own["delta"] == name] for name in ("rte", "rte1")]
    assert np.abs(numbers(seeds[0]) - numbers(seeds[1])).max() > 1e-3


WRONG = {
    "a number": (3, "an example is a text, a pair, a list of words or an object, not of type int"),
    "nothing": (None, "an example is a text, a pair, a list of words or an object, not null"),
    "one text": ("the film", "rte wants a pair of texts, not one text"),
    "three texts": (("a", "b", "c"), "rte wants a pair of texts, not 3 texts"),
    "a pair of numbers": ((1, 2), "a text is of type int"),
    "a pair of which one is missing": ({"sentence1": "a", "sentence2": None}, "a text is null"),
    "emptiness": ((" ", ""), "the text is empty"),
    "half a character": (("a", "b\ud800"), "a text has '\\ud800', half of a character, at 1"),
    "no text": ({"txt": "a"}, "there is no 'text' (or sentence1 and sentence2); there are txt"),
    "an empty object": ({}, "there is no 'text' (or sentence1 and sentence2); there are none"),
    "an unknown delta": ({"delta": "rtf"}, "delta: 'rtf' is not known; allowed are rte; did you mean 'rte'?"),
    "a delta that is no name": ({"delta": [1]}, "delta: [1] is not known; allowed are rte"),
    "an error of the reader": (InputError("the line is torn"), "the line is torn"),
}


def test_what_is_wrong_is_answered_in_its_place(models):
    good = ("the film is not old", "the film is old")
    (want,) = ask({"rte": models["rte"]}, [good])
    answers = ask({"rte": models["rte"]}, [own for wrong, _ in WRONG.values() for own in (wrong, good)])
    assert answers[::2] == [{"error": reason} for _, reason in WRONG.values()]
    assert [own["label"] for own in answers[1::2]] == [want["label"]] * len(WRONG)


def test_what_is_wrong_with_words_is_answered_in_its_place(models):
    given = ["the film", [], ["a", 2], {"text": "a"}, {"tokens": "a"}, {"tokens": ["the", "\udfff"]}, {"tokens": []}]
    wanted = "the model tags words, and wants a list of them, not of type str"
    assert [own["error"] for own in ask({"": models["pos"]}, given)] == [
        *(wanted, "there are no words", "a word is of type int, not a text"),
        *("there is no 'tokens', a list of words; there are text", wanted),
        *("a text has '\\udfff', half of a character, at 0", "there are no words"),
    ]


def test_with_several_models_an_example_names_its_own(models):
    given = [("a", "b"), {"delta": "stsb", "text": "a", "pair": "b", "id": "x"}, {"text": "a", "id": None}]
    first, second, third = ask(models, given)
    reason = "there are 4 deltas: an example names its own as 'delta'"
    assert (first, third) == ({"error": reason}, {"id": None, "error": reason})
    assert list(second) == ["id", "score"] and second["id"] == "x"


def test_an_object_may_have_the_tasks_own_columns(models):
    ways = [("the film", "is old"), ["the film", "is old"], {"text": "the film", "pair": "is old"}]
    ways.append({"sentence1": "the film", "sentence2": "is old", "label": -1, "idx": 7})
    answers = ask({"": models["rte"]}, ways)
    assert all(own == answers[0] for own in answers) and "label" in answers[0]


def test_a_word_without_a_token_within_max_length_has_no_tag(models):
    (answer,) = ask({"": models["pos"]}, [["the", "", "this", "that", "these"]], max_length=5)  # [CLS] … [SEP]
    there = [tag is not None for tag in answer["tags"]]
    assert there == [True, False, True, True, False]
    assert [p is not None for p in answer["probabilities"]] == there
    (answer,) = ask({"": models["pos"]}, [["", "\u200d"]])
    assert answer["tags"] == answer["probabilities"] == [None, None]


@pytest.mark.parametrize("task", TASKS)
def test_what_is_not_finite_is_null(models, task):
    kernel = np.full_like(models[task].params["classifier/kernel"], np.inf)
    model = dataclasses.replace(models[task], params={**models[task].params, "classifier/kernel": kernel})
    (answer,) = ask({"": model}, [["the"] if task == "pos" else ("the", "this")])
    names = {"rte": ("entailment", "not_entailment")}.get(task)
    assert (
        answer
        == {
            "rte": {"label": None, "probabilities": dict.fromkeys(names or ())},
            "stsb": {"score": None},
            "pos": {"tokens": ["the"], "tags": [None], "probabilities": [None]},
        }[task]
    )
    json.dumps(answer, allow_nan=False)


def test_a_base_with_a_head_of_its_own_answers_with_it(base):
    model = tuned.load(base)
    assert not model.fresh and model.labels == ("LABEL_0", "LABEL_1")
    np.testing.assert_array_equal(model.params["classifier/kernel"], tiny.draw("classifier/kernel", (32, 2), 0.3))


def test_a_base_without_a_head_is_fresh_and_takes_a_text_or_two(base, tmp_path):
    shape = tuned.load(base).shape
    state = tiny.foreign_state({path: leaf for path, leaf in tiny.weights(shape).items() if path.startswith("bert/")})
    tiny.write_folder(tiny.write_tokenizer(tmp_path / "model", tiny.vocabulary()), shape, state)
    model = tuned.load(tuned.open_base(str(tmp_path / "model")))
    assert model.fresh and model.labels == ("LABEL_0", "LABEL_1")
    answers = ask({"": model}, ["the film", ("the film", "is old"), ("a", "b", "c")])
    assert [own.get("error") for own in answers] == [
        None,
        None,
        "the model wants one text or a pair of texts, not 3 texts",
    ]
    assert list(answers[0]["probabilities"]) == list(answers[1]["probabilities"]) == ["LABEL_0", "LABEL_1"]
    (pair,) = ask({"": model}, [("the film", "is old")])
    np.testing.assert_allclose(numbers([answers[1]]), numbers([pair]), rtol=1e-5, atol=1e-5)


def test_the_base_is_put_on_the_devices_once(models, base, monkeypatch):
    put, sizes = devices.put_copies, []
    monkeypatch.setattr(devices, "put_copies", lambda leaf, count: (sizes.append(leaf.size), put(leaf, count))[1])
    given = [{"delta": name, "text": "a", "pair": "b"} for name in ("rte", "rte1")] * 3
    ask({name: models[name] for name in ("rte", "rte1")}, given, window=2)
    own = 2 * 2 * 2 + 2  # scale and bias of two norms in each of two blocks; the head's
    assert len(sizes) == len(base.leaves) + 2 + own
    # The base's norms, of which neither model has any, are not put there.
    assert sum(sizes) == sum(leaf.size for leaf in base.leaves.values()) + (8 * 32 + 66) + 66


def test_windows_share_a_few_programs(models):
    pairs = texts("rte")
    serving.program.cache_clear()
    with compiling.counted() as programs:
        for window in (1, 5, 40, 384):
            ask({"": models["rte"]}, pairs[: 2 * window], window=window)
    assert 1 <= programs.ready <= 2
    with compiling.counted() as programs:
        ask({"": models["rte"]}, pairs, window=23)
        ask({"": models["rte1"]}, pairs, window=300)
    assert programs.ready == 0


def test_a_window_is_read_ahead_and_no_more(models):
    read = []
    answers = serving.predict(
        {"": models["rte"]}, (read.append(1) or ("a", "b") for _ in iter(int, 1)), max_length=8, window=4
    )
    assert len(read) == 0
    for count in range(1, 10):
        next(answers)
        assert len(read) == 4 * -(-count // 4)


@pytest.mark.parametrize("lengths", [[2] * 3000, [7, 8, 300, 5] * 40, [512] * 3, [1], [3] * 255 + [40]])
def test_calls_hold_every_example_once_and_have_room_for_its_target(models, lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    zeros = np.zeros(offsets[-1], np.int32)
    encoded = Encoded.of_sentences(zeros, zeros, offsets, np.zeros(len(lengths), np.int32))
    calls = serving.cut(encoded, models["rte"].shape, 512, 4, words=False)
    held = calls.order[calls.order >= 0]
    assert sorted(held.tolist()) == list(range(len(lengths)))
    assert (calls.order >= 0).sum(axis=1).max() <= calls.targets and len(calls.order) % 4 == 0
    assert calls.shape.length in (32, 128, 512) and calls.layout.row.max() < calls.shape.rows
    ends = (calls.layout.start + np.where(calls.order >= 0, np.asarray(lengths)[calls.order], 0)).max()
    assert ends <= calls.shape.length


@pytest.mark.parametrize(
    ("models_", "max_length", "reason"),
    [
        ({}, 32, "there is no model to ask"),
        (None, 65, r"max_length: 65; allowed are 4 … 64, the positions of the model"),
        (None, 3, r"max_length: 3; allowed are 4 … 64"),
    ],
)
def test_what_cannot_be_asked_is_refused_at_once(models, models_, max_length, reason):
    with pytest.raises(InputError, match=reason):
        serving.predict(models if models_ is None else models_, [], max_length=max_length)
