"""Weights files that are not what was written: refused in one error, or the very numbers; nothing in them runs."""

import contextlib
import errno
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import pytest
import torch

from kdkit.models import build, load_weights, read_metadata, save_weights
from kdkit.registry import KdkitError
from tests.damage import spoilt
from tests.recipe.fuzz import in_time


def net():
    return build("resnet8", num_classes=4, widths=[2, 2, 2, 2])


def refused(path):
    with in_time(), pytest.raises(KdkitError) as caught:
        load_weights(net(), path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_damaged_file_is_refused_or_gives_the_very_numbers(tmp_path, name):
    source, path = net(), tmp_path / name
    if name == "w.pth":
        torch.save({"model": source.state_dict()}, path)
    else:
        save_weights(source, path, {"arch": "resnet8"})
    right, refusals = source.state_dict(), 0
    for content in spoilt(path.read_bytes(), 120, 4000):
        path.write_bytes(content)
        target = net()
        try:
            with in_time():
                load_weights(target, path)
        except KdkitError:
            refusals += 1
        else:
            assert all(torch.equal(value, right[key]) for key, value in target.state_dict().items())
        if content and name == "w.safetensors":
            with contextlib.suppress(KdkitError):
                read_metadata(path)
    assert refusals > 60


VALUES = {
    "int8": lambda v: v.to(torch.int8),
    "complex64": lambda v: v.to(torch.complex64),
    "bool": lambda v: v.to(torch.bool),
    "no number": lambda v: torch.full_like(v, float("nan")) if v.is_floating_point() else v,
    "infinite": lambda v: torch.full_like(v, float("inf")) if v.is_floating_point() else v,
    "sparse": lambda v: v.to_sparse() if v.dim() else v,
    "no numbers": lambda v: v.to("meta"),
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_values_that_are_no_weights(kind, tmp_path):
    torch.save({key: VALUES[kind](value) for key, value in net().state_dict().items()}, tmp_path / "w.pth")
    assert kind in refused(tmp_path / "w.pth")


def test_a_wide_type_is_loaded_in_the_models_own(tmp_path):
    source, target = net(), net()
    torch.save(source.double().state_dict(), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert torch.equal(target.conv1.weight.double(), source.conv1.weight)


class Harm:
    """What runs where it is unpickled."""

    def __init__(self, call, *words):
        self.call, self.words = call, words

    def __reduce__(self):
        return self.call, self.words


def harmful(marker):
    calls = [Harm(os.system, f"touch {marker}"), Harm(exec, f"import os; os.mkdir({marker!r})"), Harm(os.mkdir, marker)]
    state = net().state_dict()
    for harm in calls:
        yield harm
        yield {"model": state, "epoch": harm}
        yield {**state, "conv1.weight": harm}


def test_code_in_a_pickle_never_runs(tmp_path):
    marker, count = tmp_path / "ran", 0
    for content in harmful(str(marker)):
        raw = pickle.dumps(content) if not isinstance(content, dict) else b""
        torch.save(content, tmp_path / "w.pth")
        torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        for name, body in {"raw.pt": raw, "raw.bin": raw, "w.safetensors": raw}.items():
            (tmp_path / name).write_bytes(body or b"x")
        with tarfile.open(tmp_path / "tar.pth", "w") as tar:
            for part in ("sys_info", "pickle", "storages", "tensors"):
                entry = tarfile.TarInfo(part)
                entry.size = len(raw)
                tar.addfile(entry, io.BytesIO(raw))
        for name in ("w.pth", "old.pth", "raw.pt", "raw.bin", "w.safetensors", "tar.pth"):
            refused(tmp_path / name)
            count += 1
    assert count == 54
    assert not marker.exists()
    torch.load(tmp_path / "w.pth", weights_only=False)  # the test can fail
    assert marker.exists()


def test_headers_that_promise_too_much(tmp_path):
    path = tmp_path / "w.safetensors"
    vast = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    many = json.dumps({f"k{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(5_000)}).encode()
    for length, header in [(2**63, b"{}"), (2**40, b"{}"), (99_999_999, b"{}"), (len(vast), vast), (2, b"{}")]:
        path.write_bytes(struct.pack("<Q", length) + header)
        refused(path)
    path.write_bytes(struct.pack("<Q", len(many)) + many)
    assert "5000" in refused(path)


def test_a_few_bytes_that_stand_for_many_are_not_unpacked(tmp_path):
    torch.save(net().state_dict(), tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as packed:
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record), zipfile.ZIP_DEFLATED)
        packed.writestr("w/data/999", bytes(1 << 28), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 1 << 20
    assert "compressed archive" in refused(tmp_path / "bomb.pth")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    for path in (tmp_path / "pipe.pth", tmp_path / "loop.pth", tmp_path, "/dev/zero", tmp_path / ("a" * 300)):
        refused(path)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_a_disk_that_cannot_be_read_is_no_damaged_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    torch.save(net().state_dict(), path) if name == "w.pth" else save_weights(net(), path)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(zipfile.ZipFile, "testzip", fail)
    monkeypatch.setattr("kdkit.models.weights.check_stamp", fail)
    assert f"{path}: cannot be read (Input/output error)" in refused(path)


def test_an_archive_on_several_disks_is_damage(tmp_path):
    torch.save(net().state_dict(), path := tmp_path / "w.pth")
    content = bytearray(path.read_bytes())
    locator = content.rindex(b"PK\x06\x07")
    content[locator + 16] = 3
    path.write_bytes(content)
    assert "is not a whole PyTorch weights file" in refused(path)


def test_places_before_the_file_are_damage(tmp_path):
    """The list of records says that it lies further on than it does: every record then begins before the file."""
    path, stream = tmp_path / "w.pth", io.BytesIO()
    torch.save(net().state_dict(), stream)
    content = bytearray(stream.getvalue())
    for mark, offset, size in ((b"PK\x05\x06", 16, 4), (b"PK\x06\x06", 48, 8)):  # the short list of ends and the long
        if (end := content.rfind(mark)) >= 0:
            place = slice(end + offset, end + offset + size)
            content[place] = (int.from_bytes(content[place], "little") + 1).to_bytes(size, "little")
    path.write_bytes(content)
    assert "is not a whole PyTorch weights file" in refused(path)
