"""A run whose numbers are not finite, from the command line: what it says, saves, and goes on from."""

import csv

import pytest
import torch

from tests.cli.command import RECIPE, kdkit, refused

SPOILS = """\
import torch
from torch import nn

class Spoils(nn.Module):
    \"\"\"Infinite for one sample, from the second epoch on.\"\"\"
    def forward(self, student, index, progress):
        bad = (progress >= 0.5) & (index == 7).any()
        return student.mean() * torch.where(bad, torch.inf, 1.0)
"""
WORD = "trainer.on_nonfinite="


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "spoils.py").write_text(SPOILS)
    (tmp_path / "r.yaml").write_text(RECIPE.replace("  - ce\n", "  - ce\n  - spoils.py:Spoils: {name: spoils}\n"))
    return tmp_path / "r.yaml"


def rows(run):
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_stopped_run_tells_saves_the_batch_and_goes_on_without_it(recipe, tmp_path):
    run = tmp_path / "run"
    error = " ".join(refused("fit", recipe, "--out", run).split())
    assert "the loss spoils is not finite at step " in error
    assert "(epoch 2), which saw samples " in error
    (saved,) = (run / "nonfinite").iterdir()
    assert saved.name in error.replace(" ", "")
    batch = torch.load(saved, weights_only=True)
    assert 7 in batch["index"].tolist()
    assert abs(batch["values"]["loss spoils"]) == float("inf")
    said = kdkit("fit", recipe, "--out", run, "--resume", f"{WORD}skip")
    assert said.code == 0
    assert said.out.count("warning: the loss spoils is not finite at step ") == 1
    assert [row["nonfinite/skipped"] for row in rows(run)] == ["", "1"]
    assert all(float(row["gradient/student/max"]) >= float(row["gradient/student/mean"]) > 0 for row in rows(run))
    kdkit("fit", recipe, "--out", run, "--overwrite", f"{WORD}rollback")
    assert [row["nonfinite/rollbacks"] for row in rows(run)] == ["0", "1"]
    assert len(list((run / "nonfinite").iterdir())) == 1


def test_an_old_runs_batches_go_with_it(recipe, tmp_path):
    run = tmp_path / "run"
    refused("fit", recipe, "--out", run)
    kdkit("fit", recipe, "losses=[ce]", "--out", run, "--overwrite")
    assert not (run / "nonfinite").exists()


def test_the_word_is_checked(recipe):
    error = refused("check", recipe, f"{WORD}ignore")
    assert "trainer.on_nonfinite" in error
    assert "'stop', 'skip' or 'rollback', got 'ignore'" in error
