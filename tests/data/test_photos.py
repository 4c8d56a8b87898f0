"""Random views of photographs: torchvision's crops in distribution, and its pixels under the same crop."""

import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from kdkit.data.photos import ResizedCrop
from kdkit.draws import uniforms

DRAWS = 4000
# Levels of a pixel: there torchvision resizes in fp32, and rounds.
APART = 1 if torch.backends.cpu.get_cpu_capability() == "DEFAULT" else 0


def image(height, width, channels_last):
    """As decoders give it, whose memory is channels-last, or not."""
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = pixels.permute(2, 0, 1)
    return pixels if channels_last else pixels.contiguous()


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (37, 90), (24, 24), (300, 5), (1, 1)])
def test_pixels_are_torchvisions_of_the_same_crop(height, width, channels_last):
    """Those of tensors; of images they differ by a rounding."""
    photo, crop, mirrored = image(height, width, channels_last), ResizedCrop(24), 0
    for k in range(20):
        numbers = uniforms(k)
        top, left, h, w = crop.draw(height, width, numbers)
        wanted = F.resized_crop(photo, top, left, h, w, [24, 24], antialias=True)
        flip = next(numbers) < 0.5
        mirrored += flip
        view = crop(photo, uniforms(k))
        assert (view.int() - (F.horizontal_flip(wanted) if flip else wanted).int()).abs().max() <= APART
        of_image = F.resized_crop(F.to_pil_image(photo), top, left, h, w, [24, 24])
        assert (F.pil_to_tensor(of_image).int() - wanted.int()).abs().max() <= 1
    assert 5 <= mirrored <= 15


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (400, 90), (60, 200), (3, 400), (400, 3)])
def test_crops_are_torchvisions_in_distribution(height, width, scale):
    """Also of strips, of which few crops fit: then it is the middle. Sums and products tell draws that go together."""
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(24, scale=scale)
    photo, mine = image(height, width, True), ResizedCrop(24, scale)
    wanted = torch.tensor([list(theirs.make_params([photo]).values()) for _ in range(DRAWS)]).double()
    found = torch.tensor([mine.draw(height, width, uniforms("test", k)) for k in range(DRAWS)]).double()
    for draws in (wanted, found):
        draws += 1e-3 * torch.rand(draws.shape, dtype=torch.float64)  # ties weaken the test
    pairs = [[*d.T, d[:, 0] + d[:, 1], d[:, 2] * d[:, 3]] for d in (wanted, found)]
    assert min(ks_2samp(a.numpy(), b.numpy()).pvalue for a, b in zip(*pairs, strict=True)) > 1e-3


def test_without_a_mirror_and_with_a_policy():
    photo = image(64, 48, True)
    plain = ResizedCrop(24, flip=False)
    for k in range(9):
        wanted = F.resized_crop(photo, *plain.draw(64, 48, uniforms(k)), [24, 24])
        assert (plain(photo, uniforms(k)).int() - wanted.int()).abs().max() <= APART
    changed, state = ResizedCrop(24, policy=v2.RandAugment()), torch.get_rng_state()
    views = [changed(photo, uniforms(k % 5)) for k in range(10)]
    assert all(torch.equal(views[k], views[k + 5]) for k in range(5))
    assert any(not torch.equal(view, ResizedCrop(24)(photo, uniforms(k))) for k, view in enumerate(views))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_policy_draws_other_numbers_for_each_view_and_the_same_again():
    drawn = []
    crop = ResizedCrop(8, policy=lambda view: drawn.append(torch.rand(()).item()) or view)
    for k in [*range(50), *range(50)]:
        crop(image(9, 9, True), uniforms(k))
    assert drawn[:50] == drawn[50:]
    assert len(set(drawn)) == 50


def test_uniform_numbers_are_uniform_and_differ_from_sample_to_sample():
    numbers = torch.tensor([[next(n) for _ in range(40)] for n in (uniforms(0, "view", 0, k) for k in range(500))])
    assert len(numbers.unique()) > 19_900
    assert ks_2samp(numbers.flatten().numpy(), torch.rand(20_000).numpy()).pvalue > 1e-3
    assert torch.corrcoef(numbers.T).fill_diagonal_(0).abs().max() < 0.25
    assert 0 <= numbers.min() <= numbers.max() < 1
