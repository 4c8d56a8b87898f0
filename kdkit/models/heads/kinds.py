"""The heads by name. A kind is a function from the two aligned shapes, and the options of the recipe, to a net."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from kdkit.models.heads.align import Shape, channels
from kdkit.models.heads.layers import (
    ConvBnRelu,
    Mean,
    Sparse,
    Variational,
    activated,
    choice,
    number,
    whole,
)
from kdkit.registry import KdkitError, Registry, nearest

Form = Literal["pointwise", "map", "own size", "tokens to map", "map to tokens"]


@dataclass(frozen=True)
class HeadInfo:
    """What the toolkit knows about a kind of head.

    Attributes:
        name: the word in a recipe.
        build: `build(student_shape, teacher_shape, **options)` → a net that takes the student's tensor.
        form: what the net works on: `pointwise` (channels last, any form), `map` (B, C, H, W), `own size` (maps, and it
            may change their size itself), or one of the two that turn tokens and maps into each other.
    """

    name: str
    build: Callable[..., nn.Module]
    form: Form

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return (inspect.getdoc(self.build) or "").split("\n")[0]

    @property
    def options(self) -> tuple[str, ...]:
        """The options of its own."""
        return tuple(list(inspect.signature(self.build).parameters)[2:])

    @property
    def words(self) -> tuple[str, ...]:
        """Likewise with their defaults, as in `n=3`."""
        found = list(inspect.signature(self.build).parameters.values())[2:]
        return tuple(f"{p.name}={p.default}" for p in found)


HEADS: Registry[HeadInfo] = Registry("head")


def kind(name: str, form: Form = "pointwise") -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator that puts a kind of head under a name."""

    def add(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        HEADS.add(name, HeadInfo(name, build, form))
        return build

    return add


def parse(spec: Any, also: tuple[str, ...] = ()) -> tuple[HeadInfo, dict[str, Any]]:
    """`"mlp"` or `{"mlp": {"norm": "batch"}}` → the kind and its options; `also` names options that every head has."""
    if isinstance(spec, str):
        spec = {spec: None}
    if not isinstance(spec, Mapping) or len(spec) != 1:
        raise KdkitError(f"head must be a name or one {{name: {{options}}}}, got {spec!r}; known: {', '.join(HEADS)}")
    name, options = next(iter(spec.items()))
    if not isinstance(options, (Mapping, type(None))):
        raise KdkitError(f"head {name!r}: its options must be a mapping, got {options!r}")
    info, options = HEADS[name], dict(options or {})
    for word in options:
        if word not in (known := [*info.options, *also]):
            near = nearest(str(word), known) or f"; known: {', '.join(known) or 'none'}"
            raise KdkitError(f"head {name!r}: unknown option {word!r}{near}")
    return info, options


@kind("identity")
def identity(student: Shape, teacher: Shape) -> nn.Module:
    """Nothing: both sides must have the same width."""
    if student != teacher:
        raise KdkitError(f"identity: both sides must have one shape, got {student} and {teacher}; use the head linear")
    return nn.Identity()


@kind("linear")
def linear(student: Shape, teacher: Shape, bias: bool = True) -> nn.Module:
    """W·x + b on every position."""
    return nn.Linear(channels(student), channels(teacher), bias=bias)


@kind("low_rank")
def low_rank(student: Shape, teacher: Shape, rank: int | None = None) -> nn.Module:
    """B·A·x + b with A of few rows (default a quarter of the narrower side)."""
    inputs, outputs = channels(student), channels(teacher)
    rank = max(1, min(inputs, outputs) // 4) if rank is None else rank
    whole("low_rank", rank=rank)
    if rank > min(inputs, outputs):
        raise KdkitError(f"low_rank: rank must be at most {min(inputs, outputs)}, got {rank}; use the head linear")
    return nn.Sequential(nn.Linear(inputs, rank, bias=False), nn.Linear(rank, outputs))


@kind("mlp")
def mlp(
    student: Shape, teacher: Shape, hidden: int | None = None, norm: str | None = None, activation: str = "relu"
) -> nn.Module:
    """Linear → [norm: batch or layer] → activation → Linear; hidden is the teacher's width by default."""
    hidden = channels(teacher) if hidden is None else hidden
    whole("mlp", hidden=hidden)
    first = nn.Linear(channels(student), hidden)
    return nn.Sequential(first, *activated("mlp", hidden, norm, activation), nn.Linear(hidden, channels(teacher)))


@kind("conv1x1", "map")
def conv1x1(student: Shape, teacher: Shape, bias: bool = True) -> nn.Module:
    """A 1×1 convolution between maps."""
    return nn.Conv2d(channels(student), channels(teacher), 1, bias=bias)


@kind("conv_bn_relu", "own size")
def conv_bn_relu(student: Shape, teacher: Shape, relu: bool = True) -> nn.Module:
    """Convolution → BatchNorm → ReLU between maps, strided or transposed where their sizes are 2:1 (FitNets' hint)."""
    return ConvBnRelu(student, teacher, bool(relu))


@kind("dwsep", "map")
def dwsep(student: Shape, teacher: Shape, kernel: int = 3) -> nn.Module:
    """A depthwise k×k convolution, then a pointwise one, between maps."""
    whole("dwsep", kernel=kernel)
    if kernel % 2 == 0:
        raise KdkitError(f"dwsep: kernel must be odd, so that maps keep their size, got {kernel}")
    inputs = channels(student)
    depthwise = nn.Conv2d(inputs, inputs, kernel, padding=kernel // 2, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, channels(teacher), 1))


@kind("bottleneck")
def bottleneck(
    student: Shape,
    teacher: Shape,
    width: int | None = None,
    activation: str = "relu",
    variational: bool = False,
    beta: float = 1e-3,
) -> nn.Module:
    """Through a narrow layer; variational: a sampled one, charged β·KL to the standard normal."""
    inputs, outputs = channels(student), channels(teacher)
    width = max(1, min(inputs, outputs) // 4) if width is None else width
    whole("bottleneck", width=width)
    number("bottleneck", beta=beta)
    after = activated("bottleneck", width, None, activation)
    if variational:
        return Variational(inputs, width, outputs, beta)
    return nn.Sequential(nn.Linear(inputs, width), *after, nn.Linear(width, outputs))


@kind("sparse")
def sparse(student: Shape, teacher: Shape, l1: float | None = None, top_k: int | None = None) -> nn.Module:
    """A linear map with few active outputs: charged l1·mean |y| (default 1e-4), or only the top_k largest kept."""
    outputs = channels(teacher)
    if top_k is not None:
        whole("sparse", top_k=top_k)
        if top_k > outputs:
            raise KdkitError(f"sparse: top_k must be at most {outputs}, the teacher's width, got {top_k}")
    l1 = (1e-4 if top_k is None else 0.0) if l1 is None else l1
    number("sparse", l1=l1)
    return Sparse(channels(student), outputs, l1, top_k)


@kind("ensemble")
def ensemble(student: Shape, teacher: Shape, n: int = 3, of: Any = "mlp") -> nn.Module:
    """The mean of n heads of another pointwise kind, each with its own initial weights."""
    whole("ensemble", n=n)
    info, options = parse(of)
    if info.form != "pointwise" or info.name in ("identity", "ensemble"):
        possible = [i.name for i in HEADS.values() if i.form == "pointwise" and i.name not in ("identity", "ensemble")]
        choice("ensemble", possible, of=info.name)
    return Mean([info.build(student, teacher, **options) for _ in range(n)])


@kind("tokens_to_map", "tokens to map")
def tokens_to_map(student: Shape, teacher: Shape, bias: bool = True) -> nn.Module:
    """Tokens of either side laid out as a map, then W·x + b on every position."""
    return linear(student, teacher, bias)


@kind("map_to_tokens", "map to tokens")
def map_to_tokens(student: Shape, teacher: Shape, bias: bool = True) -> nn.Module:
    """The positions of both sides as tokens, without class tokens, then W·x + b on each."""
    return linear(student, teacher, bias)
