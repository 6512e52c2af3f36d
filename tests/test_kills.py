import signal

import pytest

from tests import kills


@pytest.mark.slow
def test_kills_and_sharing_leave_what_an_undisturbed_study_leaves(tmp_path):
    bench = kills.Bench(tmp_path)
    _, seconds = bench.whole("undisturbed")
    expected = bench.content("undisturbed")
    kills.kill_at_random(bench, expected, seconds, kills=2)
    kills.share(bench, expected)
    kills.take_over(bench, expected)
    started = bench.start("stopped")
    bench.wait_for_training("stopped", started)
    started.send_signal(signal.SIGTERM)
    said = started.communicate()[0]
    assert (started.returncode, said.splitlines()[-1]) == (
        75,
        "train.py: SIGTERM: saved; give the same command again to go on",
    )
    bench.whole("stopped")
    assert bench.content("stopped") == expected
