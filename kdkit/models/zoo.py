"""timm's and torchvision's models, built by their own factories. Neither is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from kdkit.models.custom import given
from kdkit.registry import KdkitError, UnknownNameError, nearest


def names() -> list[tuple[str, str]]:
    """Every name with its source: `("timm/resnet18", "timm")`."""
    import timm
    from torchvision import models

    return [(f"timm/{name}", "timm") for name in timm.list_models()] + [
        (f"torchvision/{name}", "torchvision") for name in models.list_models(module=models)
    ]


def build_timm(name: str, num_classes: int | None, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """`timm.create_model`; a tag after a dot picks the weights, as in `vit_tiny_patch16_224.augreg_in21k`."""
    import timm

    stem, _, tag = name.partition(".")
    if not timm.is_model(stem):
        hint = nearest(stem, timm.list_models()) or "; `kdkit models 'timm/*'` lists them"
        raise UnknownNameError(f"unknown timm model {name!r}{hint}")
    if tag and name not in (tagged := timm.list_pretrained(f"{stem}.*")):
        raise UnknownNameError(f"unknown weights {name!r} of timm; known: {', '.join(tagged) or 'none'}")
    width = {} if num_classes is None else {"num_classes": num_classes}

    def make() -> nn.Module:
        net: nn.Module = timm.create_model(name, pretrained=pretrained, **width, **options)
        return net

    return _run(f"timm/{name}", pretrained, options, make)


def build_torchvision(name: str, num_classes: int | None, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """`torchvision.models.get_model` with its default weights, or those of a tag: `resnet50.IMAGENET1K_V1`.

    The normalisation that the weights were trained with is noted on the module as `normalisation`.
    """
    from torchvision import models

    stem, _, tag = name.partition(".")
    if stem not in (known := models.list_models(module=models)):
        raise UnknownNameError(f"unknown torchvision model {name!r}{nearest(stem, known)}")
    published = models.get_model_weights(stem)
    if tag and tag not in published.__members__:
        raise UnknownNameError(f"unknown weights {name!r} of torchvision; known: {', '.join(published.__members__)}")
    weights = published[tag or "DEFAULT"]
    # With published weights torchvision refuses another width, so the classifier is replaced afterwards.
    width = {} if pretrained or num_classes is None else {"num_classes": num_classes}

    def make() -> nn.Module:
        net: nn.Module = models.get_model(stem, weights=weights if pretrained else None, **width, **options)
        return net

    net = _run(f"torchvision/{name}", pretrained, options, make)
    if pretrained and num_classes is not None:
        _replace_classifiers(net, len(weights.meta["categories"]), num_classes)
    views = weights.transforms()
    net.normalisation = (tuple(views.mean), tuple(views.std))  # type: ignore[assignment]
    return net


SOURCES: dict[str, Callable[[str, int | None, bool, dict[str, Any]], nn.Module]] = {
    "timm": build_timm,
    "torchvision": build_torchvision,
}


def _replace_classifiers(net: nn.Module, old: int, new: int) -> None:
    """Draw anew every linear layer or convolution with `old` outputs (the classifier, auxiliary ones included)."""
    if old == new:
        return
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Linear) and module.out_features == old:
            net.set_submodule(path, nn.Linear(module.in_features, new))
        elif isinstance(module, nn.Conv2d) and module.out_channels == old:
            net.set_submodule(path, nn.Conv2d(module.in_channels, new, kernel_size=1))


def _run(arch: str, pretrained: bool, options: dict[str, Any], make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # whatever a factory makes of options that do not suit it
        if pretrained and isinstance(error, OSError):
            raise KdkitError(
                f"{arch}: the pretrained weights could not be fetched ({_brief(error)})"
                "\n  without a network give a file that holds them: `weights: model.safetensors`"
            ) from error
        raise KdkitError(f"{arch}: could not be built{given(options)}: {_brief(error)}") from error


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
