"""Every packaged recipe trains: two steps on random images of its data's shape."""

import pytest
import torch
from PIL import Image

from kdkit import models
from kdkit.recipe import load, packaged
from kdkit.runs.fit import fit

NAMES = [info.name for info in packaged()]
SHORT = ["data.fake=true", "data.batch_size=4", "trainer.max_epochs=2", "trainer.limit_train_batches=1"]
SHORT += ["trainer.limit_val_batches=1", "trainer.accelerator=cpu"]
SMALLER = {
    "vit_mobilenet_folder": [
        "models.teacher.arch=timm/test_vit",
        "models.teacher.weights=vit.safetensors",
        "models.student.arch=timm/test_efficientnet",
        "models.student.weights=random",
        "models.teacher.tune.epochs=1",
        "data.fake=false",
        "data.root=photos",
        "data.image_size=160",
        "lr=1e-3",
    ],
}


def test_they_are_all_found():
    assert len(NAMES) == 42


def photos(folder):
    """Two classes of ten pictures each."""
    made = torch.Generator().manual_seed(0)
    for label in ("left", "right"):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(10):
            image = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=made)
            Image.fromarray(image.numpy()).save(folder / "photos" / label / f"{i}.png")


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    words = [*SHORT, *SMALLER.get(name, [])]
    if "data.root=photos" in words:
        photos(tmp_path)
        # as if pretrained: a thousand classes, not the photos' two
        vit = models.build("timm/test_vit", num_classes=1000)
        models.save_weights(vit, tmp_path / "vit.safetensors")
    elif name.endswith("_imagenet"):
        words.append("data.image_size=64")
    if "teacher" in load(name).models and "data.root=photos" not in words:
        words.append("models.teacher.weights=random")
    if name == "dml_elastic_cifar100":
        words += ["cohort.join.c.epoch=1", "cohort.leave.a.epoch=1", "cohort.ramp=0"]
    if name.startswith("crd") and "inbatch" not in name:
        words.append("losses.crd.num_negatives=64")
    result = fit(load(name, words), out=tmp_path / "run")
    assert result.last
    assert all(0 <= metrics["top1"] <= 1 for metrics in result.last.values())
