"""Sick peers are found and treated, and the others never know."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import kdkit
from kdkit import data
from kdkit.registry import KdkitError
from kdkit.train.meters import NonFiniteLossError
from kdkit.train.optim import NodeOptimizers
from kdkit.train.patient import restore, state_of
from kdkit.train.probe import probe_batches
from tests.nets import loader, net
from tests.train.running import fit, trainer
from tests.train.test_cohort import Each, Stopped, weights

QUICK = {"warmup": 1, "patience": 2, "mute": 1, "probe": 64}


class Fitting:
    """As much of a Trainer as the probe asks."""

    def __init__(self, batches):
        self.fit_loop = self._data_source = self
        self.dataloader = lambda: batches


class Scrambled(nn.Module):
    """Cross-entropy with the labels of other samples."""

    def forward(self, student, labels):
        return nn.functional.cross_entropy(student, labels.roll(1))


def made(edges=None, lr=0.05, classes=5, names="abc", **options):
    nodes = {name: net(8, seed=i, classes=classes) for i, name in enumerate(names)}
    return kdkit.Distiller(nodes, edges or ["ce", kdkit.Edge("dml", among=list(names))], lr=lr, **options)


def trained(*others, health=QUICK, epochs=4, folder=None, distiller=None, cohort=None, batches=None, **options):
    cohort = cohort or kdkit.Cohort()
    distiller = distiller or made(**options)
    rule = [] if health is None else [kdkit.Health(cohort, folder=folder, **health)]
    fit(distiller, batches or loader(), epochs=epochs, callbacks=[cohort, *rule, *others])
    return distiller, cohort


def told(cohort):
    return [(event.peer, event.what, event.epoch) for event in cohort.events]


def poison(name, at):
    """NaN into a weight of a model, before the step at that time."""

    def put(trainer, made, t):
        if t == at:
            next(made.graph.model(name).parameters()).data[0] = float("nan")

    return Each(put, before=True)


def test_a_healthy_run_is_the_same_run():
    plain, _ = trained(health=None)
    watched, cohort = trained()
    assert all(torch.equal(weights(plain, name), weights(watched, name)) for name in "abc")
    assert not cohort.events


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
@pytest.mark.parametrize("ensemble", [None, "arithmetic"])
def test_nan_weights_do_not_reach_the_others(update, ensemble):
    """To the last bit they train on as if the sick one had left (a mean of one is rounded otherwise than one alone)."""
    edges = ["ce", kdkit.Edge("dml", among=list("abc"), ensemble=ensemble)]
    seen = {}

    def look(trainer, made, t):
        if t in (1.75, 2.75):
            seen[t] = {name: weights(made, name) for name in "abc"}

    words = {"edges": edges, "update": update, "epochs": 5}
    sick, cohort = trained(poison("b", 2.25), Each(look), **words)
    gone, _ = trained(health=None, cohort=kdkit.Cohort(leave={"b": {"epoch": 2.25}}), **{**words, "epochs": 3})
    near = {"rtol": 0, "atol": 1e-4 if ensemble else 0}
    torch.testing.assert_close(seen[2.75]["a"], weights(gone, "a"), **near)
    torch.testing.assert_close(seen[2.75]["c"], weights(gone, "c"), **near)
    assert not seen[2.75]["b"].isfinite().all()
    assert told(cohort) == [("b", "roll back", 3.0)]
    assert "as after epoch 2" in cohort.events[0].why
    assert all(weights(sick, name).isfinite().all() for name in "abc")


def test_rolled_back_is_the_model_and_its_optimiser_and_nobody_else():
    kept, heard = {}, {}

    def look(trainer, made, t):
        state = made.optimizers().optimizer.of["b"].state_dict()["state"][0]["momentum_buffer"]
        if t in (1.75, 2.75):
            kept[t] = (weights(made, "b"), state.clone(), weights(made, "a"))
        heard[t] = made.graph.cohort.presence("b", t)

    def after(trainer, made, t):
        if t == 3.0:
            state = made.optimizers().optimizer.of["b"].state_dict()["state"][0]["momentum_buffer"]
            kept["after"] = (weights(made, "b"), state.clone(), weights(made, "a"))

    cohort = kdkit.Cohort(ramp=1)
    trained(poison("b", 2.0), Each(look), Each(after, before=True), epochs=6, cohort=cohort)
    assert torch.equal(kept["after"][0], kept[1.75][0])
    assert torch.equal(kept["after"][1], kept[1.75][1])
    assert torch.equal(kept["after"][2], kept[2.75][2])
    assert [heard[t] for t in (2.0, 3.0, 3.75, 4.5, 5.0)] == [1, 0, 0, 0.5, 1]  # muted, then up the ramp


def test_nan_before_the_first_snapshot_begins_anew():
    start = weights(made(), "b")
    seen = {}
    look = Each(lambda trainer, made, t: seen.setdefault(t, weights(made, "b")), before=True)
    distiller, cohort = trained(poison("b", 0.5), look)
    assert told(cohort)[0] == ("b", "rebuild", 1.0)
    assert torch.equal(seen[1.0], start)
    assert weights(distiller, "b").isfinite().all()


@pytest.mark.parametrize("loss", ["dml", "mse"])
def test_a_peer_at_an_absurd_rate_stops_nobody(loss):
    """Its terms overflow while its outputs are finite; it is made anew at rates that stay lower, until one fits."""
    edges = ["ce", kdkit.Edge(loss, among=list("abc"), weight=1.0 if loss == "dml" else 1e-3)]
    distiller = made(edges)
    distiller.graph.nodes["b"] = replace(distiller.graph.nodes["b"], lr=1e3)
    _, cohort = trained(distiller=distiller, epochs=8)
    assert all(parameter.isfinite().all() for name in "ac" for parameter in distiller.graph.model(name).parameters())
    assert scores(distiller, "a")[1] == scores(distiller, "c")[1] == 1.0
    assert {peer for peer, *_ in told(cohort)} == {"b"}
    rates = [event.why.partition("learning rate times ")[2] for event in cohort.events if event.what == "rebuild"]
    assert rates[:3] == [f"{rate} from now on" for rate in ("0.3", "0.09", "0.027")]


BAD = "no better than chance"


@pytest.mark.parametrize(
    ("wrong", "rates"), [(["not finite", BAD], [0.3, 0.09]), ([BAD, BAD, BAD], [1, 0.3, 0.09]), ([BAD] * 2, [1, 0.3])]
)
def test_every_further_beginning_is_at_a_lower_rate(wrong, rates):
    cohort, seen = kdkit.Cohort(), []
    health = kdkit.Health(cohort, **QUICK)
    distiller = made()
    fit(distiller, epochs=1, callbacks=[cohort, health])
    for epoch, why in enumerate(wrong, 2):
        health._treat(distiller, "b", epoch, "rebuild", why)
        seen.append(cohort.roster.peers["b"].lasting)
        health._treat(distiller, "b", epoch, "lower", BAD)
        health._treat(distiller, "b", epoch, "well", "")
        assert cohort.roster.peers["b"].rate == seen[-1]
    assert seen == pytest.approx(rates)
    assert cohort.events[0].why == f"{wrong[0]}; learning rate times {rates[0]:g} from now on"


def test_what_is_masked_is_in_no_mean():
    """Whatever a sick peer says, `loss/…` is that of the others."""

    def absurd(trainer, made, t):
        for parameter in made.b.fc.parameters():
            parameter.data.fill_(1e30)

    edges = ["ce", kdkit.Edge("dml", among=list("abc"))]
    sums = {}

    def look(trainer, made, t):
        sums[t] = {name: float(value) for name, value in made.sums.means().items()}

    trained(Each(absurd, before=True), Each(look), epochs=1, edges=edges)
    sick = dict(sums)
    trained(Each(look), health=None, epochs=1, edges=edges, cohort=kdkit.Cohort(join={"b": None}))
    assert sick == sums


def test_a_term_that_is_not_finite_though_all_outputs_are_counts_nothing():
    class Overflows(nn.Module):
        def forward(self, student, labels):
            return student.square().mean() * 0 + torch.tensor(float("inf"))

    distiller, _ = trained(edges=["ce", kdkit.Edge(Overflows(), name="over", target="b")], epochs=1)
    assert all(weights(distiller, name).isfinite().all() for name in "ac")


def test_where_nobody_is_finite_for_the_second_time_training_stops():
    all_at = [poison(name, t) for name in "abc" for t in (1.0, 3.0)]
    with pytest.raises(NonFiniteLossError, match="after epoch 4 none of a, b, c is finite, once more"):
        trained(*all_at, epochs=6)
    _, cohort = trained(*all_at[::2])
    assert told(cohort)[:3] == [(name, "roll back", 2.0) for name in "abc"]


def scores(distiller, name):
    """Cross-entropy and accuracy on all samples."""
    batches = list(loader())
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    with torch.no_grad():
        said = distiller.graph.model(name).eval()(x)
    return float(nn.functional.cross_entropy(said, y)), float((said.argmax(-1) == y).float().mean())


def test_scrambled_labels_for_one_peer():
    edges = [
        kdkit.Edge("ce", target=["a", "c"]),
        kdkit.Edge(Scrambled(), target="b", weight=3.0, when={"to": 7}),
        kdkit.Edge("ce", name="right", target="b", when={"from": 7}),
        kdkit.Edge("dml", among=list("abc"), weight=0.3),
    ]
    sick, cohort = trained(edges=edges, epochs=14)
    steps = [what for peer, what, _ in told(cohort) if peer == "b"]
    assert steps[:3] == ["lower", "roll back", "rebuild"]
    assert {peer for peer, *_ in told(cohort)} == {"b"}
    assert scores(sick, "a")[1] == scores(sick, "c")[1] == 1.0
    assert scores(sick, "b")[1] > 0.9  # made anew from the cohort


def test_a_frozen_optimiser():
    """What nothing on the ladder's first two steps mends is made anew."""

    def freeze(trainer, made, t):
        if t == 0:
            made.optimizers().optimizer.of["b"].step = lambda: None

    sick, cohort = trained(Each(freeze, before=True), epochs=16)
    assert [what for _, what, _ in told(cohort)] == ["lower", "roll back", "rebuild", "well"]
    assert scores(sick, "b")[0] < 1
    assert scores(trained(Each(freeze, before=True), health=None, epochs=16)[0], "b")[0] > 1.6


