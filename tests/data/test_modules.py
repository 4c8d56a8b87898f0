"""The data modules as their users meet them: in a plain loop, in anybody's Lightning Trainer, through errors."""

import os
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from kdkit import data
from kdkit.registry import KdkitError, UnknownNameError

CIFAR = os.environ.get("KDKIT_DATA", "")
needs_cifar = pytest.mark.skipif(
    not os.path.isdir(f"{CIFAR}/cifar-100-python"), reason="no CIFAR-100 in KDKIT_DATA: set it to run this test"
)


class Recorder(pl.LightningModule):
    """Somebody else's module: trains a little, and remembers what it saw."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
        self.seen, self.pixels, self.evaluated, self.stop_at = [], [], 0, stop_at

    def training_step(self, batch, _):
        x, y, index = batch
        self.seen.append(index.tolist())
        self.pixels.append(x.clone())
        return nn.functional.cross_entropy(self.net(x), y)

    def on_train_batch_end(self, *_):
        if len(self.seen) == self.stop_at:
            self.trainer.save_checkpoint(f"{self.trainer.default_root_dir}/stopped.ckpt")

    def validation_step(self, batch, _):
        self.evaluated += len(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(module, datamodule, folder, ckpt_path=None, **options):
    with torch.random.fork_rng():
        trainer = pl.Trainer(
            default_root_dir=folder, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
        )  # fmt: skip
        trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    return module


def fake(**options):
    return data.build("fake", samples=90, shape=(3, 8, 8), batch_size=16, **options)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers", "ignore:.*LeafSpec")
class TestInSomebodyElsesTrainer:
    def test_every_epoch_has_each_sample_once_in_its_own_order(self, tmp_path):
        module = fit(Recorder(), fake(), tmp_path, max_epochs=3)
        epochs = [list(chain(*module.seen[6 * e : 6 * e + 6])) for e in range(3)]
        assert all(sorted(epoch) == list(range(90)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == 3
        assert module.evaluated == 4 * 45  # sanity check and three epochs

    def test_an_epoch_cut_short_is_followed_by_another_one(self, tmp_path):
        module = fit(Recorder(), fake(), tmp_path, max_epochs=3, limit_train_batches=2)
        assert len({tuple(index) for index in module.seen}) == 6

    @pytest.mark.parametrize("stop_at", [2, 6, 9, 12])
    def test_resume_is_bit_identical(self, tmp_path, stop_at):
        module = fit(Recorder(stop_at), fake(), tmp_path, max_epochs=3, limit_val_batches=0)
        resumed = fit(
            Recorder(), fake(), tmp_path, ckpt_path=tmp_path / "stopped.ckpt", max_epochs=3, limit_val_batches=0
        )
        assert resumed.seen == module.seen[stop_at:]
        assert all(map(torch.equal, resumed.pixels, module.pixels[stop_at:]))
        assert torch.equal(resumed.net[1].weight, module.net[1].weight)


def test_another_batch_size_gives_the_same_views():
    def by_sample(batch_size):
        loader = data.build("digits", batch_size=batch_size, seed=4).train_dataloader()
        loader.set_epoch(3)
        return {i: x for xs, _, index in loader for x, i in zip(xs, index.tolist(), strict=True)}

    small, large = by_sample(32), by_sample(500)
    assert small.keys() == large.keys() == set(range(1437))
    assert all(torch.equal(small[i], large[i]) for i in small)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: order and views there are checked on one")
def test_batches_on_the_gpu_are_those_of_the_cpu_and_wait_for_nothing():
    module = data.build("digits", flip=True, seed=1)
    expected = list(module.train_dataloader())
    module.device = torch.device("cuda")
    loader = module.train_dataloader()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(chain(*expected), chain(*found), strict=True))


def test_val_split_subset_and_training_are_disjoint_and_stay_put():
    module = data.build("digits", val_split=0.2, subset=500, seed=0)
    other = data.build("digits", val_split=0.2, subset=500, seed=1)
    (train, val), (train_other, val_other) = module.parts, other.parts
    assert module.num_samples == len(train) == 500
    assert len(val) == round(0.2 * 1437)
    assert not set(train.tolist()) & set(val.tolist())
    assert torch.equal(train, train_other)
    assert torch.equal(val, val_other)
    assert module.selects
    assert sum(len(y) for _, y in module.val_dataloader()) == len(val)
    assert sum(len(y) for _, y in module.test_dataloader()) == 360
    moved = data.build("digits", val_split=0.2, subset=500, split_seed=1)
    assert not torch.equal(moved.parts[1], val)
    assert set(data.build("digits", val_split=0.2, subset=100).parts[0].tolist()) < set(train.tolist())


def test_a_subset_beside_val_split_is_chosen_by_its_own_samples_keys():
    module = data.build("digits", val_split=0.2, subset=500)
    (chosen, val), labels, keys = module.parts, module.read_labels(True), module.sample_keys()
    left = torch.ones(len(labels), dtype=torch.bool)
    left[torch.cat([chosen, val])] = False
    for its in range(10):
        assert keys[chosen][labels[chosen] == its].max() <= keys[left & (labels == its)].min()


def test_order_parts_and_noise_are_those_of_every_version():
    """Else a run that goes on under a newer version would see other batches, and its teacher's held-out images."""
    module = data.build("digits", val_split=0.1, subset=300, label_noise=0.5, batch_size=8, seed=3)
    loader = module.train_dataloader()
    loader.set_epoch(2)
    _, y, index = next(iter(loader))
    assert (index.tolist(), y.tolist()) == ([281, 172, 58, 179, 226, 247, 192, 259], [3, 6, 3, 7, 5, 4, 9, 5])
    assert [part[:5].tolist() for part in module.parts] == [[5, 6, 8, 12, 13], [24, 31, 43, 47, 63]]
    assert module.view_number(2, index).tolist() == [17, 16, 7, 11, 12, 20, 2, 2]


