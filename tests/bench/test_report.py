"""The page of a suite: one file, whole, escaped, which asks nobody for anything."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from kdkit.bench import plots
from kdkit.bench.page import page, write_report
from kdkit.bench.rows import append
from kdkit.bench.table import blocks
from tests.bench.test_table import grid, row

EMPTY = {"meta", "input", "br", "link"}


class Tags(HTMLParser):
    """Every tag is closed by its own."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.ids = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    return tags


def test_the_page_is_whole_and_stands_alone():
    text = page(blocks([*grid(), *grid(fingerprint="g", epochs=30)]))
    tags = parsed(text)
    assert len(set(tags.ids)) == len(tags.ids)
    names = [tag for tag, _ in tags.seen]
    assert (names.count("svg"), names.count("table"), names.count("input")) == (4, 2, 6)
    assert not {"link", "img", "iframe"} & set(names)
    assert not [value for _, attrs in tags.seen for word, value in attrs.items() if word in ("src", "href", "action")]
    assert re.findall(r"url\((?!#)", text) == []
    assert {"viewport", "Content-Security-Policy"} <= {a.get("name", a.get("http-equiv")) for _, a in tags.seen}
    assert "prefers-color-scheme: dark" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        tree = ElementTree.fromstring(svg)
        assert "viewBox" in tree.attrib
        assert "width" not in tree.attrib
        used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
        assert used <= set(re.findall(r'id="([^"]+)"', svg))
        assert {f"line-{i}" for i in range(3)} == set(re.findall(r'class="(line-\d+)"', svg))
    assert "70.70 ± 0.10" in text
    assert page(blocks(grid())) == page(blocks(grid()))


def test_a_name_fades_by_its_own_box_alone():
    text = page(blocks(grid()))
    assert re.findall(r"([\w.-]*):not\(:checked\) ~", text) == ["input"]  # by any sibling, all but the first


def test_what_rows_say_is_no_code():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)> $\\frac$ &"
    words = {"pair": evil, "protocol": evil, "commit": evil, "recipe": f"losses: ['{evil}']\n"}
    rows = [{**one, **words, "method": evil} if one["method"] == "kd" else {**one, **words} for one in grid()]
    text = page(blocks(rows))
    tags = parsed(text)
    assert [tag for tag, _ in tags.seen].count("script") == 1
    assert "<img" not in text
    assert not [attrs for _, attrs in tags.seen if "onerror" in attrs]


def test_bands_are_means_and_deviations_of_common_epochs():
    epochs, mean, deviation = plots.band([[[1, 0.1], [2, 0.2], [3, 0.5]], [[1, 0.3], [3, 0.7]]])
    assert epochs == [1, 3]
    np.testing.assert_allclose(mean, [20, 60])
    np.testing.assert_allclose(deviation, [np.sqrt(200)] * 2)
    assert plots.band([[[1, 0.5]]])[2] is None
    assert plots.band([])[0] == []
    assert plots.band([[[1, 0.5]], [[2, 0.5]]])[0] == []


def test_names_of_points_stand_apart_and_a_long_one_is_cut():
    block = blocks(grid())[0]
    lines = [replace(block.lines[0], method=name) for name in [*"abcdefgh", "a_name_without_an_end_" * 9]]
    axes, _ = plots._axes("minutes", "top-1")
    axes.plot([block.lines[0].minutes], [80.0])
    plots._name(axes, replace(block, lines=lines))
    assert len({text.xyann for text in axes.texts}) == len(lines)  # all are of one point
    assert max(len(text.get_text()) for text in axes.texts) == plots.LONGEST


def test_runs_without_minutes_or_curves_still_have_a_page():
    rows = [{**one, "minutes": None, "curve": []} for one in grid()]
    parsed(page(blocks(rows)))
    parsed(page(blocks([row("student", 0, 0.7, minutes=0.001), row("kd", 0, 0.7, minutes=60.0)])))


def test_a_suites_page_has_its_own_rows(tmp_path):
    rows, path = tmp_path / "rows.jsonl", tmp_path / "report.html"
    assert write_report("s", rows, path) is None
    for one in [*grid(), row("other", 0, 0.5, suite="t")]:
        append(rows, one)
    assert write_report("s", rows, path) == path
    text = path.read_text()
    assert ">kd<" in text
    assert ">other<" not in text
    assert write_report("t", rows, path, {("kd1", "f")}) == path  # which stood already when it wanted it
    assert ">kd<" in path.read_text()
    assert ">student<" not in path.read_text()
    assert write_report("u", rows, tmp_path / "none.html") is None
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize("n", [1, 17])
def test_every_line_has_a_colour(n):
    (made,) = blocks([row(f"m{i}", 0, 0.5) for i in range(n)])
    assert page([made]).count("<label>") == n
