import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

import lnflax
from lnflax import results
from lnflax.analysis.curves import make_curves
from lnflax.analysis.entries import Reading
from lnflax.analysis.grids import make_grids
from lnflax.errors import InputError
from tests import stored

ROOT = Path(__file__).parents[1]
LABELS = np.arange(10, dtype=np.int32) % 2


@pytest.fixture
def workdir(tmp_path):
    """Two seeds, three rates: the best is the last; a run of the first diverged. And one rate of another task."""
    root = stored.folder(tmp_path / "run", ("rte", "cola"))
    rates = [
        np.concatenate([stored.right(count, LABELS, 1) for count in counts]) for counts in ((5, 6), (6, 8), (9, 8))
    ]
    own = stored.cell(root, "rte", "full", np.concatenate(rates, axis=1), LABELS, diverged=[(1, 0)], ratio=1.0)
    lines = [
        {
            "seed": 1,
            "learning_rate": 0.01,
            "epoch": 1,
            "step": 4,
            "train_loss": 0.5,
            "eval_loss": None,
            "accuracy": None,
        },
        {
            "seed": 0,
            "learning_rate": 0.01,
            "epoch": 2,
            "step": 8,
            "train_loss": 0.25,
            "eval_loss": 0.5,
            "accuracy": 0.9,
        },
        {"seed": 0, "learning_rate": 0.01, "epoch": 1, "step": 4, "train_loss": 0.5, "eval_loss": 0.6, "accuracy": 0.8},
    ]
    results.write_metrics(own, [line | {"seconds": 1.5} for line in lines])
    own = stored.cell(root, "cola", "full", stored.right(10, LABELS, 1), LABELS, metric="matthews", ratio=1.0)
    results.write_metrics(
        own, [{"seed": 0, "learning_rate": 0.001, "epoch": 1, "step": 4, "train_loss": 1, "matthews": 1.0}]
    )
    return root


GRID = """\
## rte, full: accuracy, last epoch

| rate  | seed 0 | seed 1 |  mean ± std |                            |
| ----- | -----: | -----: | ----------: | -------------------------: |
| 0.001 |   50.0 |     7† |        50.0 |                            |
| 0.01  |   60.0 |   80.0 | 70.0 ± 14.1 |                            |
| 0.1   |   90.0 |   80.0 |  85.0 ± 7.1 | selected, edge of the grid |

† diverged at this step.

## cola, full: matthews, last epoch

| rate  | seed 0 | mean ± std |          |
| ----- | -----: | ---------: | -------: |
| 0.001 |  100.0 |      100.0 | selected |
"""

GRID_CSV = """\
task,setting,metric,report_epoch,learning_rate,seed,status,diverged_step,value,selected,at_edge
rte,full,accuracy,last,0.001,0,finished,,0.5,false,false
rte,full,accuracy,last,0.01,0,finished,,0.6,false,false
rte,full,accuracy,last,0.1,0,finished,,0.9,true,true
rte,full,accuracy,last,0.001,1,diverged,7,,false,false
rte,full,accuracy,last,0.01,1,finished,,0.8,false,false
rte,full,accuracy,last,0.1,1,finished,,0.8,true,true
cola,full,matthews,last,0.001,0,finished,,1.0,true,false
"""

CURVES = """\
task,setting,seed,learning_rate,epoch,step,train_loss,eval_loss,accuracy,matthews
rte,full,0,0.01,1,4,0.5,0.6,0.8,
rte,full,0,0.01,2,8,0.25,0.5,0.9,
rte,full,1,0.01,1,4,0.5,,,
cola,full,0,0.001,1,4,1,,,1.0
"""


def test_the_grid_of_every_cell(workdir, tmp_path):
    assert make_grids(workdir) == GRID
    text = make_grids(workdir, tmp_path / "out")
    written = [tmp_path / "out" / name for name in ("grid.md", "grid.csv")]
    assert text == f"{GRID}\nWritten: {written[0]}, {written[1]}\n"
    assert [path.read_text(encoding="utf-8") for path in written] == [GRID, GRID_CSV]


def test_the_grid_is_read_as_the_tables_are(workdir):
    text = make_grids(workdir, reading=Reading(how="first_seed", ddof=0))
    assert "| 0.1   |   90.0 |   80.0 |  85.0 ± 5.0 | selected, edge of the grid |" in text
    apart = [np.concatenate([stored.right(count, LABELS, 1) for count in counts]) for counts in ((6, 0), (5, 9))]
    stored.cell(workdir, "rte", "full", np.concatenate(apart, axis=1), LABELS)
    assert "| 0.001 |   60.0 |    0.0 | 30.0 ± 42.4 | selected |" in make_grids(workdir, reading=Reading("first_seed"))
    assert "| 0.01  |   50.0 |   90.0 | 70.0 ± 28.3 | selected |" in make_grids(workdir)
    with pytest.raises(InputError, match="--metric: 'sst2' is not known"):
        make_grids(workdir, reading=Reading(metrics={"sst2": "accuracy"}))
    with pytest.raises(InputError, match="--metric rte: 'f1' is not known"):
        make_grids(workdir, reading=Reading(metrics={"rte": "f1"}))


