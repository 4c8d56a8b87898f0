"""Two gloo ranks under Lightning's plain `ddp` do what one process does with both halves of each batch."""

import warnings

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset

import kdkit
from kdkit.models.classifier import reuse_classifier
from tests.nets import Blobs, Net
from tests.processes import run_ranks
from tests.train.ranks import join
from tests.train.test_pcgrad import LOSSES, MUTUAL
from tests.train.test_pcgrad import made as two_heads

EPOCHS, BATCH = 2, 8


class Doubled(Blobs):
    def __init__(self):
        super().__init__(n=32)
        self.x = self.x.double()
        self.sample_labels = self.y


def make(method):
    if method == "pcgrad":
        model = two_heads()
        model.bn1, model.bn2 = torch.nn.Identity(), torch.nn.Identity()
        return kdkit.Distiller({"net": model}, LOSSES + MUTUAL, lr=0.05, pcgrad=True, channels_last=False).double()
    torch.manual_seed(1)
    teacher, student, peer = (Net(w).double().eval() for w in (12, 8, 8))
    for net in (student, peer):  # batch statistics see only their own rank's half, so the norm is left out here
        net.bn1, net.bn2 = torch.nn.Identity(), torch.nn.Identity()
    crd = kdkit.Edge("crd", num_negatives=16, embed_dim=4, num_samples=32, negatives="all", sample_labels=Doubled().y)
    edges = {
        "kd": ["ce", "kd"],
        "crd": ["ce", crd],
        "gathered": [kdkit.Edge("rkd", taps="embedding", gather=True)],
        "late": ["ce", kdkit.Edge("cosine", taps="embedding", head="linear", when={"from": 1})],
        "dml": ["ce", kdkit.Edge("dml", among=["student", "peer"])],
        "share": ["ce", kdkit.Edge("kd", weight={"share": 0.4})],
        "cohort": ["ce", kdkit.Edge("dml", among=["student", "peer", "third"])],
        "simkd": [kdkit.Edge("mse", taps="embedding")],
    }[method]
    if method == "simkd":  # a classifier that is the teacher's, and stays so
        student = Net(12).double()
        student.bn1, student.bn2 = torch.nn.Identity(), torch.nn.Identity()
        reuse_classifier(student, teacher, 5)
    nodes = {"teacher": kdkit.frozen(teacher), "student": student}
    if method == "dml":
        nodes = {"student": student, "peer": peer}
    if method == "cohort":
        third = Net(6).double()
        third.bn1, third.bn2 = torch.nn.Identity(), torch.nn.Identity()
        nodes = {"student": student, "peer": peer, "third": third}
    update = "sequential" if method == "dml" else "simultaneous"
    return kdkit.Distiller(nodes, edges, lr=0.05, update=update, channels_last=False).double()


class Poison(pl.Callback):
    """NaN into a model in the first epoch."""

    def on_train_batch_start(self, trainer, made, batch, i):
        if trainer.current_epoch == 0 and i == 1:
            next(made.peer.parameters()).data.fill_(float("nan"))


def cohort():
    """One joins in the middle of a ramp, one falls sick and is rebuilt."""
    moving = kdkit.Cohort(join={"third": {"epoch": 0.25, "warmup": 1}}, ramp=1)
    return [moving, kdkit.Health(moving, warmup=0, patience=1, mute=0, probe=16), Poison()]


def fit(method, data, **options):
    warnings.filterwarnings("ignore")
    distiller = make(method)
    if method == "cohort":
        options["callbacks"] = cohort()
    run = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **options,
    )
    run.fit(distiller, data)
    return {key: value.clone() for key, value in distiller.state_dict().items()}


def rank_main(rank, store, folder):
    warnings.filterwarnings("ignore")
    spread = join(rank, store)
    order = [i for start in range(0, 32, 2 * BATCH) for i in range(start + rank * BATCH, start + (rank + 1) * BATCH)]
    data = DataLoader(Subset(Doubled(), order), batch_size=BATCH)
    for method in METHODS:
        torch.save(fit(method, data, **spread()), f"{folder}/{method}-{rank}.pt")
    dist.destroy_process_group()


METHODS = ("kd", "crd", "gathered", "late", "dml", "share", "cohort", "pcgrad", "simkd")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    run_ranks(rank_main, str(folder / "store"), str(folder))
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_equal_one_process(method, ranks):
    here, there = (torch.load(ranks / f"{method}-{rank}.pt") for rank in (0, 1))
    alone = fit(method, DataLoader(Doubled(), batch_size=2 * BATCH))
    for key, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(here[key], there[key], rtol=1e-12, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
            torch.testing.assert_close(here[key], value, rtol=1e-8, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")
