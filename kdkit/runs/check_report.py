"""What `kdkit check` tells: a recipe's models, losses and cost, as rows and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.constrain import Constrain
from rich.text import Text

from kdkit.console import si, table
from kdkit.data import DataFacts

Shape = tuple[int, ...]
COLUMNS = 100  # a table is no wider, in a pipe either


@dataclass(frozen=True)
class NodeRow:
    """One model.

    Attributes:
        name: of the node.
        kind: trained, frozen or ema.
        arch: what the recipe calls it.
        parameters: all of them.
        macs: multiply-accumulates of one image, forward.
        weights: where they come from, and whether they are there.
    """

    name: str
    kind: str
    arch: str
    parameters: int
    macs: int
    weights: str


@dataclass(frozen=True)
class LearnRow:
    """How one model learns.

    Attributes:
        name: of the node.
        optimizer: its name.
        options: those that were given.
        first: learning rate of the first step.
        top: the highest of all.
        last: of the last step.
        schedule: its word; empty where the rate never moves.
    """

    name: str
    optimizer: str
    options: Mapping[str, Any]
    first: float
    top: float
    last: float
    schedule: str

    def __str__(self) -> str:
        options = f" ({', '.join(f'{word} {value}' for word, value in self.options.items())})" if self.options else ""
        rates = [self.first, *[self.top] * (self.top > max(self.first, self.last)), *[self.last] * bool(self.schedule)]
        moves = f", {self.schedule}" if self.schedule else ""
        return f"{self.name}: {self.optimizer}{options}, lr {' → '.join(f'{rate:.3g}' for rate in rates)}{moves}"


@dataclass(frozen=True)
class EdgeRow:
    """One pair of taps that a loss compares.

    Attributes:
        name: of the edge.
        weight: a number or a schedule.
        source: the taps that teach; empty for a loss without a teacher.
        source_shape: without the batch.
        target: the tap that learns.
        target_shape: without the batch.
        head: the projection.
        parameters: what is trained beside the model: head and whatever the loss holds.
        bank: bytes that the loss keeps.
        when: the time in which it is active; empty for the whole run.
    """

    name: str
    weight: str
    source: str
    source_shape: Shape | None
    target: str
    target_shape: Shape
    head: str
    parameters: int
    bank: int
    when: str


@dataclass(frozen=True)
class CheckReport:
    """A recipe's graph, sizes and cost.

    Attributes:
        name: of the recipe.
        data: name of the data set.
        facts: what is known of it.
        nodes: the models.
        learning: how the trained ones learn.
        edges: the losses, tap by tap.
        batch_size: over all ranks; a training set that is smaller is one batch.
        steps_per_epoch: batches in an epoch.
        epochs: length of the run.
        activation_bytes: what a step keeps for its backward pass; scaled up from a small batch.
        notes: what is not there yet, and what has no part in it.
        stages: when they are, and who learns in them.
        cohort: who joins and leaves when, and how the sick are treated.
    """

    name: str
    data: str
    facts: DataFacts
    nodes: tuple[NodeRow, ...]
    learning: tuple[LearnRow, ...]
    edges: tuple[EdgeRow, ...]
    batch_size: int
    steps_per_epoch: int
    epochs: int
    activation_bytes: int
    notes: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    cohort: tuple[str, ...] = ()

    @property
    def macs_per_step(self) -> int:
        """Multiply-accumulates; a trained model counts three times, forward once and backward twice."""
        return self.batch_size * sum(row.macs * (3 if row.kind == "trained" else 1) for row in self.nodes)

    @property
    def bank_bytes(self) -> int:
        """What all losses keep."""
        return sum(row.bank for row in self.edges)

    def __rich__(self) -> Group:
        """Tables of models and losses, then what the run takes."""
        columns = ("model", "kind", "architecture", ">parameters", ">MACs/image", "weights")
        nodes = [(n.name, n.kind, n.arch, f"{n.parameters:,}", si(n.macs), n.weights) for n in self.nodes]
        taps = ("loss", "weight", "from", "to", "head", ">beside", ">bank", "when")
        steps = self.steps_per_epoch * self.epochs
        shape = "×".join(map(str, self.facts.input_shape))
        banks = f"banks {si(self.bank_bytes)}B, " if self.bank_bytes else ""
        lines = [
            *(f"learns  {row}" for row in self.learning),
            *(f"stage   {row}" for row in self.stages),
            *(f"cohort  {row}" for row in self.cohort),
            f"data    {self.data}: {self.facts.num_samples:,} images of {shape}, {self.facts.num_classes} classes",
            f"steps   {self.steps_per_epoch:,} of {self.batch_size} images an epoch, {steps:,} in {self.epochs} epochs",
            f"cost    {si(self.macs_per_step)}MACs a step, {si(self.macs_per_step * steps)}MACs in all, about",
            f"memory  {banks}activations {si(self.activation_bytes)}B, about",
            *(f"note    {note}" for note in self.notes),
        ]
        return Group(
            Constrain(table(columns, nodes), COLUMNS),
            Text(),
            Constrain(table(taps, [_cells(edge) for edge in self.edges]), COLUMNS),
            Text("\n".join(["", *lines])),
        )


def _cells(row: EdgeRow) -> tuple[str, ...]:
    def end(name: str, shape: Shape | None) -> str:
        return f"{name} {'×'.join(map(str, shape))}" if shape else name

    return (
        row.name,
        row.weight,
        end(row.source, row.source_shape),
        end(row.target, row.target_shape),
        row.head,
        si(row.parameters) if row.parameters else "",
        f"{si(row.bank)}B" if row.bank > 1024 else "",
        row.when,
    )
