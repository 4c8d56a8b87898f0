"""Times of models beside each other: what is timed, in which order, and what is told of it."""

import json
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdkit import models
from kdkit.console import show
from kdkit.deploy import latency as room
from kdkit.deploy import onnx_file
from kdkit.deploy.latency import latency
from kdkit.deploy.latency_report import LatencyReport, ModelRow, TimeRow
from kdkit.deploy.subjects import Subject, subjects
from kdkit.registry import KdkitError
from tests.cli.command import RECIPE, kdkit, refused

CPU = torch.device("cpu")


class Wide(nn.Module):
    """(B, 1, 1, 4) → 1,000 numbers → 8; it also returns what no deployment needs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 1000), nn.Linear(1000, 8)

    def forward(self, x):
        hidden = self.a(x.flatten(1))
        return self.b(hidden), None


@pytest.fixture
def wide():
    return Subject("wide", "Wide", Wide(), (1, 1, 4))


@pytest.mark.parametrize("nested", [False, True])
def test_a_weights_file_runs_no_code(tmp_path, monkeypatch, nested):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('ran', 'w').close()\nfrom torch import nn\nNet = nn.Identity\n")
    said = {"arch": "sid", "options": '{"backbone": "evil.py:Net"}'} if nested else {"arch": "evil.py:Net"}
    told = {**said, "num_classes": "10", "data": '{"name": "digits"}'}
    models.save_weights(nn.Linear(1, 1), "evil.safetensors", told)
    assert "run" in refused("latency", "evil.safetensors")
    assert not (tmp_path / "ran").exists()


def test_median_and_ninetieth_percentile_of_single_passes():
    row = TimeRow.of("net", "eager", 8, [float(ms) for ms in range(1, 102)], None)  # 1 … 101 ms
    assert (row.median_ms, row.p90_ms, row.passes) == (51.0, 91.0, 101)
    assert row.images_per_second == pytest.approx(8 / 0.051)


def test_models_take_turns_so_that_a_slow_machine_slows_all():
    order = []
    passes = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    times = room._timed(passes, CPU, repeats=30, seconds=60, seen=True)
    assert {name: len(found) for name, found in times.items()} == {"a": 30, "b": 30}
    assert order[: 2 * room.WARM_UP] == ["a"] * room.WARM_UP + ["b"] * room.WARM_UP
    assert order[2 * room.WARM_UP :] == ["a", "b"] * 30


def test_where_time_is_short_five_passes_are_timed_all_the_same():
    times = room._timed({"a": lambda: None}, CPU, repeats=100, seconds=0, seen=True)
    assert len(times["a"]) == room.FEWEST


def test_slow_passes_are_warmed_up_for_half_the_time_and_told_in_milliseconds(monkeypatch):
    clock, passes = count(), []
    monkeypatch.setattr(room, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # a second between two looks
    times = room._timed({"a": lambda: passes.append("a")}, CPU, repeats=100, seconds=0, seen=True)
    assert times == {"a": [1000] * room.FEWEST}
    assert len(passes) == 1 + room.FEWEST


def test_sizes_and_peak_memory_by_hand(wide):
    wide.net.register_buffer("seen", torch.zeros(7))
    report = latency([wide], batches=[2], modes=["eager"], device="cpu", repeats=5, seconds=0)
    (model,), (row,) = report.models, report.times
    weights = 4 * 1000 + 1000 + 1000 * 8 + 8
    assert (model.parameters, model.macs, model.classes) == (weights, 4 * 1000 + 1000 * 8, 8)
    assert row.peak_bytes == 4 * (weights + 7 + 2 * 1000 + 2 * 8)  # both layers' outputs live at once
    assert row.median_ms > 0
    assert row.median_ms <= row.p90_ms
    assert not wide.net.training


def test_what_cannot_be_done_is_left_out_and_told(wide, monkeypatch, capsys):
    def broken(net, **_):
        def run(x):
            raise RuntimeError("no C++ compiler\nand a page of advice")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    report = latency([wide], batches=[1, 2], modes=["compiled", "eager"], device="cpu", repeats=5, seconds=0)
    assert [(row.mode, row.batch) for row in report.times] == [("eager", 1), ("eager", 2)]
    assert report.left_out[0] == ("wide", "compiled", 1, "torch.compile: RuntimeError: no C++ compiler")
    show(report, sys.stdout)
    assert "left out: wide, compiled: torch.compile: RuntimeError: no C++ compiler\n" in capsys.readouterr().out


def test_compiled_and_exported_passes_say_what_the_model_says(wide, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(torch, "compile", lambda net, **_: net)  # a compiler's minute
    images, net = torch.randn(4, 3).t()[:, None, None], room.Logits(wide.net)  # which do not lie in a row
    with torch.inference_mode():
        expected = wide.net(images)[0]
        assert torch.equal(room._ready("compiled", net, images, tmp_path)(), expected)
        room._ready("exported", net, images, tmp_path / "net.onnx")()
        made = room.OnnxNet(tmp_path / "net.onnx")
        binding = made.session.io_binding()
        monkeypatch.setattr(made.session, "io_binding", lambda: binding)
        run = made.bound(images)
        others = [torch.full((12,), 9.0) for _ in range(9)]  # lie where images would have lain that nobody keeps
        run()
    assert len(others) == 9
    for seen in (made(images), torch.from_numpy(binding.copy_outputs_to_cpu()[0])):
        torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


def test_the_verb_times_all_models_of_a_run_and_of_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    quick = ["--batch", 2, "--mode", "eager", "--device", "cpu", "--repeats", 5, "--seconds", 0]
    said = kdkit("latency", run, "resnet8", *quick, "--out", "found.json")
    assert said.code == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(m["name"], m["shape"], m["classes"]) for m in found["models"]] == [
        ("teacher", [3, 8, 8], 5),
        ("student", [3, 8, 8], 5),
        ("resnet8", [3, 32, 32], 100),
    ]
    assert [row["name"] for row in found["times"]] == ["teacher", "student", "resnet8"]
    assert found["machine"]["threads"] == 1
    assert all(f"\neager      2  {name}" in said.out for name in ("teacher", "student", "resnet8"))


def test_two_of_one_name_are_told_apart_and_images_take_another_size():
    found = subjects(["resnet8", "resnet8"], image_size=16, num_classes=3)
    assert [(subject.name, subject.shape) for subject in found] == [
        ("resnet8 (1)", (3, 16, 16)),
        ("resnet8 (2)", (3, 16, 16)),
    ]
    assert subjects(["timm/resnet10t"], num_classes=4)[0].shape == (3, 176, 176)  # what timm says it is made for


def test_a_model_of_ones_own_that_wants_to_know_its_classes_has_a_hundred(tmp_path):
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\ndef wants(num_classes): return nn.Linear(32, num_classes)\n\n"
        "def has(num_classes=7): return nn.Linear(32, num_classes)\n"
    )
    names = [f"{tmp_path}/own.py:{name}" for name in ("wants", "has")]
    assert [one.net.out_features for one in subjects(names)] == [100, 7]
    assert [one.net.out_features for one in subjects(names, num_classes=4)] == [4, 4]


def test_what_is_wrong_is_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["--batch", 1, "--repeats", 5, "--seconds", 0, "--device", "cpu"]
    assert "mode must be one of eager, compiled, exported, got 'eagre'; did you mean 'eager'" in refused(
        "latency", "resnet8", "--mode", "eagre", *quick
    )
    assert "this machine has no 'quantum'" in refused("latency", "resnet8", "--mode", "eager", "--device", "quantum")
    assert "is not a run's folder" in refused("latency", tmp_path, *quick)
    assert "unknown model 'resnet8x'; did you mean" in refused("latency", "resnet8x", *quick)
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Linear(7, 2))\n")
    told = refused("latency", "net.py:net", "--mode", "eager", *quick)
    assert "net.py:net does not run on images of shape (3, 32, 32)" in told
    assert "--image-size gives them another size" in told
    assert "cannot be written" in refused("latency", "resnet8", "--mode", "eager", *quick, "--out", "gone/there.json")


def test_weights_by_themselves_are_timed_by_what_they_say_of_themselves(tmp_path):
    from kdkit import models

    net = models.build("resnet8", num_classes=4)
    told = {"arch": "resnet8", "num_classes": "4", "data": json.dumps({"name": "digits", "image_size": 8})}
    models.save_weights(net, tmp_path / "alone.safetensors", told)
    (subject,) = subjects([str(tmp_path / "alone.safetensors")])
    assert (subject.name, subject.shape) == ("alone", (3, 8, 8))
    models.save_weights(net, tmp_path / "photos.safetensors", {**told, "data": '{"name": "folder", "image_size": 48}'})
    assert [its.shape for its in subjects([str(tmp_path / "photos.safetensors")])] == [(3, 48, 48)]
    said = {**told, "data": json.dumps({"name": "fake", "shape": [3, 16, 32]})}
    models.save_weights(net, tmp_path / "wide.safetensors", said)
    (one,), (other,) = (subjects([str(tmp_path / "wide.safetensors")], image_size=side) for side in (None, 24))
    assert (one.shape, other.shape) == ((3, 16, 32), (3, 24, 24))
    models.save_weights(net, tmp_path / "bare.safetensors")
    with pytest.raises(KdkitError, match="does not say what model it is of"):
        subjects([str(tmp_path / "bare.safetensors")])


@pytest.mark.parametrize(("models", "batches"), [(2, [2, 3]), (9, [2])])
def test_each_model_is_compiled_once_a_batch(monkeypatch, models, batches):
    """Not again when the next one is, and none, however many there are, runs as it is and is called compiled."""
    compiled, real = [], torch.compile

    def count(program, inputs):
        compiled.append(program)
        return program.forward

    monkeypatch.setattr(torch, "compile", lambda net, **_: real(net, dynamic=False, backend=count))
    nets = [Subject(f"n{i}", "N", nn.Sequential(nn.Flatten(), nn.Linear(4, 3 + i)), (1, 1, 4)) for i in range(models)]
    latency(nets, batches=batches, modes=["compiled"], device="cpu", repeats=5, seconds=0)
    assert len(compiled) == len(batches) * models


class Elsewhere(nn.Module):
    """It runs on one kind of device alone, as one with a tensor that is no buffer does."""

    def forward(self, x):
        if x.device.type != "cpu":
            raise RuntimeError("Expected all tensors to be on the same device\nand advice")
        return x.flatten(1)


def test_a_model_that_does_not_run_there_or_for_want_of_memory_is_left_out(wide, monkeypatch):
    class Large(nn.Module):
        def forward(self, x):
            if len(x) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory.\nOf 80 GiB …")
            return x.flatten(1)

    large = Subject("large", "Large", Large(), (1, 1, 4))
    report = latency([large, wide], batches=[2, 4], modes=["eager"], device="cpu", repeats=5, seconds=0)
    assert [(row.name, row.batch) for row in report.times] == [("large", 2), ("wide", 2), ("wide", 4)]
    assert report.left_out == [("large", "eager", 4, "CUDA out of memory.")]
    with pytest.raises(KdkitError, match=r"^RuntimeError: Expected all tensors to be on the same device$"):
        room._ready("eager", room.Logits(Elsewhere()), torch.zeros(1, 1, 1, 4, device="meta"), None)


def test_a_file_that_onnxruntime_does_not_read_and_a_pass_that_no_longer_fits_are_left_out(wide, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(room, "write_onnx", lambda net, whole, file: file.write_bytes(b"no model"))
    report = latency([wide], batches=[1], modes=["exported"], device="cpu", repeats=5, seconds=0)
    assert [(name, why.partition(": ")[0]) for name, _, _, why in report.left_out] == [("wide", "onnxruntime")]

    class Growing(nn.Module):
        passes = 0

        def forward(self, x):
            self.passes += 1
            if self.passes > room.WARM_UP + 10:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return x.flatten(1)

    growing = Subject("growing", "Growing", Growing(), (1, 1, 4))
    report = latency([growing, wide], batches=[1], modes=["eager"], device="cpu", repeats=50, seconds=9)
    assert [row.name for row in report.times] == ["wide"]
    assert report.left_out == [("growing", "eager", 1, "out of memory")]


def test_models_whose_names_differ_by_a_slash_have_files_of_their_own(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    seen = []
    monkeypatch.setattr(room, "write_onnx", lambda net, whole, file: seen.append(file.name) or file.touch())
    monkeypatch.setattr(room, "OnnxNet", lambda file, device: type("N", (), {"bound": lambda self, x: lambda: None})())
    nets = [Subject(name, "N", nn.Flatten(), (1, 1, 4)) for name in ("a/b", "a_b")]
    latency(nets, batches=[1], modes=["exported"], device="cpu", repeats=5, seconds=0)
    assert len(set(seen)) == 2


def test_an_export_that_fails_leaves_the_model_where_it_was(monkeypatch):
    moved = []

    class Net(nn.Module):
        net = None

        def to(self, device):
            moved.append(str(device))
            return self

    def fails(*_):
        raise KdkitError("no")

    monkeypatch.setattr(room, "write_onnx", fails)
    with pytest.raises(KdkitError, match="no"):
        room._ready("exported", Net(), torch.zeros(1, 1, 1, 4, device="meta"), Path("gone.onnx"))
    assert moved == ["cpu", "meta"]


def test_cuda_is_timed_on_the_device_that_was_asked_for(monkeypatch):
    """Events, statistics and onnxruntime else take GPU 0."""
    current, events, second = [0], [], torch.device("cuda:1")

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            events.append(("record", current[-1]))

        def synchronize(self):
            events.append(("wait", current[-1]))

        def elapsed_time(self, end):
            return 2.5

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append(("idle", current[-1])))
    with room._current(second):
        assert room._clock(second, seen=True)(lambda: events.append(("run", current[-1]))) == 2.5
    assert events == [(what, 1) for what in ("idle", "record", "run", "record", "wait")]
    with room._current(CPU):
        assert current == [0]

    taken = {}

    class Session:
        def __init__(self, path, options, providers):
            taken.update(providers=providers, threads=options.intra_op_num_threads)

        def get_providers(self):
            return taken["starts"]

        def get_inputs(self):
            return [type("Node", (), {"name": "x"})]

        get_outputs = get_inputs

    class Runtime:
        InferenceSession, SessionOptions = Session, type("Options", (), {})

        def get_available_providers():
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    monkeypatch.setattr(onnx_file, "extra", lambda name: Runtime)
    taken["starts"] = Runtime.get_available_providers()
    onnx_file.OnnxNet(Path("net.onnx"), second)
    assert taken["providers"] == [("CUDAExecutionProvider", {"device_id": 1})]
    assert taken["threads"] == torch.get_num_threads()
    taken["starts"] = ["CPUExecutionProvider"]  # what it falls back to without a word
    with pytest.raises(KdkitError, match="that is installed does not run on mps; take the CPU"):
        onnx_file.OnnxNet(Path("net.onnx"), torch.device("mps"))
    with pytest.raises(KdkitError, match="onnxruntime cannot start its CUDAExecutionProvider"):
        onnx_file.OnnxNet(Path("net.onnx"), second)


def test_all_is_timed_while_the_device_is_the_current_one(wide, monkeypatch):
    seen, timed = [], room._timed

    @contextmanager
    def current(device):
        seen.append(str(device))
        yield
        seen.append("left")

    monkeypatch.setattr(room, "_current", current)
    looks = torch.is_inference_mode_enabled
    monkeypatch.setattr(room, "_timed", lambda *a, **k: seen.append(looks()) or timed(*a, **k))
    latency([wide], batches=[1, 2], modes=["eager"], device="cpu", repeats=5, seconds=0)
    assert seen == ["cpu", True, True, "left"]  # and without gradients


def test_the_gpu_that_is_named_is_the_one_that_ran(capsys):
    machine = {"gpus": ["first", "second"], "processor": "a processor", "threads": 1}
    for device, name in (("cuda:1", "second"), ("cuda", "first"), ("cpu", "a processor")):
        model, row = ModelRow("n", "N", 1, 1, (1, 1, 4), 3), TimeRow.of("n", "eager", 1, [1.0], None)
        show(LatencyReport(device, machine, "2", (model,), [row], []), sys.stdout)
        assert f"on {device}: {name}, 1 thread," in capsys.readouterr().out


def test_a_weights_file_beside_its_recipe_is_built_by_code_that_the_recipe_names(tmp_path):
    (tmp_path / "net.py").write_text("from torch import nn\ndef net(num_classes, wide):\n    return nn.Identity()\n")
    student = "{arch: 'net.py:net', options: {wide: 3}}"
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("{arch: resnet8}", f"{student}\n  slow: {{ema: student}}"))
    told = {"arch": "net.py:net", "options": '{"wide": 3}', "num_classes": "5", "data": '{"name": "digits"}'}
    for name in ("student", "slow", "stranger"):
        models.save_weights(nn.Identity(), tmp_path / f"{name}.safetensors", told)
    found = subjects([str(tmp_path / f"{name}.safetensors") for name in ("student", "slow")])
    assert [(its.name, type(its.net)) for its in found] == [("student", nn.Identity), ("slow", nn.Identity)]
    with pytest.raises(KdkitError, match=r"stranger\.safetensors is of your own code"):
        subjects([str(tmp_path / "stranger.safetensors")])
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("arch: resnet8", f"arch: '{tmp_path.parent}/net.py:net'"))
    with pytest.raises(KdkitError, match="must lie beside the recipe"):
        subjects([str(tmp_path / "student.safetensors")])


@pytest.mark.parametrize(
    "beside", ["of: pancakes\n", "{{", "protocol: cifar100_240\nmodels: {student: {arch: 'x.py:X'}}\n"]
)
def test_a_weights_file_of_no_code_asks_no_recipe(tmp_path, beside):
    (tmp_path / "recipe.yaml").write_text(beside)
    told = {"arch": "resnet8", "num_classes": "5", "data": '{"name": "digits"}'}
    models.save_weights(nn.Identity(), tmp_path / "student.safetensors", told)
    assert [its.arch for its in subjects([str(tmp_path / "student.safetensors")])] == ["resnet8"]
