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


def crossed(gains):
    """The mean squares of seeds, images and their interaction by loops over their definition."""
    n, images = gains.shape
    mean, seeds, pictures = gains.mean(), gains.mean(1), gains.mean(0)
    of_seeds = images * sum((value - mean) ** 2 for value in seeds) / (n - 1)
    of_images = n * sum((value - mean) ** 2 for value in pictures) / (images - 1)
    rest = sum((gains[s, i] - seeds[s] - pictures[i] + mean) ** 2 for s in range(n) for i in range(images))
    return of_seeds, of_images, rest / ((n - 1) * (images - 1))


def test_the_error_is_that_of_crossed_random_effects():
    rng = np.random.default_rng(0)
    gains = rng.normal(0, 0.9, (4, 1)) + rng.normal(0, 2, (1, 50)) + rng.normal(0, 0.5, (4, 50)) + 0.4
    s, i, e = crossed(gains)
    found = stats.difference(gains)
    assert s > e
    assert i > e
    assert found.error == pytest.approx(math.sqrt((s + i - e) / 200))
    of_seeds, of_images = known.t.isf(found.p / 2, 3) ** 2, known.t.isf(found.p / 2, 49) ** 2
    assert (s * of_seeds + (i - e) * of_images) / 200 == pytest.approx(gains.mean() ** 2, rel=1e-3)
    assert (found.mean, found.seeds) == (pytest.approx(gains.mean()), 4)


def test_a_test_over_seeds_alone_is_students():
    """Where all images agree it is the paired t-test."""
    values = np.array([0.01, 0.03, 0.02, 0.05])
    found = stats.difference(np.tile(values[:, None], 300))
    expected = known.ttest_1samp(values, 0.0)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.error == pytest.approx(values.std(ddof=1) / 2)


def test_a_test_over_images_alone_is_students():
    """Where all seeds agree, they say no more than one."""
    values = np.random.default_rng(0).normal(0.1, 1, 60)
    found = stats.difference(np.tile(values, (3, 1)))
    assert found.p == pytest.approx(known.ttest_1samp(values, 0.0).pvalue, rel=1e-3)
    assert stats.difference(values[None]).error == pytest.approx(found.error)


def test_seeds_that_differ_less_than_images_let_them_differ_by_that():
    """Three seeds that agree by chance are no proof."""
    gains = np.array([[1.0, -1, 0, 1], [0, 1, 1, -1], [1, 0, -1, 1]])
    s, i, e = crossed(gains)
    assert s < e
    found = stats.difference(gains)
    assert found.error == pytest.approx(math.sqrt((e + max(i - e, 0)) / 12))
    assert found.p == pytest.approx(stats.Error(e / 12, max(i - e, 0) / 12, 3, 4).p(gains.mean()))


def test_one_seed_tests_nothing():
    found = stats.difference(np.array([[0.0, 1, 0, 1]]))
    assert math.isnan(found.p)
    assert math.isnan(found.detectable)


def test_what_never_differs_detects_nothing():
    found = stats.difference(np.zeros((3, 40)))
    assert (found.mean, found.error, found.p) == (0, 0, 1)
    assert math.isnan(found.detectable)
    assert stats.difference(np.ones((3, 40))).p == 0
    assert math.isnan(stats.difference(np.ones((3, 1))).p)


@pytest.mark.parametrize("df", [60, 359, 9999])
def test_quantiles_of_many_degrees_of_freedom(df):
    for p in (0.6, 0.975, 1 - 1e-4, 1 - 1e-9):
        assert stats.quantile(p, df) == pytest.approx(known.t.ppf(p, df), rel=3e-4)


@pytest.mark.parametrize(("n", "tests"), [(2, 1), (3, 1), (3, 28), (5, 11), (41, 28)])
def test_what_seeds_alone_can_detect_is_the_noncentral_ts(n, tests):
    limit = known.t.ppf(1 - 0.025 / tests, n - 1)
    gap = stats.Error(4.0, 0.0, n, 360).detectable(tests)
    assert known.nct.sf(limit, n - 1, gap / 2) == pytest.approx(0.8, abs=2e-3)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_what_can_be_detected_is_found_four_times_out_of_five(n):
    """With both variances known: drawn gaps are judged by drawn spreads of seeds."""
    true, rng = stats.Error(1.0, 2.0, n, 10_000, least=0.5), np.random.default_rng(n)
    limits, draws = true.limits(0.05 / 4), 40_000
    means = true.detectable(4) + rng.normal(0, true.standard, draws)
    asked = np.sqrt(np.maximum(rng.chisquare(n - 1, draws) / (n - 1), 0.5) * limits[0] + 2.0 * limits[1])
    assert (means > asked).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("parts", [(1, 0.2, 0.05), (1, 1, 0.3), (1, 0.01, 0), (0, 1, 0.3), (0.3, 0.3, 1)])
def test_no_level_is_exceeded_whatever_varies(n, parts):
    """Mean squares drawn as of normal seeds, images and interactions, also at the level that Holm's first step asks."""
    rng, draws, size = np.random.default_rng(0), 100_000, 2000
    seeds, images, rest = parts
    s = (seeds + rest) * rng.chisquare(n - 1, draws) / (n - 1)
    added = np.maximum((images + rest) * rng.chisquare(size - 1, draws) / (size - 1) - rest, 0)
    means = rng.normal(0, math.sqrt(sum(parts)), draws)
    for level in (0.05, 0.05 / 28):
        of_seeds, of_images = stats.Error(1, 1, n, size).limits(level)
        for least in (0, rest):
            rejected = (means**2 > np.maximum(s, least) * of_seeds + added * of_images).mean()
            assert rejected <= level + 2.5 * math.sqrt(level / draws)


def drawn(rng, n, skills, images=200):
    """Rights and wrongs of two methods: images that are hard for all, or for one, and seeds that differ."""
    hard = rng.normal(size=images)
    own = (rng.normal(0, 0.2, images) for _ in skills)
    return [
        0.8 + s + rng.normal(0, 0.15, (n, 1)) + rng.normal(0, 0.5, (n, images)) + o > hard
        for s, o in zip(skills, own, strict=True)
    ]


@pytest.mark.parametrize("n", [2, 3, 5])
def test_no_difference_is_rarely_called_one(n):
    """Under the null, with seeds and images that both vary, 5 % of tests or fewer reject; of five not far fewer."""
    rng, trials = np.random.default_rng(n), 250
    pairs = (drawn(rng, n, (0, 0)) for _ in range(trials))
    found = [stats.difference(a.astype(float) - b).p < 0.05 for a, b in pairs]
    assert np.mean(found) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)
    assert np.mean(found) > (0.015 if n == 5 else -1)


def test_the_error_is_the_error():
    """Of means over runs of their own, which the estimates are on average, within a few percent."""
    rng = np.random.default_rng(1)
    found = [stats.difference(a.astype(float) - b) for a, b in (drawn(rng, 5, (0, 0)) for _ in range(250))]
    true = np.std([one.mean for one in found])
    assert math.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(true, rel=0.15)


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
