"""DALI beside kdkit's workers: what is timed, what is refused, and what the page concludes."""

import json

import pytest
import torch
from PIL import Image

from benchmarks import data as images
from benchmarks import performance
from benchmarks.dali import Dali
from kdkit.registry import KdkitError


class Imagined:
    """DALI's part in the benchmark, by kdkit."""

    def __init__(self, site):
        self.site = site

    def compare(self, paths, size):
        return {"decoded": 0.0, "resized": 0.5}

    def passes(self, paths, size, batch, threads, floats):
        def each(device):
            for path in paths:
                images.read_rgb(path).to(device)

        return {"DALI": each, "DALI, decoded whole": each}


def test_dali_is_timed_beside_and_judged_by_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "Dali", Imagined)
    picture = Image.fromarray(torch.randint(0, 256, (48, 64, 3), dtype=torch.uint8).numpy())
    (tmp_path / "photos").mkdir()
    for k in range(8):
        picture.save(tmp_path / "photos" / f"{k}.jpg")
    path = tmp_path / "rows.jsonl"
    images.main(["--quick", "--enlarged", str(tmp_path / "photos"), "--dali", "SITE", "--out", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = [row for row in rows if row["contender"].startswith("DALI")]
    assert {row["shape"] for row in theirs} == {"photos enlarged to 500 × 375, 224²"}
    assert {row["what"] for row in theirs} == {row["what"] for row in rows} - {"resident", "decode"}
    assert all(row["apart"] == {"decoded": 0.0, "resized": 0.5} for row in theirs)
    (ours,) = (
        row for row in rows if (row["what"], row.get("workers"), row["contender"]) == ("to a device", 0, "kdkit")
    )
    for ratio, worth in ((0.8, "none of them"), (0.7, "photos enlarged to 500 × 375, 224²")):
        faster = {"torchvision": [2.0] * 3, "DALI": [0.9] * 3, "DALI, decoded whole": [ratio] * 3}
        page = performance.page([{**ours, "ms": [1.0] * 3, "faster": faster}])
        assert f"| 1e+03 |  | 2× | 0.9×, {ratio}× |" in page
        assert f"of kdkit's time {ratio}× at photos enlarged to 500 × 375, 224²." in page
        assert f"It is at least 1.3 times as fast at {worth}. It is no extra" in page


def test_images_that_torchvision_makes_otherwise_are_not_timed():
    """Resizing rounds twice: a resized crop of noise is two levels away now and then, never three."""
    view = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    images.same(view, view + 2, "photos")
    with pytest.raises(KdkitError, match="photos: torchvision makes other images, 3 levels away; not timed"):
        images.same(view, view - 3, "photos")


def test_enlarged_images_have_as_many_pixels_as_imagenets(tmp_path):
    Image.new("RGB", (160, 240)).save(tmp_path / "x.png")
    made = images.enlarge([str(tmp_path / "x.png")], tmp_path / "large")
    with Image.open(made / "00000.jpg") as image:
        assert image.size == (354, 530)


def test_images_that_dali_makes_otherwise_are_not_timed(monkeypatch, tmp_path):
    class Black(Dali):
        def __init__(self):
            pass

        def pipeline(self, *_):
            return self

        def run(self):
            return [self]

        def at(self, _):
            return torch.zeros(48, 64, 3, dtype=torch.uint8).numpy()

    Image.new("RGB", (64, 48), "white").save(tmp_path / "x.jpg")
    monkeypatch.setattr("benchmarks.dali.v2.functional.resize", lambda image, *_, **__: image)
    with pytest.raises(KdkitError, match=r"DALI makes other images, 2.6e\+02 levels away in the mean; not timed"):
        Black().compare([str(tmp_path / "x.jpg")], 32)


def test_what_the_page_concludes_is_so():
    """In the committed rows nothing but small images would gain."""
    _, _, told = performance.page(performance.load(performance.FILES)).partition("It is at least 1.3 times as fast at ")
    assert told
    assert "224²" not in told.split(" It is no extra")[0]
