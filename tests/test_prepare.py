"""`train.py --prepare`, and studies after it, against a hub of our own; a process each, as a user runs them."""

import pytest

from lnflax import corpora
from tests import fake_hub, tiny
from tests.fake_hub import FakeHub

AHEAD = "`python train.py --config=… --prepare` fetches it ahead, where there is a network\n"
CONFIG = (
    "--config=configs/base.py",
    "--config.model.name=org/tiny",
    "--config.tasks=('rte','mnli','ner')",
    "--config.settings=('frozen',)",
    "--config.seeds=(0,)",
    "--config.learning_rates=(0.001,)",
    "--config.max_length=32",
)
RTE = {"sentence1": ["one", "two"] * 8, "sentence2": ["uno", "due"] * 8, "label": [0, 1] * 8}
MNLI = {"premise": ["one", "two", "three"] * 6, "hypothesis": ["uno", "due", "tre"] * 6, "label": [0, 1, 2] * 6}


@pytest.fixture
def served(tmp_path):
    """What the hub has: a model, two tasks of GLUE, CoNLL-2003 as pushed, and a corpus of a user's own."""
    folder = tmp_path / "served"
    tiny.write_checkpoint(folder / "models" / "org" / "tiny")
    glue = folder / "datasets" / "nyu-mll" / "glue"
    for split in ("train", "validation", "test"):
        tiny.write_split(glue, "rte", split, RTE)
    for split in ("train", "validation_matched", "validation_mismatched"):
        tiny.write_split(glue, "mnli", split, MNLI)
    conll = folder / "datasets" / "lhoestq" / "conll2003"
    for split in ("train", "validation", "test"):
        fake_hub.write_tagged(conll / "conll2003", split)
    (conll / "README.md").write_text("---\nlicense: other\n---\n")
    own = folder / "datasets" / "me" / "words"
    own.mkdir(parents=True)
    for name in ("train", "dev"):
        (own / f"{name}.txt").write_text("Ada B-PER\nis O\n\nhere O\n\n" * 6)
    return folder


def test_prepare_then_a_study_without_a_network(served, tmp_path):
    home = tmp_path / "home"
    with FakeHub(served) as hub:
        done = fake_hub.train(hub, home, *CONFIG, "--prepare")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        told = [line.partition(", in ")[0] for line in lines if ", in " in line]
        model, *data = (tuple(line.split(": ")) for line in told)
        assert model[0] == "model org/tiny" and model[1].startswith("4 files, ") and model[1].endswith(", 4 fetched")
        assert [title for title, _ in data] == [
            *("data nyu-mll/glue, rte", "data nyu-mll/glue, mnli", "data lhoestq/conll2003, ner"),
        ]
        assert [text.split(",")[0] for _, text in data] == ["2 files", "3 files", "2 files"]
        for line in lines:
            if ", in " in line:
                assert line.partition(", in ")[2].startswith(str(home / "hub"))
        assert next(line for line in lines if line.startswith("fetching ")).startswith("fetching config.json of model ")
        assert lines[-1] == "all is there; 11 files fetched"
        assert not [line for line in hub.asked if "/test-" in line], "test sets are not wanted"
    again = fake_hub.train(hub, home, *CONFIG, "--prepare")
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[-1] == "all is there; nothing was to be fetched"
    assert "warning: data set nyu-mll/glue: the hub cannot be reached (" in again.stdout
    offline = {"HF_HUB_OFFLINE": "1", "LNFLAX_CACHE": str(tmp_path / "cache")}
    quiet = fake_hub.train(hub, home, *CONFIG, "--prepare", **offline)
    assert (quiet.returncode, quiet.stderr, "warning" in quiet.stdout) == (0, "", False)
    study = fake_hub.train(hub, home, *CONFIG, f"--workdir={tmp_path}/w", "--dry_run", **offline)
    assert (study.returncode, study.stderr) == (0, "")
    for task in ("rte", "mnli", "ner"):
        assert f"{task}/frozen: to do; 1 seed" in study.stdout
    assert "validation_mismatched" not in study.stdout, "both development sets of mnli are there"


def test_what_is_not_cached_is_one_line_that_names_the_command(served, tmp_path):
    home = tmp_path / "home"
    with FakeHub(served) as hub:
        assert fake_hub.train(hub, home, *CONFIG[:2], "--config.data.path=synthetic", "--prepare").returncode == 0
    for how in ("--prepare", f"--workdir={tmp_path}/w"):
        done = fake_hub.train(hub, home, *CONFIG, how, HF_HUB_OFFLINE="1")
        assert done.returncode == 2
        told = "data.path: 'nyu-mll/glue', rte: HF_HUB_OFFLINE is set; the cache does not have it; "
        assert done.stderr == f"train.py: {told}{AHEAD}"
    assert not (tmp_path / "w").exists()


