"""Every packaged recipe trains: two steps on random images of its data's shape."""

import pytest

from kdkit.recipe import load, packaged
from kdkit.runs.fit import fit

NAMES = [info.name for info in packaged()]
SHORT = ["data.fake=true", "data.batch_size=4", "trainer.max_epochs=2", "trainer.limit_train_batches=1"]
SHORT += ["trainer.limit_val_batches=1", "trainer.accelerator=cpu"]
SMALLER = {
    "vit_mobilenet_folder": [
        "models.teacher.arch=timm/test_vit",
        "models.student.arch=timm/test_efficientnet",
        "models.student.weights=random",
        "models.teacher.tune.epochs=1",
        "data.image_size=160",
        "lr=1e-3",
    ],
}


def test_they_are_all_found():
    assert len(NAMES) == 21


@pytest.mark.parametrize("name", NAMES)
def test_two_steps(name, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    words = [*SHORT, *SMALLER.get(name, [])]
    if "teacher" in load(name).models:
        words.append("models.teacher.weights=random")
    if name.startswith("crd") and "inbatch" not in name:
        words.append("losses.crd.num_negatives=64")
    result = fit(load(name, words), out=tmp_path / "run")
    assert result.last
    assert all(0 <= metrics["top1"] <= 1 for metrics in result.last.values())
