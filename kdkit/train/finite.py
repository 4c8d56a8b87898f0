"""A watch for numbers that are not finite: it stops a run, leaves the step out, or goes back to a snapshot."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdkit import ranks
from kdkit.registry import KdkitError
from kdkit.train import repro
from kdkit.train.arriving import Arriving, Seen, along, asynchronous, shared, stacked
from kdkit.train.late import seen as made
from kdkit.train.lost import lost
from kdkit.train.meters import NonFiniteLossError
from kdkit.train.norms import GradientNorms, helps, scale_of
from kdkit.train.optim import NodeOptimizers
from kdkit.train.rollback import Snapshots
from kdkit.train.undo import Undo

log = logging.getLogger(__name__)

WORDS = ("stop", "skip", "rollback")
IN_A_ROW, OF_AN_EPOCH = 20, 10
"""A run stops at so many skipped steps in a row, and at more than this part of an epoch's (of several, one may be)."""

ROLLBACKS = 10
SAVED, TOLD = 5, 5
"""Batches that a process saves, and steps of an epoch that it tells."""

ELSEWHERE = "something on another rank"
MEND = "Mend these images, or leave such batches out with trainer.on_nonfinite=skip"


class _LeftOut(Exception):  # noqa: N818  no error: it ends a step that is left out
    """This step does not count; the text says why."""


