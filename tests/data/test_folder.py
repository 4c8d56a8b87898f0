"""Folders of images: layouts, hold-out, labels, views that no worker changes, and what is said of broken ones."""

import os

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from kdkit import data
from kdkit.data import files
from kdkit.data.photos import ResizedCrop
from kdkit.data.pixels import read_rgb
from kdkit.draws import uniforms
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs.check import check

KDKIT_DATA = os.environ.get("KDKIT_DATA", "")


def make(folder, counts, size=(40, 48)):
    generator = torch.Generator().manual_seed(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for k in range(count):
            pixels = torch.randint(0, 256, (5, 6, 3), dtype=torch.uint8, generator=generator).numpy()
            image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            image = image.convert("L") if k % 7 == 3 else image  # photographs may be grey
            image.save(folder / name / f"{k:03d}.{'jpg' if k % 2 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make(tmp_path_factory.mktemp("photos"), {"ant": 30, "bee": 20, "cat": 10})


def build(root, **options):
    return data.build("folder", root=root, image_size=24, num_workers=0, batch_size=8, **options)


def batches(loader, epoch=0):
    loader.set_epoch(epoch)
    return list(loader)


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


def test_holdout_is_stratified_disjoint_and_independent_of_the_seed(photos):
    module, again = build(photos, holdout=0.2), build(photos, holdout=12, seed=5)
    train, test = module.sets
    assert torch.bincount(test.labels).tolist() == [6, 4, 2]
    assert not set(train.names) & set(test.names)
    assert len(train.names) == module.num_samples == 48
    assert again.sets[1].names == test.names
    assert build(photos, holdout=0.2, split_seed=1).sets[1].names != test.names
    assert module.class_names == ["ant", "bee", "cat"]
    assert module.num_classes == 3
    assert sum(len(y) for _, y in module.test_dataloader()) == 12


def test_a_new_photograph_leaves_the_others_in_their_parts(tmp_path):
    before = set(build(make(tmp_path / "p", {"ant": 40, "bee": 40}), holdout=0.25).sets[1].names)
    (tmp_path / "p" / "ant" / "000a.png").write_bytes((tmp_path / "p" / "ant" / "000.png").read_bytes())
    after = set(build(tmp_path / "p", holdout=0.25).sets[1].names)
    assert len(before ^ after) <= 2


def test_images_are_numbered_by_name_whatever_the_disk_lists_first(tmp_path, monkeypatch):
    make(tmp_path, {"bee": 3, "ant": 2})
    walk, entries = os.walk, files._entries
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((at, d, sorted(f)[::-1]) for at, d, f in walk(*a, **k)))
    monkeypatch.setattr(files, "_entries", lambda folder: sorted(entries(folder), key=lambda e: e.name)[::-1])
    found = files.find_images(tmp_path)
    assert (found.classes, found.labels.tolist()) == (["ant", "bee"], [0, 0, 1, 1, 1])
    assert found.names == sorted(found.names)


def test_images_written_anew_are_others(tmp_path):
    photo, before = make(tmp_path, {"ant": 2, "bee": 2}) / "ant" / "000.png", build(tmp_path, holdout=0).checksum()
    photo.write_bytes(photo.read_bytes()[:-1] + b"?")
    os.utime(photo, ns=(10**18, 10**18))  # some file systems count in seconds
    assert build(tmp_path, holdout=0).checksum() != before


@pytest.mark.parametrize("policy", [None, "randaugment"])
def test_no_batch_depends_on_the_number_of_workers(photos, policy):
    options = {"holdout": 0.2, "batch_size": 8, "seed": 3, "image_size": 24, "policy": policy}
    here, there = (data.build("folder", root=photos, num_workers=n, **options).train_dataloader() for n in (0, 2))
    for epoch in (0, 1):
        assert same(batches(here, epoch), batches(there, epoch))
    assert not torch.equal(batches(here, 0)[0][0], batches(here, 1)[0][0])


def levels(module, one, other):
    """The most by which two batches of normalised images are apart, in levels of a pixel."""
    std = torch.tensor(module.std)[:, None, None]
    return ((one - other).abs() * std * 255).max()


@pytest.mark.parametrize("policy", [None, "randaugment"])
def test_views_follow_from_seed_epoch_and_sample_and_leave_the_generator_alone(photos, policy):
    module = build(photos, holdout=0.2, seed=3, policy=policy)
    state = torch.get_rng_state()
    x, y, index = batches(module.train_dataloader(), 2)[0]
    assert torch.equal(torch.get_rng_state(), state)
    finish = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(module.mean, module.std)])
    for k in range(8):
        i = int(index[k])
        assert int(y[k]) == module.sample_labels[i]
        image = v2.functional.pil_to_tensor(Image.open(module.folder / module.sets[0].names[i]).convert("RGB"))
        view = ResizedCrop(24, policy=v2.RandAugment() if policy else None)(image, uniforms(3, "view", 2, i))
        torch.testing.assert_close(x[k], finish(view), rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_mid_epoch_counts_what_was_handed_out(photos, workers):
    module = data.build("folder", root=photos, holdout=0.2, image_size=24, num_workers=workers, batch_size=8)
    expected = batches(module.train_dataloader(), 1)
    loader = module.train_dataloader()
    loader.set_epoch(1)
    running = iter(loader)
    for _ in range(2):  # the workers are at later ones by now
        next(running)
    resumed = module.train_dataloader()
    resumed.load_state_dict(loader.state_dict())
    resumed.set_epoch(1)
    assert same(list(resumed), expected[2:])


def test_what_workers_made_of_an_epoch_that_was_left_is_not_counted(photos):
    loader = build(photos, holdout=0).train_dataloader()
    list(loader._plan)  # as workers that are ahead do,
    loader._plan.waiting.popleft()  # and one batch was taken
    next(iter(loader))
    assert loader.state_dict()["position"] == 1


def test_every_sample_once_an_epoch_and_evaluation_on_the_centre_crop(photos):
    module = build(photos, holdout=0.2, val_split=8, resize=30)
    index = torch.cat([i for _, _, i in module.train_dataloader()])
    assert sorted(index.tolist()) == list(range(40))
    train, val = module.parts
    assert not set(train.tolist()) & set(val.tolist())
    x, y = next(iter(module.val_dataloader()))
    assert len(y) == 8
    crop, finish = [v2.Resize(30), v2.CenterCrop(24)], [v2.ToDtype(torch.float32, scale=True)]
    finish += [v2.Normalize(module.mean, module.std)]
    image = Image.open(module.sets[0].paths(val[:1])[0]).convert("RGB")
    of_tensors = v2.Compose([v2.PILToTensor(), *crop, *finish])
    torch.testing.assert_close(x[0], of_tensors(image), rtol=0, atol=1e-6)
    assert levels(module, x[0], v2.Compose([*crop, v2.PILToTensor(), *finish])(image)) <= 1.01


def test_without_augment_training_sees_the_centre_crop_too(photos):
    module = build(photos, holdout=0, augment=False)
    x, _, index = next(iter(module.train_dataloader()))
    pixels = torch.stack([module.transform(False)(read_rgb(path)) for path in module.sets[0].paths(index)])
    mean, std = (torch.tensor(its)[:, None, None] for its in (module.mean, module.std))
    torch.testing.assert_close(x, (pixels / 255 - mean) / std)


def test_the_centre_crop_is_of_a_larger_image():
    assert data.build("imagenet").shorter_side == 256


def test_every_image_may_be_the_test_set(photos):
    module = build(photos, holdout="all")
    assert (module.num_classes, module.num_samples) == (3, 0)
    assert sum(len(y) for _, y in module.test_dataloader()) == 60
    with pytest.raises(KdkitError, match="holdout must leave images to train on, got all"):
        module.setup("fit")


def test_nothing_to_train_on_is_told_by_check(photos):
    text = f"""\
data: {{name: folder, root: "{photos}", holdout: all}}
models: {{student: {{arch: resnet8}}}}
losses: [ce]
optimizer: {{name: sgd}}
lr: 0.1
trainer: {{max_epochs: 1}}
"""
    with pytest.raises(KdkitError, match=r"^r\.yaml:1: data: holds no images to train on$"):
        check(loads(text, name="r.yaml"))


def test_imagenets_layout(tmp_path):
    make(tmp_path / "train", {"n01": 3, "n02": 4, "n03": 2})
    make(tmp_path / "val", {"n02": 2, "n03": 1})
    module = data.build("imagenet", root=tmp_path, image_size=24, num_workers=0)
    assert module.facts.num_samples == 9
    assert module.num_classes == 3
    assert [y.tolist() for _, y in module.val_dataloader()] == [[1, 1, 2]]
    with pytest.raises(KdkitError, match="holdout must be left out"):
        data.build("imagenet", root=tmp_path, holdout=0.1).sets  # noqa: B018
    make(tmp_path / "val", {"n09": 1})
    with pytest.raises(KdkitError, match="must hold the training set's classes only, got n09"):
        data.build("imagenet", root=tmp_path).sets  # noqa: B018


def test_a_test_set_alone_can_be_evaluated_and_not_trained_on(tmp_path):
    make(tmp_path / "val", {"n01": 3, "n02": 4})
    module = data.build("imagenet", root=tmp_path, image_size=24, num_workers=0)
    module.setup("test")
    assert module.num_classes == 2
    assert sum(len(y) for _, y in module.test_dataloader()) == 7
    with pytest.raises(KdkitError, match="train must hold the training images"):
        module.setup("fit")


def test_images_without_labels(tmp_path):
    make(tmp_path, {"a": 5, "b/c": 6})
    module = build(tmp_path, labels=False, holdout=0, classes=7)
    _, y, _ = batches(module.train_dataloader())[0]
    assert y.tolist() == [-1] * 8
    assert module.sample_labels is None
    assert (module.num_samples, module.num_classes) == (11, 7)
    assert module.val_dataloader() == []
    assert sum(len(y) for _, y in build(tmp_path, labels=False, holdout=3).test_dataloader()) == 3


def test_broken_folders_are_named(tmp_path, photos):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "gap", {"a": 3})
    (tmp_path / "gap" / "b").mkdir()
    make(tmp_path / "torn", {"a": 3, "b": 3})
    (tmp_path / "torn" / "a" / "000.png").write_bytes(b"not an image")
    whole = (tmp_path / "torn" / "b" / "001.jpg").read_bytes()
    (tmp_path / "torn" / "b" / "001.jpg").write_bytes(whole[: len(whole) // 2])
    for module, message in [
        (build(None, holdout=0.1), "root must be a folder of images, got nothing"),
        (build(tmp_path / "nowhere", holdout=0.1), "root must be a readable folder, got .*nowhere .No such file"),
        (build(tmp_path / "empty", holdout=0.1), "must hold one folder of images per class, got none"),
        (build(tmp_path / "empty", labels=False, holdout=0), "empty must hold images .* got none"),
        (build(tmp_path / "gap", holdout=0.1), "gap/b must hold images"),
        (build(photos), "holdout must be a share or a count, as .*photos.* has no val/, got nothing"),
        (build(photos, holdout=60), "holdout must be a share below 1 or a count below 60, got 60"),
    ]:
        with pytest.raises(KdkitError, match=message):
            module.setup("fit")
    for name, workers in (("a/000.png", 0), ("a/000.png", 2), ("b/001.jpg", 0)):
        torn = data.build("folder", root=tmp_path / "torn", holdout=0, image_size=24, num_workers=workers, batch_size=1)
        with pytest.raises(
            KdkitError,
            match=r"^data: \S*torn/\S+ must be an image, got .*; mend or remove it \(`kdkit check RECIPE "
            r"--images` names all such files\)$",
        ) as caught:
            for _ in torn.train_dataloader():
                pass
        assert any(n in str(caught.value) for n in ("a/000.png", "b/001.jpg")), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "mixup"}, "policy must be one of autoaugment, randaugment, trivialaugment, got 'mixup'"),
        ({"crop_scale": (0.5, 0.1)}, "crop_scale must be two shares"),
        ({"resize": 12}, "image_size must be at least 1 and at most resize, got 24, 12"),
        ({"labels": False, "label_noise": 0.1}, "label_noise must be 0 where labels is false"),
    ],
)
def test_wrong_options(photos, options, message):
    with pytest.raises(KdkitError, match=message):
        build(photos, holdout=0.1, **options)


