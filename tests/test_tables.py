# ruff: noqa: E501 (tables are as wide as they are)
import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lnflax.analysis.entries import Reading
from lnflax.analysis.tables import make_tables, place

ROOT = Path(__file__).parents[1]
BODY = 109_482_240


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, **value}), encoding="utf-8")


def cell(workdir, task, setting, trained, runs, *, splits=None, report_epoch="last"):
    """A results.json from literal runs: {(seed, rate): {metric: value} or "diverged"}; the first metric counts."""
    rows, names = [], ["accuracy"]
    for (seed, rate), scores in runs.items():
        row = {"seed": seed, "learning_rate": rate, "status": "finished", "diverged_step": None, "delta": None}
        if scores == "diverged":
            row |= {"status": "diverged", "diverged_step": 7, "last": None, "best": None}
        else:
            names = list(scores)
            row["last"] = {"epoch": 3, "train_loss": 0.5, "eval_loss": 0.6, **scores}
            row["best"] = {**row["last"], "epoch": 2, names[0]: 0.99}
        rows.append(row)
    value = {
        "task": task,
        "setting": setting,
        "metric": names[0],
        "report_epoch": report_epoch,
        "eval_examples": splits or {"validation": 277},
        "body": BODY,
        "trained": trained,
        "ratio": trained / BODY,
        "runs": rows,
        "selected": {},
    }
    write(workdir / task / setting / "results.json", value)


def scores(metric, by_rate):
    """Runs by seed, then rate, of one metric."""
    seeds = range(len(next(iter(by_rate.values()))))
    return {
        (seed, rate): value if (value := values[seed]) == "diverged" else {metric: value}
        for seed in seeds
        for rate, values in by_rate.items()
    }


@pytest.fixture
def workdir(tmp_path):
    """Two tasks of Table 1, some of 3 and 4, one own setting, a cell that diverged whole, one not done."""
    root = tmp_path / "run"
    tasks, settings = ["rte", "mnli", "mrpc"], ["layernorms", "my_own", "full", "frozen"]
    write(root / "config.json", {"tasks": tasks, "settings": settings})
    rates = {1e-4: [0.5, 0.5, 0.5], 1e-3: [0.625, 0.75, 0.875], 1e-2: [0.25, 0.25, 0.25]}
    cell(root, "rte", "layernorms", 36864, scores("accuracy", rates))
    cell(root, "rte", "full", BODY, scores("accuracy", {1e-5: [0.5, 0.75], 1e-4: [0.5, "diverged"], 1e-3: [0, 0]}))
    cell(root, "rte", "frozen", 0, scores("accuracy", {1e-3: ["diverged", "diverged"]}))
    cell(root, "rte", "my_own", 3072, scores("accuracy", {1e-3: [None]}))
    two = {(0, 1e-3): {"f1": 0.8, "accuracy": 0.7}, (0, 1e-2): {"f1": 0.7, "accuracy": 0.75}}
    cell(root, "mrpc", "layernorms", 36864, two, splits={"validation": 408})
    both = {
        (0, 1e-3): {"accuracy": 0.841, "accuracy_mismatched": 0.845},
        (1, 1e-3): {"accuracy": 0.841, "accuracy_mismatched": 0.847},
    }
    splits = {"validation_matched": 9815, "validation_mismatched": 9832}
    cell(root, "mnli", "layernorms", 36864, both, splits=splits)
    for block in (10, 2):
        cell(root, "rte", f"single_norm_{block}", 3072, scores("accuracy", {1e-3: [block / 100]}))
    cell(root, "rte", "random_norms_16", 384, scores("accuracy", {1e-3: [0.5]}))
    cell(root, "rte", "outliers_16", 384, scores("accuracy", {1e-3: [0.6]}))
    cell(root, "rte", "outliers_4", 96, scores("accuracy", {1e-3: [0.55]}))
    write(root / "mrpc" / "full" / "trained.json", {})
    return root


