"""A model of timm's, and one from a user's own file, through every verb: from its fit to its page."""

import json

import pytest
import torch

from kdkit import models
from tests.cli.command import kdkit, refused

OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, width=4):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""
RECIPE = """
data: {name: digits, subset: 64, batch_size: 32, image_size: 16}
models:
  teacher: {arch: resnet8, weights: t.safetensors}
  student: {arch: %s}
losses: [ce, kd]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 1, accelerator: cpu, check_teachers: false}
"""


@pytest.mark.parametrize("arch", ["timm/test_resnet.r160_in1k", "own.py:Net"])
def test_from_its_fit_to_its_page(tmp_path, monkeypatch, arch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("kdkit.study.embeddings.EACH", 6)
    torch.manual_seed(0)
    words = {"num_classes": 10, "mean": [0.3] * 3, "std": [0.4] * 3}
    header = {"arch": "resnet8", **{word: json.dumps(value) for word, value in words.items()}}
    models.save_weights(models.build("resnet8", num_classes=10), tmp_path / "t.safetensors", header)
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "r.yaml").write_text(RECIPE % arch)

    def told(*words):
        said = kdkit(*words)
        assert said.code == 0, said
        return said.out

    assert "student" in told("fit", "r.yaml", "--out", "run", "--diagnose")
    assert "brier" in told("eval", "run")
    assert "brier" in told("eval", "run", "--split", "train")
    assert "agreement" in told("compare", "t.safetensors", "run")
    assert "kNN" in told("probe", "run", "--data", "digits", "data.subset=64")
    modes = ["--mode", "eager", "--batch", "2", "--repeats", "5", "--seconds", "0"]
    times = told("latency", "run", *modes, "--out", "run/latency.json")
    assert (times.count("teacher"), times.count("student")) == (2, 2)
    for form in ("onnx", "torch", "safetensors"):
        assert "64 test images" in told("export", "run", "--format", form)
    if arch.startswith("timm/"):
        assert "64 test images" in told("export", "run", "--format", "timm")
    else:
        assert "is no model of timm's" in refused("export", "run", "--format", "timm")
    told("report", "run")
    page = (tmp_path / "run" / "report.html").read_text()
    for part in ("Evaluation: train", "Frozen features on digits", "Latency on cpu", "Shares of the gradient: student"):
        assert part in page
    assert page.count("data:image/png;base64,") == 7
    assert str(tmp_path) not in page
