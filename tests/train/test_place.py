"""Peers that are trained on ranks of their own do what one process does with all of them: two gloo ranks, float64."""

import warnings
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset

import kdkit
from kdkit import data
from kdkit.data.order import Order
from kdkit.graph.stage import Stage
from kdkit.recipe import RecipeError, loads
from kdkit.registry import KdkitError
from kdkit.train.balance import watch_balance
from tests.nets import Blobs, net
from tests.processes import run_ranks
from tests.train.ranks import join
from tests.train.running import fit as plain

PEERS = ["a", "b"]
PLACE = {"a": 0, "b": 1}
STAGES = [Stage("one", {"to": 1}, train="a"), Stage("other", {"from": 1}, train=["b", "back"])]


def make(place=None, **options):
    nodes = {"teacher": kdkit.frozen(net(6, seed=9, classes=10))}
    nodes |= {name: net(4 + 4 * i, seed=i, classes=10) for i, name in enumerate(PEERS)}
    edges = [
        "ce",
        kdkit.Edge("dml", among=PEERS),
        kdkit.Edge("cosine", among=PEERS, head="linear", weight=0.1),
        kdkit.Edge("kd", source="teacher", target="b", weight=0.2),
        kdkit.Edge("kd", name="slow", source="mean", target="a", weight=0.3),
        kdkit.Edge("crd", source="teacher", target="b", weight=0.1, num_negatives=8, embed_dim=4),
        kdkit.Edge("crd", name="back", source="b", target="a", weight=0.1, num_negatives=8, embed_dim=4),
    ]
    nodes["mean"] = kdkit.graph.ema("b", 0.8)
    return kdkit.Distiller(nodes, edges, lr=0.05, place=place, channels_last=False, **options)


def digits():
    return data.build("digits", image_size=8, subset=72, batch_size=16, padding=1)


def trainer(folder, epochs=2, **options):
    warnings.filterwarnings("ignore")
    keep = pl.callbacks.ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", precision="64-true", logger=False, callbacks=[keep],
                      enable_progress_bar=False, enable_model_summary=False, **options)  # fmt: skip


def told(distiller, run):
    state = {key: value.clone() for key, value in distiller.state_dict().items()}
    return {
        "state": state,
        "metrics": {key: float(v) for key, v in run.callback_metrics.items()},
        "steps": run.global_step,
    }