def test_after_the_last_epoch_nothing_is_undone():
    def freeze(trainer, made, t):
        if t == 0:
            made.optimizers().optimizer.of["b"].step = lambda: None

    _, cohort = trained(Each(freeze, before=True), epochs=16)
    end = next(int(epoch) for _, what, epoch in told(cohort) if what == "roll back")
    alone, _ = trained(Each(freeze, before=True), health=None, epochs=end)
    sick, cohort = trained(Each(freeze, before=True), epochs=end)
    assert told(cohort)[-1] == ("b", "unwell", end)
    assert "the run is over" in cohort.events[-1].why
    assert all(torch.equal(p, q) for p, q in zip(sick.b.parameters(), alone.b.parameters(), strict=True))


def digits():
    return data.build("digits", image_size=8, subset=200, batch_size=50, padding=1, val_split=0.2)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("at", [1.5, 3.0, 4.5])
def test_going_on_in_the_middle_of_a_treatment_is_exact(tmp_path, at, on_disk):
    def keep(trainer, made, t):
        if t == at:
            trainer.save_checkpoint(tmp_path / "at.ckpt")
        if t == at + 1:  # snapshots went on after the checkpoint
            raise Stopped

    def folder(name):
        return tmp_path / name if on_disk else None

    words = {"epochs": 6, "classes": 10, "lr": 0.02}
    straight, whole = trained(poison("b", 2.25), batches=digits(), folder=folder("whole"), **words)
    with pytest.raises(Stopped):
        trained(poison("b", 2.25), Each(keep), batches=digits(), folder=folder("cut"), **words)
    cohort = kdkit.Cohort()
    again = made(classes=10, lr=0.02)
    health = kdkit.Health(cohort, folder=folder("cut"), **QUICK)
    run = trainer(6, callbacks=[cohort, health, poison("b", 2.25)])
    run.fit(again, digits(), ckpt_path=tmp_path / "at.ckpt", weights_only=False)
    assert all(torch.equal(weights(again, name), weights(straight, name)) for name in "abc")
    assert cohort.events == whole.events
    assert [what for _, what, _ in told(cohort)] == ["roll back", "well"]


