"""CRD's banks, Z and step: what training changes, what is kept, and what ranks share."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn

from kdkit.losses.bank import refresh
from kdkit.losses.crd import CRDLoss
from tests.processes import run_ranks

N, S, T = 60, 7, 9
LABELS = torch.arange(N) % 5
MODES = ["sampled", "shared", "all"]


def small(**options):
    torch.manual_seed(0)
    return CRDLoss(S, T, N, **({"embed_dim": 8, "num_negatives": 24, "sample_labels": LABELS} | options))


def batch(step, size=6):
    g = torch.Generator().manual_seed(step)
    index = torch.randperm(N, generator=g)[:size]
    return {"student": torch.randn(size, S, generator=g), "teacher": torch.randn(size, T, generator=g), "index": index}


def train(loss, steps):
    """Values of some steps of SGD on the heads."""
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values = []
    for step in steps:
        value = loss(**batch(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def test_banks_start_at_random_with_length_one_on_average():
    loss = CRDLoss(S, T, 2_000)
    for bank in (loss.student_bank, loss.teacher_bank):
        assert float(bank.abs().max()) <= (3 / 128) ** 0.5
        assert float(bank.norm(dim=1).mean()) == pytest.approx(1, abs=0.01)
        assert float(bank.mean()) == pytest.approx(0, abs=1e-3)
    assert abs(float((loss.student_bank * loss.teacher_bank).mean())) < 1e-4
    assert torch.equal(loss.student_bank, CRDLoss(S, T, 2_000).student_bank)
    assert not torch.equal(loss.student_bank, CRDLoss(S, T, 2_000, seed=1).student_bank)


def test_only_the_rows_of_the_batch_move():
    loss = small()
    before = loss.student_bank.clone(), loss.teacher_bank.clone()
    inputs = batch(0)
    loss(**inputs)
    others = torch.ones(N, dtype=torch.bool).index_fill_(0, inputs["index"], False)
    for bank, old in zip((loss.student_bank, loss.teacher_bank), before, strict=True):
        assert torch.equal(bank[others], old[others])
        assert not bool((bank[~others] == old[~others]).any())
        torch.testing.assert_close(bank[~others].norm(dim=1), torch.ones(6))


def test_of_a_sample_met_twice_the_last_row_counts():
    bank, rows = torch.randn(5, 3), torch.randn(4, 3)
    one_by_one = bank.clone()
    refresh(bank, torch.tensor([3, 1, 3, 3]), rows, 0.5)
    refresh(one_by_one, torch.tensor([3, 1]), rows[[3, 1]], 0.5)
    assert torch.equal(bank, one_by_one)


def test_momentum_is_the_share_of_the_old_row():
    bank = torch.tensor([[1.0, 0.0]])
    refresh(bank, torch.tensor([0]), torch.tensor([[0.0, 1.0]]), 0.75)
    torch.testing.assert_close(bank, torch.tensor([[3.0, 1.0]]) / 10**0.5)


def test_eval_mode_stores_nothing():
    loss = small().eval()
    assert bool(loss(**batch(0)).isfinite())  # before any training: Z of this batch
    state = copy.deepcopy(loss.state_dict())
    for trained in (False, True):
        if trained:
            train(loss.train(), range(2))
            state = copy.deepcopy(loss.eval().state_dict())
        assert torch.equal(loss(**batch(5)), loss(**batch(5)))
        for name, value in loss.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)


def test_z_is_that_of_the_first_batch():
    loss = small()
    loss(**batch(0))
    first = loss.log_z.clone()
    assert bool(first.isfinite().all())
    train(loss, range(1, 4))
    assert torch.equal(loss.log_z, first)
    assert int(loss.step) == 4


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "state_dict"])
@pytest.mark.parametrize("options", [{}, {"bank_dtype": "bfloat16", "negatives": "shared", "positives": "relax"}])
def test_a_copy_continues_bit_by_bit(copier, options):
    loss = small(**options)
    train(loss, range(3))
    if copier == "deepcopy":
        other = copy.deepcopy(loss)
    elif copier == "pickle":
        other = pickle.loads(pickle.dumps(loss))
    else:
        file = io.BytesIO()
        torch.save(loss.state_dict(), file)
        file.seek(0)
        torch.manual_seed(9)
        other = CRDLoss(S, T, N, **({"embed_dim": 8, "num_negatives": 24, "sample_labels": LABELS} | options))
        other.load_state_dict(torch.load(file, weights_only=True))
    assert train(loss, range(3, 7)) == train(other, range(3, 7))
    for a, b in zip(loss.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_what_is_kept():
    loss = small()
    kept = {name for name in loss.state_dict() if not name.startswith("embed")}
    assert kept == {"student_bank", "teacher_bank", "log_z", "step"}
    assert set(loss.ddp_ignore) == {name for name, _ in loss.named_buffers()}


def test_moves_between_devices_as_a_whole():
    loss = small().to("meta")
    assert {t.device.type for t in (*loss.parameters(), *loss.buffers())} == {"meta"}
    with torch.device("meta"):
        assert small().student_bank.device.type == "meta"


@pytest.mark.parametrize("negatives", MODES)
def test_compiles_without_a_break(negatives):
    torch._dynamo.reset()
    plain, fast = small(negatives=negatives, positives="relax"), small(negatives=negatives, positives="relax")
    compiled = torch.compile(fast, backend="aot_eager", fullgraph=True)
    for step in range(3):
        inputs = batch(step)
        student = inputs["student"].requires_grad_()
        values = plain(**inputs), compiled(**inputs)
        torch.testing.assert_close(*values)
        torch.testing.assert_close(*(torch.autograd.grad(v, student)[0] for v in values))
    torch.testing.assert_close(plain.state_dict(), fast.state_dict())


def distributed(rank, world, folder, modes):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    for mode in modes:
        loss = small(negatives=mode, positives="relax").double()
        loss._ddp_params_and_buffers_to_ignore = [*loss.ddp_ignore]
        ddp = nn.parallel.DistributedDataParallel(loss)
        torch.save(run(ddp, loss, rank, world), f"{folder}/{mode}{rank}")
    dist.barrier()  # nobody takes the store down while another still talks
    dist.destroy_process_group()


def run(module, loss, rank=0, world=1):
    """Four steps on a share of each batch: values, gradients of the heads, banks."""
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    values, gradients = [], []
    for step in range(4):
        inputs = {k: v.chunk(world)[rank] for k, v in batch(step).items()}
        inputs |= {k: inputs[k].double() for k in ("student", "teacher")}
        value = module(**inputs)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.detach())
        gradients.append([p.grad.clone() for p in loss.parameters()])
    return {"values": torch.stack(values), "gradients": gradients, "state": loss.state_dict()}


def test_two_ranks_are_one_process(tmp_path):
    """float64: the mean of the values, the averaged gradients and, on both ranks, the banks and Z."""
    run_ranks(distributed, 2, str(tmp_path), MODES)
    for mode in MODES:
        ranks = [torch.load(tmp_path / f"{mode}{rank}") for rank in range(2)]
        loss = small(negatives=mode, positives="relax").double()
        alone = run(loss, loss)
        torch.testing.assert_close((ranks[0]["values"] + ranks[1]["values"]) / 2, alone["values"], rtol=1e-12, atol=0)
        for found in ranks:
            torch.testing.assert_close(found["gradients"], alone["gradients"], rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(found["state"], alone["state"], rtol=1e-12, atol=1e-14)
        for name in ("student_bank", "teacher_bank", "log_z", "step"):
            assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_seen_in_the_value_and_not_stored(bad):
    """As by a step that a GradScaler leaves out: the banks would be NaN for ever, and with them every later value."""
    loss = small()
    loss(**batch(0))
    spoilt, before = batch(1), loss.student_bank.clone()
    spoilt["student"][2] = bad
    assert not loss(**spoilt).isfinite()
    kept = spoilt["index"][2]
    assert torch.equal(loss.student_bank[kept], before[kept])
    others = spoilt["index"][[0, 1, 3, 4, 5]]
    assert not torch.equal(loss.student_bank[others], before[others])
    assert loss(**batch(2)).isfinite()


def test_one_number_that_is_not_finite_keeps_the_whole_row():
    bank = torch.nn.functional.normalize(torch.randn(3, 4))
    before, rows = bank.clone(), torch.ones(2, 4)
    rows[0, 1] = float("inf")
    refresh(bank, torch.tensor([2, 0]), rows, 0.5)
    assert torch.equal(bank[2], before[2])
    assert not torch.equal(bank[0], before[0])
