"""Label noise: symmetric, seeded, a function of (seed, sample), and in the training labels alone."""

import re

import pytest
import torch

from kdkit import data
from kdkit.recipe import RecipeError, fingerprint, load
from kdkit.registry import KdkitError


def labels(**words):
    module = data.build("digits", **words)
    module.setup("fit")
    return module.parts[0], module.sample_labels, module.read_labels(True)


def test_as_many_are_wrong_as_said_and_every_other_class_alike():
    module = data.build("fake", samples=20_000, classes=5, shape=(1, 2, 2), label_noise=0.4)
    module.setup("fit")
    clean = module.read_labels(True)
    wrong = module.sample_labels != clean
    assert wrong.float().mean().item() == pytest.approx(0.4, abs=0.015)
    shifts = torch.bincount((module.sample_labels - clean)[wrong] % 5, minlength=5)
    assert shifts[0] == 0
    assert (shifts[1:].float() / wrong.sum() - 0.25).abs().max() < 0.02
    _, none, clean = labels(label_noise=0.0)
    assert torch.equal(none, clean)
    assert not (labels(label_noise=1.0)[1] == clean).any()


def test_it_follows_from_seed_and_sample():
    _, noisy, clean = labels(label_noise=0.3)
    assert torch.equal(noisy, labels(label_noise=0.3)[1])
    assert not torch.equal(noisy, labels(label_noise=0.3, seed=1)[1])
    places, few, _ = labels(label_noise=0.3, subset=400, val_split=0.2)
    assert torch.equal(few, noisy[places]), "a sample's label does not depend on which others there are"
    _, less, _ = labels(label_noise=0.1)
    wrong = less != clean
    assert torch.equal(less[wrong], noisy[wrong]), "more noise keeps what was wrong"


def test_what_is_held_out_and_tested_on_is_clean():
    module, clean = (data.build("digits", label_noise=share, val_split=0.2) for share in (0.9, 0.0))
    for name in ("val_dataloader", "test_dataloader"):
        ours, theirs = (torch.cat([y for _, y in getattr(m, name)()]) for m in (module, clean))
        assert torch.equal(ours, theirs), name


def test_runs_with_noise_are_not_compared_with_runs_without():
    kinds = {fingerprint(load("student_digits", [f"data.label_noise={share}"])) for share in (0.1, 0.2)}
    assert len(kinds | {fingerprint(load("student_digits"))}) == 3


def test_a_teachers_cache_does_not_look_at_labels():
    one, other = (data.build("digits", label_noise=share) for share in (0.0, 0.4))
    assert one.identity() == other.identity()


@pytest.mark.parametrize("share", [-0.1, 20, float("nan")])
def test_what_is_no_share(share):
    with pytest.raises(KdkitError, match=re.escape("label_noise must be a share in [0, 1], got")):
        data.build("digits", label_noise=share)


def test_a_recipe_is_told_its_line(tmp_path):
    with pytest.raises(RecipeError, match=r"data.label_noise: must be a number, got 'a lot'"):
        load("student_digits", ["data.label_noise=a lot"])
    with pytest.raises(RecipeError, match=r"unknown key 'label_nose'; did you mean 'label_noise'"):
        load("student_digits", ["data.label_nose=0.2"])
