import math

import pytest

from kdkit.graph import Schedule, Span
from kdkit.registry import KdkitError


def values(spec, epochs, times):
    curve = Schedule.parse(spec).bind(epochs)
    return [curve(t) for t in times]


def test_a_number_stays():
    assert values(0.3, 10, [0, 5, 9.99]) == [0.3] * 3


def test_linear_and_cosine_end_where_they_should():
    assert values({"linear": [0.9, 0.7]}, 10, [0, 5, 10]) == pytest.approx([0.9, 0.8, 0.7])
    assert values({"cosine": [1.0, 0.0]}, 8, [0, 2, 4, 8]) == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, 0])
    assert values({"linear": {"start": 1, "end": 0, "over": 0.5}}, 10, [2.5, 5, 9]) == pytest.approx([0.5, 0, 0])
    assert values({"linear": {"start": 1, "end": 0, "over": 1}}, 10, [0.5, 1, 9]) == pytest.approx([0.5, 0, 0])


def test_exp_moves_once_an_epoch():
    assert values({"exp": {"start": 0.1, "rate": 0.01}}, 240, [100, 100.9]) == pytest.approx([0.1 * math.exp(-1)] * 2)
    by_step = {"exp": {"start": 0.1, "rate": 0.01, "by": "step"}}
    assert values(by_step, 240, [100.9]) == pytest.approx([0.1 * math.exp(-1.009)])


def test_any_other_may_be_told_to():
    spec = {"linear": {"start": 1, "end": 0, "by": "epoch"}}
    assert values(spec, 10, [0.9, 5.5, 9.9]) == pytest.approx([1, 0.5, 0.1])


def test_step_has_a_floor():
    spec = {"step": {"start": 0.5, "every": 10, "factor": 0.5, "floor": 0.07}}
    assert values(spec, 240, [0, 9.99, 10, 20, 239]) == pytest.approx([0.5, 0.5, 0.25, 0.125, 0.07])


def test_a_drop_at_a_share_that_is_an_epoch_is_in_that_epoch():
    """0.07 · 100 is a hair above 7."""
    for drops in ({"step": {"start": 1, "every": 0.07}}, {"multistep": {"start": 1, "at": [0.07], "factor": 0.5}}):
        assert values(drops, 100, [6.99, 7]) == [1, 0.5]


def test_warmup_leads_into_another_schedule():
    spec = {"warmup": {"to": {"cosine": [0.1, 0.0]}, "over": 5}}
    cosine = Schedule.parse({"cosine": [0.1, 0.0]}).bind(20)
    assert values(spec, 20, [0, 2.5, 5, 12]) == pytest.approx([0, cosine(2.5) / 2, cosine(5), cosine(12)])
    assert values({"warmup": {"to": 1, "over": 4, "start": 0.2}}, 20, [0, 2, 4]) == pytest.approx([0.2, 0.6, 1])


def test_multistep_of_the_cifar_protocol_is_repdistillers():
    spec = {"multistep": {"start": 0.05, "at": [0.625, 0.75, 0.875]}}
    got = values(spec, 240, [0, 149.99, 150, 179.99, 180, 209.99, 210, 239])
    assert got == pytest.approx([0.05, 0.05, 5e-3, 5e-3, 5e-4, 5e-4, 5e-5, 5e-5])