class FiniteWatch:
    """Looks at every loss term and every gradient's norm.

    Where a look costs nothing it is before the update. An accelerator is not made to wait: its numbers are copied
    in the background and looked at some steps later; what must not have happened by then is undone by the device
    itself (`skip`), or by a snapshot (`rollback`).

    Args:
        policy: `stop`; `skip`: the update that the step is part of does not happen, and its running statistics and
            memory banks stay as they were; `rollback`: everything is as in the last snapshot, the data go on.

    Attributes:
        folder: where batches are saved; `None`: nowhere.
        spoilt: whether an earlier batch of the same update is left out.
        resumed: whether the run that begins next goes on from a checkpoint.
    """

    def __init__(self, policy: str = "stop") -> None:
        if policy not in WORDS:
            raise KdkitError(f"on_nonfinite must be one of {', '.join(WORDS)}, got {policy!r}")
        self.policy, self.late, self.spoilt = policy, False, False
        self.folder: Path | None = None
        self.terms: Mapping[str, Tensor] = {}
        self.saved, self.resumed = 0, False
        self._undo: Undo | None = None
        self._distiller: Any = None
        self._data, self._step, self._coming = None, 0, Arriving()
        self._forget()

    def _forget(self) -> None:
        """Remember nothing of a run before."""
        self.good: Tensor | None = None
        self.skipped = self.row = self.went_back = self.all_back = 0
        self.last = -1
        self.snapshots, self.norms = Snapshots(), GradientNorms()

    def begin(self, distiller: Any) -> None:
        """Before training; what another run of the same Distiller came to is forgotten, unless this one goes on.

        Raises:
            KdkitError: what is asked for cannot be done here.
        """
        self._distiller, self._coming = distiller, Arriving()
        if not self.resumed:
            self._forget()
            distiller.sums.clear()
        self.resumed = False
        if self.policy != "stop" and distiller.place.apart:
            raise KdkitError(f"on_nonfinite: ranks with models of their own cannot {self.policy}; say stop")
        if self.policy == "skip" and asynchronous(distiller.device) and distiller.borrow.accumulate > 1:
            raise KdkitError("on_nonfinite: an accelerator that accumulates gradients cannot skip; say rollback")

    @contextmanager
    def step(self, distiller: Any, data: Any, step: int, batch: int) -> Iterator[None]:
        """Around the `batch`-th step of an epoch, which is left out where it has to be."""
        captured = distiller.captured is not None
        self.late = captured or asynchronous(distiller.device)
        self._distiller, self._data, self._step, self.terms, distiller.sums.good = distiller, data, step, {}, None
        if not captured:
            self.norms.last.clear()  # a step without an update has none
        if batch % distiller.borrow.accumulate == 0:
            self.spoilt = False
            if self.policy == "rollback":
                self.snapshots.keep(distiller, step, batch)
        self._undo = undo = None
        if self.policy == "skip":
            everything = self.late or distiller.update == "sequential"
            self._undo = undo = Undo(distiller, "copies" if captured else "all" if everything else "forward")
        try:
            yield
        except _LeftOut as why:
            self.spoilt = True
            if undo is not None:
                undo.back()
            else:
                self._go_back(str(why), step)
            distiller.optimizers().optimizer.zero_grad()
        else:
            if self.late and self._all(self.terms):
                if undo is not None and self.good is not None and self.terms:
                    undo.back_unless(self.good)
                self._send(distiller, data, step)
        self._undo = None

    def look(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Look at the terms of a step, or of one turn of it, before the update, where that costs nothing.

        Raises:
            NonFiniteLossError: one is NaN or infinite, and the run stops for it.
        """
        self._look({f"loss {name}": value for name, value in terms.items()}, step)

    def look_at_gradients(self, optimizers: NodeOptimizers) -> None:
        """Likewise at the active nodes' gradients, unless fp16's scaler or a cohort's health rule sees to them."""
        found = self.norms.add(optimizers, scale_of(self._distiller))
        if not self._by_others():
            self._look(self._lengths(found), self._step)

    def _look(self, found: Mapping[str, Tensor], step: int) -> None:
        agreed = self.policy != "stop" and ranks.speak()
        if self.late or not (found or agreed):
            return
        names, values = list(found), stacked(found)
        if agreed:
            names, values = [*names, ELSEWHERE], along(values, shared(values.isfinite().all()))
        if why := self._judge(Seen(step, int(self._distiller.current_epoch), self._data, names, values)):
            raise _LeftOut(why)

    def judged(self, terms: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The terms of a whole step, once the device knows whether it counts: the sums ask it."""
        self.terms = terms
        if self.late and self.policy != "stop" and terms:
            good = self._good(terms)
            self.good = good if self.good is None else self.good.copy_(good)  # where every recording finds it
            self._distiller.sums.good = self.good
        return terms

    @contextmanager
    def recorded(self, distiller: Any) -> Iterator[None]:
        """Around the whole of a recorded step, which asks for the verdict and undoes itself."""
        undo = Undo(distiller, "all") if self.policy == "skip" else None
        yield
        if undo is not None and self.good is not None:
            undo.back_unless(self.good)

    def drain(self) -> bool:
        """Wait for numbers that are still on their way, before a checkpoint; whether the run went back for them."""
        before = self.all_back
        for seen in self._coming.all():
            self._arrived(seen)
        return self.all_back > before

    def end(self) -> dict[str, float]:
        """What is logged of an epoch."""
        counts = {"skip": {"nonfinite/skipped": self.skipped}, "rollback": {"nonfinite/rollbacks": self.went_back}}
        self.skipped = self.went_back = 0
        mine = {name: float(value) for name, value in counts.get(self.policy, {}).items()}
        return {**mine, **self.norms.end(self._distiller), **lost(self._distiller)}

    def state_dict(self) -> dict[str, Any]:
        """What is remembered from step to step."""
        counts = {word: getattr(self, word) for word in ("skipped", "row", "last", "went_back", "all_back")}
        ring = self.snapshots.ring.state_dict() if self.policy == "rollback" else None
        return {"counts": counts, "ring": ring, "norms": self.norms.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        for word, value in state["counts"].items():
            setattr(self, word, value)
        if state["ring"] is not None:
            self.snapshots.ring.load_state_dict(state["ring"])
        self.norms.load_state_dict(state["norms"], device)

    # -- what comes late -------------------------------------------------------------------------------------------

    def _all(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A late step's terms, and the norms of its gradients where nobody else looks at them."""
        found = {f"loss {name}": value for name, value in terms.items()}
        if not self._by_others():
            last, learning = self.norms.last, self._distiller.graph.now.updates
            found |= self._lengths({name: last[name] for name in learning if name in last})
        return found

    def _lengths(self, norms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Norms that are looked at; what clipping by value makes finite counts as finite."""
        by_value = self._distiller.borrow.by_value
        fine = {name: norm.nan_to_num(torch.nan) if by_value else norm for name, norm in norms.items()}
        return {f"gradient of {name}": norm for name, norm in fine.items()}

    def _by_others(self) -> bool:
        """Whether fp16's scaler, or a cohort's health rule, sees to gradients that are not finite."""
        cohort = self._distiller.graph.cohort
        return isinstance(scale_of(self._distiller), Tensor) or (cohort is not None and cohort.watch)

    def _good(self, terms: Mapping[str, Tensor]) -> Tensor:
        good = stacked(self._all(terms)).isfinite().all()
        return shared(good) if ranks.speak() else good

    def _send(self, distiller: Any, data: Any, step: int) -> None:
        """Copy a step's numbers to the host in the background; look at those that were sent some steps ago."""
        found = self._all(self.terms)
        names, values = list(found), stacked(found)
        if self.policy != "stop" and ranks.speak():
            good = self._good(self.terms) if self.good is None or not self.terms else self.good
            names, values = [*names, ELSEWHERE], along(values, good)
        self._coming.send(Seen(step, int(distiller.current_epoch), data, names, values))
        for seen in self._coming.due():
            self._arrived(seen)

    def _arrived(self, seen: Seen) -> None:
        if (why := self._judge(seen)) and self.policy == "rollback":
            self._coming.forget()  # what came after it came of it
            self._go_back(why, seen.step)

    # -- what follows ----------------------------------------------------------------------------------------------

    def _judge(self, seen: Seen) -> str:
        """Why a step is left out; nothing where it is not.

        Raises:
            NonFiniteLossError: the run stops for it.
        """
        if bool(seen.values.isfinite().all()):
            return ""
        seen.data, fine = made(self._distiller, seen.data), seen.values.isfinite().tolist()
        bad = [name for name, well in zip(seen.names, fine, strict=True) if not well and name != ELSEWHERE]
        what = f"the {', '.join(bad)} {'are' if len(bad) > 1 else 'is'}" if bad else f"{ELSEWHERE} is"
        told = f"{what} not finite at step {seen.step} (epoch {seen.epoch + 1}), which saw "
        told += f"{repro.samples(seen.data)}{self._save(seen)}"
        mend = MEND if repro.spoilt(seen.data) else helps(self._distiller)
        if self.policy == "stop":
            raise NonFiniteLossError(f"{told}; training has stopped before any checkpoint of it. {mend}")
        if self.policy == "skip":
            self._count(seen.step, told, mend)
        return told

    def _count(self, step: int, told: str, mend: str) -> None:
        self.skipped, self.row = self.skipped + 1, self.row + 1 if step == self.last + 1 else 1
        self.last = step
        steps = int(self._distiller.trainer.num_training_batches)
        if self.row >= IN_A_ROW or self.skipped > max(int(steps > 1), steps // OF_AN_EPOCH):
            many = f"{self.skipped} of the {steps} steps of this epoch, {self.row} of them in a row"
            raise NonFiniteLossError(f"{told}; training has stopped, for {many}, were left out. {mend}")
        if self.skipped <= TOLD:
            log.warning("warning: %s; the step is left out", told)

    def _go_back(self, told: str, step: int) -> None:
        self.went_back, self.all_back, mend = self.went_back + 1, self.all_back + 1, helps(self._distiller)
        if self.went_back > 1 or self.all_back > ROLLBACKS:
            again = "a second time in this epoch" if self.went_back > 1 else f"more than {ROLLBACKS} times in all"
            raise NonFiniteLossError(f"{told}; training has stopped, for this happened {again}. {mend}")
        if (at := self.snapshots.back(self._distiller, step)) is None:
            raise NonFiniteLossError(f"{told}; training has stopped, for no good snapshot is left. {mend}")
        self.norms.last.clear()
        self.spoilt = True  # what has gathered of this update is gone
        self._distiller.optimizers().optimizer.zero_grad()
        log.warning("warning: %s; the step is left out, and all is again as before step %d", told, at)

    def _save(self, seen: Seen) -> str:
        if self.folder is None or self.saved >= SAVED:
            return ""
        self.saved += 1
        graph = self._distiller.graph
        models = {} if self.late else {name: graph.model(name) for name in graph.trained}
        if models and self._undo is not None:
            self._undo.back()
        in_turns = self._undo is None and self._distiller.update == "sequential"
        values = dict(zip(seen.names, map(float, seen.values), strict=True))
        rank = f"-rank{self._distiller.global_rank}" if self._distiller.global_rank else ""
        path = self.folder / f"step-{seen.step:06}{rank}.pt"
        facts = {"step": seen.step, "epoch": seen.epoch, "values": values}
        return f"; {repro.save(path, facts, seen.data, models, in_turns=in_turns)}"