def test_where_everybody_began_is_in_a_checkpoint(monkeypatch):
    monkeypatch.setattr("kdkit.train.health.probe_batches", lambda *_: [])
    monkeypatch.setattr("kdkit.train.probe.Probe.classes", lambda *_: 10)
    one, again = (kdkit.Health(kdkit.Cohort()) for _ in range(2))
    distiller = SimpleNamespace(graph=SimpleNamespace(trained=[]), seed=0)
    one.on_train_start(None, distiller)
    one.probe.started["a"] = (3, 1.5)
    again.load_state_dict(one.state_dict())
    again.on_train_start(None, distiller)
    assert again.probe.started == {"a": (3, 1.5)}


def test_a_head_goes_back_with_its_model():
    model, head = nn.Linear(1, 1), nn.Parameter(torch.zeros(2))
    optimizers = NodeOptimizers({"a": torch.optim.SGD([*model.parameters(), head], lr=0.1)})
    graph = SimpleNamespace(nodes={}, model=lambda name: model, parameters_of=lambda name: ([], [head]))
    distiller = SimpleNamespace(graph=graph, optimizers=lambda: SimpleNamespace(optimizer=optimizers))
    state = copy.deepcopy(state_of(distiller, "a"))
    head.data.fill_(7.0)
    restore(distiller, "a", state)
    assert head.tolist() == [0.0, 0.0]


