"""The rule of health alone: losses in, verdicts out."""

import math
from dataclasses import asdict

import pytest

import kdkit
from kdkit.graph.health import Rule, Ward
from kdkit.registry import KdkitError


def course(rows, rule=None, chance=4.6, ward=None):
    """The steps of a ward over epochs of losses."""
    ward = ward or Ward(rule or Rule(warmup=2, patience=2, mute=1), chance)
    return [{name: verdict.step for name, verdict in ward.look(row).items() if verdict.step} for row in rows], ward


def falling(n, by=0.8, start=2.0):
    return [start * by**i for i in range(n)]


def test_a_healthy_cohort_is_left_alone_even_where_one_is_far_behind():
    """A small net beside two large ones: an outlier whose own loss falls, and then stands still with the others'."""
    large = [*falling(10), *[0.2] * 10]
    small = [*[1.5 * x + 0.5 for x in falling(10)], *[0.8] * 10]
    steps, _ = course([{"a": x, "b": 1.01 * x, "c": y} for x, y in zip(large, small, strict=True)])
    assert not any(steps)


def test_the_ladder_is_climbed_and_left():
    bad = [{"a": x, "b": 1.02 * x, "c": 5.0} for x in falling(14)]
    steps, ward = course(bad)
    want = {3: {"c": "lower"}, 5: {"c": "roll back"}, 8: {"c": "rebuild"}}
    assert {i: step for i, step in enumerate(steps) if step} == {**want, 13: {"c": "rebuild"}}
    good = [{"a": 0.1, "b": 0.1, "c": 0.1}] * 8
    steps, _ = course(good, ward=ward)
    assert [i for i, step in enumerate(steps) if step == {"c": "well"}] == [4]  # three unjudged, two good
    assert ward.charts["c"].rung == 0


@pytest.mark.parametrize(
    ("mine", "wrong"),
    [
        ([2.0, 1.6, 1.3, 2.1, 2.2, 2.3], "half above its own best"),
        ([2.0, 1.6, 1.5, 1.5, 1.5, 1.5], "stands still while the others' falls"),
        ([2.0, 1.6, 1.4, 4.55, 4.6, 4.6], "no better than chance"),
    ],
)
def test_what_a_bad_loss_is(mine, wrong):
    _, ward = course([])
    verdicts = [ward.look({"a": x, "b": 1.01 * x, "c": y}) for x, y in zip(falling(6, 0.6), mine, strict=True)]
    assert verdicts[-1]["c"].wrong == wrong


@pytest.mark.parametrize(
    ("mine", "by"),
    [
        ([2.0, 1.6, 1.3, 1.25, 1.2, 1.7], 0.6),  # two fifths above its best
        ([2.0, 1.6, 1.5, 1.45, 1.42, 1.4], 0.6),  # slow, but it falls
        ([2.5, 2.5, 2.5, 2.5, 2.5, 2.5], 0.96),  # still, and the others hardly move
    ],
)
def test_what_is_no_bad_loss_though_it_is_an_outliers(mine, by):
    _, ward = course([])
    verdicts = [ward.look({"a": x, "b": 1.01 * x, "c": y}) for x, y in zip(falling(6, by, 1.0), mine, strict=True)]
    assert verdicts[-1]["c"].z > ward.rule.z
    assert verdicts[-1]["c"].wrong == ""


def test_one_bad_epoch_is_none():
    rows = [{"a": x, "b": x, "c": 5.0 if i % 2 else x} for i, x in enumerate(falling(12))]
    steps, _ = course(rows)
    assert not any(steps)


def test_two_peers_suffice_and_one_has_nobody_to_be_measured_by():
    steps, _ = course([{"a": x, "c": 5.0} for x in falling(4)])
    assert steps[3] == {"c": "lower"}
    steps, _ = course([{"c": 5.0}] * 9)
    assert not any(steps)


def test_what_is_not_finite_is_treated_at_once_and_the_second_time_rebuilt():
    nan = {"a": 1.0, "b": 1.0, "c": math.nan}
    steps, _ = course([nan, {"a": 1.0, "b": 1.0, "c": 1.0}, nan])
    assert steps == [{"c": "roll back"}, {}, {"c": "rebuild"}]


def test_z_is_robust_and_against_the_others_alone():
    _, ward = course([dict.fromkeys("abcd", 1.0)] * 3)
    verdict = ward.look({"a": 1.0, "b": 1.3, "c": 1.6, "d": 4.0})["d"]
    assert verdict.z == pytest.approx((4.0 - 1.3) / (1.4826 * 0.3))


def test_z_has_a_floor_and_who_is_not_judged_yet_is_no_measure():
    _, ward = course([{"a": 1.0, "b": 1.0, "c": 1.0}] * 3)
    assert ward.look({"a": 1.0, "b": 1.0, "c": 1.2, "new": 9.0})["c"].z == pytest.approx(2.0)
    assert ward.look({"a": 1.0, "c": 1.2, "new": 9.0})["c"].z == pytest.approx(2.0)


def test_the_ward_goes_on_from_its_state():
    rows = [{"a": x, "b": 1.02 * x, "c": 5.0} for x in falling(14)]
    straight, _ = course(rows)
    for cut in range(1, 14):
        _, first = course(rows[:cut])
        second = Ward(first.rule, first.chance)
        second.load_state_dict(first.state_dict())
        assert course(rows[cut:], ward=second)[0] == straight[cut:]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"patience": 0}, "patience must be a whole number of at least 1, got 0"),
        ({"warmup": 1.5}, "warmup must be a whole number"),
        ({"z": -1}, "z must be above 0"),
        ({"cut": 2}, "cut must lie above 0 and at most at 1"),
        ({"mute": -1, "cut": 2}, "mute must be a whole number of at least 0, got -1; cut must lie"),
    ],
)
def test_a_rule_out_of_range_is_refused(words, said):
    with pytest.raises(KdkitError, match=said):
        kdkit.Health(kdkit.Cohort(), **words)


def test_the_rule_in_a_recipe_is_the_rule_in_python():
    from kdkit.recipe.cohort import health_model

    fields = {field.alias: field.default for field in health_model().model_fields.values()}
    assert fields == asdict(Rule())
