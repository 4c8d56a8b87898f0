"""A cohort in which models join, leave and fall sick at random moments trains on, finite and in constant memory."""

import gc
import random

import pytest
import torch

import kdkit
from kdkit.registry import KdkitError
from tests.train.running import fit, loader
from tests.train.test_cohort import Each
from tests.train.test_health import made, weights

EPOCHS = 24


def tensors():
    gc.collect()
    found = [o for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter)]
    return len(found), sum(tensor.numel() for tensor in found)


class Weather:
    """What befalls a cohort, drawn from a seed."""

    def __init__(self, cohort, seed):
        self.cohort, self.drawn, self.memory, self.told = cohort, random.Random(seed), {}, []

    def __call__(self, trainer, distiller, t):
        if t % 6 == 5:  # after the ring of snapshots is full: each optimiser's state comes and goes with its peer
            self.memory[t] = tensors()
        name, kind = self.drawn.choice("abcd"), self.drawn.random()
        if kind < 0.15:
            try:
                (self.cohort.leave if name in self.cohort.here else self.cohort.join)(name)
                self.told.append(name)
            except KdkitError:  # the last one stays, who is going is gone soon
                pass
        elif kind < 0.2:
            parameter = self.drawn.choice(list(distiller.graph.model(name).parameters()))
            parameter.data.mul_(self.drawn.choice([float("nan"), float("inf"), 1e30]))
            self.told.append(f"{name} sick")


@pytest.mark.parametrize("seed", range(3))
def test_it_trains_on(seed, tmp_path):
    cohort = kdkit.Cohort(ramp=1)
    health = kdkit.Health(cohort, folder=tmp_path, warmup=1, patience=1, mute=1, probe=32)
    weather = Weather(cohort, seed)
    distiller = made(edges=["ce", kdkit.Edge("dml", among=list("abcd"))], names="abcd")
    fit(distiller, loader(), epochs=EPOCHS, callbacks=[cohort, health, Each(weather)])
    assert len(weather.told) > 10
    assert {event.what for event in cohort.events} >= {"joins", "leaves", "gone", "roll back"}
    assert all(weights(distiller, name).isfinite().all() for name in cohort.here)
    (_, first), *_, (_, last) = sorted(weather.memory.items())
    assert last[0] <= first[0] * 1.25
    assert last[1] <= first[1] * 1.25
    assert len(list(tmp_path.glob("*.pt"))) <= 4 * (health.rule.keep + 1)
    assert not list(tmp_path.glob(".kdkit.*"))
