"""One vocabulary over many architectures, held against what timm and torchvision say themselves."""

from __future__ import annotations

import os

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from kdkit.registry import KdkitError
from kdkit.taps import Taps, classifier, expand

TIMM = {  # name → image size, whether timm's own list begins with the stem
    "test_resnet": (64, True),
    "test_efficientnet": (64, True),
    "test_byobnet": (64, True),
    "test_convnext": (64, False),
    "test_vit": (160, False),
    "test_mambaout": (64, False),  # channels last
    "mobilenetv3_small_050": (64, True),
    "regnetx_002": (64, True),
    "densenet121": (64, True),
}
TORCHVISION = {  # name → image size, stem, stages, embedding as torchvision's own tracer names them
    "resnet18": (64, "maxpool", ["layer1", "layer2", "layer3", "layer4"], "flatten"),
    "vgg11": (64, "features.1", [f"features.{i}" for i in (1, 4, 9, 14, 19)], "classifier.4"),
    "mobilenet_v3_small": (64, "features.0", [f"features.{i}" for i in (1, 3, 8, 11)], "classifier.1"),
    "efficientnet_b0": (64, "features.0", [f"features.{i}" for i in (1, 2, 3, 5, 7)], "flatten"),
    "convnext_tiny": (64, "features.0", [f"features.{i}" for i in (1, 3, 5, 7)], "classifier.1"),
    "regnet_y_400mf": (64, "stem", [f"trunk_output.block{i}" for i in (1, 2, 3, 4)], "flatten"),
    "shufflenet_v2_x0_5": (64, "maxpool", ["stage2", "stage3", "stage4"], "mean"),
    "densenet121": (64, "features.pool0", [f"features.denseblock{i}" for i in (1, 2, 3, 4)], "flatten"),
    "squeezenet1_1": (64, "features.2", ["features.4", "features.7", "features.12"], "features.12"),
    "swin_t": (64, "features.0", [f"features.{i}" for i in (1, 3, 5, 7)], "flatten"),  # channels last
}


def same(found: Tensor, own: Tensor) -> bool:
    return found.shape == own.shape and torch.equal(found, own)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=7).eval()
    size, stem_first = TIMM[name]
    x = torch.randn(2, 3, size, size)
    names = expand(model, "stages", x)
    taps = Taps(model, ["stem", *names, "embedding", "logits"], x)
    with torch.no_grad():
        values = taps(x)
        assert same(values["logits"], model(x))
        assert same(values["embedding"], model.forward_head(model.forward_features(x), pre_logits=True).flatten(1))
        torch.testing.assert_close(classifier(model, x)(values["embedding"]), values["logits"])
        own = _intermediates(model, x)[stem_first:]
    assert len(names) == len(own)
    assert all(same(values[name], truth) for name, truth in zip(names, own, strict=True))
    assert values["stem"].shape[-1] in (own[0].shape[-1], 2 * own[0].shape[-1])


def _intermediates(model: nn.Module, x: Tensor) -> list[Tensor]:
    if not hasattr(model, "forward_intermediates"):  # DenseNet before timm 1.0.31
        return timm.models.FeatureHookNet(model, range(len(model.feature_info)))(x)
    if model.__class__.__name__ != "VisionTransformer":
        return model.forward_intermediates(x, intermediates_only=True)
    pairs = model.forward_intermediates(x, intermediates_only=True, output_fmt="NLC", return_prefix_tokens=True)
    return [torch.cat([prefix, tokens], 1) for tokens, prefix in pairs]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    size, stem, stages, embedding = TORCHVISION[name]
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, num_classes=7).eval()
    x = torch.randn(2, 3, size, size)
    names = expand(model, "stages", x)
    taps = Taps(model, ["stem", *names, "embedding", "logits"], x)
    own = create_feature_extractor(model, {node: node for node in [stem, *stages, embedding]})
    with torch.no_grad():
        values, truth = taps(x), own(x)
        assert len(names) == len(stages)
        for found, node in zip(["stem", *names], [stem, *stages], strict=True):
            turned = truth[node].permute(0, 3, 1, 2) if name == "swin_t" else truth[node]
            assert same(values[found], turned), (found, taps.paths[found], node)
        pooled = truth[embedding].mean((2, 3)) if truth[embedding].ndim == 4 else truth[embedding]
        assert same(values["embedding"], pooled)
        assert same(values["logits"], model(x))


