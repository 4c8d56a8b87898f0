"""What a file's pixels are does not depend on who decodes it: torchvision has those that PIL has."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from kdkit.data.pixels import read_rgb
from kdkit.registry import KdkitError

KDKIT_DATA = os.environ.get("KDKIT_DATA", "")
KINDS = [
    *({"subsampling": kind, "quality": quality} for kind in ("4:4:4", "4:2:2", "4:2:0") for quality in (5, 75, 100)),
    {"progressive": True},
    {"optimize": True, "restart_marker_blocks": 2},
    {"keep_rgb": True, "subsampling": 0},
    {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"},  # turned by 90°
]


def picture(size=(45, 37), mode="RGB"):
    """A gradient with noise upon it."""
    noise = torch.randint(0, 60, (size[1], size[0], 3), generator=torch.Generator().manual_seed(0))
    slope = torch.arange(size[1])[:, None, None] + 2 * torch.arange(size[0])[:, None] + torch.tensor([0, 30, 60])
    return Image.fromarray(((noise + slope) % 256).to(torch.uint8).numpy()).convert(mode)


def pil(path):
    with Image.open(path) as image:
        return pil_to_tensor(image.convert("RGB"))


@pytest.fixture
def decoded(monkeypatch):
    """The images that torchvision has decoded."""
    seen, real = [], torch.ops.image.decode_jpeg

    def decode(*given):
        seen.append(real(*given))
        return seen[-1]

    monkeypatch.setattr(torch.ops.image, "decode_jpeg", decode)
    return seen


@pytest.mark.parametrize("size", [(45, 37), (1, 1), (17, 2)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind))
def test_plain_jpegs_have_pils_pixels(kind, mode, size, tmp_path, decoded):
    kind = {word: value for word, value in kind.items() if mode == "RGB" or word != "keep_rgb"}
    picture(size, mode).save(tmp_path / "x.jpg", **kind)
    found = read_rgb(str(tmp_path / "x.jpg"))
    assert torch.equal(found, pil(tmp_path / "x.jpg"))
    assert found is decoded[0]


def test_a_jpeg_of_another_name_is_one(tmp_path, decoded):
    picture().save(tmp_path / "x.png", "jpeg")
    assert read_rgb(str(tmp_path / "x.png")) is decoded[0]


def test_four_colours_are_pils(tmp_path, decoded):
    picture(mode="CMYK").save(tmp_path / "x.jpg")
    assert torch.equal(read_rgb(str(tmp_path / "x.jpg")), pil(tmp_path / "x.jpg"))
    assert not decoded


def test_a_torchvision_without_jpeg(tmp_path, monkeypatch):
    def decode(*_):
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_jpeg'")

    picture().save(tmp_path / "x.jpg")
    monkeypatch.setattr(torch.ops.image, "decode_jpeg", decode)
    assert torch.equal(read_rgb(str(tmp_path / "x.jpg")), pil(tmp_path / "x.jpg"))


@pytest.mark.parametrize(
    ("size", "told"),
    [((60_000, 60_000), "decompression bomb"), ((9, 60_000), "a strip"), ((5, 0), "must be an image")],
    ids=str,
)
def test_a_few_bytes_that_stand_for_a_huge_image_are_not_decoded(size, told, tmp_path, decoded):
    path = tmp_path / "x.jpg"
    picture().save(path)
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5
    path.write_bytes(content[:at] + struct.pack(">HH", *reversed(size)) + content[at + 4 :])
    with pytest.raises(KdkitError, match=told):
        read_rgb(str(path))
    assert not decoded


@pytest.mark.parametrize("bare", [b"\xff\x01", b"\xff\xd0", b"\xff"], ids=bytes.hex)
def test_a_small_frame_behind_a_marker_without_a_length_hides_no_huge_one(bare, tmp_path, decoded, monkeypatch):
    """Were its next two bytes a length, as of others, a comment's content would be read as the frame."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 45 * 37 // 2 - 1)  # PIL refuses from twice that on
    path = tmp_path / "x.jpg"
    picture().save(path)
    content = path.read_bytes()
    comment = b"\xff\xfe" + struct.pack(">H", 60_000) + bytes(59_998)
    small = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, 10, 10, 3)
    head = content[:2] + bare + comment + comment
    at = 4 + int.from_bytes(head[4:6], "big")
    head = head[:at] + small + head[at + len(small) :]
    path.write_bytes(head + content[2:])
    with pytest.raises(KdkitError, match="must be an image"):
        read_rgb(str(path))
    assert not decoded


@pytest.mark.skipif(not Path(KDKIT_DATA, "imagenet-1k-samples").is_dir(), reason="no photographs under KDKIT_DATA")
def test_photographs_have_pils_pixels(decoded):
    paths = sorted(Path(KDKIT_DATA, "imagenet-1k-samples").rglob("*.JPEG"))[::20]
    assert all(torch.equal(read_rgb(str(path)), pil(path)) for path in paths)
    assert len(decoded) == len(paths) > 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_the_same_picture_as_eight(suffix, tmp_path):
    """PIL clips them: 255 of 256 levels were white."""
    eight = np.asarray(picture(mode="L"))
    Image.fromarray(eight.astype(np.uint16) * 257).save(tmp_path / f"x.{suffix}")
    found = read_rgb(str(tmp_path / f"x.{suffix}"))
    assert torch.equal(found, torch.from_numpy(eight.copy()).expand(3, -1, -1))


@pytest.mark.parametrize(("kind", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_levels_without_a_scale_are_refused(kind, mode, tmp_path):
    Image.fromarray(np.asarray(picture(mode="L")).astype(kind)).save(tmp_path / "x.tif")
    with pytest.raises(KdkitError, match=f"x.tif must be an image, got grey levels .* in mode {mode}, which have no"):
        read_rgb(str(tmp_path / "x.tif"))
