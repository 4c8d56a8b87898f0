"""Reading the layers of models that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from kdkit.registry import KdkitError
from kdkit.runs.trained import Trained
from kdkit.taps import Taps, expand

USUAL = ("stem", "stages", "embedding", "logits")


class Layers:
    """A model's layers on each batch.

    Args:
        model: whose.
        wanted: taps, plural ones too; left out: `stem`, `stages`, `embedding` and `logits`, those that it has.
        x: a batch of images.

    Raises:
        KdkitError: the model has no such tap.
    """

    def __init__(self, model: Trained, wanted: Sequence[str] | None, x: Any) -> None:
        model.logits(x[:2])  # which says what is wrong with it
        self.model, example = model, model.adapter(x[:2])
        names: list[str] = []
        for name in wanted or USUAL:
            try:
                names += self._all(name, example)
            except KdkitError as error:
                if wanted:
                    raise KdkitError(f"{model.name}: {error}") from error
        self.names = list(dict.fromkeys(names))
        try:
            self.embedding = bool(self._all("embedding", example))
        except KdkitError:
            self.embedding = False
        self._taps = Taps(model.module, [*self.names, *["embedding"] * self.embedding, "logits"], example)

    def _all(self, name: str, example: Any) -> list[str]:
        """What a name stands for in the model, which has it."""
        several = expand(self.model.module, name, example)
        Taps(self.model.module, several, example)
        return several

    def __call__(self, x: Any) -> dict[str, Tensor]:
        """Values by name, and the `logits` whether asked for or not."""
        return self._taps(self.model.adapter(x))
