"""Every statistic against a closed form or a known value."""

import math

import numpy as np
import pytest
from scipy import stats as known

from kdkit.bench import stats


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 7, 10, 31])
def test_students_distribution(df):
    for t in (-4.0, -1.5, 0.0, 0.3, 2.0, 12.0):
        assert stats.t_cdf(t, df) == pytest.approx(known.t.cdf(t, df), abs=1e-12)
    for p in (0.025, 0.5, 0.8, 0.975):
        assert stats.t_quantile(p, df) == pytest.approx(known.t.ppf(p, df), abs=1e-7)
    assert stats.t_cdf(math.inf, df) == 1


def test_the_quantile_of_every_textbook():
    assert stats.t_quantile(0.975, 2) == pytest.approx(4.3027, abs=1e-4)
    assert stats.t_quantile(0.975, 4) == pytest.approx(2.7764, abs=1e-4)


def test_holm():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's own steps
    found = stats.holm([0.02, math.nan, 0.9])
    assert found[0] == pytest.approx(0.04)
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.9)
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0]


def test_mean_and_deviation():
    assert stats.spread([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))
    mean, deviation = stats.spread([5.0])
    assert mean == 5
    assert math.isnan(deviation)


def test_images_drawn_anew_have_the_binomial_error():
    right = (np.arange(400) < 300).astype(float)
    drawn = stats.image_draws(np.stack([right, 1 - right]), draws=4000)
    assert drawn[:, 0].mean() == pytest.approx(0.75, abs=2e-3)
    assert drawn[:, 0].std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.05)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)  # both runs see the same images


def test_drawing_in_parts_is_drawing_at_once(monkeypatch):
    right = np.random.default_rng(0).random((3, 50))
    whole = stats.image_draws(right, draws=30)
    monkeypatch.setattr(stats, "AT_ONCE", 50 * 7)
    np.testing.assert_allclose(stats.image_draws(right, draws=30), whole)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_seeds_drawn_anew_have_the_error_of_a_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    weights = stats.seed_draws(n, draws=40_000)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    means = weights @ values
    assert means.std() == pytest.approx(values.std(ddof=1) / math.sqrt(n), rel=0.03)
    assert means.mean() == pytest.approx(values.mean(), abs=0.02)


def test_a_test_over_seeds_alone_is_students():
    """Where all images agree the bootstrap has the error of the paired t-test."""
    values = np.array([0.01, 0.03, 0.02, 0.05])
    weights = stats.seed_draws(4, draws=40_000)
    found = stats.difference(values, np.tile(values, (40_000, 1)), weights)
    expected = known.ttest_1samp(values, 0.0)
    assert found.p == pytest.approx(expected.pvalue, rel=0.05)
    assert found.error == pytest.approx(values.std(ddof=1) / 2, rel=0.03)
    assert found.detectable == pytest.approx((known.t.ppf(0.975, 3) + known.t.ppf(0.8, 3)) * found.error)
    assert (found.mean, found.seeds) == (pytest.approx(0.0275), 4)


def test_one_seed_tests_nothing():
    found = stats.difference(np.array([0.1]), np.full((50, 1), 0.1), stats.seed_draws(1, draws=50))
    assert math.isnan(found.p)
    assert math.isnan(found.detectable)


def test_no_difference_is_rarely_called_one():
    """Under the null, with seeds and images that both vary, 5 % of tests or fewer reject."""
    rng, rejected, trials = np.random.default_rng(0), 0, 200
    weights = stats.seed_draws(3, draws=300)
    for trial in range(trials):
        hard = rng.random(200)
        skill = rng.normal(0.7, 0.02, size=(6, 1))
        right = (hard < skill + rng.normal(0, 0.05, size=(6, 200))).astype(float)
        drawn = stats.image_draws(right, draws=300, seed=trial)
        found = stats.difference((right[:3] - right[3:]).mean(axis=1), drawn[:, :3] - drawn[:, 3:], weights)
        rejected += found.p < 0.05
    assert rejected / trials <= 0.07


def test_the_share_of_the_teachers_lead():
    """Tian et al. 2020, ResNet-56 → ResNet-20: (71.16 − 69.06) / (72.34 − 69.06)."""
    still = np.ones(101)
    found = stats.transfer(0.7116 * still, 0.6906 * still, 0.7234 * still)
    assert found.ratio == pytest.approx(0.64024, abs=1e-5)
    assert (found.low, found.high) == (pytest.approx(found.ratio), pytest.approx(found.ratio))
    noise = np.random.default_rng(0).normal(0, 0.01, 20_001) * (np.arange(20_001) > 0)
    found = stats.transfer(0.71 + noise, np.full_like(noise, 0.69), np.full_like(noise, 0.73))
    assert found.low == pytest.approx(0.5 - 1.96 * 0.25, abs=0.02)
    assert found.high == pytest.approx(0.5 + 1.96 * 0.25, abs=0.02)


def test_a_lead_that_is_none_divides_nothing():
    noise = np.random.default_rng(0).normal(0, 0.01, 500)
    found = stats.transfer(np.full(500, 0.71), np.full(500, 0.70), 0.705 + noise)
    assert math.isnan(found.ratio)
    assert "too close to 0" in found.reason
    behind = stats.transfer(np.full(5, 0.7), np.full(5, 0.7), np.full(5, 0.6))
    assert math.isnan(behind.ratio)
    assert "−10.00 points" in behind.reason
    assert behind.reason.endswith("it has none")


def test_epochs_to_nearly_the_end():
    assert stats.epochs_to([[1, 0.5], [2, 0.9], [3, 0.96], [4, 0.94], [5, 1.0]]) == 3
    assert stats.epochs_to([[10, 0.5]]) == 10
    assert stats.epochs_to([]) is None
