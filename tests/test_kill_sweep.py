"""A few of the kills of tests/kill_sweep.py."""

from kill_sweep import kill_often


def test_a_sweep_that_is_killed_loses_nothing(shared_folder, tmp_path):
    counts = kill_often(tmp_path, shared_folder, kills=8, seed=1)
    assert counts["killed"] == 8
