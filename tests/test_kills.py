import pytest

from tests import kills


@pytest.mark.slow
def test_kills_and_sharing_leave_what_an_undisturbed_study_leaves(tmp_path):
    bench = kills.Bench(tmp_path)
    _, seconds = bench.whole("undisturbed")
    expected = bench.cells("undisturbed")
    kills.kill_at_random(bench, expected, seconds, kills=3)
    kills.share(bench, expected)
    kills.take_over(bench, expected)
