"""What one run of a suite says of itself."""

import os

import pytest
import torch

from kdkit.bench.job import forget_peak, peak_gigabytes


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux forgets a process's peak")
@pytest.mark.skipif(torch.cuda.is_available(), reason="of a GPU it is torch that counts")
def test_a_run_does_not_inherit_the_peak_of_the_one_before():
    forget_peak()  # of the tests before
    before = peak_gigabytes()
    torch.ones(300_000_000, dtype=torch.uint8)
    high = peak_gigabytes()
    assert high > before
    forget_peak()
    assert peak_gigabytes() < high - 0.2
    torch.ones(400_000_000, dtype=torch.uint8)
    assert peak_gigabytes() > 0.4
