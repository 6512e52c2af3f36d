import collections
import hashlib
import itertools
import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lnflax import synthetic
from lnflax.synthetic_words import FUNCTION_WORDS

COLUMNS = {
    "cola": ["sentence"],
    "sst2": ["sentence"],
    "mrpc": ["sentence1", "sentence2"],
    "stsb": ["sentence1", "sentence2"],
    "qqp": ["question1", "question2"],
    "mnli": ["premise", "hypothesis"],
    "qnli": ["question", "sentence"],
    "rte": ["sentence1", "sentence2"],
}
LABELS = {
    "cola": [0, 1],
    "sst2": [0, 1],
    "mrpc": [0, 1],
    "stsb": [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
    "qqp": [0, 1],
    "mnli": [0, 1, 2],
    "qnli": [0, 1],
    "rte": [0, 1],
}
CLASSIFIED = [task for task in LABELS if task != "stsb"]

# Results are reported on these very rows: a change here is a change of the benchmark.
SHA256 = {
    "cola": "94fecf2a7303594764c71eaf54b96b6e55405c505c2e1bf08120c66452aa23dd",
    "sst2": "3457b7573d011b5895991accd1fdc2e29ffadcda2b1b18a78d45185fd820d918",
    "mrpc": "2c5d9e9c59698f7ef0e787f48377014f605765abc4af5ff9adb499293c8d62a8",
    "stsb": "2114b9be05d46eac726fcadae8db72af1174adbe5bb624e4c6df9d216677645a",
    "qqp": "cb87a1f32f0d4090be65e41e0ccd61fd8f821ef226123bb2954de529c45f50a0",
    "mnli": "e797d1eabe27490fa5716dab5c21c9a0f74f977ddfc95b0d8fd6a23dc741c5b9",
    "qnli": "c62b7dcccefbc2ff2d19d6c022536143af923d0cdade6ea02b055203883e4025",
    "rte": "88c61b834f596249ca9427896dcf8339144abd1f7d19099c777dea23a4dc1799",
}


@pytest.fixture(scope="module", params=COLUMNS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def splits(task):
    return synthetic.generate(task)


def texts_of(columns):
    return [cells for column, cells in columns.items() if column != "label"]


def rows_of(columns):
    return list(zip(*texts_of(columns), strict=True))


def content_words(columns):
    return {word for row in rows_of(columns) for text in row for word in text.split()} - FUNCTION_WORDS


@pytest.mark.parametrize(
    ("task", "split", "rows"),
    [
        (
            "cola",
            "train",
            [
                ("these ring was beside that pictures", 0),
                ("the worker hungry should feed the prince", 0),
                ("the mayors who the captain see is proud", 0),
            ],
        ),
        (
            "sst2",
            "train",
            [
                ("the scenery used to be terrible , but now it is impressive", 1),
                ("the acting was ugly", 0),
                ("though the acting was ugly , the film was great", 1),
            ],
        ),
        (
            "sst2",
            "validation",
            [
                ("the song is delightful now , though it was dreadful", 1),
                ("the cast was beautiful and not dreadful", 1),
                ("the novel is pointless", 0),
            ],
        ),
        (
            "mrpc",
            "train",
            [
                ("thomas ate after the prince smiled", "after thomas ate , the prince smiled", 0),
                ("the hunter is not older than the painter", "the hunter is not younger than the painter", 0),
                ("susan did not help the hunter", "susan was not helped by the hunter", 0),
            ],
        ),
        (
            "stsb",
            "validation",
            [
                ("the cook bit the girl", "the girl may have been bitten by the cook", 4.0),
                ("henry heard the merchant", "the queen was attacked by the artist", 0.0),
                ("the servant loved the stranger", "the stranger was loved by the servant", 5.0),
            ],
        ),
        (
            "qqp",
            "train",
            [
                ("is the worker slower than the friend ?", "is the friend faster than the worker ?", 1),
                ("who ignored george ?", "who was george ignored by ?", 1),
                (
                    "is it true that the soldier arrived before the captain won ?",
                    "is it true that the soldier arrived after the captain won ?",
                    0,
                ),
            ],
        ),
        (
            "mnli",
            "validation_mismatched",
            [
                ("amy has not succeeded but rachel has jumped", "amy has succeeded", 2),
                ("julia advised walter", "walter was advised by julia", 0),
                ("the monk has not sat but ellen has relaxed", "ellen has not relaxed", 2),
            ],
        ),
        (
            "qnli",
            "train",
            [
                ("who did the boy send the sword to ?", "the farmer sent the boy the sword", 1),
                ("who has agreed ?", "the mayor has agreed but the writer has not won", 0),
                ("who has not escaped ?", "the banker has escaped but john has not voted", 1),
            ],
        ),
        (
            "rte",
            "validation",
            [
                ("the girl has danced but the engineer has not returned", "the girl has not returned", 1),
                ("peter did not praise the artist but managed to insult the servant", "peter insulted the servant", 0),
                ("the girl has not returned but the artist has screamed", "the artist has screamed", 0),
            ],
        ),
    ],
)
def test_first_rows(task, split, rows):
    columns = synthetic.generate(task)[split]
    assert list(zip(*(cells[: len(rows)] for cells in columns.values()), strict=True)) == rows


def test_glue_splits_columns_and_sizes(task, splits):
    dev = ["validation_matched", "validation_mismatched"] if task == "mnli" else ["validation"]
    assert list(splits) == ["train", *dev]
    for split, columns in splits.items():
        size = 1536 if split == "train" else 384
        assert {column: len(cells) for column, cells in columns.items()} == dict.fromkeys(
            [*COLUMNS[task], "label"], size
        )


def test_labels_are_balanced_and_typed(task, splits):
    kind = float if task == "stsb" else int
    for columns in splits.values():
        count = len(columns["label"]) // len(LABELS[task])
        assert collections.Counter(columns["label"]) == dict.fromkeys(LABELS[task], count)
        assert {type(label) for label in columns["label"]} == {kind}


def test_no_example_twice(splits):
    rows = [row for columns in splits.values() for row in rows_of(columns)]
    assert len(set(rows)) == len(rows)


def test_splits_share_no_content_word(splits):
    lexicons = [content_words(columns) for columns in splits.values()]
    assert all(len(words) > 20 for words in lexicons)
    assert len(set().union(*lexicons)) == sum(map(len, lexicons))


def test_train_shares_no_content_word_with_any_dev_set():
    train, dev = set(), set()
    for task in COLUMNS:
        for split, columns in synthetic.generate(task).items():
            (train if split == "train" else dev).update(content_words(columns))
    assert not train & dev


def test_every_function_word_is_in_train_and_dev():
    used = collections.defaultdict(set)
    for task in COLUMNS:
        for split, columns in synthetic.generate(task).items():
            used[split == "train"] |= {word for row in rows_of(columns) for text in row for word in text.split()}
    assert used[True] & used[False] >= FUNCTION_WORDS


def test_sentences_are_short_and_filled(splits):
    for columns in splits.values():
        for row in rows_of(columns):
            assert all(len(text.split()) <= 14 for text in row)
            assert sum(len(text.split()) for text in row) <= 26
            assert not any(set(text) & set("{}|#/") or "  " in text or text != text.strip() for text in row)


def test_deterministic(task, splits):
    again = synthetic.generate(task)
    assert again == splits
    assert hashlib.sha256(json.dumps(again).encode()).hexdigest() == SHA256[task]


def test_unknown_task():
    with pytest.raises(KeyError):
        synthetic.generate("wnli")


@pytest.mark.parametrize("task", ["cola", "mrpc", "qqp"])
def test_every_bag_of_words_is_in_both_classes(task):
    for columns in synthetic.generate(task).values():
        bags = collections.defaultdict(collections.Counter)
        for *texts, label in zip(*columns.values(), strict=True):
            bags[tuple(tuple(sorted(text.split())) for text in texts)][label] += 1
        assert all(labels[0] == labels[1] for labels in bags.values())


def bag_of_words(columns, vectorizer):
    bags = [vectorizer.transform(texts).toarray() for texts in texts_of(columns)]
    if len(bags) == 2:
        first, second = bags
        bags += [first - second, abs(first - second)]
    return np.hstack(bags)


@pytest.mark.parametrize("task", CLASSIFIED)
def test_a_bag_of_words_learns_little_and_carries_nothing_over(task):
    train, *devs = synthetic.generate(task).values()
    vectorizer = CountVectorizer(token_pattern=r"\S+").fit(itertools.chain(*texts_of(train)))
    model = LogisticRegression(max_iter=1000).fit(bag_of_words(train, vectorizer), train["label"])
    assert model.score(bag_of_words(train, vectorizer), train["label"]) <= 0.6
    for dev in devs:
        bound = 0.5 if task == "mnli" else 0.62
        assert model.score(bag_of_words(dev, vectorizer), dev["label"]) <= bound
