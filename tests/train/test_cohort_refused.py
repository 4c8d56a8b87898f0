"""Plans of a cohort, and words by hand, that cannot be."""

import pytest

import kdkit
from kdkit.registry import KdkitError
from tests.train.test_cohort import Each, trained


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"join": {"d": {"epoch": 1}}}, r"cohort\.join\.d: no trained model is called 'd'"),
        ({"join": {"c": {"epcoh": 1}}}, r"cohort\.join\.c: must say when"),
        ({"join": {"c": {"epoch": 1, "warmpu": 1}}}, r"warmpu: unknown word 'warmpu'; did you mean 'warmup'\?"),
        ({"leave": {"c": {"epoch": 9}}}, "epoch 9 never comes in a run of 2 epochs"),
        ({"leave": {"c": {"epoch": 0}}}, "epoch 0 is the beginning; give a later one"),
        ({"leave": {"c": None}}, r"cohort\.leave\.c: must say when"),
        ({"ramp": -1}, r"cohort\.ramp: must be a time of 0 or more, got -1"),
        ({"join": {n: {"epoch": 1} for n in "abc"}}, "a, b, c all come later"),
        ({"leave": {n: {"epoch": 1} for n in "abc"}}, "nobody is left at epoch 1"),
        ({"join": {"c": {"epoch": 1.5}}, "leave": {"c": {"epoch": 0.5}}}, "c leaves at epoch 1, but joins at 1.5;"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(words, said):
    with pytest.raises(KdkitError, match=said):
        trained(kdkit.Cohort(**words), epochs=2)


def test_models_on_ranks_of_their_own_neither_come_nor_go():
    with pytest.raises(KdkitError, match="leave `place` out"):
        trained(kdkit.Cohort(), place=dict.fromkeys("abc", 0))


@pytest.mark.parametrize(
    ("tell", "said"),
    [
        (lambda cohort: cohort.join("d"), r"cohort\.join: no trained model is called 'd'"),
        (lambda cohort: cohort.join("a"), "'a' takes part already"),
        (lambda cohort: [cohort.leave("a"), cohort.leave("a")], "'a' takes no part, or leaves already; b do"),
        (lambda cohort: [cohort.leave("a"), cohort.leave("b")], "'b' is the last one"),
    ],
)
def test_what_cannot_be_told_by_hand_is_refused(tell, said):
    cohort = kdkit.Cohort()
    with pytest.raises(KdkitError, match=said):
        trained(cohort, Each(lambda *_: tell(cohort)), names="ab", epochs=1)
    with pytest.raises(KdkitError, match="nobody trains now"):
        kdkit.Cohort().join("a")
