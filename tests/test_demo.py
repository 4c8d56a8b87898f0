"""The first thing that anybody runs."""

import sys

import pytest

from benchmarks import demo


def test_ctrl_c_is_one_line_that_says_how_it_goes_on(tmp_path, monkeypatch, capsys):
    def stopped(recipe, out, resume):
        raise KeyboardInterrupt(f"{out} holds the run so far")

    monkeypatch.setattr(demo, "fit", stopped)
    monkeypatch.setattr(sys, "argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        demo.main()
    assert caught.value.code == 130
    said = capsys.readouterr().out
    assert said == f"stopped. {tmp_path}/teacher_digits-seed0 holds the run so far; the same command goes on\n"
