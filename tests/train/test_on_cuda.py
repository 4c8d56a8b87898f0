"""What a recording on CUDA takes: one stream for all, a pool of memory of its own, and no collection meanwhile."""

import gc
import weakref

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import kdkit
from kdkit.train import captured as recording
from kdkit.train.on_cuda import OnCuda
from tests.gpu import gpu
from tests.nets import Net, net
from tests.train.test_gpu import run


@pytest.fixture
def there(monkeypatch):
    with gpu(monkeypatch) as mode:
        yield mode


@pytest.fixture
def told(monkeypatch):
    """Why a run was not recorded."""
    found = []
    monkeypatch.setattr(recording, "note", found.append)
    return found


def test_a_step_comes_after_what_was_begun_and_before_what_is_begun_next(there, monkeypatch):
    seen, here = [], torch.cuda.current_stream()
    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", lambda self, other: seen.append((self, other)))
    OnCuda().run(lambda: seen.append(torch.cuda.current_stream()))
    mine = seen[1]
    assert mine is not here
    assert seen == [(mine, here), mine, (here, mine)]


def test_a_second_run_is_recorded_too(there, told):
    """Of the first one all graphs are gone, and their pool of memory with them."""
    for _ in range(2):
        run({})
        gc.collect()
    assert told == []
    assert there.recorded == 2


def test_a_run_that_went_back_is_recorded_again(there, told, monkeypatch):
    class Spoils(pl.Callback):
        def on_train_batch_start(self, trainer, made, batch, number):
            if trainer.global_step == 4:
                batch[0].fill_(torch.nan)

    made = run({"words": {"on_nonfinite": "rollback"}, "callbacks": [Spoils()]})
    assert made.watch.all_back == 1
    assert told == []
    assert there.recorded == 2


class Holds(Net):
    """Keeps what it has said, as old weight normalisation keeps its weight, and with it the graph of a step."""

    def forward(self, x):
        self.said = super().forward(x)
        return self.said


def test_a_model_that_holds_its_last_graph_is_recorded(there, told):
    run({"nodes": lambda: {"teacher": kdkit.frozen(net(12)), "student": Holds(8)}})
    assert told == []
    assert there.recorded


class Centre(nn.Module):
    """Sets a buffer anew, which a replay would read as it was at first."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(5))

    def forward(self, student, teacher):
        value = (student - teacher.detach() + self.centre).square().mean()
        if self.training:
            self.centre = 0.5 * self.centre + 0.5 * teacher.detach().mean(0)
        return value


def test_a_buffer_that_is_set_anew_is_not_recorded(there, told):
    made = run({"edges": ["ce", kdkit.Edge(Centre(), name="own", source="teacher", target="student")]})
    assert len(told) == 1
    assert "edges.own.losses.0.centre is set anew" in told[0]
    assert there.recorded == 0
    assert made.graph.edges["own"].losses[0].centre.any()


class Caches(Net):
    """Makes a buffer when it is first called, as rotary positions are made."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("ones", None, persistent=False)

    def forward(self, x):
        if self.ones is None:
            self.ones = torch.ones(5, device=x.device)
        return super().forward(x) * self.ones


def test_a_buffer_that_is_made_once_is_recorded(there, told):
    run({"nodes": lambda: {"teacher": kdkit.frozen(net(12)), "student": Caches(8)}})
    assert told == []
    assert there.recorded


class Keeps(Net):
    """Begins with no buffer and makes one in every step."""

    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("last", None, persistent=False)

    def forward(self, x):
        said = super().forward(x)
        self.last = said.detach().mean(0) if self.last is None else 0.9 * self.last + 0.1 * said.detach().mean(0)
        return said - self.last


def test_a_buffer_that_begins_empty_and_is_set_anew_is_not_recorded(there, told):
    run({"nodes": lambda: {"teacher": kdkit.frozen(net(12)), "student": Keeps(8)}})
    assert "models.student.last is set anew" in told[0]
    assert there.recorded == 0


class Looks(Net):
    """Waits for the device in every step."""

    def forward(self, x):
        said = super().forward(x)
        return said if float(said.detach().sum()) < 1e9 else -said


def test_why_a_recording_failed_is_told(there, told):
    run({"nodes": lambda: {"teacher": kdkit.frozen(net(12)), "student": Looks(8)}})
    assert told == ["training without a CUDA graph: operation not permitted when stream is capturing: __float__"]


def test_a_recording_that_failed_leaves_nothing_behind(there, told):
    """Lightning empties the cache at a run's end; the next run is recorded."""
    here = torch.cuda.current_stream()
    run({"nodes": lambda: {"teacher": kdkit.frozen(net(12)), "student": Looks(8)}})
    assert torch.cuda.current_stream() is here
    assert not there.drawing
    torch.cuda.empty_cache()
    run({})
    assert there.recorded == 1
    assert len(told) == 1


def test_what_a_failed_recording_held_is_gone_before_its_step_is_done(there):
    """Else both would need room."""
    kept, alive = [], []

    def work():
        kept.append(torch.zeros(2, device="cuda"))  # by its own frame, which the error holds
        held = kept.pop()
        alive.append(weakref.ref(held))
        there.refuse("no room")

    with pytest.raises(RuntimeError, match="no room"):
        OnCuda().record(work)
    assert alive[0]() is None


def test_no_old_graph_is_destroyed_meanwhile(there):
    class Ring:
        def __init__(self):
            self.ring, self.graph = self, torch.cuda.CUDAGraph()

    def work():
        del old[:]
        for _ in range(10):
            Ring()  # the collector looks at every fifth object
        return x.add_(1)

    x, old, before = torch.zeros(2, device="cuda"), [Ring()], gc.get_threshold()
    gc.set_threshold(5, 1, 1)
    try:
        start, found = OnCuda().record(work)
    finally:
        gc.set_threshold(*before)
    assert gc.isenabled()
    start()
    assert found.tolist() == [1, 1]


def test_a_head_keeps_no_graph(there):
    """What it charges was one; it holds a whole step's memory, and the stream of a step that was not recorded."""
    made = run({"edges": ["ce", kdkit.Edge("cosine", taps="embedding", head={"sparse": {"l1": 0.1}})]})
    assert [m for m in made.graph.modules() if getattr(m, "penalty", None) is not None] == []
