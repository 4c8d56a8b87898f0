"""A recorded step makes the images of a resident set by itself, and teaches what it would from images made before."""

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit import data
from kdkit.data.device_loader import DeviceLoader, LateBatch
from kdkit.train import captured as recording
from tests.nets import net
from tests.train.running import fit
from tests.train.test_captured import assert_same, recorded  # noqa: F401

EDGES = ["ce", "kd", kdkit.Edge("crd", num_negatives=8, embed_dim=8)]


def digits(**words):
    return data.build("digits", image_size=8, subset=200, batch_size=48, padding=1, **words)  # ends with one of 8


def run(compile, module=None, cache=False, epochs=4, **options):
    teacher, student = net(8, seed=1, classes=10), net(8, seed=2, classes=10)
    nodes = {"teacher": kdkit.frozen(teacher, cache=cache), "student": student}
    made = kdkit.Distiller(nodes, EDGES, lr={"cosine": [0.1, 0.0]}, compile=compile)
    fit(made, module or digits(), epochs=epochs, limit_val_batches=0, **options)
    return made


@pytest.mark.parametrize("augment", [True, False])
def test_a_late_batch_is_the_batch(augment):
    plain, late = (digits(augment=augment).train_dataloader() for _ in range(2))
    late.late = True
    first = [batch for _ in range(2) for batch in plain]
    held = [batch for _ in range(2) for batch in late]  # read when its epoch is over
    assert all(isinstance(batch, LateBatch) and batch.unread for batch in held)
    for one, other in zip(first, held, strict=True):
        assert len(one) == len(other) == 3
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert late.state_dict() == plain.state_dict()


@pytest.mark.parametrize("cached", [False, True])
def test_images_and_places_in_a_cache_are_made_within_the_recording(recorded, monkeypatch, tmp_path, cached):  # noqa: F811
    made, real = [], DeviceLoader.made
    monkeypatch.setattr(DeviceLoader, "made", lambda *args: made.append(1) or real(*args))

    class Look(pl.Callback):
        def on_train_end(self, trainer, module):
            held.extend(its.inputs for its in module.captured.recordings.values() if its.inputs is not None)

    def quick(name):
        return run(
            "auto", callbacks=[Look()], cache={"dtype": "float32", "folder": str(tmp_path / name)} if cached else False
        )

    held = []
    late = quick("late")
    assert late.captured is None  # when training is over it holds no memory
    assert {type(each) for each in held} == {LateBatch}
    assert len(held) == len(recorded) == 2
    assert sum(entry[0] for entry in recorded) == 20 - 2 * recording.WARM
    assert len(made) == 1 + 2 * (recording.WARM + 1)  # before training starts, and in two phases of a recording
    monkeypatch.setattr(recording, "hand_out", lambda *_: None)
    assert_same(late, quick("early"), rtol=0, atol=0)
    assert_same(late, run(False), rtol=1e-5, atol=1e-6)


class Darken(pl.Callback):
    """Changes every second batch where it lies."""

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx % 2:
            batch[0].mul_(0.5)


def test_what_a_callback_does_to_a_batch_is_not_lost(recorded):  # noqa: F811
    quick = run("auto", callbacks=[Darken()])
    assert_same(quick, run(False, callbacks=[Darken()]), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(quick.student.fc.weight, run(False).student.fc.weight, rtol=1e-3)


def test_a_data_module_that_changes_batches_on_the_way_sees_images(recorded):  # noqa: F811
    seen = []

    class Watching(type(digits())):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            seen.append(type(batch))
            return batch

    words = {"image_size": 8, "subset": 200, "batch_size": 48, "padding": 1}
    run("auto", Watching(**words), epochs=1)
    assert set(seen) <= {tuple, list}


def test_batches_that_lightning_turns_to_half_precision_are_made(recorded):  # noqa: F811
    made = run("auto", epochs=2, precision="bf16-true")
    assert len(recorded) == 1
    assert {p.dtype for p in made.student.parameters()} == {torch.bfloat16}


def test_the_loader_is_left_as_it_was(recorded):  # noqa: F811
    class Wrapped(pl.Callback):
        late = None

        def on_train_batch_end(self, trainer, *_):
            self.late = trainer.train_dataloader.late

    module, watch = digits(), Wrapped()
    source = module.train_dataloader()
    module.train_dataloader = lambda: source
    run("auto", module, epochs=1, callbacks=[watch])
    assert watch.late is True
    assert source.late is False
    assert isinstance(next(iter(source)), tuple)


def test_a_cache_by_epochs_is_a_reason(recorded, monkeypatch, tmp_path):  # noqa: F811
    told = []
    monkeypatch.setattr(recording, "note", told.append)
    run("auto", cache={"by": "epochs", "folder": str(tmp_path)}, epochs=1)
    assert told == ["training without a CUDA graph: a cache by epochs is read by the host"]