def test_without_val_split_validation_is_the_test_set_and_selects_nothing():
    module = data.build("digits")
    assert not module.selects
    assert [y.tolist() for _, y in module.val_dataloader()] == [y.tolist() for _, y in module.test_dataloader()]


def test_what_is_evaluated_on_is_seen_as_it_is():
    module, plain = data.build("digits", val_split=0.1), data.build("digits", val_split=0.1, augment=False)
    for loader in ("val_dataloader", "test_dataloader"):
        found, wanted = (next(iter(getattr(its, loader)())) for its in (module, plain))
        assert torch.equal(found[0], wanted[0])


def test_batches_index_and_sample_labels_agree_also_under_noise():
    module = data.build("digits", label_noise=0.3, subset=700)
    clean = module.read_labels(True)[module.parts[0]]
    for x, y, index in module.train_dataloader():
        assert (x.dtype, y.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)
        assert torch.equal(y, module.sample_labels[index])
    assert 0.25 < (module.sample_labels != clean).float().mean() < 0.35


def test_digits_are_the_uci_digits():
    module = data.build("digits", image_size=8, channels=1, augment=False)
    images = torch.cat([module.read(True)[0], module.read(False)[0]])[:, 0]
    labels = torch.cat([module.read(True)[1], module.read(False)[1]])
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (images * (16 / 255)).round()[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    pixels = module.read(True)[0].double() / 255
    assert pixels.mean() == pytest.approx(module.mean[0], abs=1e-3)
    assert pixels.std() == pytest.approx(module.std[0], abs=1e-3)
    x = torch.cat([x for x, _, _ in data.build("digits", augment=False).train_dataloader()])
    assert x.shape == (1437, 3, 16, 16)
    assert data.build("digits").class_names == [str(i) for i in range(10)]


def test_train_dataloaders_do_not_share_their_place():
    module = data.build("digits")
    loader = module.train_dataloader()
    batches = iter(loader)
    next(batches), next(batches)
    next(iter(module.train_dataloader()))
    assert loader.state_dict()["position"] == 2


@pytest.mark.parametrize("name", sorted(set(data.DATA) - {"folder"}))
def test_facts_are_known_without_data_and_fake_data_keeps_them(name, monkeypatch, tmp_path):
    monkeypatch.setenv("KDKIT_DATA", str(tmp_path / "nowhere"))
    facts = data.facts(name)
    module = data.build(name, batch_size=2, fake=True)
    x, y, index = next(iter(module.train_dataloader()))
    assert x.shape == (2, *facts.input_shape)
    assert module.num_classes == facts.num_classes > int(y.max())
    assert (module.mean, module.std, module.num_samples) == (facts.mean, facts.std, 8)
    assert int(index.max()) < 8


def test_fake_data_hold_out_as_many_as_they_train_on():
    module = data.build("digits", batch_size=4, val_split=0.1, fake=True)
    assert [len(part) for part in module.parts] == [16, 16]


def test_facts_follow_the_options():
    assert data.facts("cifar100", val_split=5000).num_samples == 45_000
    assert data.facts("cifar100", val_split=0.1, subset=1000).num_samples == 1000
    assert data.facts("imagenet", root="nowhere/at/all").num_samples == 1_281_167
    assert data.facts("digits", image_size=32, channels=1).input_shape == (1, 32, 32)


@needs_cifar
def test_cifar100_is_torchvisions_normalised_as_repdistiller_does():
    from torchvision import datasets, transforms

    module = data.build("cifar100", augment=False, batch_size=500)
    plain = datasets.CIFAR100(CIFAR, train=True, download=False)
    x, y, index = next(iter(module.train_dataloader()))
    to_tensor, normalise = transforms.ToTensor(), transforms.Normalize(module.mean, module.std)
    for k in range(20):
        image, label = plain[int(index[k])]
        assert label == int(y[k])
        assert torch.equal(x[k], normalise(to_tensor(image)))
    assert plain.data[::10].mean((0, 1, 2)) / 255 == pytest.approx(module.mean, abs=3e-3)
    assert plain.data[::10].std((0, 1, 2)) / 255 == pytest.approx(module.std, abs=1e-2)
    assert module.class_names[:2] == ["apple", "aquarium_fish"]
    assert sum(len(y) for _, y in module.test_dataloader()) == 10_000
    assert torch.bincount(module.sample_labels).tolist() == [500] * 100


def test_missing_cifar_says_what_to_do(tmp_path):
    module = data.build("cifar100", root=tmp_path)
    with pytest.raises(KdkitError, match=r"cifar-100-python/ whole.*data\.root=FOLDER or KDKIT_DATA.*download=true"):
        module.setup("fit")
    with pytest.raises(KdkitError, match="KDKIT_DATA"):
        module.prepare_data()


def test_a_failed_download_says_where_and_why(tmp_path, monkeypatch):
    import torchvision

    def offline(*_args, **_options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "download", offline)
    module = data.build("cifar100", root=tmp_path, download=True)
    told = (
        rf"not found in {tmp_path} and its download failed \(no route to host\); set data\.root=FOLDER or KDKIT_DATA$"
    )
    with pytest.raises(KdkitError, match=told):
        module.prepare_data()


def test_corrupt_cifar_says_so(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "train").write_bytes(b"half of it")
    with pytest.raises(KdkitError, match="corrupted"):
        data.build("cifar100", root=tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digits", {"batchsize": 3}, "no option 'batchsize'; did you mean 'batch_size'"),
        ("digits", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("digits", {"val_split": 2000}, "val_split must be a share below 1 or a count below 1437, got 2000"),
        (
            "digits",
            {"val_split": 437, "subset": 1001},
            "subset must be a count of at most 1000 training",
        ),
        ("digits", {"label_noise": 1.5}, r"label_noise must be a share in \[0, 1\], got 1.5"),
        ("digits", {"padding": -1}, "padding must be 0 or more pixels, got -1"),
        ("digits", {"image_size": 4}, "image_size must be at least 8"),
        ("digits", {"root": "x"}, r"root must be left out, .* got 'x'; .* data=\{name: folder, root: x\}"),
        ("fake", {"root": "x"}, "root must be left out"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(KdkitError, match=message):
        _ = data.build(name, **options).facts


def test_an_unknown_data_set_offers_the_nearest():
    with pytest.raises(UnknownNameError, match="unknown data set 'cifar-100'; did you mean 'cifar100'"):
        data.build("cifar-100")


def test_numbered_views_are_what_a_batch_holds():
    module = fake(seed=3, subset=60)
    loader = module.train_dataloader()
    loader.set_epoch(2)
    for x, _, index in loader:
        number = module.view_number(2, index)
        assert int(number.max()) < module.num_views == 162
        assert torch.equal(loader.numbered(index, number), x)


def test_identity_tells_other_images_apart_and_no_more():
    one = fake().identity()
    assert one == fake(drop_last=True, label_noise=0.1, eval_batch_size=7).identity()
    assert one != fake(subset=60).identity()
    assert one != fake(padding=2).identity()
    assert one["content"] == fake(padding=2).checksum() != fake(subset=60).checksum()


def test_views_that_cannot_be_counted_are_none(tmp_path):
    from PIL import Image

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    module = data.build("folder", root=tmp_path, holdout=0, image_size=8)
    assert module.num_views is None
    assert data.build("folder", root=tmp_path, holdout=0, image_size=8, augment=False).num_views == 1
    before = module.checksum()
    Image.new("RGB", (200, 200), (9, 9, 9)).save(tmp_path / "a" / "1.png")
    assert data.build("folder", root=tmp_path, holdout=0, image_size=8).checksum() != before
