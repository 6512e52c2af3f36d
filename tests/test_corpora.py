import collections
import itertools
import json

import datasets
import pytest

from lnflax import corpora
from lnflax.errors import InputError
from tests.real import NLTK_DATA

COLUMNS = """-DOCSTART- -X- -X- O

EU NNP I-NP I-ORG
rejects VBZ I-VP O
German JJ I-NP I-MISC
call NN I-NP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""
WORDS = [["EU", "rejects", "German", "call"], ["Peter", "Blackburn"]]
IOB2 = [["B-ORG", "O", "B-MISC", "O"], ["B-PER", "I-PER"]]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read(path, task="ner", splits=("train", "validation", "test"), spans=True):
    return corpora.read(task, str(path), splits, spans=spans)


def error(path, **kwargs):
    with pytest.raises(InputError) as caught:
        read(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_column_files_of_conll_2003_by_their_own_names(tmp_path):
    for name in ("eng.train", "eng.testa", "eng.testb"):
        write(tmp_path / name, COLUMNS)
    found = read(tmp_path)
    assert list(found) == ["train", "validation", "test"]
    assert found["validation"] == corpora.Tagged(WORDS, IOB2)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.txt", "train"),
        ("my_train.conll", "train"),
        ("train-v2.tsv", "train"),
        ("valid.txt", "validation"),
        ("dev.bio", "validation"),
        ("ner.dev", "validation"),
        ("test.txt", "test"),
        ("validation", "validation"),
    ],
)
def test_a_file_says_its_split_by_its_name(tmp_path, name, split):
    write(tmp_path / name, COLUMNS)
    assert list(read(tmp_path)) == [split]


def test_other_files_and_other_splits_are_left_alone(tmp_path):
    for name in ("README", "trainer.txt", "contest.txt", "train.txt"):
        write(tmp_path / name, COLUMNS)
    write(tmp_path / "dev.txt", "broken")
    assert list(read(tmp_path, splits=["train"])) == ["train"]


def test_a_folder_of_the_task_inside_the_folder_comes_first(tmp_path):
    write(tmp_path / "train.txt", "a O\n")
    write(tmp_path / "ner" / "train.txt", COLUMNS)
    assert read(tmp_path)["train"].words == WORDS
    assert read(tmp_path, task="pos")["train"].words == [["a"]]


def test_tabs_keep_spaces_inside_words_and_allow_comments_and_empty_words(tmp_path):
    text = "# sent_id = 1\nNew York\tNNP\n\tSYM\n#\tSYM\n\n\nno\u00a0break\tJJ"
    found = corpora.read_columns(write(tmp_path / "train.tsv", text))
    assert found == corpora.Tagged([["New York", "", "#"], ["no\u00a0break"]], [["NNP", "SYM", "SYM"], ["JJ"]])


def test_spaces_part_columns_however_many_and_a_no_break_space_does_not(tmp_path):
    found = corpora.read_columns(write(tmp_path / "train.txt", "\ufeff1\u00a0000   CD \r\n# #\r\n\r\n\r\nend .\r\n"))
    assert found == corpora.Tagged([["1\u00a0000", "#"], ["end"]], [["CD", "#"], ["."]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a NN O\nb O\n", "line 2: 2 columns, not 3: 'b O'"),
        ("a NN O\n\nb NN x O\n", "line 3: 4 columns, not 3"),
        ("word\n", "line 1: 1 columns, not at least 2"),
        ("a\tO\nb\t\n", "line 2: no tag"),
        ("", "no sentences"),
        ("-DOCSTART- -X- O\n\n\n", "no sentences"),
    ],
)
def test_a_bad_column_file_is_one_line_with_the_number(tmp_path, text, message):
    write(tmp_path / "train.txt", text)
    told = error(tmp_path)
    assert message in told and str(tmp_path / "train.txt") in told


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"caf\xe9 O\n")
    assert "train.txt: cannot be read as UTF-8" in error(tmp_path)


def test_json_lines(tmp_path):
    lines = [{"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"], "id": 7}, {"tokens": [], "tags": []}]
    write(tmp_path / "train.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert read(tmp_path)["train"] == corpora.Tagged([["EU", "rejects"]], [["B-ORG", "O"]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": ["a"]', "line 2: not JSON"),
        ('{"tokens": ["a"], "tag": ["O"]}', "line 2: not an object of tokens and tags"),
        ('{"tokens": ["a"], "tags": [0]}', "line 2: not an object of tokens and tags"),
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "line 2: 2 tokens and 1 tags"),
        ("[]", "line 2: not an object"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    write(tmp_path / "train.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n' + line)
    assert message in error(tmp_path)


def parquet(folder, name, tags, feature, column):
    folder.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), column: datasets.List(feature)})
    datasets.Dataset.from_dict({"tokens": WORDS, column: tags}, features=features).to_parquet(str(folder / name))


def test_parquet_of_strings_and_of_named_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    names = ["O", "B-ORG", "I-ORG", "B-MISC", "B-PER", "I-PER"]
    numbers = [[names.index(tag) for tag in tags] for tags in IOB2]
    parquet(tmp_path / "data", "train-00000-of-00001.parquet", numbers, datasets.ClassLabel(names=names), "ner_tags")
    parquet(tmp_path / "data", "validation-0.parquet", IOB2, datasets.Value("string"), "tags")
    found = read(tmp_path / "data")
    assert found == {"train": corpora.Tagged(WORDS, IOB2), "validation": corpora.Tagged(WORDS, IOB2)}


def test_parquet_of_bare_numbers_or_without_tags(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    parquet(tmp_path / "a", "train.parquet", [[0, 1, 2, 0], [1, 1]], datasets.Value("int64"), "ner_tags")
    assert "tags of ner_tags are neither strings nor named classes" in error(tmp_path / "a")
    parquet(tmp_path / "b", "train.parquet", IOB2, datasets.Value("string"), "chunks")
    assert "no columns tokens and ner_tags or tags; it has tokens, chunks" in error(tmp_path / "b")


def test_two_files_of_one_split(tmp_path):
    write(tmp_path / "dev.txt", COLUMNS)
    write(tmp_path / "valid.txt", COLUMNS)
    assert "several files of validation: dev.txt, valid.txt; leave one" in error(tmp_path)


def test_no_such_folder():
    assert "no folder './nowhere'" in error("./nowhere")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I-A I-A O I-A", "B-A I-A O B-A"),  # IOB1
        ("I-A B-A I-A I-B", "B-A B-A I-A B-B"),  # IOB1: B- only between neighbours of one type
        ("B-A I-A B-A O", "B-A I-A B-A O"),  # IOB2 stays
        ("O I-A I-B", "O B-A B-B"),  # broken IOB2, as conlleval reads it
        ("B-A I-B I-B", "B-A B-B I-B"),
        ("", ""),
    ],
)
def test_iob1_and_iob2_become_iob2(given, expected):
    assert corpora.to_iob2(given.split()) == expected.split()


@pytest.mark.parametrize("tag", ["S-PER", "E-PER", "U-PER", "PER", "B-", "B_PER"])
def test_an_unknown_tag_scheme(tmp_path, tag):
    write(tmp_path / "train.txt", f"a O\n\nb {tag}\n")
    assert f"train, sentence 2: tag '{tag}' is of an unknown scheme; known are IOB1 and IOB2" in error(tmp_path)
    assert read(tmp_path, spans=False)["train"].tags == [["O"], [tag]]


def test_the_hash_is_of_words_and_tags():
    one = corpora.Tagged([["a", "b"], ["c"]], [["X", "Y"], ["Z"]])
    # printf 'a\tX\nb\tY\n\nc\tZ\n\n' | sha256sum
    assert one.sha256 == "ab7280634dc35d007a32dbf495e30bb4bb136ce20cb71327e766f7bf7dd85cd5"
    assert corpora.Tagged([["a"], ["b", "c"]], [["X"], ["Y", "Z"]]).sha256 != one.sha256


def test_the_published_split_follows_its_rule():
    split = corpora.treebank_split()
    assert sorted(itertools.chain(*split["files"].values())) == [f"wsj_{number:04d}.mrg" for number in range(1, 200)]
    for name, files in split["files"].items():
        digits = {file[7] for file in files}
        assert digits == {"train": set("01234567"), "validation": {"8"}, "test": {"9"}}[name]
    assert {name: len(files) for name, files in split["files"].items()} == {"train": 159, "validation": 20, "test": 20}


@pytest.fixture
def treebank(monkeypatch):
    nltk = pytest.importorskip("nltk")
    if not (NLTK_DATA / "corpora").is_dir():
        pytest.skip(f"no NLTK data at {NLTK_DATA}; LNFLAX_NLTK_DATA names another folder")
    monkeypatch.setattr(nltk.data, "path", [str(NLTK_DATA)])


def test_the_treebank_has_the_hashes_of_the_published_split_and_no_sentence_twice(treebank):
    found = read("nltk", task="pos", spans=False)
    assert {name: (len(part.words), sum(map(len, part.words))) for name, part in found.items()} == {
        "train": (2927, 70170),
        "validation": (555, 13676),
        "test": (421, 10181),
    }
    count = collections.Counter(tuple(words) for part in found.values() for words in part.words)
    assert max(count.values()) == 1 and len(count) == 3914 - 11
    assert "-NONE-" not in {tag for part in found.values() for tags in part.tags for tag in tags}
    assert found["train"].words[0][:4] == ["Pierre", "Vinken", ",", "61"]
    assert found["train"].tags[0][:4] == ["NNP", "NNP", ",", "CD"]
    assert corpora.treebank_split() == corpora.make_treebank_split()


def test_another_treebank_is_refused(treebank, monkeypatch):
    other = corpora.treebank_split()
    other["repeated"] = []
    monkeypatch.setattr(corpora, "treebank_split", lambda: other)
    assert "not NLTK's sample" in error("nltk", task="pos", spans=False)


def test_no_treebank_says_how_to_get_it(monkeypatch, tmp_path):
    nltk = pytest.importorskip("nltk")
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    told = error("nltk", task="pos", spans=False)
    assert f"no NLTK data corpora/treebank in {tmp_path}; get it with `python -m nltk.downloader treebank`" in told