def test_fp16_and_data_without_labels_are_refused():
    cohort = kdkit.Cohort()
    health = kdkit.Health(cohort)
    run = trainer(1)
    run.strategy._precision_plugin = type("fp16", (), {"precision": "16-mixed"})()
    with pytest.raises(KdkitError, match="share one loss scale; say bf16-mixed"):
        health.setup(run, None, "fit")
    without = loader()
    without.dataset.y.fill_(-1)
    with pytest.raises(KdkitError, match="data must have labels"):
        trained(edges=[kdkit.Edge("dml", among=list("abc"))], batches=without)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_probes_the_same_images_and_leaves_the_loader_where_it_stood(rank, monkeypatch):
    module = data.build("digits", image_size=8, subset=64, batch_size=16)
    module.setup("fit")
    batches = module.train_dataloader()
    alone = [batch[2].tolist() for batch in probe_batches(Fitting(batches), 24, 0)]
    monkeypatch.setattr("kdkit.data.order.rank_and_world", lambda: (rank, 2))
    batches.load_state_dict({**batches.state_dict(), "epoch": 3, "position": 2})
    assert [batch[2].tolist() for batch in probe_batches(Fitting(batches), 24, 0)] == alone
    assert sum(map(len, alone)) == 24
    assert len(list(batches)) == 2  # of the four of an epoch
    assert batches.state_dict()["epoch"] == 3


def test_ranks_share_running_statistics_before_they_judge():
    class Looked(pl.Callback):
        def on_train_epoch_end(self, run, distiller):
            asked.append(run.current_epoch)

    asked, seen = [], []
    distiller, cohort = made(), kdkit.Cohort()
    distiller.place.share = lambda graph: seen.append(len(asked))
    fit(distiller, loader(), epochs=2, callbacks=[cohort, kdkit.Health(cohort, **QUICK), Looked()])
    assert seen == [0, 1]
