"""What the CIFAR nets share: the unbiased convolution that keeps the size, and He's initialisation."""

from __future__ import annotations

from torch import nn


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, padded so that stride 1 keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def he_normal(net: nn.Module) -> None:
    """Draw every convolution of `net` from N(0, 2 / fan_out), biases zero (He et al., ICCV 2015, 1502.01852)."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_linear(classifier: nn.Linear) -> None:
    """Draw a classifier from N(0, 0.01²), bias zero, as VGG and MobileNet do."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