def test_a_transformer_of_torchvision_has_one_stage_per_block() -> None:
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=7
    )
    x = torch.randn(2, 3, 32, 32)
    assert expand(model, "stages", x) == ["stage1", "stage2", "stage3"]
    taps = Taps(model.eval(), ["stem", "stage1", "stage-1", "embedding"], x)
    assert taps.paths["stage1"] == "encoder.layers.encoder_layer_0:output"
    assert taps.shapes == {"stem": (5, 8), "stage1": (5, 8), "stage-1": (5, 8), "embedding": (8,)}
    values = taps(x)
    assert same(values["embedding"], model.encoder.ln(values["stage-1"])[:, 0])


def test_dropout_that_is_no_module_comes_after_the_embedding() -> None:
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=7, drop_rate=0.5).eval()
    x = torch.randn(2, 3, 64, 64)
    taps = Taps(model, ["embedding", "logits"], x)
    plain = taps(x)
    model.training = True  # the flag that its functional dropout reads; BatchNorm stays as it was
    dropped = taps(x)
    assert same(dropped["embedding"], plain["embedding"])
    assert not same(dropped["logits"], plain["logits"])


def test_two_heads_must_be_named() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=7, img_size=32)
    with pytest.raises(KdkitError, match="has 2 classifiers; name the place"):
        Taps(model, ["embedding"], torch.randn(1, 3, 32, 32))


def test_somebodys_own_nets() -> None:
    class Residual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(inputs, outputs, 3, stride, 1), nn.Conv2d(outputs, outputs, 3, 1, 1)
            self.skip = nn.Conv2d(inputs, outputs, 1, stride)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.b(torch.relu(self.a(x))) + self.skip(x))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [(8, 8, 1), (8, 8, 1), (8, 16, 2), (16, 32, 2)]
            self.blocks = nn.ModuleList(Residual(*row) for row in widths)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return x

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 7))  # registered before what it follows
            self.conv, self.encoder = nn.Conv2d(3, 8, 3, 1, 1), Encoder()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.encoder(self.conv(x)).amax((2, 3)))

    x = torch.randn(2, 3, 8, 8)
    taps = Taps(Own(), ["stem", *expand(Own(), "stages", x), "embedding"], x)
    assert taps.paths == {
        "stem": "encoder.blocks.0:input",
        "stage1": "encoder.blocks.1:output",
        "stage2": "encoder.blocks.2:output",
        "stage3": "encoder.blocks.3:output",
        "embedding": "head:input",
    }
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(192, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 7))
    taps = Taps(mlp, [*expand(mlp, "stages", x), "embedding", "stem"], x)
    assert taps.paths == {"stage1": "2:output", "stage2": "4:output", "embedding": "4:output", "stem": "2:output"}
    bare = nn.Linear(4, 2)
    assert Taps(bare, ["embedding", "logits"], torch.randn(1, 4)).shapes == {"embedding": (4,), "logits": (2,)}
    with pytest.raises(KdkitError, match="Linear must have stages, found none"):
        expand(bare, "stages", torch.randn(1, 4))


FAMILIES = {
    "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny", "test_convnext", "cpubone_nano",
    "cs3darknet_focus_s", "cspnext_tiny", "deit_tiny_patch16_224", "dla46x_c", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0",
    "fastvit_t8", "gcvit_xxtiny", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "iformer_t", "inception_next_atto",
    "lcnetv2_small", "levit_128s", "test_coatnet", "gmlp_ti16_224", "mobilevit_xxs", "test_nfnet", "pit_ti_224",
    "pvt_v2_b0", "repghostnet_050", "repvit_m1", "resnest14d", "test_resnet", "resnetv2_18", "rexnet_100",
    "legacy_seresnet18", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "tiny_vit_5m_224",
    "visformer_tiny", "vit_tiny_r_s16_p8_224", "test_vit_relpos", "ese_vovnet19b_slim", "xcit_nano_12_p8_224",
}  # fmt: skip


@pytest.mark.skipif("KDKIT_NIGHTLY" not in os.environ, reason="a minute of timm's families: set KDKIT_NIGHTLY=1")
def test_the_smallest_of_timms_families() -> None:
    """Embedding and logits are timm's own, every stage is read, and what is tapped sends a gradient back."""
    for name in sorted(FAMILIES & set(timm.list_models())):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7).eval()
        x = torch.randn(2, *model.pretrained_cfg["input_size"])
        names = expand(model, "stages", x)
        taps = Taps(model, ["stem", *names, "embedding", "logits"], x)
        with torch.no_grad():
            values = taps(x)
            own = model.forward_head(model.forward_features(x), pre_logits=True)
            torch.testing.assert_close(values["embedding"], own, msg=name)
            assert torch.equal(values["logits"], model(x)), name
        assert len(names) >= 3, name
        values = Taps(model.train(), taps.names, x)(x)
        sum(value.square().mean() for value in values.values()).backward()
        assert sum(p.grad is None for p in model.parameters()) <= 2, name
