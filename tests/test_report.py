import html.parser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from configs import base
from lnflax import results
from lnflax.analysis import background, formats, heat, report
from lnflax.analysis.comparison import Against
from lnflax.analysis.entries import Reading
from lnflax.analysis.formats import Grid
from lnflax.analysis.inline import inline
from lnflax.analysis.report import make_report
from lnflax.analysis.tables import read_tables
from lnflax.errors import InputError
from tests import stored

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

ROOT = Path(__file__).parents[1]
LABELS = np.arange(50, dtype=np.int32) % 2
RATES = [1e-4, 1e-3, 1e-2]
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(html.parser.HTMLParser):
    """What a page holds: its tables as rows of text by caption, its ids, its attributes, and text by section."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.attributes, self.sections = [], [], [], {}
        self.tables, self.cells, self.pictures = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.attributes += [(tag, *pair) for pair in attributes]
        self.ids += [found["id"]] if "id" in found else []
        if tag == "svg":
            self.pictures.append({**found, "titles": 0})
        if tag == "title" and "svg" in self.open:
            self.pictures[-1]["titles"] += 1
        if tag == "table":
            self.tables.append({"caption": "", "rows": []})
        if tag == "tr":
            self.tables[-1]["rows"].append([])
        if tag in ("td", "th"):
            self.tables[-1]["rows"][-1].append("")
            self.cells.append((tag, found))
        if tag == "section":
            self.sections[found["id"]] = ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "section" in self.open:
            self.sections[list(self.sections)[-1]] += data
        if "caption" in self.open:
            self.tables[-1]["caption"] += data
        if {"td", "th"} & set(self.open):
            self.tables[-1]["rows"][-1][-1] += data

    def table(self, caption):
        """The rows of the one table with this caption, the header first."""
        (found,) = (own["rows"] for own in self.tables if own["caption"] == caption)
        return found


def predictions(*counts, seeds=2):
    """A rate for each count: predictions right on so many examples by every seed, and on one more by the last."""
    rates = [np.concatenate([stored.right(c + (s == seeds - 1), LABELS, 1) for s in range(seeds)]) for c in counts]
    return np.concatenate(rates, axis=1)


def lines(epochs=3, seeds=2, rates=RATES):
    """metrics.jsonl of runs whose accuracy rises by a tenth an epoch."""
    return [
        {"seed": s, "learning_rate": r, "epoch": e, "step": e, "train_loss": 1.0, "accuracy": 0.5 + e / 10}
        for e in range(1, epochs + 1)
        for s in range(seeds)
        for r in rates
    ]


@pytest.fixture
def workdir(tmp_path):
    """Settings of Tables 1, 3 and 4 on rte: full diverged in part and is best at its largest rate, frozen says one
    thing, ln_a has begun, mha has not."""
    settings = ("full", "layernorms", "frozen", "ln_a", "mha", "single_norm_1", "single_norm_2", "outliers_4")
    root = stored.folder(tmp_path / "run", ("rte",), (*settings, "random_norms_4"))
    counts = {"full": (20, 24, 30), "layernorms": (22, 28, 26), "single_norm_1": (20, 21, 20)}
    counts |= {"single_norm_2": (22, 23, 20), "outliers_4": (20, 27, 20), "random_norms_4": (20, 25, 20)}
    ratios = {"full": 1.0, "layernorms": 3.4e-4, "frozen": 0.0}
    for setting in ("full", "layernorms", "frozen", *settings[5:], "random_norms_4"):
        given = predictions(*counts.get(setting, (0, 0, 0)))
        if setting == "frozen":
            given = np.ones_like(given)
        stopped = [(1, 0)] if setting == "full" else ()
        ratio = ratios.get(setting, 2e-5)
        own = stored.cell(root, "rte", setting, given, LABELS, rates=RATES, diverged=stopped, ratio=ratio)
        results.write_metrics(own, lines())
    results.write_json(root / "rte" / "ln_a" / "trained.json", {"format": 1})
    return root


def page_of(workdir, *arguments, **fields):
    """The page and its text."""
    make_report(workdir, *arguments, **fields)
    text = (workdir / "analysis" / "report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_the_pages_tables_are_the_tables(workdir):
    against = Against("full")
    page, _ = page_of(workdir, against=against)
    _, tables = read_tables(workdir, Reading(), None, against)
    assert [own.name for own in tables] == ["table1", "table3", "table4"]
    for own in tables:
        for grid, ending in ((own.grid, ", percent points"), (own.details, ", details")):
            assert page.table(f"{report.TITLES[own.name]}{ending}") == [list(row) for row in (grid.header, *grid.rows)]
        for words in (*own.notes, own.grid.footnote):
            assert words in page.sections[own.name]
    rows = page.table("Table 1: modules, percent points")
    assert [row for row in rows if row[0] == "full"] == [["full", "100 %", "61.0 ± 1.4†"]]


def test_each_cell_is_a_heat_map(workdir):
    page, text = page_of(workdir)
    assert page.table("fullaccuracy, last epoch") == [
        ["rate", "seed 0", "seed 1", "mean ± std", ""],
        ["0.0001", "40.0", "7†", "40.0", ""],
        ["0.001", "48.0", "50.0", "49.0 ± 1.4", ""],
        ["0.01", "60.0", "62.0", "61.0 ± 1.4", "selected, edge of the grid"],
    ]
    assert sum(own["caption"].endswith("accuracy, last epoch") for own in page.tables) == 7
    assert 'title="0.62">62.0</td>' in text and 'title="seed 1: diverged">7†</td>' in text


def test_what_is_wrong_stands_first(workdir):
    page, _ = page_of(workdir)
    assert list(page.sections)[:3] == ["troubles", "run", "trained"]
    said = " ".join(page.sections["troubles"].split())
    for words in (
        "rte/full: 1 of 6 runs: rate 0.0001, seed 1 (step 7).",
        "Cells that have begun and are not done rte/ln_a.",
        "Cells that have not begun rte/mha.",
        "rte/frozen: seeds 0, 1 on validation: “yes”.",
        "0.01, the largest: rte/full.",
    ):
        assert words in said
    assert "None:" not in said


def test_a_study_without_troubles_says_so(tmp_path):
    root = stored.folder(tmp_path, ("rte",), ("full",))
    own = stored.cell(root, "rte", "full", predictions(20, 25, 21), LABELS, rates=RATES)
    results.write_metrics(own, lines())
    told = {"format": 1, "model": {"sha256": None}, "body": 200, "trained": 100, "with_head": {"trained": 102}}
    results.write_json(own / "trained.json", told | {"reachable": [90, 95], "data": {"train": "ab" * 32}})
    page, _ = page_of(root)
    assert page.sections["troubles"].split()[:2] == ["Warnings", "None:"]
    rows = page.table("Trained scalars of the body by setting; the head trains in all of them")
    assert rows[1] == ["full", "rte", "100", "50 %", "102", "90–95"]
    assert page.table("Data")[1] == ["rte", "validation 50", "–", "–", "–", "last", "train abababababab"]


def test_damage_and_missing_files_are_told_of(workdir):
    (workdir / "rte" / "full" / "metrics.jsonl").unlink()
    path = workdir / "rte" / "layernorms" / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    path = workdir / "rte" / "outliers_4" / "results.json"
    path.write_text("{", encoding="utf-8")
    page, text = page_of(workdir)
    said = page.sections["troubles"]
    assert "rte/full: metrics.jsonl is not there." in said
    assert "rte/layernorms: predictions.safetensors is not what was written" in said
    assert "rte/outliers_4: results.json is not what was written" in said
    assert "Cells that have not begun\n\nrte/mha." in said.replace("\n\n\n", "\n\n")
    assert f"{workdir}/rte" not in text


def test_a_study_that_has_grown_lacks_runs(workdir):
    config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    results.write_json(workdir / "config.json", {**config, "seeds": [0, 1, 2], "learning_rates": RATES})
    page, _ = page_of(workdir)
    assert "rte/full: 3 runs; it has seeds 0, 1 at 0.0001, 0.001, 0.01." in page.sections["troubles"]


def test_mnli_without_its_other_development_set(tmp_path):
    root = stored.folder(tmp_path, ("mnli",), ("full",))
    stored.cell(root, "mnli", "full", predictions(20, 25, 21), LABELS, rates=RATES, split="validation_matched")
    assert "mnli/full has no accuracy_mismatched." in page_of(root)[0].sections["troubles"]


def test_no_finished_cell_is_one_line(tmp_path):
    root = stored.folder(tmp_path, ("rte",), ("full",))
    results.write_json(root / "rte" / "full" / "trained.json", {"format": 1})
    with pytest.raises(InputError, match="holds no finished cell; begun: rte/full"):
        make_report(root)
    assert not (root / "analysis").exists()


def test_a_study_that_diverged_whole_gives_a_page_too(tmp_path):
    stopped = list(np.ndindex(2, 3))
    root = stored.folder(tmp_path, ("rte",), ("full", "single_norm_1", "outliers_4"))
    for setting in ("full", "single_norm_1", "outliers_4"):
        own = stored.cell(root, "rte", setting, predictions(20, 24, 30), LABELS, rates=RATES, diverged=stopped)
        results.write_metrics(own, [{**line, "accuracy": None} for line in lines()])
    page, text = page_of(root)
    check_alone(page, text)
    assert "rte/full: 6 of 6 runs: rate 0.0001, seeds 0, 1 (step 7); rate 0.001" in page.sections["troubles"]
    assert page.table("Table 1: modules, percent points")[1] == ["full", "50 %", "diverged"]


def check_alone(page, text):
    """No source outside of the page, no id twice, no picture or table without words."""
    assert len(page.ids) == len(set(page.ids))
    targets = [value for _, name, value in page.attributes if name in ("href", "src", "xlink:href")]
    assert all(value.startswith(("#", "data:")) for value in targets)
    assert {value[1:] for value in targets if value.startswith("#")} <= set(page.ids)
    used = re.findall(r"url\(#([^)]+)\)", text)
    assert set(used) <= set(page.ids) and len(re.findall(r"url\(", text)) == len(used)
    assert not re.search(r"https?:|@import|<script|=\"//", text)
    assert all(own["role"] == "img" and own["titles"] for own in page.pictures)
    assert {own["aria-describedby"] for own in page.pictures} <= set(page.ids)
    assert all(own["caption"] for own in page.tables)
    assert {found.get("scope") for tag, found in page.cells if tag == "th"} == {"row", "col"}


def test_the_page_stands_alone(workdir):
    page, text = page_of(workdir)
    check_alone(page, text)
    titles = ["report-scatter", "report-blocks", "report-sizes", "report-curves-rte"]
    assert [own["aria-describedby"] for own in page.pictures] == [f"{name}-caption" for name in titles]
    # One of the whole, and one for each mark and line across: 7 cells and full; 2 blocks and 3; 2 sizes; 7 × 6 runs.
    assert [own["titles"] for own in page.pictures] == [9, 6, 3, 43]
    assert "rte, layernorms: 57.0 ± 1.4; trains 0.034 %" in text and "rate 0.001, seed 1: 80.0 at epoch 3" in text
    assert "currentColor" in text and "#1b1b1b" not in text.partition("<main>")[2]


def test_names_are_text_and_never_markup(tmp_path):
    root = stored.folder(tmp_path, ("rte",), ("a<b>&c",))
    own = stored.cell(root, "rte", "a<b>&c", predictions(20, 25, 21), LABELS, rates=RATES)
    results.write_metrics(own, lines())
    page, text = page_of(root)
    assert "<b>" not in text and page.table("Table 1: modules, percent points")[1][0] == "a<b>&c"


def test_the_same_study_gives_the_same_bytes(workdir, tmp_path):
    out = tmp_path / "out"
    said = make_report(workdir, out)
    names = [f"report-{name}" for name in ("blocks", "curves-rte", "scatter", "sizes")]
    files = {f"{name}.{suffix}" for name in names for suffix in ("pdf", "png", "svg", "txt")} | {"report.html"}
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(first) == files and said.count(str(out)) == len(files)
    assert make_report(workdir, out) == said
    assert first == {path.name: path.read_bytes() for path in out.iterdir()}
    caption = first["report-sizes.txt"].decode()
    assert "the mean over 2 seeds at the selected rate, 2 cells" in caption
    assert caption.endswith(f"Command: python analyze.py report --workdir={workdir} --out={out}\n")


def test_what_other_commands_left_is_shown(workdir):
    out = workdir / "analysis"
    make_report(workdir, out)
    (out / "outliers-rte.svg").write_bytes((out / "report-sizes.svg").read_bytes())
    (out / "outliers-rte.txt").write_text("Weights of <full>.\n", encoding="utf-8")
    grid = Grid(("norm", "index", "value"), (("a|b", "7", "-1.5"),))
    (out / "outliers-rte.md").write_text(f"# Farthest\n\n{formats.markdown(grid)}", encoding="utf-8")
    (out / "other.md").write_text(f"# Other\n\n{formats.markdown(grid)}", encoding="utf-8")
    page, text = page_of(workdir)
    check_alone(page, text)
    assert page.table("Farthest") == [list(grid.header), *map(list, grid.rows)]
    assert "Weights of <full>." in page.sections["computed"] and "Other" not in text
    assert page.pictures[-1]["aria-describedby"] == "outliers-rte-caption"


def test_markdown_is_read_back():
    grids = [Grid(("a", "b", "c"), (("x|y", "", "1"), ("z", "2", "3")), names) for names in (1, 2)]
    text = f"# One\n\n{formats.markdown(grids[0])}\nwords\n\n{formats.markdown(grids[1])}"
    assert formats.read_markdown(text) == [("One", grids[0]), ("words", grids[1])]


def test_a_large_study_weighs_little(tmp_path):
    tasks = [f"task{number}" for number in range(10)]
    settings = ("full", "layernorms", "frozen", "bitfit", "random", *(f"single_norm_{block}" for block in range(1, 6)))
    root, rates = stored.folder(tmp_path, tasks, settings), [10.0**-place for place in range(7)]
    for task in tasks:
        for place, setting in enumerate(settings):
            given = predictions(*range(20 + place, 27 + place), seeds=3)
            own = stored.cell(root, task, setting, given, LABELS, rates=rates)
            results.write_metrics(own, lines(20, 3, rates))
    page, text = page_of(root)
    assert len(page.tables) == 100 + 2 + 2 * 2 and len(page.pictures) == 12
    assert len(text.encode()) < 3e6


def test_an_svg_becomes_a_part_of_a_page():
    text = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 100 50"'
        ' width="100pt" height="50pt"><metadata>m</metadata><script>s</script><defs><path id="m1" d="M 1.23456 2 \n'
        'L -0.001 4"/></defs><g id="text_1" clip-path="url(#m1)">'
        '<use xlink:href="#m1" style="stroke: #1b1b1b"/></g></svg>'
    )
    assert inline(text, "n", "What", "n-caption") == (
        '<svg viewBox="0 0 100 50" role="img" aria-describedby="n-caption"'
        ' style="max-width:155px;min-width:min(155px,560px)"><title>What</title>'
        '<defs><path id="n-m1" d="M 1.23 2 L -0 4" /></defs>'
        '<g clip-path="url(#n-m1)"><use href="#n-m1" style="stroke:currentColor" /></g></svg>'
    )
    with pytest.raises(InputError, match=r"n\.svg has a source outside of itself: https://x\.org/a\.png"):
        inline(text.replace('"#m1"', '"https://x.org/a.png"', 1), "n", "What", "n-caption")
    with pytest.raises(InputError, match=r"n\.svg is not an SVG"):
        inline("<svg>", "n", "What", "n-caption")


def test_ink_is_read_on_every_colour_of_a_heat_map():
    def light(colour):
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    scale = heat.Scale([])
    assert scale.style(0.5) == ""
    scale.low, scale.high = 0.0, 1.0
    styles = [re.findall("#[0-9a-f]+", scale.style(place / 32)) for place in range(33)]
    contrasts = [(max(map(light, pair)) + 0.05) / (min(map(light, pair)) + 0.05) for pair in styles]
    assert min(contrasts) >= 4.5 and len({paper for paper, _ in styles}) == 33
    assert [styles[0][0], styles[-1][0]] == ["#00224e", "#fee838"]


def test_the_command_that_trains_is_read_as_the_config_that_it_is_of():
    config = base.get_config()
    config.update({"seeds": (4,), "tasks": ("rte", "cola"), "learning_rates": (1e-05, 0.5), "packing": False})
    config.model.name, config.data.path = "a folder/it's", ""
    record = json.loads(json.dumps({"format": 1, **config.to_dict(), "contents": {"model": {}}}))
    words = shlex.split(background.train_command(record, "runs/my study").replace("\\\n", ""))
    assert words[:3] == ["python", "train.py", "--config=configs/base.py"] and words[-1] == "--workdir=runs/my study"
    values, given = flags.FlagValues(), ["train.py", *words[3:-1]]
    config_flags.DEFINE_config_dict("config", base.get_config(), flag_values=values, sys_argv=given)
    values(given)
    assert values.config.to_dict() == config.to_dict()


def test_the_command_of_the_page_names_what_was_asked():
    reading = Reading("first_seed", 0, {"rte": "accuracy"})
    command = background.report_command("runs/a b", "out", reading, "p.csv", Against("full", 0.025))
    assert command == (
        "python analyze.py report --workdir='runs/a b' --out=out --select=first_seed --ddof=0 --reference=full"
        " --margin=2.5 --published=p.csv --metric rte=accuracy"
    )
    assert background.report_command("w", None, Reading(), None, None) == "python analyze.py report --workdir=w"


def analyze(*arguments):
    command = [sys.executable, str(ROOT / "analyze.py"), "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def test_the_command(workdir):
    done = analyze(f"--workdir={workdir}", "--reference=full", "--margin=2.5", "--ddof=0")
    path = workdir / "analysis" / "report.html"
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"Written: {path}\n")
    assert [own.name for own in path.parent.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    assert "lies within ±2.5 points" in text and "61.0 ± 1.0†" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir=WORKDIR/nowhere",), "nowhere is not there"),
        (("--workdir=WORKDIR", "--margin=1"), "--margin: there is nothing to compare without --reference"),
        (("--workdir=WORKDIR", "--reference=ful"), "did you mean 'full'?"),
        (("--workdir=WORKDIR", "--out=WORKDIR/config.json"), "a file is in its place"),
        (("--workdir=WORKDIR", "--view=grid"), "unrecognized arguments: --view=grid"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(workdir, arguments, message):
    done = analyze(*(argument.replace("WORKDIR", str(workdir)) for argument in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("analyze.py: ") and done.stderr.count("\n") == 1 and message in done.stderr
    assert not (workdir / "analysis").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_a_missing_library_is_one_line(workdir, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=rf"{library}: python -m pip install 'lnflax\[figures\]'"):
        make_report(workdir)
