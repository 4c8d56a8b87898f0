"""Models that come and go while a cohort trains."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

import kdkit
from kdkit import data
from kdkit.graph.audience import Audience
from kdkit.graph.links import End
from kdkit.registry import KdkitError
from tests.nets import net
from tests.train.running import compiled_by, fit, loader, trainer

STEPS = 4


def made(names="abc", edges=None, classes=5, **options):
    nodes = {name: net(8, seed=i, dropout=0.2, classes=classes) for i, name in enumerate(names)}
    edges = edges or ["ce", kdkit.Edge("dml", among=list(names))]
    return kdkit.Distiller(nodes, edges, lr=0.05, **options)


def digits():
    """Four steps an epoch, in an order that a checkpoint in the middle of one knows."""
    return data.build("digits", image_size=8, subset=200, batch_size=50, padding=1)


def trained(cohort, *others, epochs=4, names="abc", edges=None, run=None, batches=None, **options):
    distiller = made(names, edges, **options)
    callbacks = [c for c in (cohort, *others) if c is not None]
    fit(distiller, batches or loader(), epochs=epochs, callbacks=callbacks, **(run or {}))
    return distiller


def weights(distiller, name):
    return torch.cat([v.double().flatten() for v in distiller.graph.model(name).state_dict().values()])


class Each(pl.Callback):
    """Calls a function after each step, or before it."""

    def __init__(self, call, before=False):
        self.call, self.before = call, before

    def on_train_batch_start(self, trainer, made, batch, i):
        if self.before:
            self.call(trainer, made, trainer.current_epoch + i / STEPS)

    def on_train_batch_end(self, trainer, made, outputs, batch, i):
        if not self.before:
            self.call(trainer, made, trainer.current_epoch + i / STEPS)


class Stopped(BaseException):
    pass


def test_a_cohort_in_which_nobody_moves_changes_no_bit():
    plain, cohort = trained(None), trained(kdkit.Cohort())
    assert all(torch.equal(weights(plain, name), weights(cohort, name)) for name in "abc")
    assert cohort.graph.cohort is None


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_who_is_not_there_is_neither_run_nor_moved_nor_missed(update):
    """The others are, to the last bit, those of a cohort that it does not belong to."""
    calls = []

    def count(trainer, made, t):
        if t == 0:
            made.c.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))

    start = weights(made(), "c")
    three = trained(kdkit.Cohort(join={"c": None}), Each(count, before=True), update=update)
    two = trained(None, names="ab", update=update)
    assert all(torch.equal(weights(three, name), weights(two, name)) for name in "ab")
    assert torch.equal(weights(three, "c"), start)
    assert not calls


def test_the_last_one_trains_on_its_labels_alone():
    """Bit by bit what a span on the edge gives."""
    left = trained(kdkit.Cohort(leave={"b": {"epoch": 2}}), names="ab")
    spanned = trained(None, names="ab", edges=["ce", kdkit.Edge("dml", among=["a", "b"], when={"to": 2})])
    assert torch.equal(weights(left, "a"), weights(spanned, "a"))
    assert not torch.equal(weights(left, "b"), weights(spanned, "b"))


def oracle(presence, among):
    """Weight of l for k, in float64."""
    found = {}
    for source, target in itertools.permutations(among, 2):
        others = sum(presence[name] for name in among if name != target)
        found[source, target] = presence[source] / max(1.0, others)
    return found


def test_weights_are_a_mean_over_those_who_are_there():
    distiller = made("abcd", ["ce", kdkit.Edge("dml", among=list("abcd"))])
    fit(distiller, loader(), epochs=1, limit_train_batches=1)
    edge, drawn = distiller.graph.edges["dml"], np.random.default_rng(0)
    for _ in range(20):
        values = drawn.uniform(size=4) * (drawn.uniform(size=4) < 0.7)
        audience = Audience(edge, torch.tensor(values).float(), tuple("abcd"), {n: n for n in "abcd"}, watch=False)
        shares = (audience(edge.factors, {}) / 3).tolist()
        want = oracle(dict(zip("abcd", values, strict=True)), "abcd")
        pairs = [(call.links[0].sources[0].node, call.target) for call in edge.calls]
        assert dict(zip(pairs, shares, strict=True)) == pytest.approx(want, abs=1e-6)
        for target in "abcd":
            assert sum(w for (_, whom), w in want.items() if whom == target) <= 1 + 1e-9


def test_ramps_rise_and_fall_and_the_factors_follow():
    seen = {}

    def look(trainer, made, t):
        roster = made.graph.cohort
        seen[t] = (roster.here, [round(roster.presence(name, t), 6) for name in "abc"])

    cohort = kdkit.Cohort(join={"c": {"epoch": 1}}, leave={"a": {"epoch": 2}}, ramp=1)
    trained(cohort, Each(look), epochs=4)
    assert seen[0.75] == (("a", "b"), [1, 1, 0])
    assert seen[1.0] == (("a", "b", "c"), [1, 1, 0])
    assert seen[1.5] == (("a", "b", "c"), [1, 1, 0.5])
    assert seen[2.25] == (("a", "b", "c"), [0.75, 1, 1])
    assert seen[3.0] == (("b", "c"), [0, 1, 1])
    assert [(e.peer, e.what, e.epoch) for e in cohort.events] == [
        ("c", "joins", 1),
        ("a", "leaves", 2),
        ("a", "gone", 3),
    ]


def test_a_newcomer_has_an_optimiser_that_knows_nothing_and_a_rate_that_rises():
    rates, state = {}, {}

    def look(trainer, made, t):
        optimizer = made.optimizers().optimizer.of["c"]
        rates[t], state[t] = optimizer.param_groups[0]["lr"], len(optimizer.state)

    options = {"optimizer": {"name": "sgd", "momentum": 0.9}}
    trained(kdkit.Cohort(join={"c": {"epoch": 1, "warmup": 1}}), Each(look), epochs=3, **options)
    assert [state[t] > 0 for t in (0.75, 1.0, 1.25)] == [False, True, True]
    assert [rates[t] for t in (1.0, 1.5, 2.0)] == pytest.approx([0, 0.025, 0.05])


def test_a_peer_that_left_keeps_no_gradient_and_no_state():
    state = {}

    def look(trainer, made, t):
        state[t] = len(made.optimizers().optimizer.of["a"].state)

    cohort = kdkit.Cohort(leave={"a": {"epoch": 1}})
    distiller = trained(cohort, Each(look), epochs=2, run={"accumulate_grad_batches": 3})
    assert state[1.75] == 0
    assert all(parameter.grad is None for parameter in distiller.a.parameters())


def test_told_by_hand_is_as_planned():
    cohort = kdkit.Cohort(join={"c": None}, ramp=1)

    def tell(trainer, made, t):
        if t == 0.75:
            cohort.join("c", warmup=1)
        if t == 2.25:
            cohort.leave("a")

    plan = kdkit.Cohort(join={"c": {"epoch": 1, "warmup": 1}}, leave={"a": {"epoch": 2.5}}, ramp=1)
    by_hand, planned = trained(cohort, Each(tell)), trained(plan)
    assert all(torch.equal(weights(by_hand, name), weights(planned, name)) for name in "abc")
    assert [event.why for event in cohort.events] == ["by hand", "by hand", "trains no more"]


def test_nobody_comes_or_goes_in_the_middle_of_an_update():
    cohort, run = kdkit.Cohort(), SimpleNamespace(current_epoch=0, num_training_batches=4)
    distiller = SimpleNamespace(borrow=SimpleNamespace(accumulate=2))
    cohort.on_train_batch_start(run, distiller, None, 1)
    with pytest.raises(KdkitError, match="nobody trains now"):  # it asks who is there
        cohort.on_train_batch_start(run, distiller, None, 2)


def test_who_left_may_come_back():
    cohort = kdkit.Cohort(leave={"c": {"epoch": 1}})
    before = {}

    def look(trainer, made, t):
        before[t] = weights(made, "c")
        if t == 1.75:
            cohort.join("c")

    trained(cohort, Each(look), epochs=3)
    assert torch.equal(before[0.75], before[1.75])
    assert not torch.equal(before[1.75], before[2.0])


PLAN = {"join": {"c": {"epoch": 1, "warmup": 1}}, "leave": {"a": {"epoch": 2}}, "ramp": 1.5}


def interrupted(tmp_path, at, **options):
    """The metrics and weights of a run that is stopped after the step at `at` and taken up again."""

    def keep(trainer, made, t):
        if t == at:
            trainer.save_checkpoint(tmp_path / "at.ckpt")
            raise Stopped

    with pytest.raises(Stopped):
        trained(kdkit.Cohort(**PLAN), Each(keep), **options)
    return tmp_path / "at.ckpt"


@pytest.mark.parametrize("at", [0.75, 1.25, 1.75, 2.5, 3.75])
def test_going_on_in_the_middle_is_exact(tmp_path, at):
    words = {"optimizer": {"name": "adamw"}, "classes": 10}
    straight = trained(whole := kdkit.Cohort(**PLAN), batches=digits(), epochs=5, **words)
    path = interrupted(tmp_path, at, batches=digits(), epochs=5, **words)
    run = trainer(5, callbacks=[cohort := kdkit.Cohort(**PLAN)])
    run.fit(again := made(**words), digits(), ckpt_path=path, weights_only=False)
    assert all(torch.equal(weights(again, name), weights(straight, name)) for name in "abc")
    assert cohort.events == whole.events


def test_what_was_told_just_before_a_checkpoint_is_in_it(tmp_path):
    def tell(trainer, made, t):
        if t == 0.75:
            cohort.leave("b")
            trainer.save_checkpoint(tmp_path / "at.ckpt")

    straight = trained(cohort := kdkit.Cohort(), Each(tell), epochs=3)
    again = made()
    trainer(3, callbacks=[kdkit.Cohort()]).fit(again, loader(), ckpt_path=tmp_path / "at.ckpt", weights_only=False)
    assert all(torch.equal(weights(again, name), weights(straight, name)) for name in "abc")


def test_the_log_says_who_is_there(tmp_path):
    logger = CSVLogger(tmp_path, name="", version="")
    distiller = made()
    run = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=logger, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[kdkit.Cohort(join={"c": {"epoch": 1}}, ramp=1)], num_sanity_val_steps=0,
    )  # fmt: skip
    run.fit(distiller, loader())
    logger.save()
    rows = [line.split(",") for line in (tmp_path / "metrics.csv").read_text().splitlines()]
    column = rows[0].index("cohort/c")
    assert [float(row[column]) for row in rows[1:] if row[column]] == [0, 0.75, 1]


def test_a_slow_copy_counts_as_the_peer_that_it_follows():
    nodes = {"a": net(8, seed=0), "b": net(8, seed=1), "slow": kdkit.ema("b", 0.5)}
    edges = ["ce", kdkit.Edge("mse", source="slow", target="a")]
    distiller = kdkit.Distiller(copy.deepcopy(nodes), edges, lr=0.05)
    fit(distiller, loader(), epochs=2, callbacks=[kdkit.Cohort(join={"b": None})])
    alone = kdkit.Distiller({"a": copy.deepcopy(nodes["a"])}, ["ce"], lr=0.05)
    fit(alone, loader(), epochs=2)
    assert torch.equal(weights(distiller, "a"), weights(alone, "a"))


def test_an_ensemble_is_of_those_who_are_there():
    """Without one of three, DML_e is that of the other two; while it comes, it weighs as much as it is present."""
    edge = kdkit.Edge("dml", among=["a", "b", "c"], ensemble="arithmetic")
    pair = kdkit.Edge("dml", among=["a", "b"], ensemble="arithmetic")
    three = trained(kdkit.Cohort(join={"c": {"epoch": 3.75}}), edges=["ce", edge])
    two = trained(None, names="ab", edges=["ce", pair])
    assert not torch.equal(weights(three, "a"), weights(two, "a"))
    without = trained(kdkit.Cohort(join={"c": None}), edges=["ce", edge])
    assert all(torch.equal(weights(without, name), weights(two, name)) for name in "ab")
    bound, z = three.graph.edges["dml"], {name: 3 * torch.randn(6, 5) for name in "abc"}
    outputs = {End(name, "logits"): value for name, value in z.items()}
    audience = Audience(bound, torch.tensor([1.0, 0.25, 0.5]), tuple("abc"), {n: n for n in "abc"}, watch=True)
    bound.audience = audience
    for i, call in enumerate(bound.calls):
        said = bound._teacher(call.links[0], outputs).softmax(-1).double()
        weigh = {"a": 1.0, "b": 0.25, "c": 0.5}
        members = [end.node for end in call.links[0].sources]
        want = sum(weigh[n] * z[n].double().softmax(-1) for n in members) / sum(weigh[n] for n in members)
        torch.testing.assert_close(said, want, rtol=1e-5, atol=1e-6)
        assert float(audience(bound.factors, outputs)[i]) == min(1.0, sum(weigh[n] for n in members))
    z["b"].fill_(float("nan"))
    assert all(bound._teacher(call.links[0], outputs).isfinite().all() for call in bound.calls)


def test_compiled_steps_see_who_comes_and_goes(monkeypatch):
    """Traced anew for each phase; what is traced is run as it is, so that every bit can be compared."""
    compiled_by(monkeypatch, "eager")
    found = []
    for compiled in (False, True):
        cohort = kdkit.Cohort(join={"c": {"epoch": 1}}, leave={"a": {"epoch": 2}}, ramp=1)
        nodes = {name: net(4, seed=i) for i, name in enumerate("abc")}
        edges = ["ce", kdkit.Edge("dml", among=list("abc"))]
        distiller = kdkit.Distiller(nodes, edges, lr=0.05, compile=compiled)
        fit(distiller, loader(), epochs=4, callbacks=[cohort, kdkit.Health(cohort, warmup=1, probe=32)])
        assert [event.what for event in cohort.events] == ["joins", "leaves", "gone"]
        found.append(distiller)
    assert all(torch.equal(weights(found[0], name), weights(found[1], name)) for name in "abc")
