"""A run's page: one well-formed file that asks no network and says nothing unescaped."""

import json
import re
from html.parser import HTMLParser

import pytest

from kdkit.registry import KdkitError
from kdkit.report.charts import charts, gradient_charts
from kdkit.report.gather import gather
from kdkit.report.links import arrows, ends
from kdkit.report.page import page, write_report
from tests.cli.command import kdkit, refused
from tests.report.making import EVIL, RICH, run

VOID = {"meta", "img", "br", "input", "hr", "link"}


class Reader(HTMLParser):
    """Elements with their attributes, and whether what was opened was closed in order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.texts, self.wrong = [], [], {}, []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def read(text):
    reader = Reader()
    reader.feed(text)
    reader.close()
    return reader


@pytest.fixture(scope="module", params=["plain", "hostile"])
def made(request, tmp_path_factory):
    folder = run(tmp_path_factory.mktemp("run") / "rich", word=EVIL if request.param == "hostile" else "nothing")
    return request.param, folder, write_report(folder).read_text(encoding="utf-8")


def test_it_is_well_formed(made):
    reader = read(made[2])
    assert not reader.wrong
    assert not reader.open
    ids = [attrs["id"] for _, attrs in reader.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert made[2].startswith("<!doctype html>")


def test_it_asks_no_network(made):
    reader = read(made[2])
    for tag, attrs in reader.elements:
        assert tag not in ("link", "iframe", "base", "object", "embed", "form"), tag
        for word in ("src", "href", "srcset", "action", "background"):
            assert attrs.get(word, "data:").startswith("data:"), (tag, attrs)
    policy = next(attrs["content"] for tag, attrs in reader.elements if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert "http" not in policy
    styles = "".join(reader.texts["style"])
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles)
    script = "".join(reader.texts["script"])
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|importScripts|\beval\(", script)
    assert re.findall(r"https?://[^\s)]+", script) == ["https://github.com/leeoniya/uPlot"]  # whose it is


def test_what_a_run_says_is_text_and_nothing_else(made):
    word, _, text = made
    reader = read(text)
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("script") == 2
    assert tags.count("img") == 1  # the one picture that is there
    assert not any(name.startswith("on") for _, attrs in reader.elements for name in attrs)
    if word == "hostile":
        assert EVIL in "".join(reader.texts["dd"])  # it is shown all the same
    numbers = json.loads(next(t for t in reader.texts["script"] if t.startswith('{"epochs"')))
    assert numbers["epochs"] == list(range(1, 61))


def test_no_folder_of_this_machine_is_told(made):
    assert "secret" not in made[2]
    assert "weights: assistant.pth" in made[2]


def test_it_says_what_the_run_came_to(made):
    text = made[2]
    for part in ("72.34 %", "69.12 %", "best epoch 57: 69.55 %", "75 minutes", "0123456789ab+", "seed 3", "uPlot"):
        assert part in text
    assert "Copyright (c)" in text  # the library's licence travels with it
    assert text.count("data:image/png;base64,") == 1


def test_every_edge_of_the_recipe_is_an_arrow(tmp_path):
    told = gather(run(tmp_path / "run"))
    found = {(a.name, a.sources, a.target): a for a in arrows(told.recipe)}
    assert set(found) == {
        ("ce", ("labels",), "student"),
        ("ce", ("labels",), "peer"),
        ("kd", ("teacher",), "student"),
        ("at", ("teacher",), "student"),
        ("hint", ("teacher",), "student"),
        ("fading", ("assistant",), "student"),
        ("dml", ("student",), "peer"),
        ("dml", ("peer",), "student"),
        ("from_slow", ("slow",), "student"),
        ("CorrelationLoss", ("teacher",), "student"),  # its code is gone: as its words say
    }
    assert found["hint", ("teacher",), "student"].taps == "stage2 → layer2.1"
    assert found["at", ("teacher",), "student"].weight == "share 0.3"
    fading = found["fading", ("assistant",), "student"]
    assert (fading.weight, fading.when) == ("cosine 1→0", "from 10 to 40")
    svg = page(told)
    assert svg.count("⇄ logits") == 2  # one arrow for both peers, and what it says when it is pointed at
    assert "kd from teacher to student" in svg


def test_ensembles_draw_one_arrow_from_all(tmp_path):
    words = {
        "models": {"t1": {"arch": "a", "frozen": True}, "t2": {"arch": "a", "frozen": True}, "s": {"arch": "b"}},
        "losses": [{"kd": {"from": ["t1", "t2"], "ensemble": "arithmetic"}}],
    }
    (arrow,) = arrows(words)
    assert (arrow.sources, arrow.target) == (("t1", "t2"), "s")


def test_charts_hold_the_numbers_of_the_run():
    rows = {
        1: {"val/s/top1": 0.5, "val/t/top1": 0.9, "loss/kd": 100.0, "loss/ce": 2.0, "lr/s": 0.1, "gradient/kd": 0.3},
        2: {"val/s/top1": 0.6, "loss/kd": 50.0, "loss/ce": 1.0, "lr/s": 0.01, "gradient/kd": 0.4},
    }
    found = {chart.title: chart for chart in charts(rows, ["t"], ["t", "s"], ["ce", "kd"])}
    assert found["Accuracy"].series == {"t": [90.0, 90.0], "s": [50.0, 60.0]}
    assert found["Accuracy"].levels == ("t",)
    assert found["Loss terms"].series == {"ce": [2.0, 1.0], "kd": [100.0, 50.0]}
    assert found["Loss terms"].log
    assert found["Learning rate"].series == {"s": [0.1, 0.01]}
    assert found["Learning rate"].colours == (1,)  # the student's everywhere
    assert found["gradient"].series == {"kd": [0.3, 0.4]}  # whatever else a run notes by epoch


def test_shares_and_angles_of_gradients_are_drawn(tmp_path):
    folder = run(tmp_path / "run", epochs=3, compare=False)
    rows = [
        "epoch,model,loss,norm,share,cosine ce,cosine kd",
        "1,student,ce,1.0,0.25,,-0.5",
        "1,student,kd,3.0,0.75,-0.5,",
        "3,student,ce,1.0,0.4,,0.2",
        "3,student,kd,1.5,0.6,0.2,",
    ]
    (folder / "gradients.csv").write_text("\n".join(rows) + "\n")
    shares, angles = gradient_charts(gather(folder).gradients, [1, 2, 3], ["ce", "kd"])
    assert shares.series == {"ce": [25.0, None, 40.0], "kd": [75.0, None, 60.0]}
    assert angles.series == {"ce and kd": [-0.5, None, 0.2]}  # each pair once
    assert "Do losses pull together? student" in page(gather(folder))
    (folder / "gradients.csv").write_text("epoch,model,loss\n1,student,ce\n")
    assert "gradients.csv of run is damaged" in refused("report", folder)


def test_a_cohort_is_told(tmp_path):
    folder = run(tmp_path / "r", compare=False)
    (folder / "cohort.csv").write_text('epoch,model,what,why\n12,peer,joins,planned\n40,student,roll back,"<b>"\n')
    told = gather(folder)
    assert [e for e, row in told.rows.items() if "val/peer/top1" in row] == list(range(13, 61))
    made = page(told)
    assert "<h2>Cohort</h2>" in made
    assert "<td>roll back</td><td>&lt;b&gt;</td>" in made
    assert "66.00 %, epochs 12–" in made
    (folder / "cohort.csv").write_text("epoch,model,what,why\nx,peer,joins,planned\n")
    with pytest.raises(KdkitError, match=r"cohort\.csv is damaged"):
        gather(folder)


def test_stages_and_who_comes_are_marked_on_the_curves(tmp_path):
    stages = f"stages: [{{name: first, when: {{to: 0.5}}}}, {{name: {json.dumps(EVIL)}, when: {{from: 0.5}}}}]\n"
    assert "goes or is treated" not in page(gather(run(tmp_path / "plain", compare=False)))
    folder = run(tmp_path / "r", recipe=RICH + stages, compare=False)
    (folder / "cohort.csv").write_text("epoch,model,what,why\n12.5,peer,joins,planned\n")
    made = page(gather(folder))
    (numbers,) = read(made).texts["script"][:1]
    assert "goes or is treated" in made  # what the script says of itself is another sentence
    assert json.loads(numbers)["marks"] == [[12.5, "peer joins"], [30, EVIL]]
    for wrong in ("stages: [3]\n", "stages: [{name: a, when: {from: x}}]\n"):
        (folder / "recipe.yaml").write_text(RICH + wrong)
        with pytest.raises(KdkitError):
            page(gather(folder))


def test_an_unfinished_run_has_a_page_too(tmp_path):
    folder = run(tmp_path / "half", finished=False, compare=False, epochs=7)
    text = write_report(folder).read_text()
    assert "not finished: 7 of 60 epochs" in text
    assert "69.00 %" in text  # top-1 of the last whole epoch


def test_each_kind_of_number_has_its_chart():
    """Of a cascade and a cohort: not one chart for whatever begins alike."""
    row = {f"gradient/{model}/{word}": 1.0 for model in "ab" for word in ("mean", "max", "spike")}
    row |= {f"monitor/a/sid/accuracy/{i}": 0.5 for i in range(1, 19)} | {"monitor/a/sid/slack": 0.1}
    row |= {"health/mci/a/b": 0.1, "health/mci/b/a": 0.2, "health/nll/a": 1.0, "own/x": 1.0, "weight/ce": 0.1}
    found = {chart.title: chart for chart in charts({1: row, 2: row | {"weight/at": 900.0}}, [], ["a", "b"], ["ce"])}
    assert {title: list(chart.series) for title, chart in found.items()} == {
        "Weights of losses": ["ce", "at"],
        "Norms of gradients": ["a", "b"],
        "Largest norms of gradients": ["a", "b"],
        "What losses tell of themselves": ["a/sid/slack"],
        "Loss of the cohort": ["a"],
        "Divergence": ["a/b", "b/a"],
        "own": ["x"],
    }
    assert found["Weights of losses"].log


def test_numbers_that_are_none_are_left_out(tmp_path):
    folder = run(tmp_path / "nan", epochs=2)
    metrics = folder / "metrics.csv"
    metrics.write_text(metrics.read_text().replace(",900,", ",nan,"))
    assert not [c for c in charts(gather(folder).rows, [], [], []) if c.title == "Weights of losses"]
    assert "NaN" not in re.search(r'id="numbers">(.*?)</script>', page(gather(folder)))[1]


def test_gradients_that_are_none_and_a_comparison_of_other_kinds(tmp_path):
    folder = run(tmp_path / "nan", epochs=1)
    lines = "epoch,model,loss,norm,share,cosine ce,cosine kd\n1,student,ce,0,nan,,nan\n1,student,kd,1,1,nan,\n"
    (folder / "gradients.csv").write_text(lines)
    assert kdkit("report", folder).code == 0
    (folder / "compare" / "compare.json").write_text('{"models": 3}')
    assert "compare.json is damaged" in refused("report", folder)
    (folder / "compare" / "compare.json").write_text('{"students": {"s": 1}}')
    assert "compare.json is damaged" in refused("report", folder)


def test_the_verb_and_what_it_refuses(tmp_path):
    folder = run(tmp_path / "mine", compare=False, epochs=2)
    said = kdkit("report", folder, "--out", tmp_path / "page.html")
    assert (said.code, said.out) == (0, f"wrote {tmp_path / 'page.html'}\n")
    assert "<h2>Figures</h2>" not in (tmp_path / "page.html").read_text()
    assert "is not a run's folder" in refused("report", tmp_path)
    assert "holds no compare.json" in refused("report", folder, "--compare", tmp_path)
    (folder / "metrics.csv").write_text("epoch,step\nx,1\n")
    assert "metrics.csv is damaged" in refused("report", folder)
    (folder / "metrics.csv").unlink()
    assert "has no whole epoch yet" in refused("report", folder)
    broken = run(tmp_path / "broken", compare=False, epochs=2)
    (broken / "eval.json").write_text("[1]")
    with pytest.raises(KdkitError, match=r"eval\.json cannot be read"):
        gather(broken)


def test_a_weight_that_moved_is_drawn_as_it_was_last_above_the_recipes(tmp_path):
    folder = run(tmp_path / "run", epochs=2)
    metrics = folder / "metrics.csv"
    head, first, last = metrics.read_text().splitlines()
    lines = (f"{head},weight/fading,weight/ce,weight/dml", f"{first},1,0.1,3", f"{last},0.25,0.10000000149,")
    metrics.write_text("\n".join(lines))
    drawn = re.findall(r"<g><title>(.*?)</title>(.*?)</g>", page(gather(folder)))
    said = {title.partition(":")[0]: (title, re.findall(r">([^<>]+)</text>", text)) for title, text in drawn}
    assert said["at"] == ("at: weight 900, recipe: share 0.3, stages", ["at × 900", "recipe: share 0.3", "stages"])
    assert said["fading"][1] == ["fading × 0.25", "recipe: cosine 1→0", "logits · from 10 to 40"]
    assert said["dml"][1] == ["dml × 3", "recipe: 1", "⇄ logits"]
    assert said["ce"][1] == ["ce × 0.1", "logits"]  # which float32 says a little otherwise
    assert said["kd"][1] == ["kd × 0.9", "logits"]


def test_a_run_that_goes_on_says_so(tmp_path):
    text = page(gather(run(tmp_path / "run", epochs=12, finished=False)))
    assert "not finished: 12 of 60 epochs" in text
    assert "top-1 after epoch 12<" in text
    assert "after the last epoch" not in text


def test_a_recipe_with_one_model_and_one_loss(tmp_path):
    recipe = "models:\n  net: {arch: resnet8}\nlosses:\n- ce: {}\n" + RICH[RICH.index("data:") :]
    text = write_report(run(tmp_path / "one", recipe=recipe, compare=False, epochs=1)).read_text()
    assert not read(text).wrong
    assert "ce from labels to net" in text


def test_probes_and_sizes_and_what_a_comparison_says_in_numbers(tmp_path):
    folder = run(tmp_path / "run", epochs=2)
    its = {"linear": 0.7123, "knn": 0.65, "held_out": 0.7, "decay": 0.001, "features": 64}
    (folder / "probe.json").write_text(json.dumps({"stl10": {"student": its}}))
    model = {"name": "student", "arch": "resnet20", "parameters": 278324, "macs": 41e6, "shape": [3, 32, 32]}
    time = {"name": "student", "mode": "eager", "batch": 1, "median_ms": 2.5, "p90_ms": 3, "peak_bytes": 2_500_000}
    (folder / "latency.json").write_text(json.dumps({"device": "cpu", "models": [model], "times": [time]}))
    student = {"agreement": 0.8, "logit_correlation": {"mean": 0.1654, "frobenius": 1.998, "left_out": 0}}
    student["transfer"] = {"ratio": 0.6774, "low": 0.3478, "high": 0.9355, "reason": "", "alone": "alone"}
    other = {**student, "transfer": {"ratio": None, "low": None, "high": None, "reason": "too near", "alone": "alone"}}
    told = {"teacher": "t", "models": {"t": {"top1": 0.9}}, "students": {"s": student, "o": other}}
    (folder / "compare" / "compare.json").write_text(json.dumps({**told, "figures": ["cka.png"]}))
    texts = [" ".join(part) for part in read(page(gather(folder))).texts.values()]
    for part in ("Frozen features on stl10", "71.23", "kNN %", "278,324", "41.0 M", "2.50 MB", "0.1654", "1.998"):
        assert any(part in text for text in texts), part
    assert any("0.68 [0.35, 0.94]" in text for text in texts)
    assert any("Transfer of o: too near" in text for text in texts)


def test_accuracies_of_classes_are_there_the_hardest_first(tmp_path):
    folder = run(tmp_path / "run", epochs=2)
    scored = {"student": {"top1": 0.5, "by_class": {"ant": 0.957, "bee": 0.083}}, "slow": {"by_class": {"ant": 1.0}}}
    (folder / "eval.json").write_text(json.dumps({"test": scored}))
    text = page(gather(folder))
    rows = re.findall(r"<tr><t[dh]>(ant|bee)</t[dh]>(.*?)</tr>", text, re.DOTALL)
    assert [(name, re.findall(r">([\d.]*)</td>", cells)) for name, cells in rows] == [
        ("bee", ["8.3", ""]),
        ("ant", ["95.7", "100"]),
    ]


def test_what_a_run_noted_of_its_own_losses_is_drawn(tmp_path):
    """A loss of somebody's own that reads labels alone, or teaches several, is known to the run and not to its page."""
    recipe = RICH.replace("{weight: 2, to: student}", "{weight: 2}")
    folder = run(tmp_path / "run", recipe=recipe, epochs=1)

    def drawn():
        told = gather(folder)
        found = arrows(told.recipe, ends(told.provenance))
        return {(a.sources, a.target, a.taps) for a in found if a.name == "CorrelationLoss"}

    assert {(s, t) for s, t, _ in drawn()} == {(("teacher",), "student"), (("teacher",), "peer")}  # a guess
    papers = json.loads((folder / "provenance.json").read_text())
    made = [[[], "student.logits"], [["teacher.stage1"], "peer.stage1"], [["teacher.stage2"], "peer.stage2"]]
    (folder / "provenance.json").write_text(json.dumps({**papers, "links": {"CorrelationLoss": made}}))
    assert drawn() == {(("labels",), "student", "logits"), (("teacher",), "peer", "2 pairs of taps")}
    (folder / "provenance.json").write_text(json.dumps({**papers, "links": {"CorrelationLoss": [3]}}))
    assert "provenance.json of run is damaged" in refused("report", folder)


def test_older_runs_pair_the_ends_that_a_recipe_names(tmp_path):
    own = {"models": {"t1": {"frozen": True}, "t2": {"frozen": True}, "a": {}, "b": {}}}

    def drawn(**said):
        return {(a.sources, a.target) for a in arrows({**own, "losses": [{"x.py:L": said}]})}

    assert drawn(**{"from": ["t1", "t2"], "to": ["a", "b"]}) == {(("t1",), "a"), (("t2",), "b")}
    assert drawn(**{"from": ["t1", "t2"], "to": "a"}) == {(("t1",), "a"), (("t2",), "a")}
    assert drawn(**{"from": ["t1", "t2"], "to": "a", "ensemble": "arithmetic"}) == {(("t1", "t2"), "a")}
