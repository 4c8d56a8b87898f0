"""Two gloo ranks that train a stage each are one process that trains both, and the first never waits for the second."""

from __future__ import annotations

import warnings
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from kdkit.losses import SIDLoss
from kdkit.models import build
from kdkit.models.sid_isolated import IsolatedCascade
from kdkit.models.sid_ranks import StageOnRank
from kdkit.registry import KdkitError
from tests.processes import run_ranks

N, STEPS = 5, 5


def cascade(backbone: str = "resnet8", cut: str = "layer2") -> IsolatedCascade:
    torch.manual_seed(0)
    return build("sid", num_classes=N, backbone=backbone, isolate=[cut], modules=2, kind="mlp", hidden=6).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, 6, 3, 8, 8, dtype=torch.float64, generator=made)
    return [(x, torch.arange(6) % N) for x in images]


def loss(logits: Tensor, labels: Tensor, before: Tensor, alpha: float = 0.5) -> Tensor:
    """SID's, written out."""
    total = logits.new_zeros(())
    for i in range(logits.shape[1]):
        log_p = logits[:, i].log_softmax(-1)
        to_before = (before * (before.log() - log_p)).sum(1).mean()
        total = total + alpha * nn.functional.nll_loss(log_p, labels) + (1 - alpha) * to_before
        before = log_p.exp().detach()
    return total


def one_process(backbone: str, cut: str) -> dict[str, Tensor]:
    net = cascade(backbone, cut)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for x, labels in batches():
        seen: list[Tensor] = []
        handle = net.beliefs.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output))
        net(x)
        handle.remove()
        loss(seen[0], labels, torch.full((6, N), 1 / N, dtype=torch.float64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.state_dict()


CASES = [("resnet8", "layer2"), ("simple_cnn", "relu3")]


def rank_main(rank: int, place: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    store = dist.FileStore(f"{place}/store", 2)
    store.set_timeout(timedelta(seconds=60))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for case in CASES:
        stage = StageOnRank(cascade(*case)).train()
        optimizer = torch.optim.SGD(stage.learners(), 0.1, momentum=0.9, weight_decay=1e-2)
        for i, (x, labels) in enumerate(batches()):
            if rank:
                store.wait([f"{case} moved {i}"])  # the first stage moves, however long the second one takes
            SIDLoss()(stage(x), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            if not rank:
                store.set(f"{case} moved {i}", "1")
        stage.collect()
        torch.save(stage.net.state_dict(), f"{place}/{case[0]}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("ranks"))
    run_ranks(rank_main, place)
    return place


@pytest.mark.parametrize("case", CASES)
def test_stages_in_two_processes_are_those_of_one(case: tuple[str, str], ranks: str) -> None:
    alone, start = one_process(*case), cascade(*case).state_dict()
    for rank in (0, 1):
        found = torch.load(f"{ranks}/{case[0]}-{rank}.pt")
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, atol=1e-12, rtol=1e-12, msg=name)
    assert not any(torch.equal(alone[name], start[name]) for name in alone if "weight" in name)


def test_a_rank_for_every_stage() -> None:
    with pytest.raises(KdkitError, match="2 isolated stages need a process group of 2 ranks, got 0"):
        StageOnRank(cascade())
