"""Numbers that are not finite in a watched cohort: a bad batch is nobody's sickness."""

import pytest

import kdkit
from kdkit.train.meters import NonFiniteLossError
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
