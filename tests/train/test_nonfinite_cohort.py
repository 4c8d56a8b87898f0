"""Numbers that are not finite in a watched cohort: a bad batch is nobody's sickness."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import kdkit
from kdkit.train.lost import lost
from kdkit.train.meters import NonFiniteLossError
from tests.nets import net
from tests.train.nonfinite import Without, assert_same, known, peers, run, spoilt  # noqa: F401  a fixture
from tests.train.running import fit


def watched():
    """The probe meets the spoilt image too."""
    cohort = kdkit.Cohort()
    return cohort, [cohort, kdkit.Health(cohort, warmup=1, patience=1, mute=1, probe=32)]


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_a_nan_image_is_skipped_and_nobody_is_sick(known, update):  # noqa: F811
    (cohort, callbacks), (_, others) = watched(), watched()
    skipped, done = run(peers("skip", update), spoilt(20), callbacks=callbacks)
    by_hand, _ = run(peers("stop", update), spoilt(20), callbacks=[Without(1, 5), *others])
    assert_same(skipped, by_hand)
    assert float(done.callback_metrics["nonfinite/skipped"]) == 1
    assert cohort.events == []


def test_a_nan_image_stops_with_its_step_and_sample():
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(epoch 1\), which saw .*; the images of 20 are not"):
        fit(peers(), spoilt(20), callbacks=watched()[1])


class Overflow(nn.Module):
    def forward(self, student):
        return (student * 1000).exp().mean()


def test_a_loss_that_overflows_is_told_once_and_never_looks_perfect(caplog):
    cohort, callbacks = watched()
    nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
    edges = ["ce", kdkit.Edge("dml", among=["a", "b"]), kdkit.Edge(Overflow(), name="over", target="a")]
    with caplog.at_level(logging.WARNING, "kdkit"):
        done = fit(kdkit.Distiller(nodes, edges, lr=0.05), epochs=2, callbacks=callbacks)
    assert [text for text in caplog.messages if "the loss over was not finite" in text] == [
        "warning: the loss over was not finite in epoch 1, though all that the models said is; it makes its "
        "models sick, and loss/over is NaN. Mend the loss, or leave it out"
    ]
    assert math.isnan(done.callback_metrics["loss/over"])
    assert all(math.isfinite(done.callback_metrics[f"loss/{name}"]) for name in ("ce", "dml"))
    assert {event.peer for event in cohort.events} == {"a"}


def test_a_loss_that_was_lost_in_one_epoch_is_told_in_the_next_as_it_is():
    audience = SimpleNamespace(watch=True, told=False, lost=torch.ones(()))
    edges = [SimpleNamespace(name="kd", audience=audience)]
    distiller = SimpleNamespace(graph=SimpleNamespace(bound=edges), sums=SimpleNamespace(counts={"kd": 4}))
    distiller.current_epoch = 0
    assert math.isnan(lost(distiller)["loss/kd"])
    assert lost(distiller) == {}
