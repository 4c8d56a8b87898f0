"""Building by name: built-in, timm and torchvision models, their errors, their normalisation, and seeded weights."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from kdkit.models import build, list_models, normalisation, seeded
from kdkit.registry import KdkitError, UnknownNameError


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Any download fails at once, and no cache of this machine is read."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.mark.parametrize("arch", ["resnet8", "timm/test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_every_source_gives_logits_of_the_asked_width(arch):
    net = build(arch, num_classes=7).eval()
    assert net(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_none_keeps_the_published_classes(arch):
    with torch.device("meta"):
        net = build(arch, num_classes=None)
    assert net.eval()(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)


def test_options_reach_the_factory():
    assert build("resnet8", num_classes=2, widths=[8, 8, 8, 8]).fc.in_features == 8
    assert build("timm/test_resnet", num_classes=2, in_chans=1).conv1[0].in_channels == 1
    assert build("torchvision/mobilenet_v2", num_classes=2, width_mult=0.25).features[0][0].out_channels == 8


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("resnet21", r"unknown model 'resnet21'; did you mean .*'resnet20'.*timm/NAME"),
        ("wrn-40-2", "did you mean 'wrn_40_2'"),
        ("VGG8", "did you mean 'vgg8'"),
        ("ShuffleV1", "did you mean 'shufflenetv1'"),
        ("timm/resnet81", "unknown timm model 'resnet81'; did you mean 'resnet18'"),
        ("timm/test_resnet.nope", "unknown weights 'test_resnet.nope' of timm; known: test_resnet.r160_in1k"),
        ("torchvision/resnet51", "unknown torchvision model 'resnet51'; did you mean 'resnet50'"),
        (
            "torchvision/resnet50.V3",
            "unknown weights 'resnet50.V3' of torchvision; known: IMAGENET1K_V1, IMAGENET1K_V2",
        ),
        ("torchvision/fcn_resnet50", "unknown torchvision model"),
    ],
)
def test_an_unknown_name_offers_the_nearest(arch, message):
    with pytest.raises(UnknownNameError, match=message):
        build(arch, num_classes=10)


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("resnet8", {"depht": 3}, r"resnet8: got an unexpected keyword argument 'depht'; it takes: num_classes"),
        ("resnet8", {"num_classes": 0}, "num_classes must be a whole number of at least 1, or None, got 0"),
        ("resnet8", {"num_classes": 2.5}, "num_classes must be a whole number"),
        ("resnet8", {"num_classes": None}, "resnet8: num_classes must be given"),
        ("resnet8", {"pretrained": True}, "resnet8: there are no published weights to fetch; give a file"),
        ("", {}, "arch must be a model's name, got ''"),
        (None, {}, "arch must be a model's name, got None"),
        ("timm/test_resnet", {"depht": 3}, "timm/test_resnet: could not be built with depht=3: TypeError: .*'depht'"),
        (
            "torchvision/resnet18",
            {"depht": 3},
            "torchvision/.* could not be built with depht=3: TypeError: .*'depht'",
        ),
    ],
)
def test_wrong_options_end_in_one_clear_error(arch, options, message):
    with pytest.raises(KdkitError, match=message):
        build(arch, **{"num_classes": 10, **options})


@pytest.mark.parametrize("arch", ["timm/test_resnet", "torchvision/squeezenet1_1"])
def test_pretrained_without_a_network_says_to_give_a_file(arch, no_network):
    with pytest.raises(
        KdkitError, match=rf"{arch}: the pretrained weights could not be fetched \(.*\n.*weights: model"
    ):
        build(arch, num_classes=10, pretrained=True)


@pytest.mark.parametrize(
    ("arch", "heads"),
    [("resnet18", ["fc"]), ("squeezenet1_1", ["classifier.1"]), ("inception_v3", ["AuxLogits.fc", "fc"])],
)
def test_pretrained_torchvision_models_take_another_number_of_classes(arch, heads, monkeypatch):
    from torchvision.models import get_model, get_model_weights

    with torch.device("meta"):
        published = get_model(arch, init_weights=False) if arch == "inception_v3" else get_model(arch)
    state = {k: torch.full(v.shape, 0.125) if v.dim() else torch.tensor(3) for k, v in published.state_dict().items()}
    monkeypatch.setattr(type(get_model_weights(arch).DEFAULT), "get_state_dict", lambda *_a, **_k: state)
    net = build(f"torchvision/{arch}", num_classes=5, pretrained=True)
    changed = {k.rpartition(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, state[k])}
    assert changed == set(heads)
    assert {net.get_submodule(head).weight.shape[0] for head in heads} == {5}


def test_normalisation_is_what_published_weights_expect():
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation(build("timm/resnet18", num_classes=2)) == imagenet
    assert normalisation(build("timm/vit_tiny_patch16_224", num_classes=2)) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation(build("torchvision/shufflenet_v2_x0_5", num_classes=2)) == imagenet
    with torch.device("meta"):
        assert normalisation(build("torchvision/efficientnet_v2_l", num_classes=2)) == ((0.5,) * 3, (0.5,) * 3)
    assert normalisation(build("resnet8", num_classes=2)) is None
    own = nn.Identity()
    own.normalisation = ([0], [1])
    assert normalisation(own) == ((0.0,), (1.0,))


def test_names_are_listed_with_their_source():
    assert ("resnet20", "kdkit") in list_models()
    assert list_models("WRN_16") == list_models("wrn_16")
    assert list_models("wrn_16") == [("wrn_16_1", "kdkit"), ("wrn_16_2", "kdkit")]
    found = list_models("*resnet50")
    assert ("timm/resnet50", "timm") in found
    assert ("torchvision/resnet50", "torchvision") in found
    assert list_models("no such net") == []


def test_seeded_weights_follow_from_seed_and_name_and_leave_the_generator_alone():
    def weights(seed, name):
        with seeded(seed, name):
            return build("resnet8", num_classes=2).conv1.weight

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = weights(0, "student")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, weights(0, "student"))
    assert not torch.equal(first, weights(1, "student"))
    assert not torch.equal(first, weights(0, "assistant"))


def test_timm_and_torchvision_are_imported_only_when_asked_for():
    code = (
        "import sys, kdkit.models; kdkit.models.build('resnet8', num_classes=2);"
        "print([m for m in ('timm', 'torchvision', 'pytorch_lightning') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
