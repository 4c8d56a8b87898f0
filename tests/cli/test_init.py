"""`kdkit init`: what it writes is right as it stands."""

from tests.cli.command import kdkit
from tests.recipe.test_start import photos


def test_the_first_recipe_of_a_folder_is_right_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    said = kdkit("init", "--teacher", "resnet14", "--student", "resnet8", "--data", "photos")
    assert said.out == (
        "photos: 3 classes, 26 images to train on, 4 to test on\nwrote recipe.yaml; next: kdkit check recipe.yaml\n"
    )
    assert kdkit("check", "recipe.yaml").code == 0
    short = ["trainer.max_epochs=1", "models.teacher.tune.epochs=1", "trainer.accelerator=cpu", "data.num_workers=0"]
    assert kdkit("fit", "recipe.yaml", *short).code == 0
    assert (tmp_path / "runs" / "recipe-seed0" / "student.safetensors").exists()
