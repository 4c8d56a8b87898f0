"""Runs' folders made by hand, one of them as hostile as text can be."""

import json
import struct
import zlib

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
RICH = """\
# rich, resolved, protocol cifar100_240 merged
models:
  teacher: {arch: resnet56, weights: teacher_resnet56_cifar100}
  assistant: {arch: resnet32, weights: /secret/folder/assistant.pth, frozen: true}
  student: {arch: resnet20}
  peer: {arch: timm/vit_tiny_patch16_224, options: {img_size: 32}}
  slow: {ema: student}
losses:
- ce: {weight: 0.1}
- kd: {weight: 0.9, temperature: 4.0, to: student}
- at: {taps: stages, weight: {share: 0.3}, from: teacher, to: student}
- hint: {from: teacher.stage2, to: student.layer2.1, head: conv_bn_relu, weight: 100}
- kd: {name: fading, from: assistant, to: student, weight: {cosine: [1.0, 0.0]}, when: {from: 10, to: 40}}
- dml: {among: [student, peer], weight: 1}
- kd: {name: from_slow, from: slow, to: student, weight: 0.5}
- /secret/folder/my_loss.py:CorrelationLoss: {weight: 2, to: student}
data: {name: cifar100, batch_size: 64, root: /secret/folder/data}
optimizer: {name: sgd, momentum: 0.9}
lr: {multistep: {start: 0.05, at: [0.625, 0.75, 0.875]}}
trainer: {max_epochs: 60, accelerator: cpu}
seed: 3
"""


def png():
    """A picture of 2×2 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes([200, 120, 40] * 2) for _ in range(2))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def run(folder, *, recipe=RICH, epochs=60, finished=True, compare=True, word="nothing"):
    """A run's folder; `word` stands wherever a run can say what it likes."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe)
    columns = ["loss/ce", "loss/kd", "loss/at", "lr/student", "weight/at", f"share/{word.replace(',', '')}"]
    columns += ["val/student/top1", "val/student/nll", "val/teacher/top1", "val/peer/top1"]
    lines = [",".join(["epoch", "step", *(f'"{c.replace(chr(34), chr(34) * 2)}"' for c in columns)])]
    for e in range(1, epochs + 1):
        p = e / epochs
        values = [4.6 - 3.4 * p, 40 * (1 - 0.9 * p), 0.004 * (1 - 0.5 * p), 0.05 * 0.1 ** int(4 * p), 900, 0.3]
        values += [0.69 * p**0.4, 4.6 - 3.2 * p, 0.7234 if e == 1 else "", 0.66 * p**0.5]
        lines.append(",".join(map(str, [e, e * 782, *values])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    told = {"versions": {"python": "3.11.7", "kdkit": "0.1.0"}, "commit": "0123456789ab+", "seed": 3, "content": "c"}
    machine = {"system": "Linux x86_64", "processor": word, "threads": 8, "gpus": [f"A GPU {word}"]}
    started = "2026-11-21T12:00:00+00:00"
    (folder / "provenance.json").write_text(json.dumps({**told, "machine": machine, "started": started}))
    if finished:
        last = {"teacher": {"top1": 0.7234}, "student": {"top1": 0.6912, "nll": None}, "peer": {"top1": 0.66}}
        best = {"student": {"top1": 0.6955, "epoch": 57}}
        (folder / "result.json").write_text(json.dumps({"last": last, "best": best, "epochs": epochs, "minutes": 75.2}))
        scored = {"student": {"top1": 0.6912, "ece": 0.081, "by_class": {word: 0.5}}}
        (folder / "eval.json").write_text(json.dumps({f"test {word}": scored}))
        (folder / "latency.json").write_text(
            json.dumps({"device": word, "times": [{"name": word, "batch": 1, "median_ms": 0.3}]})
        )
    if compare:
        (folder / "compare").mkdir()
        (folder / "compare" / "cka.png").write_bytes(png())
        models = {"teacher": {"top1": 0.72, "ece": 0.1}, word: {"top1": 0.69, "ece": 0.08}}
        numbers = {
            "teacher": word,
            "models": models,
            "students": {word: {"agreement": 0.8, "kl": 0.4, "cka": {"a": 1}}},
        }
        figures = ["cka.png", "gone.png", f"cases_{word}.png", "../../../secret.png"]
        (folder / "compare" / "compare.json").write_text(json.dumps({**numbers, "figures": figures}))
    return folder
