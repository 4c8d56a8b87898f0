"""The picture of a run: looked at through matplotlib's own objects."""

import math

import pytest
from matplotlib.figure import Figure

from kdkit.graph.span import Span
from kdkit.runs.curves import draw_curves
from kdkit.runs.events import Told, there, without_absent
from kdkit.runs.moments import moments


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """`drawn(epochs, nodes)` draws and gives the two axes."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **words):
        save(figure, *arguments, **words)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(epochs, nodes=("student",), loss=1.0, events=(), losses=("ce",), stages=()):
        terms = {f"loss/{name}": loss for name in losses}
        rows = {e: {**terms, **{f"val/{n}/top1": 0.1 * e for n in nodes}} for e in range(1, epochs + 1)}
        rows[1]["val/teacher/top1"] = 0.9
        draw_curves(rows, tmp_path / "curves.png", "r", ["teacher"], events, moments(events, stages, epochs))
        assert (tmp_path / "curves.png").stat().st_size > 0
        return figures[-1].axes

    return draw


@pytest.mark.parametrize("nodes", [("student",), ("a", "b")])
@pytest.mark.parametrize("epochs", [1, 5])
def test_students_are_curves_and_teachers_are_levels(drawn, epochs, nodes):
    right = drawn(epochs, nodes)[1]
    styles = {line.get_label(): line.get_linestyle() for line in right.lines}
    assert styles == {**dict.fromkeys(nodes, "-"), "teacher": "--"}
    points = {line.get_label(): list(line.get_xdata()) for line in right.lines}
    assert all(points[node] == list(range(1, epochs + 1)) for node in nodes)
    assert all(line.get_marker() == "o" for line in right.lines if line.get_label() in nodes)


@pytest.mark.parametrize("epochs", [1, 2, 5, 240])
def test_epochs_are_whole(drawn, epochs):
    for axes in drawn(epochs):
        low, high = axes.get_xlim()
        ticks = [t for t in axes.get_xticks() if low <= t <= high]
        assert ticks
        assert all(t == round(t) for t in ticks)


def test_the_legend_covers_no_curve(drawn):
    for axes in drawn(5):
        renderer = axes.figure.canvas.get_renderer()
        assert axes.get_legend().get_window_extent(renderer).y1 < axes.get_window_extent(renderer).y0


LONG = "losses/of/my/own/with_a_very_long_file_name.py:CorrelationOfEverythingWithEverythingLoss"


@pytest.mark.parametrize("names", [["a", "b"], [f"student_of_class_{i}" for i in range(9)], [LONG]])
def test_every_name_is_in_the_picture_and_beside_the_others(drawn, names):
    left, right = drawn(2, names, losses=names)
    renderer = left.figure.canvas.get_renderer()
    first, second = (axes.get_legend().get_window_extent(renderer) for axes in (left, right))
    whole = left.figure.bbox
    assert not first.overlaps(second)
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 for box in (first, second))
    assert all(axes.get_window_extent(renderer).width > whole.width / 3 for axes in (left, right))


@pytest.mark.parametrize(("loss", "scale"), [(1.0, "log"), (-1.0, "linear"), (0.0, "linear"), (math.nan, "log")])
def test_losses_are_drawn_logarithmically_where_that_is_possible(drawn, loss, scale):
    assert drawn(2, loss=loss)[0].get_yscale() == scale


def test_who_is_not_there_has_no_curve_and_what_happened_is_marked(drawn):
    moves = [(1, "b", "joins"), (3, "a", "leaves"), (3, "b", "roll back"), (4, "a", "gone")]
    events = [Told(*move, "") for move in moves]
    for axes in drawn(6, ("a", "b", "c"), events=events):
        marks = [text.get_text() for text in axes.texts]
        assert marks == ["b joins", "a leaves, b roll back", "a gone"]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [1, 3, 4]
    points = {line.get_label(): list(line.get_xdata()) for line in axes.lines if line.get_label() in "abc"}
    assert points == {"a": [1, 2, 3, 4], "b": [2, 3, 4, 5, 6], "c": [1, 2, 3, 4, 5, 6]}
    assert there(events) == {"a": "epochs 0–4", "b": "epochs 1–"}


def test_where_stages_begin_is_marked(drawn):
    """After the epochs that are over by then: a share of the run, or epochs; the run's own beginning is none."""
    stages = [("guided", {"to": 0.25}), ("told", Span(0.25, 0.5)), ("alone", {"from": 0.5})]
    events = [Told(4, "b", "joins", "")]
    for axes in drawn(8, ("a", "b"), events=events, stages=stages):
        assert [text.get_text() for text in axes.texts] == ["told", "alone, b joins"]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] == [2, 4]
    assert moments((), [("late", {"from": 3})], 8) == [(3, "late")]
    long = drawn(8, stages=[("a" * 60 + "z", {"from": 2})])[0].texts[0].get_text()
    assert len(long) == 40
    assert long.endswith("z")


def test_who_came_back_was_away_between():
    events = [Told(2, "a", "gone", ""), Told(3.5, "a", "joins", "")]
    rows = without_absent({e: {"val/a/top1": 0.1, "loss/ce": 1.0} for e in range(1, 6)}, events)
    assert [e for e, row in rows.items() if "val/a/top1" in row] == [1, 2, 4, 5]
    assert all("loss/ce" in row for row in rows.values())
    assert there(events) == {"a": "epochs 0–2, 3.5–"}


def test_who_is_not_there_has_no_rate_either():
    rows = {1: {"val/b/top1": 0.1, "lr/b": 0.1, "loss/ce": 1.0}}
    assert without_absent(rows, [Told(1, "b", "joins", "")]) == {1: {"loss/ce": 1.0}}
