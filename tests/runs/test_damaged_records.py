"""A run's papers and a suite's rows as disks and editors leave them: one error that names the file, or the truth."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from kdkit import models
from kdkit.bench.shipped import shipped_rows
from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.report.gather import gather
from kdkit.runs.evaluate import evaluate
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from kdkit.runs.result import read_figures
from tests.cli.command import RECIPE, kdkit, refused
from tests.damage import spoilt
from tests.recipe.fuzz import in_time

WORDS = ["data.samples=16", "trainer.max_epochs=1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(loads(RECIPE, name="r", overrides=WORDS), out=tmp_path_factory.mktemp("runs") / "run").folder


@pytest.mark.parametrize("name", ["result.json", "provenance.json", "recipe.yaml", "metrics.csv"])
def test_papers(finished, tmp_path, name):
    """The finished run is read again, and scored."""
    run = tmp_path / "run"
    shutil.copytree(finished.path, run)
    content = (run / name).read_bytes()
    odd = [b"", b"[]", b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b"1e999", b'"x"', b'{"last": 3, "best": []}']
    for damaged in (*odd, *spoilt(content, 25, 1000)):
        (run / name).write_bytes(damaged)
        with in_time(), contextlib.suppress(KdkitError):
            fit(loads(RECIPE, name="r", overrides=WORDS), out=run, resume=True)
        if name == "recipe.yaml":
            with in_time(), contextlib.suppress(KdkitError):
                evaluate(run)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("name", ["result.json", "metrics.csv"])
def test_no_flipped_bit_of_a_figure_goes_unseen(finished, tmp_path, name):
    """What is read in spite of it is the truth."""
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    path = run.path / name
    content, right = path.read_bytes(), (read_figures(run), gather(run.path).rows)
    unseen, told = 0, []
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 7
        path.write_bytes(damaged)
        try:
            found = read_figures(run), gather(run.path).rows
        except KdkitError as error:
            told.append(str(error))
        else:
            unseen += 1
            assert {word: found[0].get(word) for word in right[0]} == right[0]
            assert found[1] == right[1]
    assert all(name in error for error in told)
    assert unseen <= (0 if name == "metrics.csv" else len(content) // 2)
    said = refused("report", run.path) if name == "metrics.csv" else ""
    assert not said or "metrics.csv is damaged, or was edited: its checksum is not the one in result.json" in said


def test_line_ends_are_no_figures(finished, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(finished.path, run.path)
    rows, lines = gather(run.path).rows, run.metrics.read_bytes().splitlines()
    for end in (b"\n", b"\r\n"):
        run.metrics.write_bytes(end.join([*lines, b""]))
        assert gather(run.path).rows == rows


def test_rows(tmp_path):
    rows = shipped_rows()[:2]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path = tmp_path / "rows.jsonl"
    odd = [b"", b"\n", b"{}\n", b"null\n", b"[1]\n", b"\xff\n", b"[" * 100_000 + b"\n", b"1e999\n", b"NaN\n"]
    wrong, told = [], 0
    for word in rows[0]:
        for value in (3, "x", [[1]]):
            changed = {**rows[0], word: value}
            wrong.append(content + (json.dumps(changed) + "\n").encode())
    for damaged in (*odd, *wrong, *spoilt(content, 20, 1000)):
        path.write_bytes(damaged)
        with in_time():
            said = kdkit("table", path)
        assert said.code in (0, 2), said
        told += said.err.count("damaged")
    assert told > 8


def test_a_signal_is_an_exit_code_of_its_own(tmp_path, monkeypatch):
    import os
    import signal

    from kdkit.train.distiller import Distiller

    before, step = signal.getsignal(signal.SIGINT), Distiller.training_step

    def signalled(self, batch, batch_idx):
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch, batch_idx)

    (tmp_path / "r.yaml").write_text(RECIPE)
    monkeypatch.setattr(Distiller, "training_step", signalled)
    said = kdkit("fit", tmp_path / "r.yaml", "--out", tmp_path / "run")
    signal.signal(signal.SIGINT, before)
    assert said.code == 75
    assert said.err.startswith(
        f"stopped. SIGTERM: {tmp_path / 'run/checkpoints/last.ckpt'} holds the run so far; go on"
    )
    assert "Traceback" not in said.err


HEADERS = {"mean": ['"abc"', "5", "[]", "[NaN]"], "std": ["[0, 0, 0]", "[1e999]"], "classes": ["5", "[1]"]}
HEADERS |= {"data": ["5", '["a"]', "[" * 100_000, '{"name": "digits", "image_size": "x"}'], "input": ["[1]"]}
HEADERS |= {"options": ["[1]", '{"allow_custom": true}', '{"base": "/"}'], "num_classes": ['"x"', "-1", "true"]}
HEADERS |= {"image_size": ['"x"', "0", "1.5"]}


@pytest.mark.parametrize("verb", [["eval"], ["probe", "--data", "digits"], ["latency", "--batch", "1"]])
def test_headers_of_weights(tmp_path, monkeypatch, verb):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    net, path = models.build("resnet8", num_classes=10), tmp_path / "net.safetensors"
    told = {"arch": "resnet8", "num_classes": "10", "data": '{"name": "digits"}'}
    for word, texts in HEADERS.items():
        for text in texts:
            models.save_weights(net, path, {**told, word: text})
            error = refused(verb[0], str(path), *verb[1:])
            assert "net.safetensors" in error or "image_size" in error


@pytest.fixture(scope="module")
def looked_at(finished):
    """The finished run, with what each verb leaves in its folder."""
    run = finished.path
    (run / "eval.json").write_text('{"test": {"student": {"top1": 0.5}}}')
    (run / "probe.json").write_text('{"digits": {"student": {"linear": 0.5}}}')
    (run / "latency.json").write_text('{"device": "cpu", "models": [], "times": [{"name": "s", "batch": 1}]}')
    (run / "gradients.csv").write_text("epoch,model,loss,norm,share\n1,student,ce,1,0.5\n")
    (run / "compare").mkdir()
    (run / "compare" / "compare.json").write_text('{"models": {"s": {"top1": 0.5}}, "students": {}, "figures": []}')
    return run


VERBS = {
    "eval": ["eval", "run"],
    "compare": ["compare", "other", "run", "--out", "out"],
    "probe": ["probe", "run", "--data", "digits", "data.subset=20"],
    "latency": ["latency", "run", "--batch", "1", "--mode", "eager", "--repeats", "5", "--seconds", "0"],
    "export": ["export", "run", "--format", "safetensors", "--overwrite"],
    "report": ["report", "run"],
}
SHAPES = [b"", b"[1]", b'{"a": {"b": 3}}', b"epoch\xacmodel,loss\n1,a,b\n", b"a\r\0b\n"]
SHAPES += [b'{"last": 3, "versions": [], "links": 3, "models": 3, "times": [3], "test": 3}']
RECIPES = [
    b"models: {a: {arch: resnet8, num_classes: 3}}\ndata: {name: fake, shape: [3, 8, x]}\ntrainer: {}\n",
    b"",
    b"{}",
    b"models: 3\ndata: 3\n",
    b"models: {a: 3}\nlosses: [3]\ndata: {}\ntrainer: {}\n",
    b"\xff\xfe",
]
READ = [*((name, "recipe.yaml") for name in VERBS), ("export", "result.json"), ("export", "provenance.json")]
PAGE = ["result.json", "provenance.json", "metrics.csv", "gradients.csv", "eval.json", "probe.json", "latency.json"]
READ += [("report", name) for name in (*PAGE, "compare/compare.json")]


@pytest.mark.parametrize(("verb", "name"), READ, ids=[f"{verb}-{name}" for verb, name in READ])
def test_every_verb_on_a_damaged_run(looked_at, tmp_path, monkeypatch, verb, name):
    """It works without the file, or says which one is damaged; never a traceback."""
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(
        "kdkit.study.write.write_comparison", lambda found, folder: found.numbers.update(figures=[]) or folder
    )
    monkeypatch.chdir(tmp_path)
    shutil.copytree(looked_at, tmp_path / "run")
    (tmp_path / "other").symlink_to(looked_at)
    whole = (tmp_path / "run" / name).read_bytes()
    refusals = 0
    for damaged in (*(RECIPES if name == "recipe.yaml" else SHAPES), *spoilt(whole, 2, 200)):
        (tmp_path / "run" / name).write_bytes(damaged)
        with in_time():
            said = kdkit(*VERBS[verb])
        assert said.code in (0, 2), said
        assert said.err.count("error:") == (said.code == 2), said
        refusals += said.code == 2 and Path(name).name in said.err
    assert refusals
