"""The benchmarks of speed run, refuse to time what is not the same, and their page is made from their rows."""

import argparse
import json

import pytest
import torch
from PIL import Image
from torch.backends import cudnn

from benchmarks import bars, losses, peers, performance, plain, scaling, step, timing
from benchmarks import data as images
from kdkit.registry import LOSSES, KdkitError
from tests.gpu import gpu

CPU = torch.device("cpu")
ORIGIN = {"machine": "a", "threads": 1, "torch": "2", "commit": "c", "date": "2026-01-01"}


def test_the_page_is_made_from_the_rows():
    assert performance.PAGE.read_text() == performance.page(performance.load(performance.FILES)), (
        "run python -m benchmarks.performance"
    )


def test_contenders_take_turns():
    seen = []
    times = timing.in_turns({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, rounds=3)
    turns = "".join(seen).replace("aa", "a")
    while "aa" in turns or "bb" in turns:
        turns = turns.replace("aa", "a").replace("bb", "b")
    assert turns == "ab" * 4  # the warm-up and three rounds
    assert [len(several) for several in times.values()] == [3, 3]


def test_a_ratio_is_taken_within_each_round():
    """A machine that gets ten times slower half way changes no ratio."""
    found = timing.summary({"kdkit": [1.0, 1.0, 10.0, 10.0], "other": [2.0, 2.0, 20.0, 20.0]})
    assert found["kdkit"]["faster"] == {"other": [2.0, 2.0, 2.0]}
    assert found["kdkit"]["ms"] == [1e3, 5.5e3, 1e4]
    assert "faster" not in found["other"]


def test_peak_memory_counts_what_is_held_at_a_time():
    x = torch.ones(2**18, requires_grad=True)  # 1 MB

    def call():
        for _ in range(3):
            x.detach() + 1  # freed at once
        y = x.exp()  # kept for the backward pass
        torch.autograd.grad(y.exp().sum(), x)

    assert 3.0 <= timing.peak_bytes(call, CPU) / 2**20 < 4.1


def test_bound_takes_the_best_rate_for_as_much_or_more():
    limits = timing.Limits({2**10: 1.0, 2**20: 4.0, 2**30: 2.0}, {"float32": 10.0, "bfloat16": 100.0}, 1.0, 1.0)
    assert limits.bound(2**15, 0) == 2**15 / 4
    assert limits.bound(2**25, 0) == 2**25 / 2
    assert limits.bound(2**40, 0) == 2**40 / 2
    assert limits.bound(4, 1000) == 100
    assert limits.bound(4, 1000, "bfloat16") == 10


def quick(*words, tmp_path):
    return [*words, "--quick", "--out", str(tmp_path / "rows.jsonl")], tmp_path / "rows.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_has_a_case_and_equals_plain_torch_and_timm(name):
    args = argparse.Namespace(quick=True, batch=[8], losses=[name], device=CPU)
    found = losses.cases(args)
    assert {case.name for case in found} == {name}
    libraries = {"plain torch": plain.makers(), "timm": peers.timm()}
    for case in found:
        assert all(value.requires_grad for value in case.students)
        losses.compare(case, losses.contenders(case, libraries))
        assert case.bound(timing.Limits({1: 1.0}, {"float32": 1.0, "bfloat16": 1.0}, 1.0, 1.0), negatives="all") > 0


def test_what_is_not_the_same_is_not_timed():
    case = losses.Case("kd", 8, [(100,)], CPU)
    other = peers.simple(lambda s, t: plain.kl(s, t, 3.9))(case)
    with pytest.raises(KdkitError, match=r"kd at B = 8: other is .* from kdkit, not timed"):
        losses.compare(case, {"kdkit": case.ours(), "other": other})


def test_rows_of_losses(tmp_path):
    words, path = quick("--losses", "kd", "crd", "--batch", "8", tmp_path=tmp_path)
    losses.main(words)
    machine, *rows = read(path)
    assert machine["copy_gb_s"]
    assert {row["contender"] for row in rows if row["loss"] == "kd"} == {"kdkit", "plain torch"}
    assert sum(row["loss"] == "crd" for row in rows) == 6
    assert all({"commit", "torch", "machine", "threads", "device", "date", "quick"} <= row.keys() for row in rows)
    ours = next(row for row in rows if row["contender"] == "kdkit")
    assert ours["bound_ms"] > 0
    assert ours["ops"] > 5
    assert ours["dispatch_ms"] > 0
    assert ours["faster"]["plain torch"][1] > 0
    assert performance.load([path]) == []


def test_losses_are_compared_in_whole_fp32():
    case = losses.Case("mse", 4, [(8,)], CPU)
    seen, other = [], plain.makers()["mse"](case)
    value = other.value
    other.value = lambda: seen.append(cudnn.allow_tf32) or value()
    losses.compare(case, {"kdkit": case.ours(), "plain torch": other})
    assert seen == [False]


def test_rows_of_a_step(tmp_path):
    words, path = quick("--methods", "crd", "--precision", "32-true", tmp_path=tmp_path)
    step.main(words)
    rows = {(row["teacher"], row["contender"]): row for row in read(path)}
    assert rows.keys() == {(teacher, name) for teacher in ("live", "cached") for name in ("kdkit", "by hand")}
    for teacher in ("live", "cached"):
        assert rows[teacher, "kdkit"]["faster"]["by hand"][1] > 0
        assert rows[teacher, "by hand"]["difference"] < 0.05


def test_the_rounding_of_a_cache_makes_no_other_step(tmp_path):
    """Nor does a GPU's, whose kernels follow from the batch; of a random teacher the updates were 3 % apart."""
    size = step.Size(batch=16, samples=200, negatives=64, warm=2, rounds=1)
    hand = lambda distiller: {"by hand": step.HandLoop(distiller, CPU, mixed=False)}  # noqa: E731
    _, apart = step.run("kd", size, CPU, hand, cache=str(tmp_path), precision="32-true")
    assert 0 < apart["by hand"] < 3e-3


def test_a_loop_that_does_other_work_is_not_timed(monkeypatch):
    run = step.HandLoop.step
    monkeypatch.setattr(step.HandLoop, "step", lambda self, x, y, index: run(self, x.flip(0), y, index))
    size = step.Size(batch=4, samples=200, negatives=64, warm=2, rounds=1)
    with pytest.raises(KdkitError, match="by hand does other work"):
        step.run("kd", size, CPU, lambda distiller: {"by hand": step.HandLoop(distiller, CPU)})


def test_rows_of_scaling(tmp_path):
    words, path = quick("--axes", "negatives", tmp_path=tmp_path)
    scaling.main(words)
    rows = read(path)
    assert {row["value"] for row in rows} == {100, 3_000}
    assert all(row["peak_mb"] > 0 and row["banks_mb"] > 0 for row in rows)


def row(contender, faster, **words):
    return {"contender": contender, "device": "cpu", "ms": [1, 2, 3], "faster": faster, **words, **ORIGIN}


def test_bars_that_are_met_missed_and_not_run(tmp_path):
    nst = {"bench": "losses", "loss": "nst", "batch": 64, "shape": "64x32x32", "peak_mb": 1, "bound_ms": 1}
    nst |= {"dispatch_ms": 1}
    kd = {"bench": "step", "method": "kd", "teacher": "live", "batch": 64, "steps": 1}
    rows = [
        row("kdkit", {"plain torch": [1, 2, 3]}, **nst),
        row("kdkit", {"plain torch": [29, 29.9, 31]}, **nst),  # about the same: this one counts
        row("kdkit", {"repdistiller": [2.1, 2.2, 2.3], "by hand": [0.96, 0.98, 0.99]}, **kd),
        row("kdkit", {"repdistiller": [9, 9, 9], "by hand": [0.5, 0.5, 0.5]}, **kd, quick=True),  # never counts
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    page, machine = performance.page(performance.load([path])), ORIGIN["machine"]
    assert f"| ≥ 30× | {machine} | 29.9× (29–31) | **no** |" in page
    assert f"| ≥ 2.2× | {machine} | 2.2× (2.1–2.3) | yes |" in page
    assert f"| ≤ 1.03× | {machine} | 1.02× (1.01–1.04) | yes |" in page
    assert "| ≥ 4.4× | | not yet run | |" in page
    assert "- nowhere" in page
    path.write_text(
        "".join(json.dumps(each | {"machine": name}) + "\n" for each, name in zip(rows, "ABCD", strict=True))
    )
    page = performance.page(performance.load([path]))
    assert "| ≥ 30× | A | 2× (1–3) | **no** |" in page
    assert "| ≥ 30× | B | 29.9× (29–31) | **no** |" in page  # of another machine: both count for a bar
    assert [line.split(" | ")[3] for line in page.splitlines() if line.startswith("| `nst` | 64 |")] == ["A", "B"]
    rows[0]["faster"] = {"plain torch": [0.4, 0.5, 0.6]}
    path.write_text(json.dumps(rows[0]))
    told = f"- `nst`, B = 64, 64x32x32, {machine}: plain torch takes 0.50 of its time"
    assert told in performance.page(performance.load([path]))


def test_a_part_of_an_epoch_is_beside_the_whole_and_meets_no_bar_of_it(tmp_path):
    crd = {"bench": "epoch", "method": "crd", "teacher": "live", "batch": 64, "steps": 782, "device": "cuda"}
    whole, part = (
        row("kdkit", {"repdistiller": [n, n, n]}, **crd) | {"device": "cuda"} | w
        for n, w in ((9, {}), (11, {"images": 640}))
    )
    for rows in ([whole, part], [part, whole]):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        loaded = performance.load([tmp_path / "rows.jsonl"])
        assert len(loaded) == 2
        (bar,) = (bar for bar in bars.bars() if bar.what.startswith("epoch, crd"))
        assert bar.figure(loaded) == [9, 9, 9]
        assert bar.figure([part]) is None


def test_what_is_no_number_is_not_timed():
    case = losses.Case("kd", 8, [(100,)], CPU)
    wrong = lambda s, t: plain.kl(s, t, 4.0) + 0 * (s - s.detach()).abs().sqrt().sum()  # noqa: E731  infinite gradient
    with pytest.raises(KdkitError, match="other is nan from kdkit, not timed"):
        losses.compare(case, {"kdkit": case.ours(), "other": peers.simple(wrong)(case)})


def test_mutual_learning_is_compared_with_the_same_models_alone(tmp_path):
    from benchmarks import dml

    for name in dml.SETS:
        for method, seed in list(dml.cells(name)):
            with_peers, alone = dml.recipe(name, method, seed), dml.recipe(name, dml.control(method), seed)
            assert {peer: alone.models[peer] for peer in with_peers.models} == dict(with_peers.models)
            assert (with_peers.data, with_peers.optimizer, with_peers.lr) == (alone.data, alone.optimizer, alone.lr)
    words, out = quick("digits", "--runs", str(tmp_path / "runs"), tmp_path=tmp_path)
    dml.main(words)
    (row,) = read(out)
    assert (row["method"], row["seed"], sorted(row["peers"])) == ("alone", 0, ["a", "b", "c", "d"])


def test_the_page_of_mutual_learning_is_made_from_the_rows():
    from benchmarks import dml_page

    assert dml_page.PAGE.read_text() == dml_page.page(dml_page.load()), "run python -m benchmarks.dml_page"


def test_a_gain_is_paired_by_seed_and_peer():
    from benchmarks import dml_page

    def row(method, seed, **top1):
        return {"set": "digits", "method": method, "seed": seed, "peers": {p: {"top1": v} for p, v in top1.items()}}

    rows = [row("alone", 0, a=0.5, b=0.6, c=0.9), row("alone", 1, a=0.7, b=0.7, c=0.9)]
    rows += [row("K=2", 0, a=0.52, b=0.66), row("K=2", 1, a=0.7, b=0.72), row("K=2", 2, a=1.0, b=1.0)]
    assert dml_page.gains(rows, "digits", "K=2", "ab") == pytest.approx([4.0, 1.0])
    mean, half = dml_page.interval([4.0, 1.0])
    assert (mean, half) == (2.5, pytest.approx(12.706 * 1.5, rel=1e-3))


def test_the_figures_of_reliability_are_those_of_their_rows():
    from benchmarks import reliability

    text = reliability.PAGE.read_text()
    assert text == reliability.page(text, reliability.read()), "run python -m benchmarks.reliability"
    for heading, paths in reliability.TESTS.items():
        assert f"`python -m benchmarks.reliability {heading}`" in text
        assert all((reliability.ROOT / path).is_file() for path in paths)


def test_rows_of_images(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for k in range(8):
        noise = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(k))
        Image.fromarray(noise.numpy()).resize((64, 48), Image.Resampling.BICUBIC).save(photos / f"{k}.jpg")
    words, path = quick("--roots", str(photos), "--sizes", "32", tmp_path=tmp_path)
    images.main(words)
    rows = read(path)
    assert len(rows) == 3 + 2 * (3 + 2 * 2)
    ours = {(row["what"], row.get("workers")): row for row in rows if row["contender"] == "kdkit"}
    assert {what for what, workers in ours if workers == 1} == {"to a device", "to the CPU"}
    assert all(min(row["faster"].values())[1] > 0 for row in ours.values())
    page = performance.page([{**row, "ms": [1.0, 2.0, 4.0]} for row in rows])
    machine = rows[0]["machine"].removesuffix(" Processor")
    assert f"| photos, 32² | decode, crop, mirror |  | {machine} | 500 (250–1e+03) | 2 |" in page
    assert f"| photos, 32² | to a device | 1 | {machine} | 500 (250–1e+03) |  |" in page
    assert "DALI's better way" not in page


def test_what_is_resident_lies_on_the_device_that_is_named(tmp_path, monkeypatch):
    seen, real = [], images.DeviceLoader
    monkeypatch.setattr(
        images, "DeviceLoader", lambda *args, **words: seen.append(words["device"]) or real(*args, **words)
    )
    words, path = quick("--device", "cuda", "--workers", "0", tmp_path=tmp_path)
    with gpu(monkeypatch):
        images.main(words)
    assert {device.type for device in seen} == {"cuda"}
    assert {row["machine"] for row in read(path)} == {"a GPU on paper"}


def test_other_images_are_not_timed(tmp_path, monkeypatch):
    monkeypatch.setattr("kdkit.data.worker_loader.read_rgb", lambda path: torch.zeros(3, 48, 64, dtype=torch.uint8))
    picture = Image.new("RGB", (64, 48), "white")
    picture.save(tmp_path / "0.jpg")
    with pytest.raises(KdkitError, match="torchvision makes other images, 255 levels away; not timed"):
        images.main(["--quick", "--roots", str(tmp_path), "--sizes", "32"])


@pytest.mark.parametrize(("precision", "told"), [("bf16-mixed", ""), ("32-true", ", fp32")])
def test_rows_of_a_part_of_an_epoch(tmp_path, precision, told):
    asked = ["--epoch", "--images", "8", "--methods", "kd", "--teacher", "live", "--precision", precision]
    words, path = quick(*asked, tmp_path=tmp_path)
    step.main(words)
    ours, hand = read(path)
    assert (ours["bench"], ours["images"], ours["steps"], ours["contender"]) == ("epoch", 8, 2, "kdkit")
    assert hand["difference"] < 0.05
    page = performance.page([{key: value for key, value in ours.items() if key != "quick"} | {"ms": [1e3] * 3}])
    machine = ours["machine"].removesuffix(" Processor")
    assert f"| epoch, its first 8 images{told} | kd | live | {machine} | 1e+03 | 2 s |" in page
