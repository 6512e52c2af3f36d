import pytest

from lnflax import wording
from lnflax.analysis import formats

BODY = 109_482_240


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (BODY, "100 %"),
        (0, "0 %"),
        (28_348_416, "25.893 %"),
        (56_669_184, "51.761 %"),
        (36_864, "0.034 %"),
        (18_432, "0.017 %"),
        (101_376, "0.093 %"),
        (6_144, "0.0056 %"),
    ],
)
def test_ratios_are_written_as_in_the_paper(count, text):
    assert wording.ratio_percent(count / BODY) == text


def test_names_are_escaped():
    grid = formats.Grid(("a|b", "c"), (("x_y & 5 %", "–"),))
    assert formats.markdown(grid) == "| a\\|b      |   c |\n| --------- | --: |\n| x_y & 5 % |   – |\n"
    assert r"x\_y \& 5 \% & -- \\" in formats.latex(grid)
