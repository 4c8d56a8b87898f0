"""Tiny-ImageNet by its name: labels as annotated, one error for what is missing, a download that is whole or not."""

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdkit import data, models
from kdkit.data import tiny_imagenet
from kdkit.registry import KdkitError
from kdkit.study.probe import probe

WNIDS = ("n03", "n01", "n02")  # as in wnids.txt: in no order
VAL = {"val_0.JPEG": "n02", "val_1.JPEG": "n01", "val_10.JPEG": "n03", "val_2.JPEG": "n02"}


def picture(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(level).integers(0, 20, (64, 64, 3))
    Image.fromarray((noise + level).astype(np.uint8)).save(path, "JPEG")


def level(wnid):
    return 60 * int(wnid[1:])


def unpacked(folder):
    """What the archive unpacks to, of three classes."""
    top = folder / "tiny-imagenet-200"
    for wnid in WNIDS:
        for i in range(12):
            picture(top / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", level(wnid))
        (top / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    for name, wnid in VAL.items():
        picture(top / "val" / "images" / name, level(wnid))
    picture(top / "test" / "images" / "test_0.JPEG", 0)
    (top / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (top / "val" / "val_annotations.txt").write_text("".join(f"{n}\t{w}\t0\t32\t44\t62\n" for n, w in VAL.items()))
    return top


@pytest.fixture
def top(tmp_path):
    return unpacked(tmp_path)


def build(root, **options):
    return data.build("tinyimagenet", root=root, num_workers=0, **options)


def test_labels_are_those_of_the_annotations(top, monkeypatch):
    module = build(top.parent)
    assert (module.num_classes, module.num_samples, module.input_shape) == (3, 36, (3, 64, 64))
    assert module.class_names == ["n01", "n02", "n03"]
    (batch,) = module.test_dataloader()
    x, y = batch
    assert y.tolist() == [1, 0, 2, 1]
    pixels = x * torch.tensor(module.std).view(3, 1, 1) + torch.tensor(module.mean).view(3, 1, 1)
    assert torch.allclose(pixels.mean((1, 2, 3)) * 255, 60.0 * (y + 1) + 9.5, atol=4)
    monkeypatch.setenv("KDKIT_DATA", str(top.parent))
    assert build(None).read_labels(False).tolist() == [1, 0, 2, 1]


def test_the_images_are_seen_whole(top):
    whole, small = build(top.parent).transform(False), build(top.parent, image_size=32).transform(False)
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    assert torch.equal(whole(image), image)
    assert small(image).shape == (3, 32, 32)
    corner = image.clone()
    corner[:, :2, :2] ^= 255
    assert not torch.equal(small(image)[:, 0, 0], small(corner)[:, 0, 0])


def test_val_sorted_into_classes(top):
    for name, wnid in VAL.items():
        (top / "val" / wnid).mkdir(exist_ok=True)
        shutil.move(top / "val" / "images" / name, top / "val" / wnid / name)
    (top / "val" / "images").rmdir()
    assert build(top.parent).read_labels(False).tolist() == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("val", "has no val/"),
        ("val/val_annotations.txt", "has no val/val_annotations.txt"),
        ("val/images/val_2.JPEG", r"lacks val/images/val_2.JPEG, which val_annotations.txt names"),
        ("train/n02", "has no train/n02, which wnids.txt lists"),
        ("", "was not found"),
    ],
)
def test_what_is_missing_is_named(top, broken, told):
    path = top / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    where = r"http://cs231n\.stanford\.edu/tiny-imagenet-200\.zip unpacks; .*tiny-imagenet-200 "
    with pytest.raises(KdkitError, match=f"{where}{told}; set data.root=FOLDER or KDKIT_DATA, or data.download=true"):
        build(top.parent).read_labels(False)


def test_an_image_without_a_label_is_refused(top):
    picture(top / "val" / "images" / "val_9.JPEG", 0)
    with pytest.raises(KdkitError, match=r"has val/images/val_9.JPEG, which val_annotations.txt does not name"):
        build(top.parent).read_labels(False)


def test_facts_without_the_data(tmp_path):
    module = build(tmp_path)
    assert (module.num_classes, module.num_samples) == (200, 100_000)
    assert "tiny-imagenet-200 was not found" in module.missing
    assert "will be downloaded" in build(tmp_path, download=True).missing
    with pytest.raises(KdkitError, match="tinyimagenet has no option 'holdout'"):
        build(tmp_path, holdout=0.1)


@pytest.fixture
def served():
    """Makes a folder one of a web server on this machine."""
    servers = []

    def serve(folder):
        handler = partial(SimpleHTTPRequestHandler, directory=folder)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_download_is_whole_or_not_there(top, tmp_path, monkeypatch, served):
    archive = shutil.make_archive(tmp_path / "kept", "zip", top.parent, "tiny-imagenet-200")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(tiny_imagenet, "URL", f"{served(tmp_path)}/kept.zip")
    there = tmp_path / "there"
    with pytest.raises(KdkitError, match="was not found, and its download failed"):  # another checksum
        build(there, download=True).read_labels(False)
    assert list(there.iterdir()) == []
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(Path(archive).read_bytes()).hexdigest())
    assert build(there, download=True).read_labels(False).tolist() == [1, 0, 2, 1]
    assert [path.name for path in there.iterdir()] == ["tiny-imagenet-200"]


def test_a_probe_by_its_name(top, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KDKIT_DATA", str(top.parent))
    torch.manual_seed(0)
    told = {"num_classes": 7, "mean": [0.5] * 3, "std": [0.2] * 3, "data": {"name": "cifar100"}}
    path = tmp_path / "net.safetensors"
    words = {key: json.dumps(value) for key, value in told.items()}
    models.save_weights(models.build("resnet8", num_classes=7), path, {"arch": "resnet8", **words})
    found = probe(path, "tinyimagenet", ["data.num_workers=0", "trainer.accelerator=cpu"])["net"]
    assert (found["train"], found["test"]) == (36, 4)
    assert found["linear"] == 1
