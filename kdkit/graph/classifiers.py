"""Classifiers of the nodes, for losses that read `teacher_classifier`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class Classifiers(dict[str, nn.Module]):
    """Each node's classifier, looked up when a loss first asks for it."""

    def __init__(self, find: Callable[[str], nn.Module]) -> None:
        super().__init__()
        self.find = find

    def __missing__(self, name: str) -> nn.Module:
        self[name] = self.find(name)
        return self[name]
