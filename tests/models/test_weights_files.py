"""Weights files: every layout people have, nothing that runs code, and errors key by key."""

import argparse
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdkit.models import build, load_weights, read_metadata, read_weights, save_weights
from kdkit.models.start import start_from
from kdkit.registry import KdkitError

CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


def net(num_classes: int = 10) -> nn.Module:
    return build("resnet8", num_classes=num_classes)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def prefixed(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in module.state_dict().items()}


def epoch_240(module: nn.Module) -> dict:
    """What RepDistiller writes as `ckpt_epoch_240.pth`."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    accuracy = torch.tensor([72.3])
    return {"epoch": 240, "model": module.state_dict(), "accuracy": accuracy, "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize(
    "layout",
    [
        lambda m: m.state_dict(),
        epoch_240,
        lambda m: {"state_dict": m.state_dict(), "epoch": 3},
        lambda m: {"net": m.state_dict(), "acc": 90.1},
        lambda m: {"model_state": {"state_dict": m.state_dict()}},
        lambda m: prefixed("module.", m),
        lambda m: {"state_dict": prefixed("model.", m)},
        lambda m: prefixed("_orig_mod.", m),
        lambda m: prefixed("module._orig_mod.", m),
        lambda m: prefixed("_orig_mod.module.", m),
        lambda m: {"state_dict": prefixed("nodes.student.", m) | {"edges.crd.bank": torch.ones(3)}},
    ],
)
def test_every_layout_loads_strictly(layout, tmp_path):
    source, target = net(), net()
    torch.save(layout(source), tmp_path / "w.pth")
    assert not same(source, target)
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_old_torch_files_and_files_without_batch_counters_load(tmp_path):
    source, target = net(), net()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_a_prefix_that_is_the_models_own_stays(tmp_path):
    source, target = (nn.ModuleDict({"model": nn.Linear(2, 2)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth")
    assert same(source, target)


def test_safetensors_there_and_back_with_metadata(tmp_path):
    source, target = net(), net()
    path = tmp_path / "deeper" / "student.safetensors"
    save_weights(source, path, {"arch": "resnet8", "mean": "[0.5, 0.5, 0.5]"})
    load_weights(target, path)
    assert same(source, target)
    assert read_metadata(path) == {"arch": "resnet8", "mean": "[0.5, 0.5, 0.5]"}
    assert os.listdir(path.parent) == ["student.safetensors"]
    assert not stat.S_IMODE(path.stat().st_mode) & stat.S_IXUSR


def test_what_is_equal_is_equal_to_the_byte(tmp_path):
    texts, model = {f"text {i}": "é" * i for i in range(20)}, net()
    save_weights(model, tmp_path / "a", texts)
    save_weights(model, tmp_path / "b", dict(reversed(texts.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert load_file(tmp_path / "a").keys() == model.state_dict().keys()


def test_compiled_tied_and_strided_modules_save_under_their_own_names(tmp_path):
    tied = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    tied["b"].weight = tied["a"].weight
    tied["a"].bias = nn.Parameter(torch.arange(6.0)[::2])
    save_weights(torch.compile(tied, backend="eager"), tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    assert load_file(tmp_path / "w.safetensors")["a.bias"].tolist() == [0, 2, 4]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 2), path)
    before = path.read_bytes()

    def torn(handle):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", torn)
    with pytest.raises(KdkitError, match=r"w\.safetensors: could not be written \(no space left"):
        save_weights(nn.Linear(2, 2), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


def test_weights_of_another_architecture_name_both(tmp_path):
    save_weights(net(), tmp_path / "w.safetensors", {"arch": "resnet8"})
    other = build("resnet14", num_classes=10)
    with pytest.raises(KdkitError, match=r"its weights are of resnet8, the model is resnet14\n  missing in the file"):
        load_weights(other, tmp_path / "w.safetensors", arch="resnet14")
    with pytest.raises(KdkitError, match=r"w\.safetensors does not fit ResNet\n"):
        load_weights(other, tmp_path / "w.safetensors")


def test_metadata_of_other_files(tmp_path):
    torch.save({}, tmp_path / "w.pth")
    assert read_metadata(tmp_path / "w.pth") == {}
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    assert read_metadata(tmp_path / "w.safetensors") == {}
    with pytest.raises(KdkitError, match="no such weights file"):
        read_metadata(tmp_path / "none.safetensors")


class Code:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("content", [Code(), {"model": Code()}, {"model": {"fc.weight": torch.ones(1)}, "x": Code()}])
def test_a_file_with_code_is_refused_and_not_run(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pth")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(KdkitError, match=r"w\.pth: refused, for it holds Python objects \(\w+\.mkdir\)"):
        load_weights(net(), "w.pth")
    with pytest.raises(KdkitError, match=r"raw\.pt: "):
        load_weights(net(), "raw.pt")
    assert not (tmp_path / "ran").exists()


def test_options_in_a_last_file_are_refused_with_advice(tmp_path):
    torch.save({"opt": argparse.Namespace(lr=0.1), "model": net().state_dict()}, tmp_path / "resnet8_last.pth")
    with pytest.raises(KdkitError, match=r"argparse\.Namespace(.|\n)*take the `ckpt_epoch_\*\.pth` beside it"):
        load_weights(net(), tmp_path / "resnet8_last.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(net().state_dict(), path)
    else:
        save_weights(net(), path)
    whole = path.read_bytes()
    damaged = [whole[: len(whole) // 2], whole[:-1], whole[:5], b"<html>not found</html>", bytes(range(256)) * 8]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(KdkitError, match=r"w\.\w+: is not a whole \w+ (weights )?file") as caught:
            load_weights(net(), path)
        assert "weights_only" not in str(caught.value)
    path.write_bytes(b"")
    with pytest.raises(KdkitError, match="the weights file is empty"):
        load_weights(net(), path)


def test_files_that_hold_no_state_dict(tmp_path):
    path = tmp_path / "w.pth"
    for content, found in [
        ({"epoch": 3, "optimizer": {}}, "a dictionary of epoch, optimizer"),
        ({}, "a dictionary of nothing"),
        ([torch.ones(1)], "a list"),
        (3.5, "a float"),
    ]:
        torch.save(content, path)
        with pytest.raises(KdkitError, match=f"must hold a state dict, .*; got {found}"):
            read_weights(path)
    with pytest.raises(KdkitError, match=r"no_such\.pth: no such weights file"):
        read_weights(tmp_path / "no_such.pth")
    with pytest.raises(KdkitError, match="is a folder, not a weights file"):
        read_weights(tmp_path)


def test_a_mismatch_is_told_key_by_key_and_changes_nothing(tmp_path):
    target = net()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    state = build("resnet20", num_classes=10).state_dict()
    state["extra"] = state.pop("fc.bias")
    state["conv1.weight"] = torch.zeros(4, 3, 3, 3)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(KdkitError) as caught:
        load_weights(target, tmp_path / "w.pth")
    lines = str(caught.value).split("\n  ")
    assert lines[0].endswith("w.pth does not fit ResNet")
    assert lines[1] == "missing in the file (1): fc.bias"
    assert lines[2].startswith("unknown to the model (73): layer1.1.conv1.weight, ")
    assert lines[2].endswith("… and 65 more")
    assert lines[2].count(",") == 8
    assert lines[3:] == [
        "shapes (1): conv1.weight is (4, 3, 3, 3) in the file, (16, 3, 3, 3) in the model"
    ]  # no `tune:`
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_other_classes_are_sent_to_tune(tmp_path):
    torch.save(net(num_classes=1000).state_dict(), tmp_path / "w.pth")
    with pytest.raises(KdkitError, match=r"`fc` has 1000 classes in the file, 10 in the model: `tune:` fits"):
        load_weights(net(), tmp_path / "w.pth")
    torch.save({"0.weight": torch.ones(3, 2)}, tmp_path / "w.pth")
    with pytest.raises(KdkitError) as caught:
        load_weights(nn.Sequential(nn.Linear(4, 3, bias=False)), tmp_path / "w.pth")
    assert "tune" not in str(caught.value)


def test_loose_loading_forgives_keys_and_not_shapes(tmp_path):
    source, target = net(), net()
    state = source.state_dict()
    state["extra"] = state.pop("fc.bias")
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(KdkitError, match=r"missing in the file \(1\): fc.bias\n  unknown to the model \(1\): extra$"):
        load_weights(target, tmp_path / "w.pth")
    load_weights(target, tmp_path / "w.pth", strict=False)
    assert torch.equal(target.fc.weight, source.fc.weight)
    for wrong in ({"fc.weight": torch.ones(3)}, {"nothing": torch.ones(3)}):
        torch.save(wrong, tmp_path / "w.pth")
        with pytest.raises(KdkitError, match="does not fit"):
            load_weights(target, tmp_path / "w.pth", strict=False)


def test_half_precision_files_load_into_the_models_own_precision(tmp_path):
    source, target = net().half(), net()
    save_weights(source, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert target.fc.weight.dtype == torch.float32
    assert torch.equal(target.fc.weight, source.fc.weight.float())


def test_a_real_teacher_reaches_its_accuracy(data_root):
    """14 epochs, 65.36 % on all 10,000 test images; 65.4 % on the first thousand."""
    teacher = build("resnet56", num_classes=100).eval()
    load_weights(teacher, data_root / "weights" / "resnet56_cifar100_14ep.pth")
    test = pickle.loads((data_root / "cifar-100-python" / "test").read_bytes(), encoding="latin1")
    images = torch.from_numpy(test["data"][:1000]).view(-1, 3, 32, 32) / 255
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (CIFAR_MEAN, CIFAR_STD))
    with torch.inference_mode():
        guesses = torch.cat([teacher(part).argmax(1) for part in ((images - mean) / std).split(200)])
    assert 100 * np.mean(guesses.numpy() == test["fine_labels"][:1000]) == pytest.approx(65.4, abs=0.3)


@pytest.mark.parametrize("arch", ["wrn_16_1", "resnet8", "vgg8"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_model_starts_from_one_of_other_classes(arch, prefix, tmp_path):
    """The first of a file's keys that ends like the model's first need not be it: keys are sorted there."""
    donor, student = build(arch, num_classes=7), build(arch, num_classes=5)
    state = {f"{prefix}{key}": value for key, value in donor.state_dict().items()}
    save_file(dict(sorted(state.items())), tmp_path / "w.safetensors")
    head = {key for key, value in donor.state_dict().items() if value.shape != student.state_dict()[key].shape}
    drawn = {key: value.clone() for key, value in student.state_dict().items()}
    start_from(student, tmp_path / "w.safetensors", arch, 5)
    assert head
    for key, value in student.state_dict().items():
        assert torch.equal(value, drawn[key] if key in head else donor.state_dict()[key]), key
