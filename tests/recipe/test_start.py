"""The first recipe of a newcomer: it fits the models and the images that are there."""

import pytest
from PIL import Image

from kdkit.recipe import build, loads, start
from kdkit.registry import KdkitError


def photos(folder, classes=("a", "b", "c"), images=10):
    for label in classes:
        (folder / label).mkdir(parents=True)
        for i in range(images):
            Image.new("RGB", (40, 50), (20 * i, 50, 90)).save(folder / label / f"{i}.png")


@pytest.mark.parametrize("name", ["photos", "my photos: all", "it's, [here] #1"])
def test_class_folders_get_a_holdout(name, tmp_path):
    photos(tmp_path / name)
    made = start("resnet14", "resnet8", str(tmp_path / name))
    data = loads(made.text).data
    assert (data.name, data.arguments["root"]) == ("folder", str(tmp_path / name))
    assert (data.arguments["holdout"], data.arguments["image_size"]) == (0.15, 32)
    assert made.found == "3 classes, 26 images to train on, 4 to test on"
    assert made.text.startswith(f"# resnet14 → resnet8 on {name}: {made.found}\n# kdkit check recipe.yaml ")
    built = build(loads(made.text), weights=None)
    assert (built.datamodule.num_classes, built.datamodule.num_samples) == (3, 26)


def test_train_and_val_are_taken_as_they_are(tmp_path):
    photos(tmp_path / "train")
    photos(tmp_path / "val", images=2)
    made = start("resnet14", "resnet8", str(tmp_path))
    assert made.found == "3 classes, 30 images to train on, 6 to test on"
    assert "holdout" not in loads(made.text).data.arguments
    assert build(loads(made.text), weights=None).datamodule.num_samples == 30


def test_train_alone_is_divided(tmp_path):
    photos(tmp_path / "train")
    arguments = loads(start("resnet14", "resnet8", str(tmp_path)).text).data.arguments
    assert (arguments["root"], arguments["holdout"]) == (f"{tmp_path}/train", 0.15)


@pytest.mark.parametrize(
    ("folders", "data", "right"),
    [
        (["photos/a"], "photo", "no folder photo, and no data set of that name; known: cifar10, "),
        (["photos/a"], "cifar1000", "no data set of that name; did you mean 'cifar100'"),
        (["photos/a", "photos/b"], "photos/a", "photos/a must hold one folder of images per class, got none$"),
        (["all/photos/a", "all/photos/b"], "all", "all holds one class, photos; name the folder that holds the class"),
        (["p/training/a", "p/validation/a"], "p", "p holds training and validation, which are no classes; call them"),
        (["p/train/a", "p/test/a"], "p", "p has train/ and test/; the test images must be in p/val: rename it"),
        (["p/val/a", "p/val/b"], "p", "p has val/ and no train/, so nothing to train on; --data p/val holds out"),
        (["p/train/a", "p/train/b", "p/val/c"], "p", "training set's classes only, got c"),
    ],
)
def test_folders_that_will_not_do(folders, data, right, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KDKIT_DATA", raising=False)
    for folder in folders:
        photos(tmp_path / folder, [""], images=1)
    with pytest.raises(KdkitError, match=f"^--data: .*{right}"):
        start("resnet14", "resnet8", data)


@pytest.mark.parametrize(
    ("teacher", "student", "right"),
    [
        ("resnet9", "resnet8", "--teacher: unknown model 'resnet9'; did you mean 'resnet8'"),
        ("resnet14", "mobilenetv3_smal_050", "--student: unknown model .*; did you mean 'timm/mobilenetv3_small_050'"),
        ("resnet14", "resnet18", "--student: unknown model 'resnet18'; did you mean 'timm/resnet18'\\?"),
        ("resnet14", "timm/mobilenetv3_smal_050", "--student: unknown timm model .* did you mean 'mobilenetv3_small_0"),
        ("torchvision/resnet19", "resnet8", "--teacher: unknown torchvision model 'resnet19'; did you mean 'resnet1"),
    ],
)
def test_architectures_that_are_not_there(teacher, student, right):
    with pytest.raises(KdkitError, match=right):
        start(teacher, student, "digits")


def test_a_data_set_by_name_and_a_packaged_teacher():
    made = start("resnet56", "resnet20", "cifar100", "'my file.yaml'")
    recipe = loads(made.text)
    assert recipe.models["teacher"].weights == "teacher_resnet56_cifar100"
    assert recipe.data.arguments == {"batch_size": 64}
    assert "# kdkit fit 'my file.yaml' trainer" in made.text
    assert made.found == "100 classes, 50,000 images to train on"


def test_published_weights_and_the_size_that_they_were_made_for(tmp_path):
    photos(tmp_path)
    wide = loads(start("timm/test_vit", "torchvision/shufflenet_v2_x0_5", str(tmp_path)).text)
    teacher, student = wide.models["teacher"], wide.models["student"]
    assert (teacher.weights, teacher.tune.epochs, student.weights) == ("pretrained", 10, "pretrained")
    assert (wide.data.arguments["image_size"], teacher.image_size, student.image_size) == (224, 160, None)
    assert wide.optimizer.name == "adamw"
    small = loads(start("timm/test_vit", "resnet8", "cifar10").text)
    assert (small.models["teacher"].image_size, small.models["student"].image_size) == (160, None)
    assert (small.models["student"].weights, small.optimizer.name) == (None, "sgd")
    unpublished = loads(start("timm/resnetblur18", "resnet8", "cifar10").text).models["teacher"]
    assert (unpublished.weights, unpublished.tune.epochs) == ("random", 60)
    known = loads(start("timm/test_vit", "resnet8", "imagenet").text).models["teacher"]
    assert (known.weights, known.tune) == ("pretrained", None)
