"""Calibration by plain loops and closed forms."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from kdkit.metrics import NLL, AdaptiveCalibrationError, Brier, certainty, fit_temperature, reliability
from kdkit.metrics.quality import CalibrationError, quality


def sample(n=600, classes=7, scale=2.0):
    logits = scale * torch.randn(n, classes)
    return logits, torch.where(torch.rand(n) < 0.6, logits.argmax(1), torch.randint(classes, (n,)))


def filled(metric, *pair, size=64):
    for parts in zip(*(x.split(size) for x in pair), strict=True):
        metric.update(*parts)
    return float(metric.compute())


def test_nll_and_brier_by_a_plain_loop():
    logits, labels = sample()
    p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits.tolist()]
    nll = -sum(math.log(row[y]) for row, y in zip(p, labels.tolist(), strict=True)) / len(p)
    brier = sum(
        sum((v - (c == y)) ** 2 for c, v in enumerate(row)) for row, y in zip(p, labels.tolist(), strict=True)
    ) / len(p)
    assert filled(NLL(), logits, labels) == pytest.approx(nll, rel=1e-5)
    assert filled(Brier(), logits, labels) == pytest.approx(brier, rel=1e-5)


def test_brier_at_its_ends():
    sure = 1e3 * torch.eye(3)
    assert filled(Brier(), sure, torch.arange(3)) == 0
    assert filled(Brier(), sure, torch.tensor([1, 2, 0])) == 2
    assert filled(Brier(), torch.zeros(3, 4), torch.arange(3)) == pytest.approx(0.75)


def test_double_precision_stays():
    logits = torch.tensor([[1e-9, 0.0]], dtype=torch.float64)
    assert NLL().values(logits, torch.tensor([0])) < NLL().values(0 * logits, torch.tensor([0]))


def test_adaptive_error_by_equal_groups():
    logits, labels = sample(600)
    confidence, right = certainty(logits, labels)
    pairs = sorted(zip(confidence.tolist(), right.tolist(), strict=True))
    groups = [pairs[i : i + 40] for i in range(0, 600, 40)]
    error = sum(abs(sum(r for _, r in g) - sum(c for c, _ in g)) for g in groups) / 600
    assert filled(AdaptiveCalibrationError(), logits, labels) == pytest.approx(error, abs=1e-6)


def test_there_is_a_bin():
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        AdaptiveCalibrationError(0)


def test_adaptive_error_does_not_depend_on_the_order_of_equals():
    logits, labels = torch.zeros(100, 4), torch.tensor([0] * 30 + [1] * 70)
    found = filled(AdaptiveCalibrationError(), logits, labels)
    assert found == pytest.approx(filled(AdaptiveCalibrationError(), logits, labels.flip(0))) == pytest.approx(0.05)


def test_reliability_is_torchmetrics_error():
    logits, labels = sample(2000)
    theirs = MulticlassCalibrationError(7, n_bins=15)
    theirs.update(logits.softmax(1), labels)
    found = reliability(*certainty(logits, labels))
    assert float(found.error) == pytest.approx(float(theirs.compute()), abs=1e-5)
    assert float(found.number.sum()) == 2000


def test_a_confidence_at_an_edge_lies_below_it():
    assert reliability(torch.tensor([0.5]), torch.tensor([1.0]), 2).number.tolist() == [1, 0]


def test_logits_between_zero_and_one_are_logits():
    logits, labels = torch.rand(300, 6), torch.randint(6, (300,))
    error = float(reliability(*certainty(logits, labels)).error)
    assert filled(CalibrationError(6, n_bins=15), logits, labels) == pytest.approx(error, abs=1e-5)


def test_the_best_five_are_told_of_more_than_five():
    assert ["top5" in quality(classes) for classes in (5, 6)] == [False, True]


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
def test_the_temperature_that_made_the_labels_is_found(truth):
    logits = 3 * torch.randn(40_000, 5)
    labels = torch.multinomial((logits / truth).softmax(1), 1)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("scale", [1e-2, 1e2])
def test_a_temperature_far_from_one_is_found(scale):
    logits, labels = sample(500)
    found = fit_temperature(scale * logits.double(), labels)
    assert found == pytest.approx(scale * fit_temperature(logits.double(), labels), rel=1e-6)


def test_the_temperature_is_where_nll_is_least():
    logits, labels = sample(500)
    best = fit_temperature(logits, labels)
    least = filled(NLL(), logits / best, labels)
    assert all(filled(NLL(), logits / (best * k), labels) > least for k in (0.9, 1.1))


def test_no_temperature_of_nothing():
    with pytest.raises(ValueError, match="at least one sample"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(torch.full((1, 3), math.nan), torch.zeros(1, dtype=torch.long))


def test_small_errors_of_many_samples_in_one_bin_are_not_rounded_away():
    """Sums in fp32 lost the digits: 0.0001 instead of 0.0009 at 200,000 images."""
    n = 200_000
    logits, labels = torch.zeros(n, 2), torch.zeros(n, dtype=torch.long)
    logits[:, 0] = 7.0
    error = 1 - 1 / (1 + math.exp(-7))
    measured = quality(2)
    for z, y in zip(logits.split(10_000), labels.split(10_000), strict=True):
        measured.update(z, y)
    found = measured.compute()
    assert float(found["ece"]) == pytest.approx(error, rel=1e-3)
    assert float(found["ece_adaptive"]) == pytest.approx(error, rel=1e-3)


def test_nothing_counted_and_nothing_said():
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert AdaptiveCalibrationError().compute().isnan()
    assert fit_temperature(torch.full((9, 3), 2.0), torch.arange(9) % 3) == 1.0
