"""The teacher's principal components against numpy, over batches, on disk and on two ranks."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdkit.models.heads import PCA, build_head
from kdkit.registry import KdkitError


def features(n: int = 240, offset: float = 100.0) -> Tensor:
    """Six dimensions of falling variance (90 % in three of them), rotated, with a large common offset."""
    g = torch.Generator().manual_seed(0)
    scales = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=g)).Q
    return torch.randn(n, 6, generator=g) * scales @ rotation + offset


def by_numpy(x: Tensor, keep: float) -> tuple[np.ndarray, int]:
    data = x.double().numpy()
    centred = data - data.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    share = np.cumsum(singular**2) / np.sum(singular**2)
    kept = int(np.searchsorted(share, keep)) + 1
    return np.abs(centred @ axes.T), kept


@pytest.mark.parametrize("keep", [0.5, 0.9, 0.999, 1.0])
def test_streamed_components_are_those_of_the_whole(keep: float) -> None:
    x = features()
    pca = PCA(6, keep=keep, batches=4)
    for batch in x.chunk(4):
        assert not pca.fitted
        assert pca(batch).abs().sum() == 0 or pca.fitted
    assert pca.fitted
    scores, kept = by_numpy(x, keep)
    assert int(pca.mask.sum()) == kept
    out = pca(x).double().numpy()
    np.testing.assert_allclose(np.abs(out[:, :kept]), scores[:, :kept], atol=2e-3)
    assert not out[:, kept:].any()
    assert out[:, :kept].var(0).sum() >= keep * x.double().var(0, unbiased=False).sum().item() * (1 - 1e-4)


def test_it_is_frozen_once_fitted_and_outside_training_it_is_not_fitted() -> None:
    x = features()
    pca = PCA(6, batches=2).eval()
    for _ in range(3):
        pca(x)
    assert not pca.fitted
    assert pca.seen == 0
    pca.train()
    pca(x)
    pca(x)
    state = copy.deepcopy(pca.state_dict())
    pca(features(offset=-5.0))
    assert all(torch.equal(a, b) for a, b in zip(state.values(), pca.state_dict().values(), strict=True))
    assert not list(pca.parameters())


def test_maps_and_tokens_are_sets_of_vectors() -> None:
    x = features(2 * 16)
    spec = {"identity": {"teacher": {"pca": {"batches": 1}}}}
    vectors, maps = PCA(6, batches=1), build_head(spec, (6, 4, 4), (6, 4, 4))
    vectors(x)
    image = x.reshape(2, 4, 4, 6).movedim(-1, 1)
    _, teacher = maps(image, image)
    torch.testing.assert_close(teacher.movedim(1, -1).reshape(32, 6), vectors(x))


def test_the_head_is_silent_until_fitted_and_then_masks_both_sides() -> None:
    x = features()
    torch.manual_seed(0)
    head = build_head({"linear": {"teacher": {"pca": {"keep": 0.9, "dim": 5, "batches": 2}}}}, (4,), (6,))
    assert head.shape == (5,)
    student = torch.randn(240, 4)
    a, b = head(student, x)
    assert a.shape == b.shape == (240, 5)
    (a - b).square().mean().backward()
    assert head.net.weight.grad.abs().sum() == 0
    a, b = head(student, x)
    kept = int(head.pca.mask.sum())
    assert kept == by_numpy(x, 0.9)[1] == 3
    assert a[:, :kept].abs().min() > 0
    assert not a[:, kept:].any()
    assert not b[:, kept:].any()


def test_it_is_saved_whole_or_half_done(tmp_path: Path) -> None:
    x = features()
    whole, half = PCA(6, batches=2), PCA(6, batches=2)
    first, second = x.chunk(2)
    whole(first)
    half(first)
    torch.save(half.state_dict(), tmp_path / "half.pth")
    whole(second)
    resumed = PCA(6, batches=2)
    resumed.load_state_dict(torch.load(tmp_path / "half.pth", weights_only=True))
    assert not resumed.fitted
    resumed(second)
    assert torch.equal(resumed(x), whole(x))
    loaded = PCA(6, batches=2)
    loaded.load_state_dict(whole.state_dict())
    assert loaded.fitted
    assert torch.equal(loaded.train()(x), whole(x))


def test_fit_at_once_and_buffers_put_back() -> None:
    x = features()
    pca = PCA(6)
    before = copy.deepcopy(pca.state_dict())
    pca.fit(x)
    assert pca.fitted
    once = pca(x)
    with torch.no_grad():
        for name, buffer in pca.named_buffers():
            buffer.copy_(before[name])  # as a rehearsal does
    assert not pca.train().fitted
    pca.fit(x)
    assert torch.equal(pca(x), once)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"keep": 1.5}, "keep must be in"),
        ({"dim": 7}, "dim must be 1 to 6"),
        ({"batches": 0}, "batches must be a whole number"),
        ({"kep": 0.5}, "pca: unknown option 'kep'; did you mean 'keep'"),
    ],
)
def test_what_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(KdkitError, match=text):
        build_head({"linear": {"teacher": {"pca": options}}}, (4,), (6,))


def test_only_pca_goes_to_the_teachers_side() -> None:
    with pytest.raises(KdkitError, match="teacher must be pca"):
        build_head({"linear": {"teacher": "mlp"}}, (4,), (6,))


def test_two_ranks_find_what_one_process_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads stand for two ranks; the collectives wait for both, as real ones do."""
    barrier, held = threading.Barrier(2, timeout=20), {}

    def exchange(tensor: Tensor, combine: Any) -> None:
        held[threading.current_thread().name] = tensor.clone()
        barrier.wait()
        tensor.copy_(combine(held["0"], held["1"]))
        barrier.wait()

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda t, source: exchange(t, lambda a, b: (a, b)[source]))
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t: exchange(t, torch.add))
    ranks = [PCA(6, batches=2), PCA(6, batches=2)]

    def run(rank: int) -> None:
        for batch in features().chunk(2)[rank].chunk(2):
            ranks[rank](batch)

    threads = [threading.Thread(target=run, args=(rank,), name=str(rank)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    alone = PCA(6)
    alone.fit(features())
    for name in ("mean", "components", "mask"):
        one, two = (getattr(pca, name) for pca in ranks)
        assert torch.equal(one, two)
        torch.testing.assert_close(one, getattr(alone, name), atol=2e-4, rtol=1e-4)
