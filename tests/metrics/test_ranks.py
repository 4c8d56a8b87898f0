"""What two ranks say together is what one says of all samples."""

import pytest
import torch
from torch import distributed as dist

from kdkit import metrics
from kdkit.metrics.quality import quality
from tests.processes import run_ranks


def several():
    return {
        "quality": (quality(7), ("logits", "labels")),
        "agreement": (metrics.Agreement(), ("logits", "others")),
        "kl": (metrics.KLDivergence(), ("logits", "others")),
        "js": (metrics.JSDivergence(), ("logits", "others")),
        "cka": (metrics.LinearCKA(), ("logits", "others")),
        "correlation": (metrics.LogitCorrelation(7), ("logits",)),
    }


def data():
    drawn = torch.Generator().manual_seed(0)
    return {
        "logits": torch.randn(192, 7, generator=drawn) + 3,
        "others": torch.randn(192, 7, generator=drawn),
        "labels": torch.randint(7, (192,), generator=drawn),
    }


def run(first, step):
    values, found = data(), {}
    for name, (metric, words) in several().items():
        for i in range(first * 32, 192, step * 32):
            metric.update(*(values[word][i : i + 32] for word in words))
        found[name] = metric.compute()
    return found


def work(rank, store, out):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = run(rank, 2)
    if rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_are_one(tmp_path):
    run_ranks(work, tmp_path / "store", tmp_path / "found.pt")
    together = torch.load(tmp_path / "found.pt")
    for name, alone in run(0, 1).items():
        torch.testing.assert_close(together[name], alone, rtol=1e-4, atol=1e-5)
