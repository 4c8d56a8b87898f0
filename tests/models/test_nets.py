"""The built-in nets: their sizes, the names in their weights, what they compute, and the places they offer to taps."""

import hashlib
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from kdkit.models import MODELS, build
from kdkit.models.resnet import ResNet
from kdkit.models.wrn import WideResNet

# Parameters at 100 classes, and a digest of all keys and shapes of the state dict, of the nets in
# https://github.com/HobbitLong/RepDistiller, whose published weights must load.
NETS = {
    "resnet8": (83_892, "99cb0c0b2ea3"),
    "resnet14": (181_108, "629933907d57"),
    "resnet20": (278_324, "0386434ca6f3"),
    "resnet32": (472_756, "9e5592f61f00"),
    "resnet44": (667_188, "df3dce284c7a"),
    "resnet56": (861_620, "fa692cabb2e3"),
    "resnet110": (1_736_564, "9ca5a9542fb3"),
    "resnet8x4": (1_233_540, "b2ead61a142e"),
    "resnet32x4": (7_433_860, "99154b2aea1a"),
    "resnet18_cifar": (11_220_132, "051a1cb098ad"),
    "resnet34_cifar": (21_328_292, "19a5619e9d32"),
    "resnet50_cifar": (23_705_252, "d5367c1bcc2c"),
    "wrn_16_1": (180_916, "b4de1d786e12"),
    "wrn_16_2": (703_284, "2266f04469bf"),
    "wrn_28_2": (1_479_220, "cbf63890ac84"),
    "wrn_28_10": (36_536_884, "2f9ae6849373"),
    "wrn_40_1": (569_780, "01abc5646d8c"),
    "wrn_40_2": (2_255_156, "595ec0db20d1"),
    "wrn_40_4": (8_972_340, "de648441a677"),
    "vgg8": (3_965_028, "7f85b8479109"),
    "vgg11": (9_277_284, "6053995f6332"),
    "vgg13": (9_462_180, "5778ceb5832e"),
    "vgg16": (14_774_436, "0729229b1855"),
    "vgg19": (20_086_692, "e27ccb5da4f3"),
    "mobilenetv2": (812_836, "54501c9a7e31"),
    "shufflenetv1": (949_258, "1282e767b3e9"),
    "shufflenetv2": (1_355_528, "9b7750ae0328"),
}