TABLE1 = """\
## Table 1: modules

| setting    |    ratio | mrpc |                    mnli |          rte |
| ---------- | -------: | ---: | ----------------------: | -----------: |
| full       |    100 % |    – |                       – | 62.5 ± 17.7† |
| frozen     |      0 % |    – |                       – |     diverged |
| layernorms |  0.034 % | 80.0 | 84.1 ± 0.0 / 84.6 ± 0.1 |  75.0 ± 12.5 |
| my_own     | 0.0028 % |    – |                       – |     no value |

† some runs of this cell diverged; the details say how many.

### Details

| setting    | task | metric              |  rate |  seeds | dev size | diverged | at edge |  mean |   std | 95 % interval | honest |
| ---------- | ---- | ------------------- | ----: | -----: | -------: | -------: | ------: | ----: | ----: | ------------: | -----: |
| full       | rte  | accuracy            | 1e-05 |      2 |      277 |   1 of 6 |     yes | 62.50 | 17.68 |             – |      – |
| frozen     | rte  | accuracy            |     – | 0 of 2 |      277 |   2 of 2 |      no |     – |     – |             – |      – |
| layernorms | mrpc | f1                  | 0.001 |      1 |      408 |        0 |      no | 80.00 |     – |             – |      – |
| layernorms | mnli | accuracy            | 0.001 |      2 |     9815 |        0 |      no | 84.10 |  0.00 |             – |      – |
| layernorms | mnli | accuracy_mismatched | 0.001 |      2 |     9832 |        0 |      no | 84.60 |  0.14 |             – |      – |
| layernorms | rte  | accuracy            | 0.001 |      3 |      277 |        0 |      no | 75.00 | 12.50 |             – |      – |
| my_own     | rte  | accuracy            |     – | 0 of 1 |      277 |        0 |      no |     – |     – |             – |      – |

Percent points, mean ± std over seeds (ddof 1) at the rate with the best mean over seeds; epoch reported: last.

No interval: rte/full/predictions.safetensors is not there; mrpc/layernorms/predictions.safetensors is not there; \
mnli/layernorms/predictions.safetensors is not there; rte/layernorms/predictions.safetensors is not there.
"""

TABLE3 = """\
## Table 3: one block's LayerNorms

| setting        |    ratio |          rte |
| -------------- | -------: | -----------: |
| single_norm_2  | 0.0028 % |          2.0 |
| single_norm_10 | 0.0028 % |         10.0 |
| layernorms     |  0.034 % |  75.0 ± 12.5 |
| full           |    100 % | 62.5 ± 17.7† |
| frozen         |      0 % |     diverged |

† some runs of this cell diverged; the details say how many.
"""

TABLE4 = """\
## Table 4: outliers against as many random scalars of each LayerNorm

| setting         |      ratio |  rte |
| --------------- | ---------: | ---: |
| outliers_4      | 0.000088 % | 55.0 |
| outliers_16     |  0.00035 % | 60.0 |
| random_norms_16 |  0.00035 % | 50.0 |

### Details
"""

EMPTY = "," * 11  # no interval, no reference

UNFINISHED = "\nUnfinished cells, not in the tables: mrpc/full.\n"


def test_the_tables_as_markdown(workdir):
    text = make_tables(workdir)
    assert text.startswith(f"{TABLE1}\n{TABLE3}\n")
    assert f"\n{TABLE4}\n" in text
    assert text.endswith(f"random_norms_16/predictions.safetensors is not there.\n{UNFINISHED}")


def test_the_three_forms_are_written(workdir, tmp_path):
    text = make_tables(workdir, tmp_path / "out")
    written = [tmp_path / "out" / f"table{n}.{form}" for n in (1, 3, 4) for form in ("md", "csv", "tex")]
    assert text == f"{make_tables(workdir)}\nWritten: {', '.join(map(str, written))}\n"
    assert sorted(written) == sorted((tmp_path / "out").iterdir())
    assert (tmp_path / "out" / "table1.md").read_text(encoding="utf-8") == TABLE1 + UNFINISHED