@pytest.mark.skipif(not os.path.isdir(f"{KDKIT_DATA}/tiny-imagenet-20"), reason="no tiny-imagenet-20 in KDKIT_DATA")
def test_tiny_imagenet():
    module = data.build("folder", root="tiny-imagenet-20", image_size=64, resize=64, num_workers=0)
    facts = module.facts
    assert (facts.num_classes, facts.num_samples) == (20, 10_000)
    x, _, _ = next(iter(module.train_dataloader()))
    assert x.shape == (64, 3, 64, 64)
    assert len(module.read_labels(False)) == 1000
    samples = data.build("imagenet", root="imagenet-1k-samples", num_workers=0, eval_batch_size=2)
    assert samples.num_classes == 1000
    assert next(iter(samples.val_dataloader()))[0].shape == (2, 3, 224, 224)


def test_pictures_of_a_kind_that_is_not_read_are_told_once(tmp_path, caplog):
    folder = make(tmp_path / "photos", {"ant": 6, "bee": 6})
    for k in range(3):
        Image.new("RGB", (8, 8)).save(folder / "bee" / f"moving{k}.GIF")
    (folder / "ant" / "notes.txt").touch()
    for _ in range(2):
        assert build(folder, holdout=0.5).num_samples == 6
    (told,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert f"{folder / 'bee'} holds pictures of a kind that is not read (3 .GIF)" in told


def test_classes_without_a_test_image_are_told_once(tmp_path, caplog, monkeypatch):
    make(tmp_path / "train", {"ant": 2, "bee": 2, "cat": 2})
    make(tmp_path / "val", {"ant": 1, "bee": 1, "cat": 1})
    make(tmp_path / "few", {"ant": 40, "bee": 1})
    build(tmp_path).test_dataloader()
    build(tmp_path / "train", holdout=0).test_dataloader()
    build(tmp_path / "few", holdout=0.1).train_dataloader()
    build(tmp_path / "few", holdout=0.1, val_split=0.2).val_dataloader()
    assert not caplog.records
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path / "few", "few"):
        build(place, holdout=0.1).test_dataloader()
    (told,) = caplog.messages
    assert f"{tmp_path / 'few'} has no test image of 1 class (such as bee)" in told