def test_one_cycle_peaks_where_it_should():
    spec = {"one_cycle": {"peak": 0.4, "up": 0.25}}
    assert values(spec, 20, [0, 2.5, 5, 12.5, 20]) == pytest.approx([0, 0.2, 0.4, 0.2, 0.0])
    assert values({"one_cycle": {"peak": 0.4}}, 20, [3, 6, 13]) == pytest.approx([0.2, 0.4, 0.2])
    spec = {"one_cycle": {"peak": 0.4, "start": 0.1, "end": 0.2, "up": 0.5}}
    assert values(spec, 20, [0, 5, 10, 15, 20]) == pytest.approx([0.1, 0.25, 0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"cosin": [1, 0]}, "did you mean 'cosine'"),
        ({"linear": [1]}, r"must be \[start, end\]"),
        ({"linear": {"start": 1, "ende": 0}}, "did you mean 'end'"),
        ({"multistep": {"start": 0.1, "at": [0.5, 0.2]}}, "ascending"),
        ({"multistep": {"start": 0.1, "at": [0, 0.5]}}, "positive times"),
        ({"step": {"start": 0.1, "every": 0}}, "positive"),
        ({"one_cycle": {"peak": 0.1, "up": 0}}, "positive"),
        ({"warmup": {"to": 1}}, "over must be given"),
        ({"warmup": {"to": 1, "over": 0}}, "over must be positive"),
        ({"cosine": {"start": 1, "end": 0, "over": -2}}, "over must be positive"),
        ({"step": {"start": 1, "every": 2, "floor": None}}, "floor must be a finite number, got None"),
        ("fast", "a number or one word"),
        (float("nan"), "finite number"),
        (True, "a number or one word"),
        ({"exp": {"start": 1, "rate": 1, "by": "hour"}}, "'epoch' or 'step'"),
    ],
)
def test_wrong_schedules_say_what_is_right(spec, words):
    with pytest.raises(KdkitError, match=words):
        Schedule.parse(spec)


def test_a_time_that_never_comes_is_refused():
    with pytest.raises(KdkitError, match="150 never comes in a run of 30"):
        Schedule.parse({"multistep": {"start": 0.05, "at": [150, 180]}}).bind(30)
    with pytest.raises(KdkitError, match="30 never comes in a run of 30"):
        Schedule.parse({"multistep": {"start": 0.05, "at": [30]}}).bind(30)
    with pytest.raises(KdkitError, match="never comes"):
        Span.parse({"from": 40}).bind(30)
    with pytest.raises(KdkitError, match="epoch 30 never comes in a run of 30"):
        Span.parse({"from": 30}).bind(30)


def test_extremes_see_both_ends():
    assert Schedule.parse({"linear": [4, -1]}).extremes(10) == pytest.approx((-1, 4), abs=1e-3)


def test_span_in_shares_of_the_run():
    with pytest.raises(KdkitError, match=r"when\.to must be a time of 0 or more, got nan"):
        Span.parse({"to": math.nan})
    assert Span.parse({"from": 0.5, "to": 0.75}).bind(40) == (20, 30)
    assert Span.parse(None).bind(3) == (0, math.inf)
    assert Span.parse({"from": 0, "to": 5}).bind(40) == (0, 5)
    assert Span.parse({"from": 1}).bind(40) == (1, math.inf)
    assert Span.parse({"from": 10, "to": 0.5}).bind(40) == (10, 20)
    with pytest.raises(KdkitError, match="end after it starts"):
        Span.parse({"from": 10, "to": 5})
    with pytest.raises(KdkitError, match="end after it starts, got epochs 20 to 20 of 40"):
        Span.parse({"from": 0.5, "to": 20}).bind(40)
    with pytest.raises(KdkitError, match="did you mean 'from'"):
        Span.parse({"form": 5})


def test_one_cycle_that_only_rises():
    spec = {"one_cycle": {"peak": 0.4, "up": 1}}
    assert values(spec, 1, [0, 0.5, 1]) == pytest.approx([0, 0.2, 0.4])
    assert Schedule.parse(spec).extremes(1) == pytest.approx((0, 0.4))


def test_a_share_that_is_an_epoch_is_that_epoch():
    """0.07 · 100 is a hair above 7: a step of epoch 7 fell between what ends there and what begins there."""
    assert Span.parse({"from": 0.07}).bind(100) == (7, math.inf)
    assert Span.parse({"to": 0.29}).bind(100)[1] == 29
    assert Span.parse({"to": 0.25}).bind(3)[1] == 0.75
