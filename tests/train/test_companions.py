"""Lightning's callbacks beside a Distiller: those that could not do what they say are refused before the first step."""

import pytest
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    LearningRateFinder,
    StochasticWeightAveraging,
    WeightAveraging,
)
from pytorch_lightning.tuner import Tuner

import kdkit
from kdkit.registry import KdkitError
from tests.nets import loader
from tests.train.running import fit, pair, trainer


def distiller(*edges):
    return kdkit.Distiller(pair(), ["ce", *edges], lr=0.01)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (LearningRateFinder(), r"LearningRateFinder: .* give Distiller\(lr=…\) a number"),
        (StochasticWeightAveraging(0.01), r"StochasticWeightAveraging: .* kdkit.ema\('student'\)"),
        (BackboneFinetuning(), r"BackboneFinetuning: .*kdkit\.Stage"),
    ],
)
def test_what_would_do_something_else_than_it_says_is_refused(callback, words):
    model = distiller()
    before = model.student.fc.weight.clone()
    with pytest.raises(KdkitError, match=words):
        fit(model, callbacks=[callback])
    assert torch.equal(model.student.fc.weight, before)


def test_beside_a_run_that_trains_nothing_they_do_no_harm():
    run = trainer(callbacks=[LearningRateFinder()])
    assert run.validate(distiller(), loader(), verbose=False)


def test_the_tuner_finds_no_learning_rate():
    with pytest.raises(KdkitError, match="LearningRateFinder: the Distiller steps its optimisers itself"):
        Tuner(trainer()).lr_find(distiller(), loader())


@pytest.mark.parametrize("edge", ["crd", kdkit.Edge("mse", taps="embedding", head="linear")])
def test_averaging_what_was_copied_too_early_is_refused(edge):
    model = distiller(edge)
    before = model.student.fc.weight.clone()
    with pytest.raises(KdkitError, match=r"EMAWeightAveraging: it copied the models .* kdkit.ema\('student'"):
        fit(model, callbacks=[EMAWeightAveraging()])
    assert torch.equal(model.student.fc.weight, before)


def test_averaging_models_alone_is_theirs():
    plain, model = distiller("kd"), distiller("kd")
    fit(plain, epochs=2)
    fit(model, epochs=2, callbacks=[WeightAveraging()])  # the mean of all steps so far
    assert not torch.equal(model.student.fc.weight, plain.student.fc.weight)


class Adam(kdkit.Distiller):
    def configure_optimizers(self):
        return torch.optim.Adam(self.student.parameters())


def test_an_optimiser_that_moves_no_node_is_refused():
    with pytest.raises(KdkitError, match=r"got Adam; leave it out and say Distiller\(optimizer=…, lr=…\)"):
        fit(Adam(pair(), ["ce"]))
