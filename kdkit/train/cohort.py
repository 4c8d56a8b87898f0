"""An elastic cohort under a Trainer: models come and go between two steps, planned or told by hand."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl

from kdkit.graph.balance import check_company
from kdkit.graph.cohort import Event, Roster
from kdkit.graph.membership import Change, Move, Plan, in_epochs
from kdkit.graph.schedule import Curve
from kdkit.registry import KdkitError
from kdkit.train.adapt import without_who_left
from kdkit.train.captured import speed_up

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Warmed:
    """A peer's learning rate: its schedule times what the cohort says."""

    curve: Curve
    roster: Roster
    name: str

    def __call__(self, t: float) -> float:
        """At time `t` in epochs."""
        return self.curve(t) * self.roster.rate(self.name, t)


class Cohort(pl.Callback):
    """Lets the trained models of a Distiller join and leave while it trains.

    `pl.Trainer(callbacks=[cohort := kdkit.Cohort(join={"c": {"epoch": 10}}, leave={"a": {"epoch": 40}}, ramp=5)])`

    Who is not there is neither run nor moved. Who comes learns from the others at once, with an optimiser that knows
    nothing yet, while they listen to it more and more over the ramp; who goes is listened to less and less, and is gone
    at the ramp's end. Weights among the peers that are there are a mean over K−1; the last one trains on its other
    losses alone. Everything is in the checkpoint.

    Args:
        join: who is not there at first, and from when it is: `{"c": {"epoch": 10, "warmup": 2}}`, where its learning
            rate rises over `warmup`; `{"c": None}`: when it is told to.
        leave: from when who goes: `{"a": {"epoch": 40}}`.
        ramp: how long coming and going take. All times are epochs, or shares of the run below 1.
    """

    def __init__(self, join: Change | None = None, leave: Change | None = None, ramp: float = 0.0) -> None:
        self.plan = Plan(join or {}, leave or {}, ramp)
        self.watch = False
        self._waiting: list[Move] = []
        self._roster: Roster | None = None
        self._loaded: Mapping[str, Any] | None = None

    # -- by hand ---------------------------------------------------------------------------------------------------

    @property
    def roster(self) -> Roster:
        """Who takes part, while a fit runs."""
        if self._roster is None:
            raise KdkitError("cohort: nobody trains now; call it from a callback while a Trainer fits")
        return self._roster

    @property
    def here(self) -> tuple[str, ...]:
        """Names of those who take part."""
        return self.roster.here

    @property
    def events(self) -> list[Event]:
        """All that happened so far."""
        return self.roster.events

    def join(self, name: str, warmup: float = 0.0) -> None:
        """Let a model join at the next step; its learning rate rises over `warmup`."""
        self.roster.check("join", name, self._waiting)
        self._waiting.append(Move(0.0, "join", name, in_epochs(warmup, self.roster.epochs)))

    def leave(self, name: str) -> None:
        """Let a model leave, from the next step on."""
        self.roster.check("leave", name, self._waiting)
        self._waiting.append(Move(0.0, "leave", name))

    # -- Lightning's moments ---------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what does not go together."""
        if stage == "fit" and pl_module.place.apart:
            raise KdkitError("cohort: models that come and go are trained on every rank; leave `place` out")
        for watcher in pl_module.graph.watchers if stage == "fit" else ():
            check_company(getattr(watcher, "kind", None), cohort=True)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take the bound graph over."""
        graph = pl_module.graph
        self._roster = graph.cohort = Roster(graph, self.plan, watch=self.watch)
        if self._loaded is not None:
            self._roster.load_state_dict(self._loaded["roster"], trainer.current_epoch)
            self._waiting = [*(Move(*move) for move in self._loaded["waiting"]), *self._waiting]
            self._loaded = None
        pl_module.rates = {name: Warmed(curve, self._roster, name) for name, curve in pl_module.rates.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before a step that begins an update, whoever's time it is comes or goes."""
        if batch_idx % pl_module.borrow.accumulate:
            return
        t = trainer.current_epoch + batch_idx / int(trainer.num_training_batches)
        waiting, self._waiting = self._waiting, []
        happened = self.roster.advance(t, waiting)
        for event in happened:
            log.info("cohort: %s %s after %.6g epochs (%s)", event.peer, event.what, event.epoch, event.why)
            if event.what in ("joins", "gone"):
                optimizer = pl_module.optimizers().optimizer.of[event.peer]
                optimizer.zero_grad()
                optimizer.state.clear()
        if any(event.what == "gone" for event in happened):
            without_who_left(pl_module)
        if happened and (pl_module.captured is not None or pl_module.compiled is not None):
            pl_module.compiled, pl_module.captured = speed_up(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """How present each was at the epoch's last step."""
        t = trainer.current_epoch + 1 - 1 / int(trainer.num_training_batches)
        pl_module.log_dict({f"cohort/{name}": self.roster.presence(name, t) for name in self.roster.peers})

    def teardown(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Leave the graph as it was."""
        if self._roster is not None and stage == "fit":
            pl_module.graph.cohort = None
            for edge in pl_module.graph.bound:
                edge.audience = None

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave the graph as it was."""
        self.teardown(trainer, pl_module, "fit")

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Who is there, what happened, and what was told by hand since the last step."""
        roster = self.roster.state_dict() if self._roster is not None else None
        return {"roster": roster, "waiting": [tuple(move) for move in self._waiting]} if roster else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._loaded = state_dict or None
