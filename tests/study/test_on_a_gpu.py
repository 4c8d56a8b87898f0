"""eval, compare and probe on a GPU: nothing of theirs stays on the CPU, and they find what they find there."""

import numpy as np
import pytest
import torch
from PIL import Image

from kdkit.runs import trained
from kdkit.runs.evaluate import score
from kdkit.study import probe, subjects
from kdkit.study.compare import compare
from tests.cli.command import RECIPE, kdkit
from tests.gpu import CUDA, gpu


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs on images of two classes, and the images."""
    top = tmp_path_factory.mktemp("gpu")
    for i in range(2):
        (top / "photos" / "ab"[i]).mkdir(parents=True)
        for j in range(12):
            pixels = np.random.default_rng(20 * i + j).integers(90 * i, 90 * i + 150, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(top / "photos" / "ab"[i] / f"{j}.png")
    text = RECIPE.replace("  teacher: {arch: resnet14, weights: random}\n", "")
    text = text.replace("  - kd: {weight: 0.9, temperature: 4}\n", "")
    text = text.replace("batch_size: 16", "batch_size: 16, val_split: 0.5").replace("max_epochs: 2", "max_epochs: 1")
    for i in range(2):
        (top / f"{i}.yaml").write_text(text)
        assert kdkit("fit", top / f"{i}.yaml", f"seed={i}", "--out", top / f"run{i}").code == 0
    return top


def found_on(device, two, monkeypatch, home):
    """What the three verbs find there."""
    with monkeypatch.context() as patch:
        patch.setenv("KDKIT_HOME", str(home))
        for room in (trained, subjects, probe):
            patch.setattr(room, "device", lambda recipe: device)
        words = ["data.holdout=0.34", "data.num_workers=0", "data.batch_size=5"]
        scored = score(two / "run0")
        compared = compare(str(two / "run1"), [str(two / "run0")], taps=["stages", "logits"])
        probed = probe.probe(two / "run0", str(two / "photos"), words, image_size=8)
    return [scored.whole, compared.numbers, probed, [len(found) for found in compared.cases["run0"].found.values()]]


def close(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(close(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(close, first, second))
    return first == (pytest.approx(second, rel=1e-5, abs=1e-6) if isinstance(first, float) else second)


def test_what_is_found_there_is_what_is_found_on_the_cpu(two, monkeypatch, tmp_path):
    expected = found_on(torch.device("cpu"), two, monkeypatch, tmp_path / "a")
    with gpu(monkeypatch) as there:
        found = found_on(CUDA, two, monkeypatch, tmp_path / "b")
    assert len(there.waits) > 10  # it was there
    assert close(found, expected)
    assert expected[0]["student"]["temperature"] > 0  # which was fitted on what was held out
