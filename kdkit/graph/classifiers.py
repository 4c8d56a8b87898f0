"""Classifiers of the nodes, for losses that read `teacher_classifier`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from kdkit import taps


class Classifiers(dict[str, nn.Module]):
    """Each node's classifier, looked up when a loss first asks for it.

    Args:
        models: the nodes' modules.
        views: an example input of each.
    """

    def __init__(self, models: Mapping[str, nn.Module], views: Mapping[str, Any]) -> None:
        super().__init__()
        self.models, self.views = models, views

    def __missing__(self, name: str) -> nn.Module:
        self[name] = taps.classifier(self.models[name], self.views[name])
        return self[name]
