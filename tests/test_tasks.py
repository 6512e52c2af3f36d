import datasets
import numpy as np
import pytest

from lnflax import tasks
from lnflax.errors import InputError
from lnflax.tasks import TASKS
from tests import tiny
from tests.real import GLUE

RTE = {"sentence1": ["one", "two", "three"], "sentence2": ["uno", "due", "tre"], "label": [0, 1, 1], "idx": [0, 1, 2]}


@pytest.fixture(autouse=True)
def own_cache_of_datasets(tmp_path, monkeypatch):
    """What `datasets` reads is kept apart from the user's."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def write(folder, task="rte", columns=None, splits=("train", "validation"), **changes):
    for split in splits:
        given = {**(columns or RTE), **changes}
        tiny.write_split(folder, task, split, {name: value for name, value in given.items() if value is not None})
    return str(folder)


def load(path, task="rte", eval_split="", most=0):
    return tasks.load(TASKS[task], str(path), eval_split, most)


def test_a_folder_in_the_hubs_layout(tmp_path):
    write(tmp_path, splits=["train"])
    write(tmp_path, splits=["validation"], sentence1=["a", "b", "c"], label=[1, 0, 0])
    texts = load(tmp_path)
    assert texts.train.columns == (["one", "two", "three"], ["uno", "due", "tre"])
    assert texts.train.labels.tolist() == [0, 1, 1] and texts.train.labels.dtype == np.int32
    assert list(texts.evals) == ["validation"] and texts.absent == ()
    assert texts.evals["validation"].columns[0] == ["a", "b", "c"]
    assert texts.evals["validation"].labels.tolist() == [1, 0, 0]


def test_the_parts_of_a_split_are_joined_in_order(tmp_path):
    write(tmp_path)
    (tmp_path / "rte" / "train-00000-of-00001.parquet").rename(tmp_path / "rte" / "train-00001-of-00002.parquet")
    write(tmp_path, splits=["train"], sentence1=["x", "y", "z"])
    (tmp_path / "rte" / "train-00000-of-00001.parquet").rename(tmp_path / "rte" / "train-00000-of-00002.parquet")
    assert load(tmp_path).train.columns[0] == ["x", "y", "z", "one", "two", "three"]


def test_each_task_has_its_columns_and_labels(tmp_path):
    for task in (task for task in TASKS.values() if not task.tagged):
        columns = {name: [f"{name} {i}" for i in range(2)] for name in task.columns}
        labels = [0, len(task.labels) - 1] if task.labels else [0.0, 5.0]
        write(tmp_path, task.name, {**columns, "label": labels}, ("train", *task.splits))
        texts = load(tmp_path, task.name)
        assert [column[1] for column in texts.train.columns] == [f"{name} 1" for name in task.columns]
        assert texts.train.labels.tolist() == labels
        assert texts.train.labels.dtype == (np.int32 if task.labels else np.float32)
        assert tuple(texts.evals) == task.splits


def test_the_ten_tasks_are_the_papers():
    told = {name: (task.metrics, len(task.labels) or 1, task.epochs) for name, task in TASKS.items()}
    assert told == {
        "cola": (("matthews", "accuracy"), 2, 20),
        "sst2": (("accuracy",), 2, 10),
        "mrpc": (("f1", "accuracy"), 2, 20),
        "stsb": (("pearson", "spearman"), 1, 20),
        "qqp": (("f1", "accuracy"), 2, 10),
        "mnli": (("accuracy",), 3, 10),
        "qnli": (("accuracy",), 2, 10),
        "rte": (("accuracy",), 2, 20),
        "pos": (("accuracy",), 1, 20),  # as many outputs as the training set has tags
        "ner": (("f1", "precision", "recall"), 1, 20),
    }
    assert {tasks.paper_epochs(task, "full") for task in TASKS.values()} == {5}
    assert tasks.paper_epochs(TASKS["sst2"], "frozen") == 10 and tasks.paper_epochs(TASKS["rte"], "ln_a") == 20


def error(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        load(*args, **kwargs)
    return str(caught.value)


def test_a_missing_split(tmp_path):
    path = write(tmp_path / "a", splits=["train"])
    assert error(path) == f"data.path: {path!r} has no 'validation' of rte; it has train"
    path = write(tmp_path / "b", splits=["validation"])
    assert error(path) == f"data.path: {path!r} has no 'train' of rte; it has validation"
    path = write(tmp_path / "c")
    assert error(path, eval_split="test") == f"data.eval_split: {path!r} has no 'test' of rte; it has train"


def test_a_missing_task_folder_or_path(tmp_path):
    path = write(tmp_path)
    assert error(path, "cola") == f"data.path: {path!r} has no cola/SPLIT-*.parquet"
    for missing in (f"{tmp_path}/none", "./none", "~/none-of-it", "data/glue/none"):
        assert error(missing) == (
            f"data.path: no folder {missing!r}; give a hub id, a folder in the hub's layout, or synthetic"
        )


def test_a_file_that_is_no_parquet(tmp_path):
    path = write(tmp_path)
    (tmp_path / "rte" / "train-00000-of-00001.parquet").write_text("not parquet")
    message = error(path)
    assert message.startswith(f"data.path: {path!r}, rte: ") and len(message) < 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentence2": None}, "no column 'sentence2'; there are sentence1, label, idx"),
        ({"label": None}, "no column 'label'; there are sentence1, sentence2, idx"),
        ({"label": [0, 1, 2]}, "label 2; allowed are 0 … 1 (entailment, not_entailment)"),
        ({"label": [-1, -1, -1]}, "label -1; allowed are 0 … 1 (entailment, not_entailment)"),
        ({"label": [0, None, 1]}, "label None; allowed are 0 … 1 (entailment, not_entailment)"),
        ({"label": [0.0, 1.0, 1.0]}, "label 0.0; allowed are 0 … 1 (entailment, not_entailment)"),
        ({"label": ["yes", "no", "no"]}, "label 'yes'; allowed are 0 … 1 (entailment, not_entailment)"),
        ({"sentence1": ["one", None, "three"]}, "a text is missing"),
        ({"sentence1": [1, 2, 3]}, "a text is missing"),
    ],
)
def test_bad_columns(tmp_path, changes, message):
    write(tmp_path, **changes)
    assert error(tmp_path) == f"data.path: rte train: {message}"


def test_a_bad_development_set_is_named(tmp_path):
    write(tmp_path)
    write(tmp_path, splits=["validation"], label=[0, 3, 1])
    assert error(tmp_path).startswith("data.path: rte validation: label 3; allowed are 0 … 1")


def test_no_examples(tmp_path):
    path = write(tmp_path, **{name: [] for name in RTE})
    assert error(path).startswith(f"data.path: {path!r}, rte: ")


@pytest.mark.parametrize("scores", [[0.0, 5.1], [-0.1, 1.0], [float("nan"), 1.0], [None, 1.0], ["1", "2"]])
def test_a_score_is_from_0_to_5(tmp_path, scores):
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": scores}
    write(tmp_path, "stsb", columns)
    assert error(tmp_path, "stsb") == "data.path: stsb train: a label is not a score from 0 to 5"


def test_mnli_without_its_second_set(tmp_path):
    columns = {"premise": ["a"], "hypothesis": ["b"], "label": [2]}
    write(tmp_path, "mnli", columns, ["train", "validation_matched"])
    texts = load(tmp_path, "mnli")
    assert list(texts.evals) == ["validation_matched"] and texts.absent == ("validation_mismatched",)
    write(tmp_path / "other", "mnli", columns, ["train", "validation_mismatched"])
    assert "has no 'validation_matched' of mnli" in error(tmp_path / "other", "mnli")


def test_eval_split_takes_the_place_of_the_tasks_own(tmp_path):
    write(tmp_path, splits=["train", "validation", "held_out"])
    write(tmp_path, splits=["held_out"], sentence1=["x", "y", "z"])
    texts = load(tmp_path, eval_split="held_out")
    assert list(texts.evals) == ["held_out"] and texts.evals["held_out"].columns[0] == ["x", "y", "z"]


PART = [6, 67, 98, 99, 113, 114, 123, 125]  # the first of 100 of 1,536, on every machine


def test_a_part_of_the_training_set_is_fixed_and_random():
    whole, part = load("synthetic").train, load("synthetic", most=100).train
    rows = list(zip(*whole.columns, whole.labels.tolist(), strict=True))
    chosen = [rows.index(row) for row in zip(*part.columns, part.labels.tolist(), strict=True)]
    assert len(chosen) == 100 and chosen == sorted(set(chosen))
    assert chosen[:8] == PART and chosen != list(range(100)) and max(chosen) > len(rows) // 2
    assert load("synthetic", most=100).train.columns == part.columns
    assert len(load("synthetic", most=10**6).train.labels) == len(rows)
    # The development set is whole.
    assert len(load("synthetic", most=100).evals["validation"].labels) == 384


def test_synthetic_has_both_sets_of_mnli():
    texts = load("synthetic", "mnli")
    assert list(texts.evals) == ["validation_matched", "validation_mismatched"] and texts.absent == ()
    assert list(load("synthetic", "mnli", eval_split="validation_mismatched").evals) == ["validation_mismatched"]


@pytest.mark.parametrize(
    ("task", "train", "validation"),
    [("cola", 8551, 1043), ("sst2", 67349, 872), ("rte", 2490, 277), ("stsb", 5749, 1500)],
)
def test_the_real_glue(task, train, validation):
    if not GLUE.is_dir():
        pytest.skip(f"no real GLUE at {GLUE}")
    texts = load(GLUE, task)
    assert len(texts.train.labels) == train and len(texts.evals["validation"].labels) == validation
    assert all(len(column) == train for column in texts.train.columns)
    kinds = set(texts.train.labels.tolist())
    assert kinds == {0, 1} if TASKS[task].labels else (min(kinds), max(kinds)) == (0, 5)
