"""A suite of seconds: tiny nets, a few of the bundled digits."""

TINY = """\
protocol: digits_20
pairs: [{teacher: resnet8, student: {arch: resnet8, options: {widths: [4, 4, 8, 16]}}, name: tiny}]
methods: [student, kd]
seeds: 2
overrides: [data.subset=64, data.batch_size=32, trainer.max_epochs=2, trainer.check_teachers=false, data.image_size=8]
"""


def write(folder, text=TINY, name="suite"):
    path = folder / f"{name}.yaml"
    path.write_text(text, encoding="utf-8")
    return path
