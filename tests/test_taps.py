"""Taps on small nets whose inside is known: what they give, and what they leave behind."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from kdkit import models
from kdkit.registry import KdkitError, UnknownNameError
from kdkit.taps import Taps, classifier, expand


class Block(nn.Module):
    """conv, BN, in-place ReLU, twice the same ReLU or two of them, dropout in place."""

    def __init__(self, width: int, shared: bool = False) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU(inplace=True)
        self.relu2 = self.relu1 if shared else nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(out)).add_(x))


class Net(nn.Module):
    """A stem, two stages, a dropout in place before the classifier, two counters and noise in forward."""

    def __init__(self, shared: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Block(4, shared), Block(4, shared))
        self.layer2 = nn.Sequential(nn.AvgPool2d(2), Block(4, shared))
        self.unused = nn.Linear(3, 3)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.fc = nn.Linear(4, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        self.steps.add_(1)
        torch.rand(1)
        x = self.layer2(self.layer1(self.conv(x)))
        return self.fc(self.drop(x.mean((2, 3))))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


ALL = ["stem", "stage1", "layer1.0.bn1", "layer1.0:preact", "stage-1", "embedding", "logits"]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_hand(net: Net, x: Tensor) -> dict[str, Tensor]:
    """The same values, computed step by step, each in a tensor of its own."""
    block = net.layer1[0]
    stem = net.conv(x)
    bn1 = block.bn1(block.conv1(stem))
    preact = block.bn2(block.conv2(bn1.relu())) + stem
    stage1 = net.layer1[1](preact.relu())
    stage2 = net.layer2(stage1.clone())
    embedding = stage2.mean((2, 3))
    values = [stem, stage1, bn1, preact, stage2, embedding, net.fc(embedding)]
    return dict(zip(ALL, values, strict=True))


def test_values_shapes_and_paths(net: Net, x: Tensor) -> None:
    net.eval()
    taps = Taps(net, ALL, x)
    values = taps(x)
    torch.testing.assert_close(values, by_hand(net, x))
    assert taps.shapes == {name: tuple(value.shape[1:]) for name, value in values.items()}
    assert taps.paths == {
        "stem": "layer1.0:input",
        "stage1": "layer1:output",
        "layer1.0.bn1": "layer1.0.bn1:output",
        "layer1.0:preact": "layer1.0.relu2:input",
        "stage-1": "layer2:output",
        "embedding": "drop:input",
        "logits": ":output",
    }


def test_in_place_changes_are_found_and_only_those_are_cloned(net: Net, x: Tensor) -> None:
    taps = Taps(net, ALL, x)
    assert {hook.key for _, hook in taps._hooks if hook.clone} == {
        "layer1.0.bn1:output",
        "layer1.0.relu2:input",
        "drop:input",  # by a dropout that does nothing in the dry run
    }
    net.train()
    torch.manual_seed(1)
    values = taps(x)
    assert values["layer1.0.bn1"].min() < 0
    torch.testing.assert_close(values["embedding"], values["stage-1"].mean((2, 3)))


def test_gradients_flow_through_taps(net: Net, x: Tensor) -> None:
    values = Taps(net, ["layer1.0.bn1", "stage1"], x)(x)
    (values["layer1.0.bn1"].sum() + values["stage1"].sum()).backward()
    assert net.conv.weight.grad is not None
    assert net.fc.weight.grad is None


def test_the_dry_run_leaves_no_trace(net: Net, x: Tensor) -> None:
    net.train()
    net.layer1.eval()
    state, rng = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    modes = [m.training for m in net.modules()]
    Taps(net, ALL, x)
    expand(net, "stages", x)
    classifier(net, x)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert hooks(net) == 0
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), state.values(), strict=True))


def test_hooks_live_only_inside_open(net: Net, x: Tensor) -> None:
    taps = Taps(net, ["stage1", "logits"], x)
    assert hooks(net) == 0
    with taps.open():
        assert hooks(net) == 1
        values = taps.take(net(x))
    assert hooks(net) == 0
    assert set(values) == {"stage1", "logits"}
    with pytest.raises(ZeroDivisionError), taps.open():
        raise ZeroDivisionError
    assert hooks(net) == 0
    with pytest.raises(RuntimeError):
        taps(torch.randn(2, 7, 8, 8))
    assert hooks(net) == 0


def test_nothing_is_kept_after_take(net: Net, x: Tensor) -> None:
    taps = Taps(net, ["stage1", "embedding"], x)
    kept = [weakref.ref(value) for value in taps(x).values()]
    with taps.open():
        net(x)  # not taken
    gc.collect()
    assert all(ref() is None for ref in kept)
    assert not taps._store


def test_model_and_taps_pickle_and_copy(net: Net, x: Tensor) -> None:
    taps = Taps(net.eval(), ALL, x)
    expected = taps(x)
    pickle.loads(pickle.dumps(net))
    torch.save(net, io.BytesIO())
    twin = copy.deepcopy(taps)
    assert twin.model is not net
    nn.init.zeros_(twin.model.fc.weight)
    torch.testing.assert_close(taps(x), expected)
    assert not torch.equal(twin(x)["logits"], expected["logits"])
    torch.testing.assert_close(pickle.loads(pickle.dumps(taps))(x), expected)


def test_several_taps_read_one_model_at_once(net: Net, x: Tensor) -> None:
    net.eval()
    one, two = Taps(net, ["stage1"], x), Taps(net, ["stage1", "logits"], x)
    with one.open(), two.open():
        out = net(x)
        a, b = one.take(), two.take(out)
    assert torch.equal(a["stage1"], b["stage1"])
    assert torch.equal(b["logits"], out)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_is_one_graph(x: Tensor, backend: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(144, 5))
    net.eval()
    taps = Taps(net, ["1", "1:input", "embedding", "logits"], x)
    expected = taps(x)
    torch.compiler.reset()
    compiled_calls = CompileCounterWithBackend(backend)

    @torch.compile(backend=compiled_calls, fullgraph=True)
    def step(images: Tensor) -> dict[str, Tensor]:
        return taps.take(net(images))

    for _ in range(4):
        with taps.open():
            torch.testing.assert_close(step(x), expected)
        assert hooks(net) == 0
    assert compiled_calls.frame_count == 1


def test_nothing_after_the_last_tap_runs_unless_logits_are_read(net: Net, x: Tensor) -> None:
    ran = []
    net.layer2.register_forward_pre_hook(lambda *_: ran.append("layer2"))
    statistics = net.layer2[1].bn1.running_mean
    before = statistics.clone()
    Taps(net, ["stage1", "layer1.0"], x)(x)
    assert ran == ["layer2"]  # by the dry run alone
    assert torch.equal(statistics, before)
    Taps(net, ["stage1", "logits"], x)(x)
    assert ran == ["layer2"] * 3


def test_a_module_called_twice_gives_its_last_call(x: Tensor) -> None:
    net = Net(shared=True).eval()
    taps = Taps(net, ["layer1.1.relu1"], x)
    assert torch.equal(taps(x)["layer1.1.relu1"], Taps(net, ["layer1.1"], x)(x)["layer1.1"])
    read = Taps(net, ["layer1:preact", "layer1"], x)(x)
    assert read["layer1:preact"].min() < 0
    assert torch.equal(read["layer1:preact"].relu(), read["layer1"])
    act = net.layer1[1].relu1
    net.layer2.register_forward_hook(lambda module, args, output: act(output))
    with pytest.raises(KdkitError, match=r"relu1 must not be called again later in a forward, and is"):
        Taps(net, ["layer1:preact"], x)


def test_torchvisions_blocks_call_one_relu_twice() -> None:
    net, x = torchvision.models.resnet18(num_classes=4).eval(), torch.randn(2, 3, 32, 32)
    read = Taps(net, ["stage1:preact", "stage1", "stage4:preact", "stage4"], x)(x)
    for stage in ("stage1", "stage4"):
        assert read[f"{stage}:preact"].min() < 0
        assert torch.equal(read[f"{stage}:preact"].relu(), read[stage])


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()


class Biased(nn.Module):
    """A number for each channel, which is no weight, and a count, which a probe must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.arange(6.0)[:, None, None])
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return (x - self.bias).relu()


