"""The cascade against a loop over plain modules: values, gradients, what each module's gradient may reach."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import peak_bytes
from kdkit.losses import SIDLoss
from kdkit.models import build, normalisation
from kdkit.models.beliefs import CHAINS, KINDS, MODES
from kdkit.models.classifier import take_out_classifier
from kdkit.models.recompute import blocks
from kdkit.models.sid import SIDCascade
from kdkit.registry import KdkitError
from kdkit.taps import Taps

B, D, N, L, H = 6, 7, 5, 4, 9


class Loop(nn.Module):
    """The released algorithm, module by module, on weights copied from a cascade."""

    def __init__(self, cascade: SIDCascade) -> None:
        super().__init__()
        b, self.chain = cascade.beliefs, cascade.beliefs.chain
        self.first, self.second = nn.ModuleList(), nn.ModuleList()
        for i in range(len(b.bias)):
            layer = nn.Linear(N + D, len(b.bias[0])).double()
            layer.weight.data = torch.cat([b.belief_weight[i], b.feature_weight[i]], 1).detach().clone()
            layer.bias.data = b.bias[i].detach().clone()
            self.first.append(layer)
            if b.out_weight is not None:
                out = nn.Linear(H, N).double()
                out.weight.data, out.bias.data = b.out_weight[i].detach().clone(), b.out_bias[i].detach().clone()
                self.second.append(out)

    def module(self, i: int, p: Tensor, z: Tensor) -> Tensor:
        hidden = self.first[i](torch.cat([p, z], 1))
        return self.second[i](hidden.relu()) if len(self.second) else hidden

    def forward(self, z: Tensor) -> Tensor:
        if self.chain == "uniform":
            return torch.stack([self.module(i, z.new_full((len(z), N), 1 / N), z) for i in range(L)], 1)
        if self.chain == "through":
            logits = [self.module(0, z.new_full((len(z), N), 1 / N), z)]
            for i in range(1, L):
                logits.append(self.module(i, logits[-1].softmax(1), z))
            return torch.stack(logits, 1)
        with torch.no_grad():
            beliefs = [torch.full((len(z), N), 1 / N, dtype=z.dtype)]
            for i in range(len(self.first)):
                beliefs.append(self.module(i, beliefs[-1], z).softmax(1))
        return torch.stack([self.module(i, beliefs[i], z) for i in range(len(self.first))], 1)


def cascade(kind: str, **words: str | bool) -> SIDCascade:
    torch.manual_seed(0)
    return SIDCascade(nn.Linear(3, D), N, D, modules=L, kind=kind, hidden=H, **words).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


WAYS = [(mode, chain) for mode in MODES for chain in CHAINS if (mode, chain) != ("parallel", "through")]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("mode", "chain"), WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_the_loop(
    kind: str, mode: str, chain: str, separate: bool, x: Tensor
) -> None:
    net = cascade(kind, mode=mode, chain=chain, separate=separate)
    loop = Loop(net)
    labels = torch.arange(B) % N
    with torch.no_grad():
        torch.testing.assert_close(net(x), loop(net.backbone(x))[:, -1], atol=1e-12, rtol=0)
    backbone = copy.deepcopy(net.backbone)
    score = nn.CrossEntropyLoss() if chain == "through" else None
    for logits in (net.beliefs(net.backbone(x)), loop(backbone(x))):
        (score(logits[:, -1], labels) if score else SIDLoss()(logits, labels)).backward()
    b = net.beliefs
    first = torch.stack([layer.weight.grad for layer in loop.first])
    close = {"atol": 1e-10, "rtol": 0}
    torch.testing.assert_close(torch.cat([grad(b.belief_weight), grad(b.feature_weight)], 2), first, **close)
    torch.testing.assert_close(grad(b.bias), torch.stack([layer.bias.grad for layer in loop.first]), **close)
    if kind == "mlp":
        torch.testing.assert_close(grad(b.out_weight), torch.stack([m.weight.grad for m in loop.second]), **close)
        torch.testing.assert_close(grad(b.out_bias), torch.stack([m.bias.grad for m in loop.second]), **close)
    torch.testing.assert_close(net.backbone.weight.grad, backbone.weight.grad, **close)
    assert net.backbone.weight.grad.abs().sum() > 0
    if chain == "through":
        assert grad(b.feature_weight)[0].abs().sum() > 0, "the last module's loss reaches the first"


def grad(weights: nn.Parameter | nn.ParameterList) -> Tensor:
    return weights.grad if isinstance(weights, nn.Parameter) else torch.stack([w.grad for w in weights])


@pytest.mark.parametrize("kind", KINDS)
def test_the_two_phases_agree(kind: str, x: Tensor) -> None:
    net = cascade(kind)
    z = net.backbone(x)
    with torch.no_grad():
        sequential = net.beliefs(z)
    torch.testing.assert_close(net.beliefs(z), sequential, atol=1e-12, rtol=0)
    assert torch.equal(net.eval()(x), net.train()(x))
    first = net.beliefs(z)[:, 0]
    assert not torch.allclose(first.softmax(1), net.beliefs(z)[:, 1].softmax(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_learns_from_its_own_loss_alone(kind: str, x: Tensor) -> None:
    net = cascade(kind)
    labels = torch.arange(B) % N
    for i in range(L):
        net.zero_grad()
        F.cross_entropy(net.beliefs(net.backbone(x))[:, i], labels).backward()
        for parameter in net.beliefs.parameters():
            moved = parameter.grad.flatten(1).abs().sum(1) > 0
            assert moved.tolist() == [j == i for j in range(L)]
        assert net.backbone.weight.grad.abs().sum() > 0


def test_the_feature_gradient_is_the_sum_of_the_modules(x: Tensor) -> None:
    net, labels = cascade("mlp"), torch.arange(B) % N
    z = net.backbone(x).detach().requires_grad_()
    logits = net.beliefs(z)
    terms = [F.cross_entropy(logits[:, i], labels) for i in range(L)]
    (joint,) = torch.autograd.grad(sum(terms), z, retain_graph=True)
    each = [torch.autograd.grad(term, z, retain_graph=True)[0] for term in terms]
    torch.testing.assert_close(joint, sum(each), atol=1e-12, rtol=0)


@pytest.mark.parametrize("arch", ["resnet14", "timm/test_vit"])
def test_a_recomputed_backbone_gives_the_same_gradients_and_counts_a_batch_once(arch: str) -> None:
    options = {"img_size": 32, "patch_size": 8} if arch == "timm/test_vit" else {}
    images, labels = torch.randn(3, 3, 32, 32).double(), torch.arange(3)
    nets = []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = build(
            "sid", num_classes=4, backbone={"arch": arch, **options}, modules=3, mode="lean", recompute=recompute
        ).double()
        SIDLoss()(beliefs_of(net, images), labels).backward()
        assert not any("forward" in vars(module) for module in net.modules())
        nets.append(net)
    plain, lean = nets
    assert len(blocks(lean.backbone)) > 1
    for (name, one), other in zip(plain.named_parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-10, rtol=0, msg=name)
    for (name, one), other in zip(plain.named_buffers(), lean.buffers(), strict=True):
        assert torch.equal(other, one), name
    assert peak(lean, images) < 0.75 * peak(plain, images)


def beliefs_of(net: nn.Module, x: Tensor) -> Tensor:
    """What the tap reads, from a whole forward."""
    return Taps(net, ["beliefs"], x)(x)["beliefs"]


def peak(net: nn.Module, x: Tensor) -> int:
    def step() -> None:
        net(x).sum().backward()
        net.zero_grad()

    net, x = net.float(), x.repeat(4, 1, 1, 1).float()
    return peak_bytes(step, torch.device("cpu"))


@pytest.mark.parametrize("mode", MODES)
def test_a_backward_pass_for_each_module_is_one_for_all(mode: str, x: Tensor) -> None:
    """z is a leaf to the modules, whose gradients it gathers; the extractor's pass comes last."""
    labels = torch.arange(B) % N
    joint, looped = cascade("mlp", mode=mode), cascade("mlp", mode=mode)
    SIDLoss()(joint.beliefs(joint.backbone(x)), labels).backward()
    z = looped.backbone(x)
    leaf = z.detach().requires_grad_()
    for i in range(L):
        logits = looped.beliefs(leaf)
        others = logits.detach()
        SIDLoss()(torch.cat([others[:, :i], logits[:, i : i + 1], others[:, i + 1 :]], 1), labels).backward()
    z.backward(leaf.grad)
    for (name, one), other in zip(joint.named_parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-10, rtol=0, msg=name)


