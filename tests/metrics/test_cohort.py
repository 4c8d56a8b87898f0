"""Metrics of a cohort against NumPy in float64."""

import numpy as np
import pytest
import torch
from torch import distributed as dist

from kdkit.metrics import KAR, MCI, Disagreement, PairwiseJS
from tests.processes import run_ranks

PAIRWISE = (MCI, PairwiseJS, Disagreement)


def logits(peers=3, samples=40, classes=6, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    scales = torch.tensor([0.1, 2.0, 30.0])[:peers, None, None]
    return list(scales * torch.randn(peers, samples, classes, generator=drawn))


def softmax(z):
    z = z.numpy().astype(np.float64)
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    return np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(q, 1e-300))), 0).sum(-1).mean()


ORACLES = {
    MCI: lambda a, b: kl(a, b),
    PairwiseJS: lambda a, b: 0.5 * kl(a, (a + b) / 2) + 0.5 * kl(b, (a + b) / 2),
    Disagreement: lambda a, b: (a.argmax(-1) != b.argmax(-1)).mean(),
}


def computed(cls, several, parts=1):
    metric = cls(len(several))
    for part in range(parts):
        metric.update([z.tensor_split(parts)[part] for z in several])
    return metric.compute()


@pytest.mark.parametrize("cls", PAIRWISE)
def test_every_ordered_pair_is_the_oracles(cls):
    several = logits()
    found, probabilities = computed(cls, several), [softmax(z) for z in several]
    for i, p in enumerate(probabilities):
        for j, q in enumerate(probabilities):
            assert float(found[i, j]) == pytest.approx(0 if i == j else ORACLES[cls](p, q), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(computed(cls, several, parts=7), found)
    torch.testing.assert_close(computed(cls, [z.bfloat16() for z in several]), found, rtol=0.1, atol=0.05)


def test_bounds_and_what_is_equal():
    sure = [100 * torch.eye(4), 100 * torch.eye(4).roll(1, 0)]
    torch.testing.assert_close(computed(PairwiseJS, sure)[0, 1], torch.tensor(2.0).log())
    assert computed(Disagreement, sure).tolist() == [[0, 1], [1, 0]]
    same = [logits()[1]] * 2
    shifted = [same[0], same[0] + 7]
    for cls in PAIRWISE:
        torch.testing.assert_close(computed(cls, shifted), torch.zeros(2, 2), atol=1e-6, rtol=0)
    found = computed(MCI, logits())
    assert not torch.allclose(found, found.T)
    torch.testing.assert_close(computed(PairwiseJS, logits()), computed(PairwiseJS, logits()).T)


def test_kar_counts_from_the_start_or_beside_a_run_alone():
    labels = torch.arange(10)
    right = [10.0 * torch.eye(10), 10.0 * torch.eye(10).roll(1, 1)]  # all, none

    def after(metric, epoch, share):
        metric.reset()
        take = int(share * 10)
        metric.update(torch.cat([right[0][:take], right[1][take:]]), labels, epoch)
        return float(metric.compute())

    start = KAR()
    assert after(start, 2, 0.2) == 0
    assert after(start, 7, 0.7) == pytest.approx(10)
    beside = KAR({1: 0.1, 4: 0.5})
    assert after(beside, 4, 0.9) == pytest.approx(10)
    with pytest.raises(ValueError, match=r"accuracy after epoch 3, got \[1, 4\]"):
        after(beside, 3, 0.9)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: MCI(1), "peers must be at least 2, got 1"),
        (lambda: MCI(3).update(logits(2)), r"from 3 peers, got \(40, 6\), \(40, 6\)"),
        (lambda: MCI(2).update([torch.zeros(2, 3), torch.zeros(2, 4)]), r"of one shape from 2 peers"),
    ],
)
def test_what_is_wrong_is_said(wrong, said):
    with pytest.raises(ValueError, match=said):
        wrong()


def halves(rank, ranks):
    found = {}
    for cls in PAIRWISE:
        metric = cls(3)
        for i in range(rank, 4, ranks):
            metric.update([z.tensor_split(4)[i] for z in logits()])
        found[cls.__name__] = metric.compute()
    kar = KAR({3: 0.2})
    for i in range(rank, 4, ranks):
        kar.update(logits()[1].tensor_split(4)[i], (torch.arange(40) % 6).tensor_split(4)[i], 3)
    return {**found, "kar": kar.compute()}


def work(rank, store, out):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = halves(rank, 2)
    torch.save(found, f"{out}{rank}")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_are_one(tmp_path):
    run_ranks(work, tmp_path / "store", tmp_path / "found")
    one, other = (torch.load(tmp_path / f"found{rank}") for rank in (0, 1))
    for name, alone in halves(0, 1).items():
        torch.testing.assert_close(one[name], alone)
        assert torch.equal(one[name], other[name])  # every rank decides alike
