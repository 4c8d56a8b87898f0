"""Do the losses pull together? Each term's share of the gradient, and the angles between them, by epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdkit.graph.graph import Graph
from kdkit.registry import KdkitError
from kdkit.train.gradients import dot, gradient

PER_EPOCH = 10
"""Steps of an epoch that are looked at; each costs a backward pass for every term and model."""

Row = dict[str, str]


@dataclass(frozen=True)
class Pull:
    """What one loss told one model in an epoch, on average over the steps that were looked at.

    Attributes:
        norm: ‖∂(weight · term)/∂θ‖, θ the model's trained weights.
        share: of the sum of these norms over all losses.
        cosines: of the angle to every other loss's gradient, by its name.
    """

    model: str
    loss: str
    norm: float
    share: float
    cosines: dict[str, float]


class Angles(nn.Module):
    """Sums, on the device, of what gradients are to each other.

    Args:
        every: look at every so-manieth step.
    """

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.steps = every, 0
        self.sums: dict[tuple[str, str, str], tuple[Tensor, int]] = {}

    def begin(self) -> None:
        """Begin a step."""
        self.steps += 1

    def look(self, graph: Graph, terms: Mapping[str, Tensor]) -> None:
        """Look at the terms of a step, or of one turn of it, or pass."""
        if (self.steps - 1) % self.every:
            return
        for model in graph.trained:
            theirs = [p for p in graph.models[model].parameters() if p.requires_grad]
            mine = {e.name: e for e in graph.now.edges if model in e.targets and e.name in terms}
            found = {name: gradient(terms[name], graph.loss_scale * e.weight, theirs) for name, e in mine.items()}
            found = {name: its for name, its in found.items() if any(g is not None for g in its)}
            one = graph.loss_scale
            lengths = {name: dot(its, its, one).sqrt() / one for name, its in found.items()}
            whole = torch.stack(list(lengths.values())).sum() if lengths else one
            for name, its in found.items():
                self._add((model, name, "norm"), lengths[name])
                self._add((model, name, "share"), lengths[name] / whole)
                for other in found.keys() - {name}:
                    between = dot(its, found[other], one) / one**2 / (lengths[name] * lengths[other])
                    self._add((model, name, f"cosine {other}"), between)

    def _add(self, key: tuple[str, str, str], value: Tensor) -> None:
        """What is not finite (a gradient of zero has no angle) is left out."""
        total, count = self.sums.get(key, (torch.zeros(2, device=value.device), 0))
        fine = value.isfinite()
        both = torch.stack([torch.where(fine, value, 0.0), fine.to(value.dtype)]).float()
        self.sums[key] = (total + both, count + 1)

    def weights(self, graph: Graph) -> dict[str, Tensor]:
        """It sets none."""
        return {}

    def means(self) -> list[Pull]:
        """Since the last call."""
        means = {key: float(total[0] / total[1]) for key, (total, _) in self.sums.items()}
        self.sums.clear()
        found = []
        for model, loss in dict.fromkeys(key[:2] for key in means):
            its = {what: value for (m, name, what), value in means.items() if (m, name) == (model, loss)}
            cosines = {what.removeprefix("cosine "): v for what, v in sorted(its.items()) if what.startswith("cosine ")}
            found.append(Pull(model, loss, its["norm"], its["share"], cosines))
        return found


class Diagnosis(pl.Callback):
    """Looks at some steps of every epoch, tells what it saw, and keeps it as a table.

    Args:
        path: the CSV file: epoch, model, loss, norm, share, and a column `cosine NAME` for every loss.
        tell: shows a line.
        write: writes a text into a file, whole or not at all.
        give: takes the same as numbers by name, and the epoch.
    """

    def __init__(
        self,
        path: Path,
        tell: Callable[[str], None],
        write: Callable[[Path, str], None],
        give: Callable[[dict[str, float], int], None] = lambda figures, epoch: None,
    ) -> None:
        self.path, self.tell, self.write, self.give = path, tell, write, give
        self.rows: list[Row] = []
        self.angles: Angles | None = None
        self._loaded: Mapping[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what is not seen from one rank."""
        if pl_module.place.apart and trainer.world_size > 1:
            raise KdkitError("--diagnose: sees the models of one rank, and `place` spreads them; leave one of them out")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin; a run that goes on keeps the rows of the epochs that are over."""
        graph: Graph = pl_module.graph  # type: ignore[assignment]
        self.angles = Angles(max(1, int(trainer.num_training_batches) // PER_EPOCH)).to(pl_module.device)
        if self._loaded is not None:  # in the middle of an epoch
            self.angles.steps = self._loaded["steps"]
            self.angles.sums = {tuple(key): (its.to(pl_module.device), n) for key, its, n in self._loaded["sums"]}
            self._loaded = None
        graph.watchers.append(self.angles)
        if trainer.current_epoch and self.path.is_file():
            rows = csv.DictReader(io.StringIO(self.path.read_text(encoding="utf-8")))
            self.rows = [row for row in rows if int(row["epoch"]) <= trainer.current_epoch]
        if getattr(pl_module, "compiles", False) and trainer.is_global_zero:
            self.tell("nothing is compiled or recorded while --diagnose looks at each term's gradient")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell and keep what was seen."""
        assert self.angles is not None
        epoch, found = trainer.current_epoch + 1, self.angles.means()
        if not trainer.is_global_zero:
            return
        for model in dict.fromkeys(pull.model for pull in found):
            self.tell(_line([pull for pull in found if pull.model == model]))
        for pull in found:
            cosines = {f"cosine {name}": f"{value:.4f}" for name, value in pull.cosines.items()}
            figures = {"norm": f"{pull.norm:.6g}", "share": f"{pull.share:.4f}", **cosines}
            self.rows.append({"epoch": str(epoch), "model": pull.model, "loss": pull.loss, **figures})
        self.write(self.path, _csv(self.rows))
        shares = {f"gradient/{pull.model}/{pull.loss}": pull.share for pull in found}
        angles = {f"cosine/{p.model}/{p.loss} {other}": v for p in found for other, v in p.cosines.items()}
        self.give({**shares, **{name: value for name, value in angles.items() if math.isfinite(value)}}, epoch)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave no trace in the graph."""
        pl_module.graph.watchers = nn.ModuleList(w for w in pl_module.graph.watchers if w is not self.angles)

    def state_dict(self) -> dict[str, Any]:
        """What was seen of the epoch so far."""
        if self.angles is None:
            return {}
        return {"steps": self.angles.steps, "sums": [(list(key), *its) for key, its in self.angles.sums.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._loaded = state_dict or None


def _line(pulls: list[Pull]) -> str:
    shares = "  ".join(f"{pull.loss} {100 * pull.share:.0f} %" for pull in pulls)
    pairs = [(a, b) for i, a in enumerate(pulls) for b in pulls[i + 1 :]]
    angles = "  ".join(f"{a.loss}·{b.loss} {a.cosines[b.loss]:+.2f}" for a, b in pairs if b.loss in a.cosines)
    return f"  gradient of {pulls[0].model}: {shares}" + (f"; cosines: {angles}" if angles else "")


def _csv(rows: list[Row]) -> str:
    columns = ["epoch", "model", "loss", "norm", "share"]
    columns += sorted({name for row in rows for name in row} - set(columns))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