def test_a_set_of_mnli_that_is_not_cached_is_missed(served, tmp_path):
    """An absent second set would only be a warning, and its metrics null."""
    home, mnli = tmp_path / "home", (*CONFIG[:2], "--config.tasks=mnli", "--config.max_length=32")
    with FakeHub(served) as hub:
        first = fake_hub.train(hub, home, *mnli, "--config.data.eval_split=validation_matched", "--prepare")
        assert first.stdout.endswith("all is there; 6 files fetched\n")
    done = fake_hub.train(hub, home, *mnli, f"--workdir={tmp_path}/w", HF_HUB_OFFLINE="1")
    assert done.returncode == 2
    assert "; the cache has it without mnli/validation_mismatched-*.parquet; " in done.stderr


@pytest.mark.parametrize(
    ("match", "fault", "said"),
    [
        ("GET /api/datasets/nyu-mll/glue", {"status": 503, "times": 1}, "503 Service Unavailable; again in 1 s"),
        ("GET /api/models/org/tiny", {"status": 429, "times": 1, "headers": {"Retry-After": "2"}}, "again in 2 s"),
        ("GET .*/rte/train", {"cut": 100, "times": 1}, "fetching rte/train"),
        ("GET .*/model.safetensors", {"pause": 0.2}, "fetching model.safetensors"),
    ],
)
def test_prepare_over_a_bad_line(served, tmp_path, match, fault, said):
    with FakeHub(served) as hub:
        hub.fail(match, **fault)
        done = fake_hub.train(hub, tmp_path / "home", *CONFIG, "--prepare")
    assert (done.returncode, done.stderr) == (0, "")
    assert said in done.stdout and done.stdout.endswith("all is there; 11 files fetched\n")


def test_prepare_that_fails_says_why_and_keeps_what_it_has(served, tmp_path):
    with FakeHub(served) as hub:
        hub.fail("GET .*/conll2003/train", status=404)
        done = fake_hub.train(hub, tmp_path / "home", *CONFIG, "--prepare")
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(
            "train.py: data.path: 'lhoestq/conll2003', ner: the hub says 404: there is no conll2003/train-"
        )
        hub.heal()
        done = fake_hub.train(hub, tmp_path / "home", *CONFIG, "--prepare")
        assert (done.returncode, done.stderr) == (0, "")
        fetched = int(done.stdout.splitlines()[-1].split()[-3])
        assert 1 <= fetched <= 2, "only the corpus was left"


READ = """
import sys
from lnflax import corpora
found = corpora.read(sys.argv[1], sys.argv[2], ("train", "validation"), spans=True)
print({split: (len(part.words), part.words[0], part.tags[0]) for split, part in found.items()})
"""
OWN = {split: (12, ["Ada", "is"], ["B-PER", "O"]) for split in ("train", "validation")}
CONLL = {split: (12, ["Ada", "Lovelace", "is", split], ["B-PER", "I-PER", "O", "O"]) for split in OWN}


@pytest.mark.parametrize(("path", "wanted"), [("me/words", OWN), ("lhoestq/conll2003", CONLL)])
def test_a_corpus_of_the_hub_is_read_then_from_the_cache(served, tmp_path, path, wanted):
    home = tmp_path / "home"
    with FakeHub(served) as hub:
        first = fake_hub.python(hub, home, READ, "ner", path)
        assert (first.returncode, first.stdout) == (0, f"{wanted}\n"), first.stderr
    second = fake_hub.python(hub, home, READ, "ner", path, HF_HUB_OFFLINE="1")
    assert (second.returncode, second.stdout) == (0, f"{wanted}\n"), second.stderr


def test_a_corpus_that_the_hub_does_not_have(served, tmp_path):
    with FakeHub(served) as hub:
        own = "--config.data.path=me/other"
        done = fake_hub.train(hub, tmp_path / "home", *CONFIG[:2], "--config.tasks=ner", own, "--prepare")
    assert done.returncode == 2
    told = "train.py: data.path: 'me/other', ner: the hub says 404: there is no data set me/other\n"
    assert done.stderr == told


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["train.txt", "dev.txt", "README.md", "ner/x.txt"], ["train.txt", "dev.txt"]),
        (["ner/train.txt", "train.txt", "ner/dev.txt"], ["ner/train.txt", "ner/dev.txt"]),
        (["data/train.jsonl", "data/dev.jsonl", "old/train.jsonl"], ["data/train.jsonl", "data/dev.jsonl"]),
        (["a/train-0.parquet", "a/train.txt", "a/train-1.parquet"], ["a/train-0.parquet", "a/train-1.parquet"]),
        (["README.md", "data.zip"], []),
    ],
)
def test_where_a_corpus_lies_in_its_repository(names, chosen):
    groups = corpora._choose("ner", "me/words", names, ("train", "validation"))
    assert [name for own in groups.values() for name in own] == chosen


def test_several_corpora_in_one_repository_are_named():
    with pytest.raises(ValueError, match=r"^data\.path: 'me/all' has several corpora: de, en; download one, and give"):
        corpora._choose("ner", "me/all", ["en/train.txt", "de/train.txt"], ("train", "validation"))
