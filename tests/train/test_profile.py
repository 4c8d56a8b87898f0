"""What a profiled fit measures, and that it leaves nothing behind."""

import gzip
import json

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

import kdkit
from kdkit.train.profile import BETWEEN, Part, StepProfiler, _busy, _parts
from tests.train.running import fit, loader, pair


def profiled(tmp_path, epochs=1, n=256, edges=("ce", "kd"), **options):
    told = []
    made = kdkit.Distiller(pair(), list(edges), lr=0.05)
    watch = StepProfiler(tmp_path / "trace.json.gz", lambda *found: told.append(found), **options)
    fit(made, loader(n=n), epochs=epochs, callbacks=[watch])
    return made, told


def test_every_part_of_a_step_is_there(tmp_path):
    _, ((parts, wall, idle),) = profiled(tmp_path, warm=2, steps=5)
    assert {part.name for part in parts} == {
        "teacher: forward", "student: forward", "loss ce", "loss kd", "backward", "optimizer", BETWEEN,
    }  # fmt: skip
    assert all(part.host > 0 for part in parts)
    assert sum(part.host for part in parts) < 1.2 * wall
    assert idle == 0
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "teacher: forward" for event in events) == 5


def test_a_teacher_that_a_tap_cuts_short_is_measured(tmp_path):
    _, ((parts, _, _),) = profiled(tmp_path, edges=("ce", kdkit.Edge("at", taps="stage1")), warm=1, steps=3)
    assert "teacher: forward" in {part.name for part in parts}


def test_what_a_gpu_tells_twice_counts_once():
    """Kineto's events there: a label on both sides, and a kernel that its operation tells of, too."""

    def event(id, name, start, end, device=DeviceType.CPU, **words):
        return FunctionEvent(id, name, 0, start, end, stack=[], device_type=device, use_device="cuda", **words)

    label, conv = event(1, "backward", 0, 4000, is_user_annotation=True), event(2, "aten::conv", 1000, 3000)
    conv.append_kernel("kernel", 0, 6000)
    there = [
        event(3, "backward", 2000, 8000, DeviceType.CUDA, is_user_annotation=True),
        event(4, "kernel", 2000, 8000, DeviceType.CUDA),
    ]
    events = EventList([label, conv, *there], use_device="cuda")
    events._build_tree()
    averages = events.key_averages()
    assert _parts(averages, 2) == [Part("backward", 2.0, 3.0)]
    assert _busy(averages, 2) == 3.0


def test_it_ends_with_the_epoch_and_begins_in_the_next(tmp_path):
    _, told = profiled(tmp_path, n=64, epochs=3, warm=5, steps=50)
    assert len(told) == 1
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "teacher: forward" for event in events) == 3  # 4 steps an epoch, from the sixth on


@pytest.mark.parametrize(("epochs", "steps"), [(1, 2), (2, 4)])
def test_a_run_of_few_steps_is_measured(tmp_path, epochs, steps):
    """4 steps an epoch: the second half, or the last epoch."""
    _, told = profiled(tmp_path, n=64, epochs=epochs)
    assert len(told) == 1
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event.get("name") == "teacher: forward" for event in events) == steps


def test_nothing_is_left_behind_and_nothing_is_changed(tmp_path):
    made, _ = profiled(tmp_path, warm=1, steps=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())
    assert not {"_backward", "_update"} & made.__dict__.keys()
    plain = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.05)
    fit(plain, loader(n=256), epochs=1)
    assert torch.equal(made.student.fc.weight, plain.student.fc.weight)


def test_a_run_that_dies_leaves_nothing_behind(tmp_path):
    class Dies(kdkit.Distiller):
        def on_train_batch_end(self, *_):
            raise OSError("gone")

    made = Dies(pair(), ["ce", "kd"], lr=0.05)
    with pytest.raises(OSError, match="gone"):
        fit(made, loader(n=64), epochs=1, callbacks=[StepProfiler(tmp_path / "t.json", print, warm=0)])
    assert not made.teacher._forward_hooks