class Several(nn.Module):
    """Gives more than one tensor, of which the first is read."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.relu(), x


def test_what_gives_several_tensors_is_no_activation(x: Tensor) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = Several()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(x)[0]

    net = nn.Sequential(First(), nn.Flatten(), nn.Linear(192, 4)).eval()
    with pytest.raises(KdkitError, match="must end in an activation"):
        Taps(net, ["0:preact"], x)


@pytest.mark.parametrize(
    "last",
    [
        *(nn.ChannelShuffle(3), nn.MaxPool2d(3, 1, 1), nn.InstanceNorm2d(6), nn.GroupNorm(2, 6, affine=False)),
        *(nn.LocalResponseNorm(3), nn.Upsample(scale_factor=1), nn.BatchNorm2d(6, affine=False), nn.Softmax(1)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_mixes_numbers_is_no_activation(x: Tensor, last: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), last, nn.Flatten(), nn.Linear(384, 4))
    block = nn.Sequential(nn.Sequential(*net[:3]), *net[3:]).eval()
    with pytest.raises(KdkitError, match="must end in an activation"):
        Taps(block, ["0:preact"], x)


@pytest.mark.parametrize(
    "last",
    [
        nn.PReLU(6),
        nn.RReLU(),
        nn.GELU(),
        nn.Hardswish(inplace=True),
        nn.Hardsigmoid(),
        nn.Hardtanh(-4, 4),
        Swish(),
        Biased(),
    ],
)
def test_what_is_done_to_each_number_alone_is_one(x: Tensor, last: nn.Module) -> None:
    block = nn.Sequential(nn.Sequential(nn.Conv2d(3, 6, 1), last), nn.Flatten(), nn.Linear(384, 4)).eval()
    state = torch.get_rng_state()
    Taps(block.train(), ["0:preact", "0"], x)
    assert getattr(last, "calls", 1) == 1  # of the dry run
    read = Taps(block.eval(), ["0:preact", "0"], x)(x)
    assert torch.equal(read["0"], last(read["0:preact"].clone()))
    assert torch.equal(torch.get_rng_state(), state)


def test_preact_needs_a_module_as_the_last_activation(x: Tensor) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.conv, self.fc = nn.ReLU(inplace=True), nn.Conv2d(3, 3, 1), nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.relu(self.conv(x)).flatten(1))

    with pytest.raises(KdkitError, match="must end in an activation that is a module"):
        Taps(Functional(), ["conv:preact"], x)

    inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True))

    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).add_(x)  # the very tensor that the ReLU gave, but later

    with pytest.raises(KdkitError, match="must end in an activation"):
        Taps(nn.Sequential(Adds(), nn.Flatten(), nn.Linear(192, 4)), ["0:preact"], x)


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("layer1.O", UnknownNameError, "Net has no such place; did you mean 'layer1"),
        (
            "stage3",
            UnknownNameError,
            "known: logits, embedding, stage-1, stage-2, stage1, stage2, stem and module paths",
        ),
        ("stages", UnknownNameError, "stage2, stem and module paths; kdkit.taps.expand(model, 'stages', x) lists"),
        ("embeding", UnknownNameError, "did you mean 'embedding'"),
        ("", UnknownNameError, "unknown tap ''"),
        ("stage1:outptu", UnknownNameError, "did you mean 'output'?; known: input, output, preact"),
        ("embedding:input", KdkitError, "must be without ':input'"),
        ("unused", KdkitError, "never called"),
    ],
)
def test_wrong_names(net: Net, x: Tensor, name: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        Taps(net, [name], x)
    assert text in str(caught.value)


def test_a_model_that_cannot_run_on_the_example(net: Net) -> None:
    with pytest.raises(KdkitError, match=r"Net must run on an input of shape \(2, 5, 8, 8\), got RuntimeError"):
        Taps(net, ["logits"], torch.zeros(2, 5, 8, 8))
    with pytest.raises(KdkitError, match=r"(?s)Net must run on the dict it was given, .* as a tuple, in their order"):
        Taps(net, ["logits"], {"x": torch.zeros(2, 3, 8, 8)})  # type: ignore[arg-type]
    assert hooks(net) == 0


def test_a_tap_that_is_not_reached(net: Net, x: Tensor) -> None:
    taps = Taps(net, ["stage1"], x)
    with taps.open(), pytest.raises(KdkitError, match="must be reached"):
        taps.take()


def test_logits_need_the_output(net: Net, x: Tensor) -> None:
    taps = Taps(net, ["logits"], x)
    with taps.open():
        net(x)
        with pytest.raises(KdkitError, match="must be given what the model returned"):
            taps.take()


def test_stages_that_a_model_states_must_be_there(net: Net, x: Tensor) -> None:
    net.stages = {"stem": "conv", "stage1": "layer1.0", "stage2": "layer2"}
    assert Taps(net, ["stem", "stage1", "stage-1"], x).paths == {
        "stem": "conv:output",
        "stage1": "layer1.0:output",
        "stage-1": "layer2:output",
    }
    net.stages = {"stage1": "layer0"}
    with pytest.raises(KdkitError, match=r"Net.stages: stage1 must be a module it calls, got 'layer0'; did you mean"):
        Taps(net, ["stage1"], x)


def test_two_classifiers_must_be_named(x: Tensor) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(192, 4), nn.Linear(192, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x.flatten(1)) + self.b(x.flatten(1))

    with pytest.raises(KdkitError, match=r"Two has 2 layers as wide as its output; name the place"):
        Taps(Two(), ["embedding"], x)
    assert Taps(Two(), ["a:input"], x).shapes == {"a:input": (192,)}


def test_classifiers_that_read_one_tensor_share_its_embedding(x: Tensor) -> None:
    """As LeViT, EfficientFormer and SwiftFormer do, which average two; none of them is the classifier."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(192, 8), nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x.flatten(1))
            return (self.a(x) + self.b(x)) / 2

    net = Two()
    taps = Taps(net, ["embedding"], x)
    assert taps.paths == {"embedding": "body:output"}
    assert torch.equal(taps(x)["embedding"], net.body(x.flatten(1)))
    with pytest.raises(KdkitError, match="Two has 2 layers as wide as its output; name the place"):
        classifier(net, x)