def test_csv_keeps_full_precision(workdir, tmp_path):
    make_tables(workdir, tmp_path)
    lines = (tmp_path / "table1.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == (
        "table,setting,task,metric,ratio,learning_rate,mean,std,n,eval_examples,diverged,at_edge,"
        "published,published_std,interval_low,interval_high,honest,"
        "reference,paired_seeds,difference,difference_low,difference_high,p,p_holm,mark"
    )
    assert lines[1] == "table1,full,rte,accuracy,1.0,1e-05,0.625,0.1767766952966369,2,277,1,true,," + EMPTY
    assert lines[2] == "table1,frozen,rte,accuracy,0.0,,,,0,277,2,false,," + EMPTY
    assert lines[3] == "table1,layernorms,mrpc,f1,0.0003367121461891901,0.001,0.8,,1,408,0,false,," + EMPTY
    assert lines[6] == "table1,layernorms,rte,accuracy,0.0003367121461891901,0.001,0.75,0.125,3,277,0,false,," + EMPTY
    assert len(lines) == 8


def test_latex_is_a_booktabs_tabular(workdir, tmp_path):
    make_tables(workdir, tmp_path)
    assert (
        (tmp_path / "table1.tex").read_text(encoding="utf-8").split("\n\n")[0]
        == r"""% Unfinished cells, not in the tables: mrpc/full.
% Table 1: modules.
% Percent points, mean ± std over seeds (ddof 1) at the rate with the best mean over seeds; epoch reported: last.
% No interval: """
        + TABLE1.partition("No interval: ")[2]
        + r"""\begin{tabular}{lrrrr}
\toprule
setting & ratio & mrpc & mnli & rte \\
\midrule
full & 100 \% & -- & -- & 62.5 $\pm$ 17.7$^\dagger$ \\
frozen & 0 \% & -- & -- & diverged \\
layernorms & 0.034 \% & 80.0 & 84.1 $\pm$ 0.0 / 84.6 $\pm$ 0.1 & 75.0 $\pm$ 12.5 \\
my\_own & 0.0028 \% & -- & -- & no value \\
\bottomrule
\multicolumn{5}{l}{\footnotesize $^\dagger$ some runs of this cell diverged; the details say how many.} \\
\end{tabular}"""
    )


def test_another_metric_chooses_its_own_rate(workdir):
    text = make_tables(workdir, reading=Reading(metrics={"mrpc": "accuracy"}))
    assert "| layernorms | mrpc | accuracy            |  0.01 |" in text and "| layernorms |  0.034 % | 75.0 |" in text
    text = make_tables(workdir, reading=Reading(metrics={"mnli": "accuracy_mismatched"}))
    assert "| 84.6 ± 0.1 |" in text and "84.1" not in text and "|     9815 |" not in text


def test_first_seed_and_ddof_are_read_anew(tmp_path):
    write(tmp_path / "config.json", {"tasks": ["rte"], "settings": ["full"]})
    rates = {1e-4: [0.5, 0.5], 1e-3: [0.25, 1.0], 1e-2: [0.75, "diverged"]}
    cell(tmp_path, "rte", "full", BODY, scores("accuracy", rates))
    assert "| full    | 100 % | 62.5 ± 53.0† |" in make_tables(tmp_path)
    assert "| full    | 100 % | 62.5 ± 37.5† |" in make_tables(tmp_path, reading=Reading(ddof=0))
    text = make_tables(tmp_path, reading=Reading(how="first_seed"))
    assert "| full    | 100 % | 75.0†‡ |" in text and "| 1 of 2 |" in text
    assert "\n‡ some seeds" not in text and " ‡ some seeds have no value at the selected rate;" in text
    assert "at the rate with the best score of the first seed; epoch reported: last." in text


def test_the_reported_epoch_is_the_results_own(tmp_path):
    write(tmp_path / "config.json", {})
    cell(tmp_path, "rte", "full", BODY, scores("accuracy", {1e-3: [0.5]}), report_epoch="best")
    text = make_tables(tmp_path)
    assert "| full    | 100 % | 99.0 |" in text and "epoch reported: best." in text


def test_columns_are_in_the_papers_order_and_own_tasks_last(tmp_path):
    tasks = ["ner", "pos", "mine", "rte", "qnli", "mnli", "qqp", "stsb", "mrpc", "sst2", "cola"]
    write(tmp_path / "config.json", {"tasks": tasks})
    for task in tasks:
        cell(tmp_path, task, "full", BODY, scores("accuracy", {1e-3: [-0.0001]}))
    rows = [line for line in make_tables(tmp_path).splitlines() if line.startswith("| setting ") and "ratio" in line]
    order = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "mine"]
    assert [[name.strip() for name in row.split("|")[3:-1]] for row in rows] == [order, ["pos", "ner"]]
    assert "-0.0 " not in make_tables(tmp_path).split("###")[0]


