"""The last good states of each model of a cohort, in memory and on disk."""

import pytest
import torch

from kdkit.train.snapshots import Ring


def ring(folder, epochs=4):
    made = Ring(2, folder)
    states = [{"w": torch.full((3,), float(epoch)), "step": epoch} for epoch in range(epochs)]
    made.start("a", states[0])
    for epoch in range(1, epochs):
        made.put("a", epoch, states[epoch])
    return made


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_last_ones_are_kept_and_given_back_one_by_one(tmp_path, on_disk):
    made = ring(tmp_path if on_disk else None)
    if on_disk:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a-0000.pt", "a-0002.pt", "a-0003.pt"]
    state = made.state_dict()
    other = Ring(2, made.folder)
    other.load_state_dict(state)
    for one in (made, other):
        assert [one.take("a")[0], one.take("a")[1]["step"], one.take("a")] == [3, 2, None]
        assert one.begin("a")["w"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_given_back_may_be_changed(tmp_path, on_disk):
    made = ring(tmp_path if on_disk else None)
    for _ in range(2):
        assert made.begin("a")["w"].add_(1.0).tolist() == [1, 1, 1]


def test_what_a_checkpoint_knows_is_not_deleted(tmp_path):
    made = ring(tmp_path)
    state = made.state_dict()
    for epoch in (4, 5):
        made.put("a", epoch, {"step": epoch})
    back = Ring(2, tmp_path)
    back.load_state_dict(state)
    assert back.take("a")[0] == 3
    for epoch in (6, 7, 8):
        made.state_dict()
        made.put("a", epoch, {"step": epoch})
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a-000{i}.pt" for i in (0, 4, 5, 6, 7, 8)]


def test_a_damaged_snapshot_is_passed_over(tmp_path, caplog):
    state = ring(tmp_path).state_dict()
    (tmp_path / "a-0003.pt").write_bytes(b"cut")
    back = Ring(2, tmp_path)
    back.load_state_dict(state)
    assert back.take("a")[0] == 2
    assert "a-0003.pt is damaged or gone; the one before it is taken" in caplog.text
