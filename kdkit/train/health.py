"""The health rule under a Trainer: after every epoch sick peers are found and treated, and none spoils the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from kdkit import draws
from kdkit.graph.cohort import Event
from kdkit.graph.health import Rule, Step, Ward
from kdkit.registry import KdkitError
from kdkit.train.captured import speed_up
from kdkit.train.cohort import Cohort
from kdkit.train.meters import NonFiniteLossError
from kdkit.train.patient import restore, state_of
from kdkit.train.probe import Probe, not_finite, probe_batches
from kdkit.train.snapshots import Ring

log = logging.getLogger(__name__)


class Health(pl.Callback):
    """Keeps the models of a cohort well: `callbacks=[cohort := kdkit.Cohort(), kdkit.Health(cohort)]`.

    Within a step, a peer whose outputs are not finite neither teaches nor learns. After every epoch the rule
    (`kdkit.graph.health.Rule`) judges all who are there, and climbs a ladder with who is sick: a lower learning rate;
    its last good snapshot, weights and optimiser, while nobody listens to it; its first weights, with an optimiser that
    knows nothing and a rate that may stay lower, while it learns from the others. All of it is logged, follows from the
    run alone, and is in checkpoints.

    Args:
        cohort: who is there.
        folder: for snapshots; left out, checkpoints hold them.
        rule: the words of the rule.

    Raises:
        KdkitError: a word of the rule is out of range.
    """

    def __init__(self, cohort: Cohort, *, folder: Path | None = None, **rule: Any) -> None:
        self.cohort, self.rule = cohort, Rule(**rule)
        self.ring = Ring(self.rule.keep, folder)
        self.ward: Ward | None = None
        self.probe: Probe | None = None
        self._loaded: Mapping[str, Any] | None = None
        cohort.watch = True

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be kept apart."""
        if stage == "fit" and str(trainer.precision).startswith("16"):
            raise KdkitError("cohort.health: all peers of a run in fp16 share one loss scale; say bf16-mixed")

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Fix the probe images, and keep what each model begins with."""
        graph = pl_module.graph
        self.probe = Probe(probe_batches(trainer, self.rule.probe, draws.key(pl_module.seed, "probe")))
        self.ward = Ward(self.rule, math.log(self.probe.classes(pl_module)))
        if self._loaded is not None:
            self.ward.load_state_dict(self._loaded["ward"])
            self.probe.started = dict(self._loaded["started"])
            self.ring.load_state_dict(self._loaded["ring"])
            self._loaded = None
        else:
            for name in graph.trained:
                self.ring.start(name, state_of(pl_module, name))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at everybody who is there; treat the sick, keep a snapshot of the well."""
        assert self.probe is not None
        assert self.ward is not None
        epoch, here = trainer.current_epoch + 1, self.cohort.here
        losses, found = self.probe.look(pl_module, here, epoch)
        if not any(map(math.isfinite, losses.values())) and all(self.ward.treated(name) for name in here):
            told = f"after epoch {epoch} none of {', '.join(here)} is finite, once more; training has stopped"
            raise NonFiniteLossError(f"{told}. A lower learning rate or trainer.gradient_clip_val usually helps")
        verdicts = self.ward.look(losses)
        said = {f"health/nll/{name}": loss for name, loss in losses.items()}
        said |= {f"health/z/{name}": verdict.z for name, verdict in verdicts.items() if math.isfinite(verdict.z)}
        for name in self.cohort.roster.peers:  # who fell sick and left before the epoch was over
            if name not in here and bool(not_finite(pl_module.graph, name)):
                self._treat(pl_module, name, epoch, "roll back", "not finite")
        last = epoch == trainer.max_epochs  # what is kept is what was scored, unless that is no model any more
        for name, (_, wrong, step) in verdicts.items():
            if step and last and wrong and wrong != "not finite":
                told = f"{wrong}; nothing is done about it, for the run is over"
                self.cohort.roster.events.append(Event(float(epoch), name, "unwell", told))
            elif step:
                self._treat(pl_module, name, epoch, step, wrong)
            elif not wrong and not self._waits(name):
                self.ring.put(name, epoch, state_of(pl_module, name))
        said |= {f"health/rung/{name}": float(chart.rung) for name, chart in self.ward.charts.items()}
        pl_module.log_dict({**found, **said})

    def _waits(self, name: str) -> bool:
        """Whether a peer that was treated is not trusted again yet."""
        assert self.ward is not None
        chart = self.ward.charts[name]
        return chart.rung > 1 and chart.unjudged > 0

    def _treat(self, distiller: Any, name: str, epoch: int, step: Step, wrong: str) -> None:
        roster, rule = self.cohort.roster, self.rule
        peer = roster.peers[name]
        taken = self.ring.take(name) if step == "roll back" else None
        if step == "roll back" and taken is None:
            step = "rebuild"
        told = [wrong] if wrong else []
        if step in ("lower", "roll back"):
            peer.rate *= rule.cut
            told.append(f"learning rate times {peer.rate:.3g}")
        if taken is not None:
            restore(distiller, name, taken[1])
            roster.mute(name, epoch, rule.mute)
            told.append(f"as after epoch {taken[0]}")
        elif step == "rebuild":
            restore(distiller, name, self.ring.begin(name), anew=True)
            # a loss that was bad under lower rates too had another cause, until that is tried in vain
            peer.lasting *= rule.cut if peer.anew or wrong == "not finite" else 1.0
            peer.rate, peer.anew = peer.lasting, True
            peer.joined, peer.warmup = float(epoch), float(rule.mute)
            roster.mute(name, epoch, rule.mute)
            told.append(f"learning rate times {peer.rate:.3g} from now on")
        elif step == "well":
            peer.rate = peer.lasting
        roster.events.append(Event(float(epoch), name, step, "; ".join(told)))
        log.info("cohort: %s after epoch %d: %s", name, epoch, "; ".join([step, *told]))
        if distiller.captured is not None or distiller.compiled is not None:
            distiller.compiled, distiller.captured = speed_up(distiller)

    def state_dict(self) -> dict[str, Any]:
        """Charts, snapshots, and where everybody began."""
        if self.ward is None or self.probe is None:
            return {}
        return {"ward": self.ward.state_dict(), "ring": self.ring.state_dict(), "started": self.probe.started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._loaded = state_dict or None
