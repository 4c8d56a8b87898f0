"""`strategy: ddp` from the command line: two processes, a teacher trained first, one folder."""

import json
import os
import subprocess
import sys

RECIPE = "protocol: digits_20\ndata: {image_size: 8, subset: 64}\ntrainer: {max_epochs: %d, check_teachers: false}\n"


def test_two_processes_write_one_run(tmp_path):
    (tmp_path / "wise.yaml").write_text(RECIPE % 1 + "models: {net: {arch: resnet8}}\nlosses: [ce]\n")
    (tmp_path / "pupil.yaml").write_text(
        RECIPE % 2 + "models: {teacher: {arch: resnet8, weights: wise}, student: {arch: resnet8}}\n"
        "losses: [ce, kd, crd: {num_negatives: 8}]\n"
    )
    command = [sys.executable, "-m", "kdkit.cli", "fit", "pupil.yaml", "--out", "out"]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    environment = {**os.environ, "KDKIT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("everything is in out") == 1
    figures = json.loads((tmp_path / "out/result.json").read_text())
    right = figures["last"]["student"]["top1"] * 360
    assert abs(right - round(right)) < 1e-3  # both ranks count the same images right
    assert len(list((tmp_path / "home/teachers").glob("wise-*/net.safetensors"))) == 1
