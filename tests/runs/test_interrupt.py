"""Ctrl-C wherever it falls."""

import signal
from time import monotonic, sleep

import pytest

from kdkit.bench.job import _Once
from kdkit.runs.folder import RunFolder
from kdkit.runs.interrupt import Interrupted, interruptible


class Left:
    """What Python clears away just when somebody presses Ctrl-C."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("answer", [signal.default_int_handler, _Once()])
def test_ctrl_c_in_a_destructor_is_not_lost(tmp_path, answer):
    """Python drops what is raised there: one stop of a suite in a hundred was."""
    signal.signal(signal.SIGINT, answer)
    end = monotonic() + 20
    with pytest.raises(Interrupted), interruptible(RunFolder(tmp_path)):  # noqa: PT012
        Left()
        while monotonic() < end:
            sleep(0.01)
    assert signal.getsignal(signal.SIGINT) is answer


def test_other_exceptions_of_destructors_are_told_as_ever(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("sys.unraisablehook", told.append)

    class Broken:
        def __del__(self):
            raise ZeroDivisionError

    with interruptible(RunFolder(tmp_path)):
        Broken()
    assert [one.exc_type for one in told] == [ZeroDivisionError]