def test_weights_start_as_linear_layers_do() -> None:
    torch.manual_seed(0)
    beliefs = SIDCascade(nn.Identity(), 100, 64, modules=8, kind="mlp", hidden=256).beliefs
    bound = (100 + 64) ** -0.5
    for weight, limit in (
        (beliefs.belief_weight, bound),
        (beliefs.feature_weight, bound),
        (beliefs.out_weight, 1 / 16),
    ):
        assert 0.99 * limit < weight.abs().max() <= limit
        assert weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.01)
    assert sum(p.numel() for p in beliefs.parameters()) == 8 * ((164 + 1) * 256 + (256 + 1) * 100)


@pytest.mark.parametrize("arch", ["resnet8", "simple_cnn", "timm/test_resnet", "torchvision/shufflenet_v2_x0_5"])
def test_any_net_becomes_a_backbone(arch: str) -> None:
    plain = build(arch, num_classes=11).eval()
    net = build("sid", num_classes=11, backbone=arch, modules=3, kind="mlp", hidden=8).eval()
    x = torch.randn(2, 3, 32, 32)
    names = ["beliefs", "embedding", "stem", "stage1", "stage-1", "logits"]
    taps = Taps(net, names, x)
    own = Taps(plain, names[1:], x)
    assert taps.shapes == {**own.shapes, "beliefs": (3, 11)}
    values = taps(x)
    assert torch.equal(values["logits"], net(x))
    assert torch.equal(values["embedding"], net.backbone(x))
    assert torch.equal(values["beliefs"][:, -1], values["logits"])
    net.load_state_dict(pickle.loads(pickle.dumps(net)).state_dict())
    assert normalisation(net) == normalisation(plain)
    width = own.shapes["embedding"][0]
    classifier = 11 * (width + 1)
    count = sum(p.numel() for p in plain.parameters()) - classifier + sum(p.numel() for p in net.beliefs.parameters())
    assert sum(p.numel() for p in net.parameters()) == count