def test_published_numbers_stand_beside_ours(workdir, tmp_path):
    file = tmp_path / "published.csv"
    file.write_text(
        "table,setting,task,value,std\n1,layernorms,rte,69.8,1.2\n,full,rte,82.1,\n"
        "table3,layernorms,rte,70.5,\n3,single_norm_6,cola,50,\n2,full,pos,97,\n\n",
        encoding="utf-8-sig",
    )
    text = make_tables(workdir, tmp_path / "out", published=file)
    assert "| setting    |    ratio | mrpc |                    mnli |          rte | rte (published) |" in text
    assert "| 62.5 ± 17.7† |            82.1 |" in text and "|  75.0 ± 12.5 |      69.8 ± 1.2 |" in text
    assert "|  75.0 ± 12.5 |            70.5 |" in text
    with (tmp_path / "out" / "table1.csv").open(encoding="utf-8") as lines:
        rows = {(row["setting"], row["task"]): row for row in csv.DictReader(lines)}
    assert rows["full", "rte"]["published"] == "0.821" and rows["full", "rte"]["published_std"] == ""
    assert rows["layernorms", "rte"]["published_std"] == "0.012" and rows["layernorms", "mnli"]["published"] == ""


def test_settings_go_to_the_table_they_belong_to():
    names = ["random", "bitfit", "own", "single_norm_12", "outliers_256", "random_norms_256", "outliers_16_scale"]
    places = [place(name)[0] for name in names]
    assert places == ["table1", "table1", "table1", "table3", "table4", "table4", "table1"]
    assert [place(name, "pos")[0] for name in names] == [own.replace("table1", "table2") for own in places]
    assert place("random", "ner") == ("table2", place("random")[1]) and place("random", "rte")[0] == "table1"


def analyze(*arguments):
    command = [sys.executable, str(ROOT / "analyze.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_command(workdir, tmp_path):
    done = analyze("tables", f"--workdir={workdir}", "--metric", "mrpc=accuracy", "rte=accuracy", "--ddof=1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == make_tables(workdir, reading=Reading(metrics={"mrpc": "accuracy"}))
    assert list(tmp_path.iterdir()) == [workdir]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("figures",), "invalid choice: 'figures'"),
        (("tables",), "required: --workdir"),
        (("tables", "--workdir=WORKDIR/nowhere"), "nowhere is not there"),
        (
            ("tables", "--workdir=WORKDIR", "--metric", "rte=f1"),
            "--metric rte: 'f1' is not known; allowed are accuracy",
        ),
        (("tables", "--workdir=WORKDIR", "--metric", "ret=f1"), "did you mean 'rte'?"),
        (("tables", "--workdir=WORKDIR", "--metric", "rte"), "'rte' is not TASK=METRIC"),
        (("tables", "--workdir=WORKDIR", "--ddof=-1"), "ddof: -1 is not 0 or more"),
        (("tables", "--workdir=WORKDIR", "--select=median"), "invalid choice: 'median'"),
        (("tables", "--workdir=WORKDIR", "--published=WORKDIR/no.csv"), "no.csv: No such file"),
        (("tables", "--workdir=WORKDIR", "--out=WORKDIR/config.json"), "a file is in its place"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(workdir, arguments, message):
    before = sorted(workdir.rglob("*"))
    done = analyze(*(argument.replace("WORKDIR", str(workdir)) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("analyze.py: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert sorted(workdir.rglob("*")) == before


def test_a_half_written_result_is_named(workdir):
    path = workdir / "rte" / "full" / "results.json"
    path.write_text(path.read_text(encoding="utf-8")[:100], encoding="utf-8")
    text = make_tables(workdir)
    assert "rte/full/results.json is not whole JSON" in text.splitlines()[-1]
    assert not any(line.startswith("| full ") for line in text.splitlines())
