"""Tasks of tagged words, from texts to the tables: which token answers for a word, and how words are counted."""

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import seqeval.metrics

from configs import table2, token
from lnflax import batches, config, features, ledger, synthetic_tags, tasks, tokens, trainer
from lnflax.errors import InputError
from lnflax.tasks import TASKS, Texts
from lnflax.tokens import Asked, Encoded
from tests import grids, tiny
from tests.studies import cell, given, run

ROOT = Path(__file__).parents[1]
VOCAB = [*tiny.SPECIAL, "do", "n", "'", "t", "a", "##d"]
PAD, UNK, CLS, SEP = range(4)
DO, N, APOSTROPHE, T, A, _D = range(5, 11)


@pytest.fixture
def tokenizer(tmp_path):
    return tokens.load_tokenizer(tiny.write_tokenizer(tmp_path / "tokenizer", VOCAB))


def encode(tokenizer, sentences, max_length=128):
    labels = np.arange(sum(map(len, sentences)), dtype=np.int32) + 100
    return tokens.encode(tokenizer, Texts((sentences,), labels), max_length)


def asked(encoded):
    """By sentence: the label that each target asks for, and its token's place."""
    own = encoded.asked
    pairs = list(zip(encoded.labels[own.label].tolist(), own.place.tolist(), strict=True))
    return [pairs[a:b] for a, b in itertools.pairwise(own.offsets.tolist())]


def test_contractions(tokenizer):
    """`n't` is three tokens, of which the first answers."""
    encoded = encode(tokenizer, [["do", "n't", "a"], ["a", "'"]])
    assert encoded.tokens.tolist() == [CLS, DO, N, APOSTROPHE, T, A, SEP, CLS, A, APOSTROPHE, SEP]
    assert encoded.token_types.tolist() == [0] * 11
    assert asked(encoded) == [[(100, 1), (101, 2), (102, 5)], [(103, 1), (104, 2)]]
    assert encoded.label_offsets.tolist() == [0, 3, 5] and encoded.examples == 2


def test_a_word_of_thirty_tokens(tokenizer):
    encoded = encode(tokenizer, [["a", "a" + 29 * "d", "do"]])
    assert encoded.tokens.tolist() == [CLS, A, A, *[_D] * 29, DO, SEP]
    assert asked(encoded) == [[(100, 1), (101, 2), (102, 32)]]
    # Cut inside, it still answers; what follows is cut away and is not asked for.
    encoded = encode(tokenizer, [["a", "a" + 29 * "d", "do"]], max_length=16)
    assert encoded.tokens.tolist() == [CLS, A, A, *[_D] * 12, SEP]
    assert asked(encoded) == [[(100, 1), (101, 2)]] and len(encoded.labels) == 3


def test_an_emoji_and_an_empty_token(tokenizer):
    """An emoji is unknown, which is a token; an empty word, or one of invisible characters, has none."""
    encoded = encode(tokenizer, [["do", "🙂", "a"], ["do", "", "\u200d", "a"], [""]])
    assert encoded.tokens.tolist() == [CLS, DO, UNK, A, SEP, CLS, DO, A, SEP, CLS, SEP]
    assert asked(encoded) == [[(100, 1), (101, 2), (102, 3)], [(103, 1), (106, 2)], []]


def test_a_sentence_of_three_hundred_words(tokenizer):
    encoded = encode(tokenizer, [["do"] * 300, ["a"]])
    assert encoded.lengths.tolist() == [128, 3]
    assert asked(encoded)[0] == [(100 + i, 1 + i) for i in range(126)] and asked(encoded)[1] == [(400, 1)]


def test_the_same_word_twice_is_asked_twice_and_the_cache_gives_the_same(tokenizer):
    first, second = (encode(tokenizer, [["a", "a", "ad"], ["a"]]) for _ in range(2))
    assert asked(first) == [[(100, 1), (101, 2), (102, 3)], [(103, 1)]] == asked(second)
    # The same words in other sentences are other token ids.
    assert encode(tokenizer, [["a"], ["a", "ad", "a"]]).offsets.tolist() == [0, 3, 9]


# Texts.