def test_the_papers_extractor() -> None:
    net = build("simple_cnn", num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == 896 + 18_496 + 73_856 + 147_584 + 16_512 + 1_290
    assert Taps(net, ["stage1", "stage2", "embedding"], torch.randn(1, 3, 32, 32)).shapes == {
        "stage1": (64, 32, 32),
        "stage2": (128, 16, 16),
        "embedding": (128,),
    }


@pytest.mark.parametrize("mode", MODES)
def test_it_compiles_whole(mode: str, x: Tensor) -> None:
    net = cascade("mlp", mode=mode)
    torch.compiler.reset()
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))
    compiled(x).sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_half_precision_and_autocast(mode: str, x: Tensor) -> None:
    net = cascade("mlp", mode=mode).float()
    exact = net(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        logits = net.beliefs(net.backbone(x.float()))
    torch.testing.assert_close(logits[:, -1].float(), exact, atol=0.02, rtol=0.02)
    logits.float().logsumexp(2).sum().backward()  # weights that were cast without gradient must not be used again
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    net.bfloat16()
    torch.testing.assert_close(net(x.bfloat16()).float(), exact, atol=0.02, rtol=0.02)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="kind must be linear or mlp, got 'lienar'; did you mean 'linear'"):
        SIDCascade(nn.Identity(), N, D, kind="lienar")
    with pytest.raises(ValueError, match="mode must be parallel, joint or lean, got 'loan'; did you mean 'lean'"):
        SIDCascade(nn.Identity(), N, D, mode="loan")
    with pytest.raises(ValueError, match="mode must be joint or lean with chain 'through', got 'parallel'"):
        SIDCascade(nn.Identity(), N, D, chain="through")
    with pytest.raises(KdkitError, match=r"recompute needs a backbone with blocks .* SimpleCNN has none; leave it out"):
        build("sid", num_classes=5, backbone="simple_cnn", recompute=True)
    with pytest.raises(KdkitError, match=r"recompute and isolate both save .*; leave out one of them"):
        build("sid", num_classes=5, backbone="resnet8", recompute=True, isolate=["layer1"])
    with pytest.raises(ValueError, match="modules must be a whole number of at least 1, got 0"):
        SIDCascade(nn.Identity(), N, D, modules=0)
    with pytest.raises(ValueError, match=r"features must be \(B, D\), got \(2, 3, 4\)"):
        SIDCascade(nn.Identity(), N, D)(torch.randn(2, 3, 4))
    with pytest.raises(KdkitError, match="one linear classifier of 5 outputs, found none"):
        take_out_classifier(nn.Sequential(nn.Conv2d(3, 5, 1)), 5)
    two = nn.ModuleDict({"a": nn.Linear(3, 5), "b": nn.Linear(4, 5)})
    with pytest.raises(KdkitError, match="found a, b; name it as `classifier:`"):
        take_out_classifier(two, 5)
    with pytest.raises(KdkitError, match="classifier must be the path of a module in the backbone, got 'c'"):
        take_out_classifier(two, 5, "c")
    assert take_out_classifier(two, 5, "b") == 4
    assert isinstance(two["b"], nn.Identity)
    with pytest.raises(KdkitError, match="got an unexpected keyword argument 'modulse'"):
        build("sid", num_classes=5, backbone="resnet8", modulse=3)


@pytest.mark.parametrize("isolate", [{}, {"isolate": ["layer1"]}])
def test_it_can_be_exported_for_any_batch(isolate):
    net = build("sid", num_classes=N, backbone="resnet8", modules=2, **isolate).eval()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    with torch.no_grad():
        program = torch.export.export(net, (torch.randn(3, 3, 16, 16),), dynamic_shapes=(batch,))
        x = torch.randn(5, 3, 16, 16)
        torch.testing.assert_close(program.module()(x), net(x))
