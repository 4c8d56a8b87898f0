"""The picture of a run: looked at through matplotlib's own objects."""

import math

import pytest
from matplotlib.figure import Figure

from kdkit.runs.curves import draw_curves


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """`drawn(epochs, nodes)` draws and gives the two axes."""
    figures = []
    save = Figure.savefig

    def keep(figure, *arguments, **words):
        save(figure, *arguments, **words)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", keep)

    def draw(epochs, nodes=("student",), loss=1.0):
        rows = {e: {"loss/ce": loss, **{f"val/{n}/top1": 0.1 * e for n in nodes}} for e in range(1, epochs + 1)}
        rows[1]["val/teacher/top1"] = 0.9
        draw_curves(rows, tmp_path / "curves.png", "r", ["teacher"])
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


@pytest.mark.parametrize(("loss", "scale"), [(1.0, "log"), (-1.0, "linear"), (0.0, "linear"), (math.nan, "log")])
def test_losses_are_drawn_logarithmically_where_that_is_possible(drawn, loss, scale):
    assert drawn(2, loss=loss)[0].get_yscale() == scale
