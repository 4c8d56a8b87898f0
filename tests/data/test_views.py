"""Crops and flips of a batch are torchvision's, image by image and in distribution."""

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as TF

from kdkit import data
from kdkit.data.views import CropFlip, Normalise, crop_flip
from kdkit.registry import KdkitError

IMAGES = torch.randint(0, 256, (64, 3, 32, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
INDEX = torch.arange(50_000)


@pytest.mark.parametrize("padding", [4, 1, 0])
def test_each_view_is_torchvisions_pad_crop_and_flip(padding):
    views = CropFlip(seed=3, padding=padding, flip=True)
    top, left, flip = views.draw(epoch=2, index=INDEX[:64])
    for image, view, t, s, f in zip(IMAGES, views(IMAGES, 2, INDEX[:64]), top, left, flip, strict=True):
        expected = TF.crop(TF.pad(image, [padding] * 4), int(t), int(s), 32, 28)
        assert torch.equal(view, TF.hflip(expected) if f else expected)


def test_normalised_after_the_padding_and_bit_equal_to_totensor_and_normalize():
    mean, std = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    zero, yes = torch.zeros(64, dtype=torch.int64), torch.ones(64, dtype=torch.bool)
    view = Normalise(mean, std)(crop_flip(IMAGES, zero, zero, yes, 4))
    plain = transforms.Compose([transforms.ToPILImage(), transforms.ToTensor(), transforms.Normalize(mean, std)])
    for image, got in zip(IMAGES, view, strict=True):
        assert torch.equal(got, plain(TF.hflip(TF.crop(TF.pad(image, [4] * 4), 0, 0, 32, 28))))
    torch.testing.assert_close(view[0, :, 0, 0], -torch.tensor(mean) / torch.tensor(std))  # padding is black, not grey


def test_every_offset_is_equally_likely_and_independent_of_the_flip():
    top, left, flip = CropFlip(seed=0, padding=4, flip=True).draw(0, INDEX)
    counts = torch.bincount((top * 9 + left) * 2 + flip, minlength=162).double()
    chi2 = ((counts - counts.mean()) ** 2 / counts.mean()).sum() / 161
    assert 0.7 < chi2 < 1.3  # ±2.7 deviations of χ²/df
    top_next, _, _ = CropFlip(seed=0, padding=4, flip=True).draw(1, INDEX)
    assert abs(torch.corrcoef(torch.stack([top, top_next]).double())[0, 1]) < 0.02


def test_a_view_follows_from_seed_epoch_and_sample_alone():
    views = CropFlip(seed=0, padding=4, flip=True)
    batch, alone = views(IMAGES, 5, INDEX[:64]), views(IMAGES[7:9], 5, INDEX[7:9])
    assert torch.equal(batch[7:9], alone)
    assert not torch.equal(batch, views(IMAGES, 6, INDEX[:64]))
    assert not torch.equal(batch, CropFlip(seed=1, padding=4, flip=True)(IMAGES, 5, INDEX[:64]))


def test_without_flip_nothing_is_mirrored():
    assert not CropFlip(seed=0, padding=4, flip=False).draw(0, INDEX)[2].any()


@pytest.mark.parametrize("flip", [True, False])
def test_a_views_number_makes_the_view_again(flip):
    views = CropFlip(seed=3, padding=2, flip=flip)
    number = views.number(4, INDEX)
    assert (int(number.min()), int(number.max())) == (0, views.count - 1)
    assert views.count == (50 if flip else 25)
    assert torch.equal(views.numbered(IMAGES, number[:64]), views(IMAGES, 4, INDEX[:64]))


def test_every_number_is_another_view():
    views = CropFlip(seed=0, padding=1, flip=True)
    image = IMAGES[:1].expand(views.count, -1, -1, -1)
    made = views.numbered(image, torch.arange(views.count))
    assert len({view.numpy().tobytes() for view in made}) == views.count == 18


def test_two_views_of_each_image_follow_from_seed_epoch_and_sample():
    """The first is the one that there would be alone; evaluation has one image, as it is."""
    one, two = (data.build("digits", subset=64, batch_size=32, two_views=two) for two in (False, True))
    first, second, again = [], [], []
    for epoch in (0, 1):
        loaders = [its.train_dataloader() for its in (one, two, two)]
        for loader in loaders:
            loader.set_epoch(epoch)
        for (x, y, i), (views, labels, ids), (more, *_) in zip(*loaders, strict=True):
            assert torch.equal(views["view1"], x)
            assert torch.equal(views["view2"], more["view2"])
            assert torch.equal(labels, y)
            assert torch.equal(ids, i)
            first, second = [*first, views["view1"]], [*second, views["view2"]]
            again.append((views["view1"] != views["view2"]).flatten(1).any(1).float().mean())
    assert min(again) > 0.9
    assert not torch.equal(torch.cat(second[:2]), torch.cat(second[2:]))
    plain, with_two = next(iter(one.val_dataloader())), next(iter(two.val_dataloader()))
    assert torch.equal(plain[0], with_two[0])


@pytest.mark.parametrize("words", [{"augment": False}, {"padding": 0, "flip": False}])
def test_two_views_that_would_be_one_are_refused(words):
    with pytest.raises(KdkitError, match="two_views of an image would be the same one"):
        data.build("digits", two_views=True, **words)
