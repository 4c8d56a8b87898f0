"""Building a model by name: kdkit's own, timm's, torchvision's, or anybody's from a package or a file."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kdkit import draws
from kdkit.models import zoo
from kdkit.models.catalogue import MODELS
from kdkit.models.custom import accepts, call, load_factory
from kdkit.registry import KdkitError, UnknownNameError

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def build(
    arch: str,
    *,
    num_classes: int | None,
    pretrained: bool = False,
    base: Path | None = None,
    allow_custom: bool = True,
    **options: Any,
) -> nn.Module:
    """Build a model by its name in a recipe.

    Args:
        arch: a built-in name (`resnet20`, `wrn_40_2`), `timm/NAME`, `torchvision/NAME`, `package.module:callable` or
            `file.py:callable`. timm's and torchvision's names may carry a tag of weights after a dot.
        num_classes: width of the logits; None keeps the model's own.
        pretrained: load published weights; a classifier of another width is drawn anew.
        base: folder that relative files are looked up in (the recipe's), default the working directory.
        allow_custom: whether the two last forms, which run the user's code, are allowed.
        options: keywords of the model's own factory. `backbone`, a name like `arch` or `{arch: NAME}` with its
            options, is built first.

    Raises:
        UnknownNameError: nothing has that name; the nearest names are offered.
        KdkitError: the factory takes other options, failed, or gave something else than an `nn.Module`.
    """
    if _first is None or isinstance(options.get("backbone"), nn.Module):
        return _build(arch, num_classes, pretrained, base, allow_custom, options)
    key = repr((arch, num_classes, pretrained, base, allow_custom, options, torch.initial_seed()))
    if key in _first:
        return copy.deepcopy(_first[key])
    net = _build(arch, num_classes, pretrained, base, allow_custom, options)
    with suppress(Exception):  # a lock, or a weight that is computed from others, has no copy: that net is built again
        _first[key] = copy.deepcopy(net)
    return net


_first: dict[str, nn.Module] | None = None


@contextmanager
def copied() -> Iterator[None]:
    """Inside, a net that is asked for again, with the same words and seed, is a copy: to draw weights takes longer."""
    global _first
    before, _first = _first, {}
    try:
        yield
    finally:
        _first = before


def _build(
    arch: str,
    num_classes: int | None,
    pretrained: bool,
    base: Path | None,
    allow_custom: bool,
    options: dict[str, Any],
) -> nn.Module:
    if not isinstance(arch, str) or not arch:
        raise KdkitError(f"arch must be a model's name, got {arch!r}")
    if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
        raise KdkitError(f"{arch}: num_classes must be a whole number of at least 1, or None, got {num_classes!r}")
    source, _, name = arch.partition("/")
    if source in zoo.SOURCES and ".py:" not in arch:
        return zoo.SOURCES[source](name, num_classes, pretrained, options)
    if isinstance(backbone := options.get("backbone"), (str, dict)):
        inner = backbone if isinstance(backbone, dict) else {"arch": backbone}
        if isinstance(apart := inner.get("options"), dict):
            beside = {word: value for word, value in inner.items() if word != "options"} | apart
            told = ", ".join(f"{word}: {value}" for word, value in beside.items())
            raise KdkitError(f"{arch}: a backbone's options stand beside its arch; say backbone: {{{told}}}")
        if "arch" not in inner or inner.keys() & {"num_classes", "pretrained", "base", "allow_custom"}:
            raise KdkitError(f"{arch}: backbone must be a name, or {{arch: NAME}} with its options, got {backbone!r}")
        options["backbone"] = build(
            **inner, num_classes=num_classes, pretrained=pretrained, base=base, allow_custom=allow_custom
        )
        pretrained = False
    if ":" in arch:
        if not allow_custom:
            raise KdkitError(
                f"{arch}: code beside a recipe is not run here; name a built-in, timm or torchvision model"
            )
        return _custom(arch, num_classes, pretrained, base, options)
    return _builtin(arch, num_classes, pretrained, options)


def builtin(arch: str) -> Callable[..., nn.Module]:
    """The factory of one of kdkit's own nets.

    Raises:
        UnknownNameError: no such net; the nearest names of every library are offered.
    """
    if arch in MODELS:
        return MODELS[arch]
    names = {name.rpartition("/")[2]: name for name, _ in reversed(list_models())}
    small = arch.casefold()
    close = [small] if small in names else difflib.get_close_matches(small, MODELS, cutoff=0.8)
    close = close or difflib.get_close_matches(small, names, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(names[name]) for name in close)}?" if close else "`kdkit models` lists them"
    others = "timm/NAME, torchvision/NAME, package.module:callable or file.py:callable"
    raise UnknownNameError(f"unknown model {arch!r}; {hint} (or {others})")


def list_models(pattern: str | None = None) -> list[tuple[str, str]]:
    """Every name that `build` takes and its source (`kdkit`, `timm`, `torchvision`).

    Args:
        pattern: keeps names that match it (`*` and `?` stand for anything) or, without either, contain it; capitals
            are small letters, which all names have.
    """
    names = [(name, "kdkit") for name in MODELS] + zoo.names()
    if not pattern:
        return names
    pattern = pattern.casefold()
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    return [(name, source) for name, source in names if fnmatch.fnmatch(name, glob)]


def normalisation(module: nn.Module) -> Statistics | None:
    """Mean and standard deviation per channel, for pixels in [0, 1], that the model's published weights expect.

    timm's configuration knows them, `build` notes them on torchvision's models, and a class of your own may state
    `normalisation = (mean, std)`. None where nothing is stated, as for the built-in nets: they take the data's own.
    """
    stated = getattr(module, "normalisation", None)
    if isinstance(stated, (tuple, list)) and len(stated) == 2:
        return tuple(map(float, stated[0])), tuple(map(float, stated[1]))
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if isinstance(config, dict) and config.get("mean") and config.get("std"):
        return tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
    return None


@contextmanager
def seeded(seed: int, name: str) -> Iterator[None]:
    """Initial weights drawn inside follow from (seed, the node's name) alone; torch's own generator is left as it was.

    Only the CPU's generator is touched: build there and move the model afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draws.key(seed, "initial weights", name))
        yield


def _builtin(arch: str, num_classes: int | None, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if arch.endswith(".py"):
        raise KdkitError(f"{arch}: name the class or function too, as in `{arch}:Net`")
    factory = builtin(arch)
    if pretrained:
        raise KdkitError(f"{arch}: there are no published weights to fetch; give a file or a recipe as `weights:`")
    if num_classes is None:
        raise KdkitError(
            f"{arch}: num_classes must be given, got None; built-in nets have no width of their own, and data without "
            "labels have one where data.classes says it"
        )
    return call(factory, arch, {**options, "num_classes": num_classes})


def _custom(
    arch: str, num_classes: int | None, pretrained: bool, base: Path | None, options: dict[str, Any]
) -> nn.Module:
    factory = load_factory(arch, base)
    sized = accepts(factory, "num_classes")
    if sized and num_classes is not None:
        options["num_classes"] = num_classes
    if pretrained:
        if not accepts(factory, "pretrained"):
            raise KdkitError(f"{arch}: takes no `pretrained`; give a file or a recipe as `weights:`")
        options["pretrained"] = True
    net = call(factory, arch, options)
    widths = [module.out_features for module in net.modules() if isinstance(module, nn.Linear)]
    if not sized and num_classes is not None and widths[-1:] != [num_classes]:
        found = f"its last linear layer has {widths[-1]} outputs" if widths else "it has no linear layer"
        warnings.warn(f"{arch}: takes no num_classes and {found}; {num_classes} classes are asked for", stacklevel=3)
    return net
