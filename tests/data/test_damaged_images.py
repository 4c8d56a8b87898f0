"""Folders of images as disks and strangers leave them: one error that names the file, or the image; never a hang."""

import os
import struct
import zlib

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from kdkit import data
from kdkit.data.pixels import read_rgb
from kdkit.registry import KdkitError
from tests.damage import spoilt
from tests.recipe.fuzz import in_time

FORMATS = ("png", "jpg", "webp", "bmp", "ppm", "tif")


def picture(size=(24, 20)):
    noise = torch.randint(0, 256, (size[1], size[0], 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Image.fromarray(noise.numpy())


def classes(folder, names=("a", "b"), count=4):
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture().save(folder / name / f"{i}.png")
    return folder


def read(root, **options):
    """Every training image of a folder."""
    module = data.build("folder", **{"root": root, "holdout": 0, "image_size": 16, "num_workers": 0, **options})
    module.setup("fit")
    return [len(batch[0]) for batch in module.train_dataloader()]


def refused(root, **options):
    with in_time(), pytest.raises(KdkitError) as caught:
        read(root, **options)
    return str(caught.value)


def pil(path):
    """What PIL makes of a file, or nothing."""
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except Exception:
        return None


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_image_is_one_error_or_an_image(kind, tmp_path):
    """And which of them, PIL says."""
    path = tmp_path / f"x.{kind}"
    picture().save(path)
    for content in spoilt(path.read_bytes(), 60, 3000):
        path.write_bytes(content)
        expected = pil(path)
        try:
            with in_time():
                assert torch.equal(read_rgb(str(path)), expected)
        except KdkitError as error:
            assert f"{path} must be an image" in str(error)  # noqa: PT017
            assert expected is None or max(expected.shape) > 100 * min(expected.shape[1:])


def png(width, height, body=b""):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body or zlib.compress(bytes(1 << 20))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 60_000), (0, 5)])
def test_a_few_bytes_that_stand_for_a_huge_image(size, tmp_path):
    (classes(tmp_path) / "a" / "bomb.png").write_bytes(png(*size))
    assert "bomb.png must be an image" in refused(tmp_path)


def test_files_that_hold_no_image(tmp_path):
    for name, content in {"empty": b"", "text": b"hello", "pickle": b"\x80\x04."}.items():
        folder = classes(tmp_path / name)
        (folder / "a" / "9.png").write_bytes(content)
        assert f"{folder / 'a' / '9.png'} must be an image" in refused(folder)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(classes(tmp_path) / "a" / "9.png")
    assert "something that is no file" in refused(tmp_path)


def test_links_are_followed_out_of_the_folder_and_never_in_a_circle(tmp_path):
    outside = classes(tmp_path / "outside", ("c",))
    folder = classes(tmp_path / "folder")
    (folder / "c").symlink_to(outside / "c")
    (folder / "a" / "more.png").symlink_to(outside / "c" / "0.png")
    assert sum(read(folder)) == 13
    (folder / "a" / "up").symlink_to(folder)
    assert "is a link to a folder that is there already" in refused(folder)
    (folder / "a" / "up").unlink()
    (folder / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert "gone.png must be an image" in refused(folder)
    for i in range(30):  # 2³⁰ ways
        (tmp_path / "maze" / "a" / str(i)).mkdir(parents=True)
    for i in range(29):
        for way in "xy":
            (tmp_path / "maze" / "a" / str(i) / way).symlink_to(tmp_path / "maze" / "a" / str(i + 1))
    assert "is a link to a folder that is there already" in refused(tmp_path / "maze")


def test_names_of_all_kinds(tmp_path):
    folder = classes(tmp_path, ("line\nbreak", "tab\t", "é\u202e", " "))
    for name in ("new\nline.png", "\x1b[31m.png", "'\".png"):
        picture().save(folder / "tab\t" / name)
    assert sum(read(folder)) == 19
    (folder / " " / "x\ny.png").write_bytes(b"")
    assert "\n" not in refused(folder)
    (folder / " " / "x\ny.png").unlink()
    os.mkdir(os.path.join(os.fsencode(folder), b"\xff"))
    assert "must be a name in UTF-8" in refused(folder)
