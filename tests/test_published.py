import pytest

from lnflax.analysis.published import Number, read_published
from lnflax.errors import InputError


def test_percent_becomes_exact_fractions_and_a_table_of_its_own_comes_first(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("setting, task, value, std, table\nfull, rte, 82.1, 0.3,\nfull, rte, 70, , 3\n", encoding="utf-8")
    published = read_published(path, ["full"], ["rte"])
    assert published.find("table1", "full", "rte") == Number(0.821, 0.003)
    assert published.find("table3", "full", "rte") == Number(0.7, None)
    assert published.find("table1", "frozen", "rte") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("setting,task\nfull,rte\n", "line 1: no column named value"),
        ("setting,task,value\nfull,rte,1\nlayernorm,rte,2\n", "line 3: setting: 'layernorm' is not known"),
        ("setting,task,value\nfull,sst-2,1\n", "line 2: task: 'sst-2' is not known; .* did you mean 'sst2'"),
        ("setting,task,value\nfull,rte,high\n", "line 2: value: 'high' is not a number of percent"),
        ("setting,task,value\nfull,rte,nan\n", "line 2: value: 'nan'"),
        ("setting,task,value,std\nfull,rte,1,x\n", "line 2: std: 'x'"),
        ("setting,task,value\nfull,rte,1\nfull,rte,2\n", "line 3: a second value for full, rte"),
        ("table,setting,task,value\n5,full,rte,1\n", "line 2: table: '5' is not known"),
    ],
)
def test_a_bad_line_of_published_numbers_is_named(tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        read_published(tmp_path / "p.csv", ["full", "layernorms"], ["rte", "sst2"])
