"""The picture of beliefs by depth: from a run of a cascade, and from rows."""

import matplotlib.figure
import pytest

from kdkit.recipe import loads
from kdkit.runs.depth import by_depth, draw_depth
from kdkit.runs.fit import fit

pytestmark = pytest.mark.drawn
RECIPE = """
models: {student: {arch: sid, options: {backbone: {arch: resnet8, widths: [4, 4, 8, 16]}, modules: 3}}}
losses: [%s]
data: {name: digits, image_size: 8, subset: 64, batch_size: 32}
optimizer: {name: sgd}
lr: 0.05
trainer: {max_epochs: 2, accelerator: cpu}
"""


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    found, save = [], matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda self, *a, **k: (found.append(self), save(self, *a, **k))
    )
    return found


def test_a_run_of_a_cascade_leaves_its_picture_and_another_takes_it_away(tmp_path):
    folder = fit(loads(RECIPE % "sid"), out=tmp_path / "run").folder
    assert folder.beliefs.read_bytes().startswith(b"\x89PNG")
    header = folder.metrics.read_text().splitlines()[0].split(",")
    assert {"monitor/student/sid/accuracy/1", "monitor/student/sid/improved/3", "monitor/student/sid/slack"} <= {
        *header
    }
    fit(loads(RECIPE % "ce"), out=tmp_path / "run", overwrite=True)
    assert not folder.beliefs.exists()


def test_a_panel_for_each_word_and_a_line_for_some_epochs(tmp_path, drawn):
    words = {"accuracy": 0.5, "entropy": 2.0}
    rows = {
        epoch: {f"monitor/a/sid/{word}/{i}": v + i * epoch for word, v in words.items() for i in range(1, 12)}
        | {"monitor/a/sid/slack": 0.1, "loss/sid": 3.0}
        for epoch in range(1, 10)
    }
    assert by_depth(rows)["a sid"]["entropy"][2] == [2.0 + 2 * i for i in range(1, 12)]
    draw_depth(rows, tmp_path / "beliefs.png", "title")
    panels = drawn[0].axes
    assert [axes.get_title() for axes in panels] == ["accuracy", "entropy"]
    assert [axes.get_ylabel() for axes in panels] == ["a sid\nshare of images", "nats, mean over images"]
    assert [line.get_label() for line in panels[0].lines] == [f"epoch {epoch}" for epoch in (1, 3, 5, 7, 9)]
    assert list(panels[1].lines[-1].get_ydata()) == [2.0 + 9 * i for i in range(1, 12)]


def test_isolated_stages_end_at_marks(tmp_path, drawn):
    """Three stages of two modules: a line behind the second and one behind the fourth, in every panel."""
    isolated = RECIPE.replace("modules: 3", "modules: 2, isolate: [layer1, layer2]").replace("_epochs: 2", "_epochs: 1")
    fit(loads(isolated % "sid"), out=tmp_path / "run")
    panels = drawn[-1].axes
    assert len(panels) == 4
    for axes in panels:
        assert [list(line.get_xdata()) for line in axes.lines if line.get_linestyle() == ":"] == [[2.5] * 2, [4.5] * 2]
        assert [(text.get_text(), text.get_position()[0]) for text in axes.texts] == [("layer1", 2.5), ("layer2", 4.5)]
    assert len(axes.lines[0].get_xdata()) == 6


def test_nothing_is_drawn_where_nothing_is_told(tmp_path):
    draw_depth({1: {"loss/ce": 1.0, "monitor/a/sid/slack": 0.0}}, tmp_path / "beliefs.png", "title")
    assert not list(tmp_path.iterdir())