def test_tensors_inside_a_tuple_of_tuples_are_seen(x: Tensor) -> None:
    """Timm's PiT hands maps and class tokens from stage to stage as one argument."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, both: tuple[None, tuple[Tensor, Tensor]]) -> tuple[None, tuple[Tensor, Tensor]]:
            maps, tokens = both[1]
            return None, (self.conv(maps), tokens)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.head = Pair(), nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            _, (maps, _) = self.pair((None, (x, x)))
            return self.head(maps.mean((2, 3)))

    net = Outer()
    values = Taps(net, ["pair:input", "pair"], x)(x)
    assert torch.equal(values["pair:input"], x)
    assert torch.equal(values["pair"], net.pair.conv(x))


@pytest.mark.parametrize("wrap", [lambda y: (y, None), lambda y: {"logits": y}, lambda y: [y, y]])
def test_outputs_that_hold_logits(net: Net, x: Tensor, wrap: object) -> None:
    net.eval()

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> object:
            return wrap(self.net(x))

    values = Taps(Wrapped(), ["logits", "embedding"], x)(x)
    torch.testing.assert_close(values["logits"], net.fc(values["embedding"]))


def test_several_inputs_and_keywords() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.fc = nn.Bilinear(3, 3, 4), nn.Linear(4, 2)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fc(input=self.mix(a, b))

    pair, a, b = Pair(), torch.randn(2, 3), torch.randn(2, 3)
    values = Taps(pair, ["embedding", "mix:input"], (a, b))(a, b)
    torch.testing.assert_close(values, {"embedding": pair.mix(a, b), "mix:input": a})


def test_plural_names_and_the_classifier(net: Net, x: Tensor) -> None:
    assert expand(net, "stages", x) == ["stage1", "stage2"]
    assert expand(net, "stages:preact", x) == ["stage1:preact", "stage2:preact"]
    assert expand(net, "layer1.0", x) == ["layer1.0"]
    assert classifier(net, x) is net.fc


@pytest.mark.parametrize(
    ("arch", "count", "width"), [("resnet20", 3, 64), ("wrn_16_1", 3, 64), ("vgg8", 4, 512), ("mobilenetv2", 4, 1280)]
)
def test_built_in_nets(arch: str, count: int, width: int) -> None:
    torch.manual_seed(0)
    net = models.build(arch, num_classes=10)
    x = torch.randn(2, 3, 32, 32)
    stages = expand(net, "stages", x)
    taps = Taps(net.eval(), ["stem", *stages, "embedding", "logits"], x)
    assert stages == [f"stage{i + 1}" for i in range(count)]
    assert taps.shapes["embedding"] == (width,)
    values = taps(x)
    torch.testing.assert_close(classifier(net, x)(values["embedding"]), values["logits"])
    torch.testing.assert_close(values["logits"], net(x))


def test_inference_mode_is_no_trouble() -> None:
    net = Net().eval()
    plain = torch.randn(2, 3, 8, 8)
    with torch.inference_mode():
        made = torch.randn(2, 3, 8, 8)
        read = Taps(net, ALL, made)(plain)
    expected = Taps(net, ALL, made)(plain)  # an example of inference mode, outside of it
    assert all(torch.equal(read[name], expected[name]) for name in ALL)
    assert expected["logits"].requires_grad


def test_a_module_of_several_paths_is_found_by_each(x: Tensor) -> None:
    net = Net().eval()
    net.again = nn.Sequential(net.layer1[0])
    assert torch.equal(Taps(net, ["again.0"], x)(x)["again.0"], Taps(net, ["layer1.0"], x)(x)["layer1.0"])
