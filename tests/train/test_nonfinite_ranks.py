"""Two ranks leave a step out together, though only one of them sees what is wrong."""

import torch
from torch.utils.data import DataLoader, Subset

import kdkit
from kdkit.train import finite
from tests.nets import Blobs, net
from tests.processes import CONTEXT, run_ranks
from tests.train.nonfinite import Without
from tests.train.ranks import join
from tests.train.running import trainer

CASES = [("skip", False), ("skip", True), ("rollback", True)]


def trained(policy, words, *callbacks, spoilt=None):
    """Each rank has its own half of the samples; sample 37 is the second one's, in the third step."""
    data = Blobs(n=64)
    if spoilt is not None:
        data.x[spoilt] = torch.nan
    rank = torch.distributed.get_rank()
    loader = DataLoader(Subset(data, list(range(rank, 64, 2))), batch_size=8)
    made = kdkit.Distiller({"student": net(8, seed=2)}, ["ce"], lr=0.05, on_nonfinite=policy)
    run = trainer(epochs=1, use_distributed_sampler=False, callbacks=list(callbacks), **words())
    run.fit(made, loader)
    weights = {name: value.clone() for name, value in made.student.named_parameters()}
    return weights, run.callback_metrics.get("nonfinite/skipped", run.callback_metrics.get("nonfinite/rollbacks"))


def _worker(rank, store, found):
    words = join(rank, store)
    plain = finite.asynchronous
    by_hand = {"skip": trained("stop", words, Without(2))[0]}
    by_hand["rollback"] = trained("stop", words, Without(0, 1, 2))[0]
    for policy, late in CASES:
        finite.asynchronous = (lambda device: True) if late else plain
        weights, count = trained(policy, words, spoilt=37)
        same = all(torch.equal(value, by_hand[policy][name]) for name, value in weights.items())
        found[rank, policy, late] = (same, float(count))


def test_ranks_agree(tmp_path):
    with CONTEXT.Manager() as manager:
        found = manager.dict()
        run_ranks(_worker, str(tmp_path / "store"), found)
        found = dict(found)
    assert found == {(rank, *case): (True, 1.0) for rank in (0, 1) for case in CASES}