def rank_main(rank, folder):
    spread = join(rank, f"{folder}/store")
    distiller = make(PLACE)
    (run := trainer(f"{folder}/apart", **spread())).fit(distiller, digits())
    torch.save(told(distiller, run), f"{folder}/{rank}.pt")
    again = make(PLACE)
    (run := trainer(f"{folder}/more", 3, **spread())).fit(
        again, digits(), ckpt_path=f"{folder}/apart/last.ckpt", weights_only=False
    )
    torch.save(told(again, run), f"{folder}/more-{rank}.pt")
    staged = make(PLACE, stages=STAGES)
    (run := trainer(f"{folder}/stages", **spread())).fit(staged, digits())
    torch.save(told(staged, run), f"{folder}/stages-{rank}.pt")
    torn = DataLoader(Subset([(x, y, i) for x, y, i in Blobs()], range(rank, 64, 2)), batch_size=8)
    try:
        trainer(f"{folder}/torn", **spread(), use_distributed_sampler=False).fit(make(PLACE), torn)
    except KdkitError as error:
        torch.save(str(error), f"{folder}/torn-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    run_ranks(rank_main, str(folder))
    return folder


def assert_same(here, alone):
    assert here["state"].keys() == alone["state"].keys()
    for key, value in alone["state"].items():
        torch.testing.assert_close(here["state"][key], value, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")
    assert here["steps"] == alone["steps"]
    assert here["metrics"].keys() == alone["metrics"].keys()
    for key, value in alone["metrics"].items():
        assert here["metrics"][key] == pytest.approx(value, rel=1e-5), key


def test_each_peer_on_its_rank_equals_one_process_also_after_resume(ranks, tmp_path):
    distiller = make()
    (run := trainer(tmp_path / "alone")).fit(distiller, digits())
    alone = told(distiller, run)
    for rank in (0, 1):
        assert_same(torch.load(ranks / f"{rank}.pt"), alone)
    again = make()
    (run := trainer(tmp_path / "more", 3)).fit(
        again, digits(), ckpt_path=tmp_path / "alone" / "last.ckpt", weights_only=False
    )
    more = told(again, run)
    for rank in (0, 1):
        assert_same(torch.load(ranks / f"more-{rank}.pt"), more)


def test_a_rank_whose_peer_rests_waits_for_the_others(ranks, tmp_path):
    """And one whose peer rests while a loss beside it learns."""
    staged = make(stages=STAGES)
    (run := trainer(tmp_path)).fit(staged, digits())
    for rank in (0, 1):
        assert_same(torch.load(ranks / f"stages-{rank}.pt"), told(staged, run))


def test_the_checkpoint_holds_every_peer_s_optimizer(ranks, tmp_path):
    trainer(tmp_path).fit(make(), digits())
    alone = torch.load(tmp_path / "last.ckpt", weights_only=False)["optimizer_states"][0]
    here = torch.load(ranks / "apart" / "last.ckpt", weights_only=False)["optimizer_states"][0]
    assert here.keys() == alone.keys() == set(PEERS)
    for name in PEERS:
        assert here[name]["state"].keys() == alone[name]["state"].keys()
        for i, state in alone[name]["state"].items():
            torch.testing.assert_close(here[name]["state"][i]["momentum_buffer"], state["momentum_buffer"])


def test_ranks_that_see_other_samples_are_refused(ranks):
    assert all("the ranks see different batches" in torch.load(ranks / f"torn-{rank}.pt") for rank in (0, 1))


def test_whole_batches_are_the_same_on_every_rank(monkeypatch):
    monkeypatch.setattr("kdkit.data.order.rank_and_world", lambda: (1, 3))
    order, whole = Order(36, 6, seed=0), Order(32, 8, seed=0, whole=True)
    assert [len(ids) for _, ids in order.batches()] == [2] * 6
    assert [len(ids) for _, ids in whole.batches()] == [8] * 4


@pytest.mark.parametrize(
    ("place", "options", "said"),
    [
        ({"a": 0}, {}, "place: must give every trained model a rank; b has none"),
        ({"a": 0, "b": 1, "c": 1}, {}, "place: no trained model is called 'c'"),
        ({"a": 0, "b": -1}, {}, "place: the rank of 'b' must be 0 or more, got -1"),
        (PLACE, {"update": "sequential"}, "learn at once"),
        (PLACE, {"compile": True}, "uncompiled"),
    ],
)
def test_what_cannot_be_placed_is_said(place, options, said):
    with pytest.raises(KdkitError, match=said):
        make(place, **options)


def test_edges_that_speak_between_ranks_are_refused():
    for word, options in (("gather", {"gather": True}), ("a share", {"weight": {"share": 0.3}})):
        edges = ["ce", kdkit.Edge("dml", among=PEERS, **options)]
        with pytest.raises(KdkitError, match=f"edge 'dml' has {word}"):
            kdkit.Distiller({"a": net(4, seed=1), "b": net(8, seed=2)}, edges, place=PLACE)


def test_it_takes_as_many_processes_as_it_names():
    nodes = {"a": net(4, seed=1), "b": net(8, seed=2)}
    with pytest.raises(KdkitError, match=r"place: rank 1 needs 2 processes, got 1; say devices and strategy: ddp"):
        plain(kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=PEERS)], place=PLACE))
    one = {"a": 0, "b": 0}
    plain(kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=PEERS)], place=one, lr=0.05))


def test_weights_that_move_by_themselves_are_refused():
    nodes = {"a": net(4, seed=1), "b": net(8, seed=2)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=PEERS)], place={"a": 0, "b": 0}, lr=0.05)
    watch_balance(made.graph, "uncertainty")
    with pytest.raises(KdkitError, match="place: balance weighs losses whose terms lie on several ranks"):
        plain(made)


def test_fp16_is_refused():
    nodes = {"a": net(4, seed=1), "b": net(8, seed=2)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=PEERS)], place={"a": 0, "b": 0}, lr=0.05)
    made.trainer = SimpleNamespace(world_size=1, precision="16-mixed")
    with pytest.raises(KdkitError, match="place: in fp16 every rank would have a loss scale of its own"):
        made.place.begin(made)


def test_a_cohort_that_changes_is_refused():
    nodes = {"a": net(4, seed=1), "b": net(8, seed=2)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=PEERS)], place={"a": 0, "b": 0}, lr=0.05)
    with pytest.raises(KdkitError, match="cohort: models that come and go are trained on every rank"):
        plain(made, callbacks=[kdkit.Cohort(leave={"a": {"epoch": 1}})])


def test_a_recipe_says_it():
    text = """data: {name: digits}
models: {a: {arch: resnet8}, b: {arch: resnet20}}
losses: [ce, dml: {among: [a, b]}]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 2, devices: 2, strategy: ddp, place: {a: 0, b: RANK}}
"""
    assert loads(text.replace("RANK", "1")).trainer.place == PLACE
    with pytest.raises(RecipeError, match=r"recipe:6: trainer\.place\.b"):
        loads(text.replace("RANK", "-1"))