def write(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in splits.items():
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
    return str(folder)


def load(task, path, eval_split="", most=0):
    return tasks.load(TASKS[task], path, eval_split, most)


def test_tags_are_those_of_train_and_others_are_known_as_unseen(tmp_path):
    path = write(tmp_path, train="a X\nb Y\n\na Y\n", dev="a Y\nc Z\nb W\n")
    texts = load("pos", path)
    assert (texts.task.labels, texts.task.unseen, texts.task.num_outputs) == (("X", "Y"), ("W", "Z"), 2)
    assert texts.train.columns == ([["a", "b"], ["a"]],) and texts.train.labels.tolist() == [0, 1, 1]
    assert texts.evals["validation"].labels.tolist() == [1, 3, 2]


def test_entities_are_read_as_iob2(tmp_path):
    texts = load("ner", write(tmp_path, train="a I-X\nb I-X\nc O\n", dev="a I-X\nb B-X\n"))
    assert texts.task.labels == ("B-X", "I-X", "O") and texts.train.labels.tolist() == [0, 1, 2]
    assert texts.evals["validation"].labels.tolist() == [0, 0]


def test_a_part_of_the_sentences_keeps_whole_sentences_and_all_tags(tmp_path):
    text = "".join(f"w{i} T{i}\nx{i} T{i}\n\n" for i in range(40))
    texts = load("pos", write(tmp_path, train=text, dev="a T0\n"), most=7)
    (words,) = texts.train.columns
    assert texts.train.examples == 7 and len(texts.task.labels) == 40
    numbers = [int(own[0][1:]) for own in words]
    assert numbers == sorted(set(numbers)) and numbers != list(range(7))
    assert words == [[f"w{i}", f"x{i}"] for i in numbers]
    names = [texts.task.labels[i] for i in texts.train.labels]
    assert names == [f"T{i}" for i in numbers for _ in range(2)]


@pytest.mark.parametrize(
    ("task", "splits", "message"),
    [
        ("pos", {"train": "a X\n", "dev": "a X\n"}, "data.path: pos train has one tag alone: X"),
        ("pos", {"train": "a X\nb Y\n"}, "has no 'validation' of pos; it has train"),
        ("pos", {"dev": "a X\nb Y\n"}, "has no 'train' of pos; it has validation"),
        ("ner", {"train": "a S-X\n", "dev": "a O\n"}, "tag 'S-X' is of an unknown scheme"),
    ],
)
def test_corpora_that_do_not_do(tmp_path, task, splits, message):
    with pytest.raises(InputError) as caught:
        load(task, write(tmp_path, **splits))
    assert message in str(caught.value)


def test_nltk_has_no_entities():
    with pytest.raises(InputError, match=r"data\.path: nltk has pos alone, not ner"):
        load("ner", "nltk")


@pytest.mark.parametrize("task", ["pos", "ner"])
def test_generated_words_of_train_and_dev_are_disjoint_but_for_function_words(task):
    train, dev = synthetic_tags.generate(task).values()
    assert (len(train.words), len(dev.words)) == (1024, 256)
    names = [{tag for own in part.tags for tag in own} for part in (train, dev)]
    assert names[0] == names[1]
    if task == "ner":
        assert names[0] == {"O", *(f"{p}-{t}" for p in "BI" for t in ("PER", "ORG"))} | {"B-LOC", "B-MISC"}
    shapes = " ".join(synthetic_tags._SHAPES[task]).split()
    shared = {part.rpartition("/")[0] for part in shapes if not part.startswith("{")}
    words = [{word for own in part.words for word in own} - shared for part in (train, dev)]
    assert words[0] and words[1] and not words[0] & words[1]
    assert synthetic_tags.generate(task) == synthetic_tags.generate(task)


def test_generated_words_need_their_context():
    """A table of each word's most frequent tag, made of the very sentences, stays well below all."""
    for task in ("pos", "ner"):
        train = synthetic_tags.generate(task)["train"]
        pairs = [pair for own in zip(train.words, train.tags, strict=True) for pair in zip(*own, strict=True)]
        counts = {}
        for word, tag in pairs:
            counts.setdefault(word, []).append(tag)
        best = sum(max(tags.count(tag) for tag in set(tags)) for tags in counts.values()) / len(pairs)
        assert best < 0.93


# Training and counting.


def tagged(count=24, classes=3):
    """Random sentences of the tiny vocabulary; two in three tokens begin a word; the last word is cut away."""
    own = grids.examples(count)
    label, place, offsets, ends = [], [], [0], [0]
    for length in own.lengths.tolist():
        places = [i for i in range(length) if i % 3 != 2]
        label += range(ends[-1], ends[-1] + len(places))
        place += places
        offsets.append(len(place))
        ends.append(ends[-1] + len(places) + 1)
    labels = ((tiny.draw("tags", (ends[-1],), 0.5) + 0.5) * classes).astype(np.int32)
    return Encoded(*own[:3], labels, np.array(ends), Asked(np.array(label), np.array(place), np.array(offsets)))


@pytest.mark.parametrize("setting", ["layernorms", "frozen", "full"])
def test_packed_words_train_as_plain_ones(setting):
    data, fields = tagged(), {"seeds": (0, 1), "learning_rates": (1e-3, 1e-2), "epochs": 2}
    model = {"pooling": "cls", "num_outputs": 3}
    ends = []
    for packing in (False, True):
        own, _ = grids.make(setting, grids.study(**fields, packing=packing), data=data, **model)
        states, losses = grids.train(own)
        ends.append((losses, *grids.evaluate(own, states, data)))
    assert ends[0][0].shape == (6, 2, 2)
    for plain, packed in zip(*ends, strict=True):
        np.testing.assert_allclose(plain, packed, rtol=0, atol=2e-5)
    assert ends[0][1].shape == (2, 2, len(data.labels)) and ends[0][2].shape == (2, 2, len(data.asked.label))


def test_devices_that_split_a_batch_split_its_words():
    data, model = tagged(), {"pooling": "cls", "num_outputs": 3}
    ends = []
    for count in (1, 4):
        own, _ = grids.make(
            "layernorms", grids.study(packing=True), data=data, device_count=count, split=count > 1, **model
        )
        assert own.plan.batch_parts == count
        states, losses = grids.train(own)
        ends.append((losses, *grids.evaluate(own, states, data)))
    for one, four in zip(*ends, strict=True):
        np.testing.assert_allclose(one, four, rtol=0, atol=2e-5)


def test_the_loss_is_the_mean_over_words():
    data = tagged()
    own, _ = grids.make("frozen", grids.study(learning_rates=(1e-9,)), data=data, pooling="cls", num_outputs=3)
    order = trainer.plan_epoch(own, 1).order
    words = np.diff(data.asked.offsets)
    assert trainer.totals(own, trainer.plan_epoch(own, 1)).targets.tolist() == [
        [int(words[step[0]].sum())] for step in order
    ]
    assert batches.capacity(data, 8, own.rows.shapes[0]) == 8 * words.max()


def test_features_of_words_train_as_without():
    data = tagged()
    fields = {"seeds": (0, 1), "learning_rates": (1e-3, 1e-2), "epochs": 2, "frozen_dropout": False, "packing": True}
    own, _ = grids.make("frozen", grids.study(**fields), data=data, pooling="cls", num_outputs=3)
    own = dataclasses.replace(own, recipe=dataclasses.replace(own.recipe, frozen_dropout=False))
    known = features.load(own.recipe, own.plan, own.frozen, data, "0" * 64, knee=12)
    assert known.values.shape == (len(data.asked.label), 12) and not known.per_token
    losses = [grids.train(each)[1] for each in (trainer.with_features(own, known), own)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)


def test_every_word_counts_once_and_one_that_was_cut_away_is_wrong(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    said = run(model, tmp_path / "w", tasks=("pos",), settings=("layernorms",), max_length=7)
    assert "words have no token within max_length, and count as wrong" in said
    record, _, predictions, about = cell(tmp_path / "w", "pos", "layernorms")
    words = synthetic_tags.generate("pos")["validation"].words
    found, labels = predictions["last/validation"], predictions["labels/validation"]
    assert found.shape == (2, 2, sum(map(len, words))) and len(labels) == sum(map(len, words))
    ends = np.cumsum([len(own) for own in words])
    late = np.concatenate([np.arange(len(own)) >= 5 for own in words])  # seven tokens: five words, each of one
    assert (found[..., late] == -1).all() and (found[..., ~late] >= 0).all() and len(ends) == 256
    for i, j in np.ndindex(2, 2):
        right = sum(int(a == b) for a, b in zip(found[i, j].tolist(), labels.tolist(), strict=True))
        last = record["runs"][2 * i + j]["last"]
        assert last["accuracy"] == right / len(labels)
        assert right == sum(tag["correct"][i][j] for tag in record["tags"].values())
    assert record["metric"] == "accuracy" and record["eval_examples"] == {"validation": 256}
    assert sum(tag["actual"] for tag in record["tags"].values()) == len(labels)
    assert set(record["tags"]) <= set(json.loads(about["labels"]))
    assert json.loads(about["labels"])[:3] == [",", ".", "CC"]


def test_entities_of_a_study_are_seqevals(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    run(model, tmp_path / "w", tasks=("ner",), settings=("full",))
    record, lines, predictions, about = cell(tmp_path / "w", "ner", "full")
    names, tags = json.loads(about["labels"]), synthetic_tags.generate("ner")["validation"].tags
    ends = np.cumsum([0, *map(len, tags)]).tolist()
    for i, j in np.ndindex(2, 2):
        flat = [names[n] for n in predictions["last/validation"][i, j]]
        own = [flat[a:b] for a, b in itertools.pairwise(ends)]
        last = record["runs"][2 * i + j]["last"]
        assert last["f1"] == seqeval.metrics.f1_score(tags, own, zero_division=0)
        assert last["precision"] == seqeval.metrics.precision_score(tags, own, zero_division=0)
        assert last["recall"] == seqeval.metrics.recall_score(tags, own, zero_division=0)
    assert list(record["tags"]) == ["LOC", "MISC", "ORG", "PER"]
    assert record["metric"] == "f1" and list(lines[0])[-4:] == ["f1", "precision", "recall", "seconds"]


def test_a_tag_that_train_lacks_is_said_and_counts_as_wrong(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    path = write(tmp_path / "data", train="who X\nis Y\n\nis Y\n" * 8, dev="who X\nis Z\nit Z\n")
    fields = {"data.path": path, "tasks": ("pos",), "settings": ("full",), "epochs": 1}
    said = run(model, tmp_path / "w", **fields)
    assert "warning: pos validation: 2 of 3 words have tags that train lacks, and count as wrong: Z" in said
    record, _, predictions, about = cell(tmp_path / "w", "pos", "full")
    assert json.loads(about["labels"]) == ["X", "Y", "Z"]
    assert predictions["labels/validation"].tolist() == [0, 2, 2]
    for run_ in record["runs"]:
        assert run_["status"] == "finished" and run_["last"]["accuracy"] in (0, 1 / 3)
    assert record["tags"]["Z"] == {"actual": 2, "predicted": [[0, 0], [0, 0]], "correct": [[0, 0], [0, 0]]}


def test_sentences_whose_words_have_no_token(tmp_path):
    model = tiny.write_checkpoint(tmp_path / "model")
    invisible = "\u200d X\n\n" * 4
    path = write(tmp_path / "data", train="who X\nis Y\n\n" * 3 + invisible, dev="who X\n")
    fields = {"data.path": path, "tasks": ("pos",), "settings": ("full",), "batch_size": 1}
    run(model, tmp_path / "w", **fields)
    record, lines, *_ = cell(tmp_path / "w", "pos", "full")
    assert {own["status"] for own in record["runs"]} == {"finished"} and record["steps"] == 14
    assert all(line["train_loss"] > 0 for line in lines)
    (tmp_path / "data" / "dev.txt").write_text(invisible, encoding="utf-8")
    with pytest.raises(InputError, match="pos validation: no word has a token"):
        run(model, tmp_path / "v", **fields)


def test_sentences_and_words_in_one_study_have_bodies_of_their_own(tmp_path):
    """With a pooler for sentences, words have none: their ratios are of what their head stands on."""
    model = tiny.write_checkpoint(tmp_path / "model")
    run(model, tmp_path / "w", tasks=("rte", "pos"), settings=("frozen",), epochs=1, train_pooler=True)
    one, other = (cell(tmp_path / "w", task)[0] for task in ("rte", "pos"))
    assert one["body"] - other["body"] == 32 * 32 + 32 == one["trained"] and other["trained"] == 0
    shown = subprocess.run(
        [sys.executable, "analyze.py", "tables", f"--workdir={tmp_path / 'w'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert "## Table 1: modules\n" in shown and "## Table 2: modules, tagged words\n" in shown
    first, second = shown.split("## Table 2")
    assert "| pos" not in first and "| rte" not in second


def test_words_that_are_not_asked_for_are_no_entity():
    own = dataclasses.replace(TASKS["ner"], labels=("B-X", "I-X", "O"))
    data = Encoded(None, None, np.array([0, 1, 2]), None, np.array([0, 2, 3]), None)
    assert ledger.sentences(own, np.array([0, -1, 1]), data) == [["B-X", "O"], ["I-X"]]


def test_configs_of_words():
    assert token.get_config("ner,ln_a").tasks == ("ner",) and token.get_config().settings == ("layernorms",)
    assert token.get_config().model.name == table2.get_config().model.name == "google-bert/bert-base-cased"
    assert table2.get_config().tasks == ("pos", "ner") and len(table2.get_config().settings) == 9
    with pytest.raises(ValueError, match="give pos or ner,SETTING"):
        token.get_config("pos")
    assert given("m").data.path == "synthetic" and config.parse(token.get_config()).data_path == ""
    assert config.without_paths(token.get_config().to_dict())["data"]["path"] == ""