def test_curves_are_one_tidy_table(workdir, tmp_path):
    assert make_curves(workdir) == CURVES
    path = tmp_path / "out" / "curves.csv"
    assert make_curves(workdir, tmp_path / "out") == f"4 lines.\nWritten: {path}\n"
    assert path.read_text(encoding="utf-8") == CURVES
    table = pandas.read_csv(path)
    assert table.shape == (4, 10) and table.accuracy.max() == 0.9


def test_runs_are_a_pandas_table(workdir):
    runs = lnflax.read_runs(workdir)
    assert len(runs) == 7 and len({tuple(run) for run in runs}) == 1
    table = pandas.DataFrame(runs)
    assert list(table.columns) == [
        *("task", "setting", "ratio", "trained", "metric", "report_epoch", "seed", "learning_rate", "status"),
        *("diverged_step", "score", "selected", "at_edge"),
        *(f"last_{name}" for name in ("epoch", "train_loss", "eval_loss", "accuracy", "matthews")),
        *(f"best_{name}" for name in ("epoch", "train_loss", "eval_loss", "accuracy", "matthews")),
    ]
    assert table[table.selected].groupby("task").score.mean().to_dict() == pytest.approx({"cola": 1.0, "rte": 0.85})
    stopped = runs[3]
    assert (stopped["seed"], stopped["learning_rate"], stopped["status"]) == (1, 0.001, "diverged")
    assert (stopped["diverged_step"], stopped["score"], stopped["trained"]) == (7, None, 1000)
    with pytest.raises(InputError, match="nowhere is not there"):
        lnflax.read_runs(workdir / "nowhere")


def test_a_run_without_an_epoch_is_a_record_all_the_same(workdir):
    path = workdir / "cola" / "full" / "results.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["runs"][0] |= {"status": "diverged", "diverged_step": 1, "last": None, "best": None}
    results.write_json(path, record)
    last = lnflax.read_runs(workdir)[-1]
    assert (last["task"], last["selected"], last["last_epoch"], last["score"]) == ("cola", False, None, None)


def test_importing_lnflax_is_cheap():
    code = "import sys, lnflax; sys.exit(int(bool({'jax', 'numpy', 'scipy'} & set(sys.modules))))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def analyze(*arguments):
    command = [sys.executable, str(ROOT / "analyze.py"), "tables", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_views_of_the_command(workdir, tmp_path):
    done = [analyze(f"--workdir={workdir}", f"--view={view}") for view in ("grid", "curves")]
    assert [own.stdout for own in done] == [GRID, CURVES] and not any(own.stderr for own in done)
    paper = [analyze(f"--workdir={workdir}", *more).stdout for more in ((), ("--view=paper",))]
    assert paper[0] == paper[1] and paper[0].startswith("## Table 1")
    analyze(f"--workdir={workdir}", "--view=curves", f"--out={tmp_path / 'out'}")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["curves.csv"]


def test_the_command_compares(workdir):
    stored.cell(workdir, "rte", "frozen", stored.right(5, LABELS, 2), LABELS)
    text = analyze(f"--workdir={workdir}", "--reference=full", "--margin=2.5").stdout
    assert "worse than full" in text and "lies within ±2.5 points" in text
    assert "lies within ±1 point," in analyze(f"--workdir={workdir}", "--reference=full").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--view=tree",), "invalid choice: 'tree'"),
        (("--reference=ful",), "--reference: 'ful' is not known; allowed are full; did you mean 'full'?"),
        (("--margin=1",), "--margin: there is nothing to compare without --reference"),
        (("--reference=full", "--margin=-1"), "'-1' is not a number of points from 0 to 100"),
        (("--reference=full", "--margin=nan"), "'nan' is not a number of points from 0 to 100"),
        (("--view=grid", "--reference=full"), "--reference: --view=grid does not read it"),
        (("--view=curves", "--ddof=0"), "--ddof: --view=curves does not read it"),
        (("--view=grid", "--published=x.csv"), "--published: --view=grid does not read it"),
        (("--view=curves", "--metric", "rte=f1"), "--metric: --view=curves does not read it"),
    ],
)
def test_bad_flags_are_one_line(workdir, arguments, message):
    done = analyze(f"--workdir={workdir}", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("analyze.py: ") and done.stderr.count("\n") == 1 and message in done.stderr


def test_curves_of_a_cell_without_its_lines_are_refused(workdir):
    (workdir / "rte" / "full" / "metrics.jsonl").unlink()
    with pytest.raises(InputError, match=r"rte/full/metrics\.jsonl is not there"):
        make_curves(workdir)
