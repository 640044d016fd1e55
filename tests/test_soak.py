"""Some of the transfers of tests/soak.py."""

import pytest
from soak import run

pytestmark = pytest.mark.long


def test_memory_and_bytes_stay(tmp_path):
    """The heap's high-water mark comes within the first runs of all threads; a leak would go on."""
    report = run(tmp_path / "model", 160)
    assert report.done == 160 and report.cancelled > 5 and report.refused > 5
    assert report.resident[-1] < 1.2 * report.resident[1], report.resident