# First and last of ten logits of those nets for the weights and the image of `waves`.
LOGITS = {
    "resnet8": (-0.446959, -0.003602),
    "resnet20": (22.421409, -33.754649),
    "resnet8x4": (1.742767, 0.490359),
    "resnet50_cifar": (-165.444658, -3.639213),
    "wrn_16_1": (2.018327, -1.855674),
    "wrn_16_2": (3.012305, 0.842522),
    "vgg8": (5.328478, 0.005792),
    "vgg13": (7.060666, -0.199611),
    "mobilenetv2": (28753.800931, -8658.986285),
    "shufflenetv1": (-46.475741, -9.862816),
    "shufflenetv2": (280.702420, 7.586568),
}
SMALL = ["resnet8", "resnet18_cifar", "wrn_16_1", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2"]


def wave(count: int, rate: float, phase: float = 0.0) -> Tensor:
    return torch.sin(rate * torch.arange(count, dtype=torch.float64) ** 1.1 + phase)


@torch.no_grad()
def waves(net: nn.Module, pixels: int = 32) -> Tensor:
    """The logits of a net whose weights and whose input are sines: the same on every machine."""
    net.double().eval()
    for i, (key, value) in enumerate(net.state_dict().items()):
        if value.dim() > 1:
            value.copy_(wave(value.numel(), 0.7, i).view_as(value) * (4 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.copy_(key.endswith(("weight", "var")) + 0.3 * wave(value.numel(), 0.7, i))
    images = wave(3 * pixels**2, 0.1, math.pi / 2).view(1, 3, pixels, pixels)
    return net(images)[0]


def read_stages(net: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The output of every stage, and a check that nothing rewrites it later in the forward pass."""
    outputs: dict[str, Tensor] = {}
    versions: dict[str, int] = {}

    def keep(path: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            assert path not in outputs, f"{path} is called twice"
            outputs[path], versions[path] = output, output._version

        return hook

    handles = [m.register_forward_hook(keep(path)) for path, m in net.named_modules() if not list(m.children())]
    handles += [net.get_submodule(path).register_forward_hook(keep(name)) for name, path in net.stages.items()]
    net(images)
    for handle in handles:
        handle.remove()
    changed = [path for path, output in outputs.items() if output._version != versions[path]]
    assert not changed, f"rewritten in place: {changed}"
    return {name: outputs[name] for name in net.stages}


def test_the_table_is_complete():
    assert set(NETS) == {name for name in MODELS if name not in ("sid", "simkd", "simple_cnn")}


@pytest.mark.parametrize("name", NETS)
def test_parameters_and_state_dict_names(name):
    with torch.device("meta"):
        net = build(name, num_classes=100)
    keys = "\n".join(f"{key} {tuple(value.shape)}" for key, value in sorted(net.state_dict().items()))
    digest = hashlib.sha256(keys.encode()).hexdigest()[:12]
    assert (sum(p.numel() for p in net.parameters()), digest) == NETS[name]


@pytest.mark.parametrize("name", LOGITS)
def test_the_function_is_that_of_the_published_nets(name):
    logits = waves(build(name, num_classes=10))
    assert (logits[0].item(), logits[-1].item()) == pytest.approx(LOGITS[name], rel=1e-5, abs=2e-6)


def test_vgg_pools_once_more_at_64_pixels():
    logits = waves(build("vgg8", num_classes=10), pixels=64)
    assert (logits[0].item(), logits[-1].item()) == pytest.approx((5.600688, 0.283761), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet20", [(16, 32), (16, 32), (32, 16), (64, 8)]),
        ("resnet32x4", [(32, 32), (64, 32), (128, 16), (256, 8)]),
        ("resnet50_cifar", [(64, 32), (256, 32), (512, 16), (1024, 8), (2048, 4)]),
        ("wrn_40_2", [(16, 32), (32, 32), (64, 16), (128, 8)]),
        ("vgg8", [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)]),
        ("mobilenetv2", [(16, 16), (12, 16), (16, 8), (48, 4), (160, 2)]),
        ("shufflenetv1", [(24, 32), (240, 16), (480, 8), (960, 4)]),
        ("shufflenetv2", [(24, 32), (116, 16), (232, 8), (464, 4)]),
    ],
)
def test_stages_are_called_once_and_have_the_published_shapes(name, shapes):
    with torch.device("meta"):
        outputs = read_stages(build(name, num_classes=10), torch.empty(2, 3, 32, 32))
    assert list(outputs) == ["stem", *(f"stage{i}" for i in range(1, len(shapes)))]
    assert [tuple(o.shape) for o in outputs.values()] == [(2, c, size, size) for c, size in shapes]


@pytest.mark.parametrize("name", SMALL)
def test_stages_are_activated_where_the_family_activates_them(name):
    outputs = read_stages(build(name, num_classes=10), torch.randn(2, 3, 32, 32))
    # Sums of residuals and linear bottlenecks have both signs.
    assert all((o.min() < 0) == name.startswith(("wrn", "mobile")) for s, o in outputs.items() if s != "stem")
    assert (outputs["stem"].min() < 0) == name.startswith("wrn")


def test_the_last_activation_of_a_residual_stage_is_its_own_module():
    net, images = build("resnet20", num_classes=10).eval(), torch.randn(2, 3, 32, 32)
    seen: list[Tensor] = []
    net.layer2[-1].relu2.register_forward_hook(lambda _m, inputs, output: seen.extend([inputs[0], output]))
    stage = read_stages(net, images)["stage2"]
    before, after = seen
    assert before.min() < 0
    assert torch.equal(before.clamp(min=0), after)
    assert torch.equal(after, stage)


@pytest.mark.parametrize("name", SMALL)
def test_other_sizes_channels_and_one_training_step(name):
    net = build(name, num_classes=7, in_channels=1)
    loss = nn.functional.cross_entropy(net(torch.randn(4, 1, 48, 40)), torch.tensor([0, 1, 2, 6]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_initial_logits_and_variance_are_sane(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build(name, num_classes=100)
        logits = net(torch.randn(8, 3, 32, 32))
    assert 0.02 < logits.std() < 5
    if not name.startswith("shuffle"):
        conv = max((m for m in net.modules() if isinstance(m, nn.Conv2d)), key=lambda m: m.weight.numel())
        fan_out = conv.weight[:, 0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    if name.startswith(("vgg", "mobile")):
        assert net.classifier.get_parameter("0.weight" if name == "mobilenetv2" else "weight").std() < 0.011


def test_nets_pickle_and_refuse_impossible_depths():
    net = build("resnet8", num_classes=10)
    copy = pickle.loads(pickle.dumps(net))
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), copy.state_dict().values(), strict=True))
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .*, got 18"):
        ResNet(18, 10)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 4 .*, got 20"):
        WideResNet(20, 1, 10)
