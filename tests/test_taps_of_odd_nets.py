"""Nets whose forward goes several ways, whose parts are compiled, and whose weights are of another type."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn

from kdkit.models import build
from kdkit.registry import KdkitError
from kdkit.taps import Taps, expand


class PartlyCompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    @torch.compile(backend="eager")
    def body(self, x):
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x):
        return self.fc(self.body(x))


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.skipped, self.fc = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x):
        x = self.body(x)
        return self.fc(x if self.training else self.skipped(x))


def test_a_compiled_part_runs_as_written_where_places_are_looked_for():
    torch.compiler.reset()
    net, x = PartlyCompiled(), torch.randn(2, 3, 8, 8)
    taps = Taps(net, ["embedding", "logits"], x)
    assert taps.paths["embedding"] == "fc:input"
    values = taps(x)
    torch.testing.assert_close(net.fc(values["embedding"]), values["logits"])


def test_a_place_that_training_does_not_reach_is_told_with_what_to_do():
    net, x = TwoWays(), torch.randn(2, 6)
    taps = Taps(net.train(), ["skipped", "logits"], x)
    with pytest.raises(KdkitError, match=r"skipped:output must be reached .* every forward runs, in training as well"):
        taps(x)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_weights_of_another_type_are_told(kind):
    word = str(kind).removeprefix("torch.")
    with pytest.raises(KdkitError, match=rf"its weights are {word}, its input float32: .*`\.float\(\)`"):
        Taps(nn.Linear(6, 5).to(kind), ["logits"], torch.randn(2, 6))
    with pytest.raises(KdkitError) as told:
        Taps(nn.Linear(6, 5), ["logits"], torch.randn(2, 7))
    assert ".float()" not in str(told.value)


def test_images_that_are_no_floats_are_told():
    with pytest.raises(KdkitError, match=r"its input is uint8: make floats of the images"):
        Taps(PartlyCompiled(), ["logits"], torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_patches_of_a_vit_that_takes_any_size_are_a_map_of_channels():
    vit = timm.create_model("test_vit", img_size=32, patch_size=8).eval()
    x = torch.randn(2, 3, 32, 32)
    values = Taps(vit, ["patch_embed", "patch_embed.proj"], x)(x)
    assert values["patch_embed"].shape == (2, 64, 4, 4)
    torch.testing.assert_close(values["patch_embed"], values["patch_embed.proj"])


class Wrapper(nn.Module):
    """What makes a tensor of whatever a net returns, behind a normalisation of its own."""

    def __init__(self, net):
        super().__init__()
        self.norm, self.net = nn.BatchNorm2d(3), net

    def forward(self, x):
        return {"logits": self.net(self.norm(x))}


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("resnet8", {}),
        ("vgg8", {}),
        ("timm/test_vit", {"img_size": 32, "patch_size": 8}),
        ("timm/test_resnet", {}),
        ("torchvision/mobilenet_v3_small", {}),
    ],
)
def test_a_wrapper_has_the_places_of_the_net_inside(arch, options):
    net, x = build(arch, num_classes=5, **options).eval(), torch.randn(2, 3, 32, 32)
    names = [*expand(net, "stages", x), "stem", "embedding"]
    inside = Taps(net, names, x).paths
    for wrapper, path in ((Wrapper(net), "net"), (Wrapper(Wrapper(net)), "net.net")):
        assert expand(wrapper, "stages", x) == names[:-2]
        assert Taps(wrapper, names, x).paths == {name: f"{path}.{place}" for name, place in inside.items()}


class Returns(nn.Module):
    """A net that gives its features and its logits as `of` says."""

    def __init__(self, of):
        super().__init__()
        self.of, self.body, self.fc = of, nn.Linear(6, 7), nn.Linear(7, 5)

    def forward(self, x):
        features = self.body(x)
        return self.of(features, self.fc(features))


class Named(NamedTuple):
    features: Tensor
    logits: Tensor


@dataclass
class Output:
    logits: Tensor
    loss: None = None


@pytest.mark.parametrize(
    "of",
    [
        lambda f, z: {"features": f, "logits": z},
        lambda f, z: {"prediction": z, "task": "classes"},
        lambda f, z: (z, f),
        lambda f, z: (None, z, f),
        lambda f, z: ({"logits": z}, f),
        lambda f, z: (Named(f, z), f),
        lambda f, z: ([z],),
        lambda f, z: (Output(z), f),
        Named,
        lambda f, z: Output(z),
    ],
)
def test_logits_are_found_where_an_output_says_which_they_are(of):
    net, x = Returns(of), torch.randn(2, 6)
    values = Taps(net, ["logits", "body"], x)(x)
    torch.testing.assert_close(values["logits"], net.fc(values["body"]))


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (lambda f, z: {"features": f, "prediction": z}, "its output holds features, prediction and no `logits`; wrap"),
        (lambda f, z: ([f, f], z), "its output starts with a list of 2, not with its logits; wrap"),
        (lambda f, z: {"name": "x"}, "must be a tensor, hold `logits` or start with a tensor, got dict; wrap"),
    ],
)
def test_an_output_that_does_not_say_which_are_its_logits_is_refused(of, words):
    net, x = Returns(of), torch.randn(2, 6)
    with pytest.raises(KdkitError, match=words):
        Taps(net, ["logits"], x)


def test_maps_of_several_stages_are_no_logits():
    net, x = timm.create_model("test_resnet", features_only=True), torch.randn(2, 3, 32, 32)
    with pytest.raises(KdkitError, match="its output is a list of 5 maps, not its logits; wrap"):
        Taps(net, ["logits"], x)
    stages = [f"stage{i}" for i in range(1, 5)]
    assert all(map(torch.equal, Taps(net.eval(), stages, x)(x).values(), net(x)[1:]))


def test_places_inside_a_net_of_any_output_are_read():
    net, x = Returns(lambda f, z: {"features": f, "prediction": z}), torch.randn(2, 6)
    torch.testing.assert_close(Taps(net, ["body"], x)(x)["body"], net.body(x))
