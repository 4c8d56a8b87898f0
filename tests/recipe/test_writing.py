"""Resolved recipes, their hashes, and the JSON Schema."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from kdkit.data import files
from kdkit.data.folder import POLICIES
from kdkit.recipe import Recipe, content_key, fingerprint, json_schema, load, loads, resolved, source, tuning
from kdkit.recipe.code_text import own_module
from kdkit.runs.portable import portable

TEXT = """\
data: {name: digits, batch_size: 32}
models:
  teacher: {arch: resnet20, weights: teacher_digits}
  student: {arch: resnet8, optimizer: {name: adamw}, lr: {cosine: [1e-3, 0]}, when: {from: 1}}
  slow: {ema: student, decay: 0.99}
losses:
  - ce
  - kd: {weight: {linear: [1, 0.5]}, temperature: 4}
  - kd: {name: self, from: slow, when: {from: 0.5}, clip: 1}
  - hint: {from: teacher.stage2, to: student.stage2, head: {linear: {bias: false}}}
optimizer: {name: sgd, momentum: 0.9}
lr: 0.1
trainer: {max_epochs: 10, devices: 1}
seed: 3
"""


def changed(*overrides: str) -> Recipe:
    return loads(TEXT, overrides=overrides)


def test_a_resolved_recipe_loads_again_as_the_same(tmp_path: Path):
    recipe = changed()
    (tmp_path / "run.yaml").write_text(resolved(recipe))
    again = load(tmp_path / "run.yaml")
    assert again == recipe
    assert content_key(again) == content_key(recipe)
    assert resolved(again).split("\n", 1)[1] == resolved(recipe).split("\n", 1)[1]
    assert recipe != changed("losses.kd.temperature=3")


def test_a_resolved_recipe_stands_alone():
    text = resolved(load("crd_inbatch_cifar100", ["losses.crd_inbatch.temperature=0.1"]))
    assert text.startswith("# crd_inbatch_cifar100, resolved, protocol cifar100_240 merged\n")
    words = yaml.safe_load(text)
    assert "protocol" not in words
    assert words["trainer"] == {"max_epochs": 240}
    loss = words["losses"][1]["crd_inbatch"]
    assert (loss["weight"], loss["temperature"], loss["embed_dim"]) == (0.8, 0.1, 128)  # defaults are written out


def test_packaged_recipes_keep_their_bare_names():
    assert "weights: teacher_digits}" in resolved(load("kd_digits"))


def test_a_folder_of_data_is_found_from_anywhere_and_changes_no_key(tmp_path: Path, monkeypatch):
    (tmp_path / "here" / "photos").mkdir(parents=True)
    (tmp_path / "there" / "more").mkdir(parents=True)
    monkeypatch.setenv("KDKIT_DATA", str(tmp_path / "there"))
    monkeypatch.chdir(tmp_path / "here")
    text = TEXT.replace("name: digits", "name: folder, holdout: 0.1, root: photos")
    recipe = loads(text)
    assert recipe.data.arguments["root"] == str(tmp_path / "here" / "photos")
    assert loads(text, overrides=["data.root=more"]).data.arguments["root"] == str(tmp_path / "there" / "more")
    monkeypatch.chdir("/")
    assert loads(resolved(recipe)) == recipe
    other = loads(text, overrides=["data.root=/data/photos"])
    assert (content_key(other), fingerprint(other)) == (content_key(recipe), fingerprint(recipe))


def photographs(folder: Path, size: int) -> Path:
    for name in ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/2.jpg", "val/dog/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    return folder


def test_a_folder_of_images_is_known_by_them_and_not_by_where_it_lies(tmp_path: Path):
    def keys(folder: Path, *more: str) -> tuple[str, str]:
        recipe = changed("data.name=folder", f"data.root={folder}", *more)
        return content_key(recipe), fingerprint(recipe)

    first = photographs(tmp_path / "first", 5)
    same, other = (photographs(tmp_path / name, size) for name, size in (("moved", 5), ("other", 6)))
    found = keys(first)
    assert keys(same) == found
    assert not set(keys(other)) & set(found)
    assert keys(other, "data.fake=true") == keys(first, "data.fake=true")
    assert not set(keys(tmp_path / "gone")) & set(found)
    (first / "notes.txt").write_text("no image")
    assert keys(first) == found
    (first / "train" / "dog" / "more.jpg").write_bytes(b"")
    assert not set(keys(first)) & set(found)


@pytest.mark.parametrize("labels", ["true", "false"])
def test_what_is_not_read_beside_the_images_of_a_folder_is_no_part_of_it(tmp_path: Path, labels):
    def keys(folder: Path) -> tuple[str, str]:
        recipe = changed("data.name=folder", f"data.root={folder}", f"data.labels={labels}")
        return content_key(recipe), fingerprint(recipe)

    first, other = (photographs(tmp_path / name, size) for name, size in (("first", 5), ("other", 6)))
    found = keys(first)
    for folder in (first, other):
        (folder / "runs" / "mine").mkdir(parents=True)
        (folder / "runs" / "mine" / "curves.png").write_bytes(b"of a run")
        (folder / "test").symlink_to("val")
    assert keys(first) == found
    assert not set(keys(other)) & set(found)
    for folder in (first, other):
        (folder / "train" / "cat" / "lost.jpg").symlink_to("nowhere")
    assert not {*keys(first), *found} & set(keys(other))


def test_a_folder_of_images_is_looked_through_once(tmp_path: Path, monkeypatch):
    folder, looked = photographs(tmp_path, 5), []
    monkeypatch.setattr(files, "find_images", lambda half, its=files.find_images: looked.append(half.name) or its(half))
    first = [files.listing(folder) for _ in range(3)]
    assert len({*first}) == 1
    assert looked == ["train", "val"]
    found = {*first}
    for tick, name in enumerate(("deep/3.jpg", "deep/4.jpg", "5.jpg")):
        image = folder / "train" / "cat" / name
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(b"")
        for written in (image.parent, folder / "train" / "cat"):
            os.utime(written, ns=(tick, tick))  # two writes in one tick of the clock would look like one
        found.add(files.listing(folder))
    assert len(found) == 4


def test_files_beside_a_recipe_are_found_from_anywhere(tmp_path: Path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, num_classes): super().__init__(nn.Flatten(), nn.Linear(768, num_classes))\n"
        "class Loss(nn.Module):\n"
        "    def forward(self, student, teacher): return (student - teacher).abs().mean()\n"
    )
    (tmp_path / "teacher.pth").write_bytes(b"x")
    text = TEXT.replace("teacher_digits", "teacher.pth").replace("arch: resnet8", "arch: mine.py:Net")
    (tmp_path / "r.yaml").write_text(text.replace("- ce", "- ce\n  - mine.py:Loss: {weight: 2}"))
    recipe = load(tmp_path / "r.yaml", ["losses.Loss.weight=3"])
    monkeypatch.chdir("/")
    again = loads(resolved(recipe))
    assert again == recipe
    assert again.models["student"].arch == f"{tmp_path / 'mine.py'}:Net"
    assert again.losses[1].title == "Loss"
    key = content_key(recipe)
    (tmp_path / "teacher.pth").write_bytes(b"y")
    assert content_key(recipe) != key  # what a file holds counts
    (tmp_path / "moved").mkdir()
    for name in ("mine.py", "teacher.pth", "r.yaml"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert content_key(load(tmp_path / "moved" / "r.yaml", ["losses.Loss.weight=3"])) != key
    (tmp_path / "moved" / "teacher.pth").write_bytes(b"x")
    assert (
        content_key(load(tmp_path / "moved" / "r.yaml", ["losses.Loss.weight=3"])) == key
    )  # and where it lies does not


HELPERS = {
    "net.py": "import helper\nfrom parts.first import one\ndef make(num_classes): return None\n",
    "helper.py": "import net, json\n",
    "parts/__init__.py": "",
    "parts/first.py": "from . import second\none = 1\n",
    "parts/second.py": "two = 2\n",
    "other.py": "three = 3\n",
}


def written(folder: Path, texts: dict[str, str] = HELPERS) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    "student", ["arch: net.py:make", "arch: simkd, options: {backbone: net.py:make, width: 64}, classifier: teacher"]
)
def test_what_code_of_your_own_imports_from_beside_it_counts(tmp_path: Path, student: str):
    def key(folder: Path) -> str:
        (folder / "r.yaml").write_text(TEXT.replace("arch: resnet8", student))
        return content_key(load(folder / "r.yaml"))

    first = written(tmp_path / "first")
    known = {key(first), key(written(tmp_path / "second"))}
    assert len(known) == 1
    for count, name in enumerate(HELPERS, 1):
        (first / name).write_text(HELPERS[name] + "# changed\n")
        known.add(key(first))
        assert len(known) == 1 + min(count, 5), name  # nobody imports the last


PACKAGE = {
    "helper.py": "two = 2\n",
    "nets_of_mine/__init__.py": "",
    "nets_of_mine/deep/net.py": "import helper\nfrom nets_of_mine import shared\ndef make(num_classes): return None\n",
    "nets_of_mine/shared.py": "from .deep import other\n",
    "nets_of_mine/deep/other.py": "one = 1\n",
    "nets_of_mine/unused.py": "three = 3\n",
}


def test_so_does_a_package_that_nobody_installed(tmp_path: Path, monkeypatch):
    def key(folder: Path, arch: str = "nets_of_mine.deep.net:make") -> str:
        (folder / "r.yaml").write_text(TEXT.replace("resnet8", arch))
        return content_key(load(folder / "r.yaml"))

    first, second = (written(tmp_path / name, PACKAGE) for name in ("first", "second"))
    known = {key(first), key(second)}
    assert len(known) == 1
    monkeypatch.chdir(second)
    (elsewhere := tmp_path / "recipes").mkdir()
    assert key(elsewhere) in known  # the working directory's
    for count, name in enumerate(PACKAGE, 1):
        (first / name).write_text(PACKAGE[name] + "# changed\n")
        known.add(key(first))
        assert len(known) == 1 + min(count, 5), name  # nobody imports the last
    assert "nets_of_mine" not in sys.modules
    for name in ("torchvision.models:resnet18", "timm:create_model", "nowhere.at_all:Net", "__main__:Net"):
        assert own_module(name.partition(":")[0], first) is None
    assert own_module("helper", first) == (first / "helper.py", first)
    assert own_module("nets_of_mine", first) == (first / "nets_of_mine/__init__.py", first)
    for folder in (first, second):
        (folder / "nets_of_mine/__init__.py").unlink()
    assert own_module("nets_of_mine.shared", first) == (first / "nets_of_mine/shared.py", first)


def test_a_file_beside_the_recipe_goes_before_one_in_the_working_directory(tmp_path: Path, monkeypatch):
    for folder in ("beside", "here"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "both.pth").write_bytes(b"x")
    (tmp_path / "here" / "one.pth").write_bytes(b"x")
    (tmp_path / "beside" / "r.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path / "here")

    def weights(name: str) -> str | None:
        return load("../beside/r.yaml", [f"models.teacher.weights={name}"]).models["teacher"].weights

    assert weights("both.pth") == str(tmp_path / "beside" / "both.pth")
    assert weights("one.pth") == str(tmp_path / "here" / "one.pth")


@pytest.mark.parametrize(
    "override",
    [
        "seed=4",
        "lr=0.2",
        "trainer.max_epochs=11",
        "trainer.precision=bf16-mixed",
        "data.batch_size=16",
        "models.student.arch=resnet14",
        "models.teacher.weights=random",
        "optimizer.momentum=0.8",
    ],
)
def test_both_hashes_see_what_determines_a_result(override):
    assert content_key(changed(override)) != content_key(changed())
    assert fingerprint(changed(override)) != fingerprint(changed())


@pytest.mark.parametrize("override", ["losses.kd.temperature=3", "losses=[ce]", "losses.hint.head=linear"])
def test_the_fingerprint_leaves_out_the_method(override):
    assert content_key(changed(override)) != content_key(changed())
    assert fingerprint(changed(override)) == fingerprint(changed())


@pytest.mark.parametrize(
    "override",
    [
        "data.root=/elsewhere",
        "data.eval_batch_size=7",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
        "trainer.strategy=ddp",
        "trainer.num_nodes=2",
        "trainer.channels_last=false",
        "trainer.compile=true",
        "trainer.deterministic=true",
        "trainer.benchmark=true",
        "trainer.logger=tensorboard",
    ],
)
def test_no_hash_sees_the_machine(override):
    assert content_key(changed(override)) == content_key(changed())
    assert fingerprint(changed(override)) == fingerprint(changed())


@pytest.mark.parametrize(("name", "word"), [("folder", "num_workers=3"), ("cifar100", "download=true")])
def test_no_hash_sees_how_images_are_fetched(name, word, tmp_path: Path):
    here = [f"data.name={name}", f"data.root={tmp_path}"]
    assert content_key(changed(*here, f"data.{word}")) == content_key(changed(*here))
    assert fingerprint(changed(*here, f"data.{word}")) == fingerprint(changed(*here))


PEERS = "protocol: digits_20\nmodels: {a: {arch: resnet8}, b: {arch: resnet8}}\nlosses: [ce, dml: {among: [a, b]}]\n"


@pytest.mark.parametrize("words", ["balance: equal_share", "cohort: {join: {b: {epoch: 3}}}", "stages: [{train: [a]}]"])
def test_how_losses_are_weighed_and_who_takes_part_is_the_method(words):
    plain, other = loads(PEERS), loads(PEERS + words)
    assert content_key(other) != content_key(plain)
    assert fingerprint(other) == fingerprint(plain)


def test_a_cache_of_some_logits_is_another_teacher_and_one_of_all_is_none():
    assert fingerprint(changed("models.teacher.cache=true")) == fingerprint(changed())
    assert fingerprint(changed("models.teacher.cache={dtype: float32}")) == fingerprint(changed())
    assert fingerprint(changed("models.teacher.cache={top_k: 3}")) != fingerprint(changed())


def test_a_teachers_recipe_counts_by_what_it_says_and_not_by_its_name(tmp_path: Path):
    (tmp_path / "t.yaml").write_text(
        PEERS.replace("{a: {arch: resnet8}, b: {arch: resnet8}}", "{a: {arch: resnet8}}").replace(
            ", dml: {among: [a, b]}", ""
        )
    )
    (tmp_path / "same.yaml").write_text((tmp_path / "t.yaml").read_text())
    (tmp_path / "other.yaml").write_text((tmp_path / "t.yaml").read_text() + "seed: 5\n")
    keys = [
        (content_key(recipe), fingerprint(recipe))
        for name in ("t", "same", "other")
        for recipe in [loads(TEXT.replace("teacher_digits", name), folder=tmp_path)]
    ]
    assert keys[0] == keys[1]
    assert not {*keys[0]} & {*keys[2]}


def test_how_a_number_is_written_does_not_matter():
    assert content_key(changed("lr=1")) == content_key(changed("lr=1.0"))
    assert content_key(changed("lr=1e-1")) == content_key(changed())
    assert content_key(changed("lr={linear: [1, 0]}")) == content_key(changed("lr={linear: [1.0, 0e0]}"))


def test_machine_and_data_folder_pass_down_to_a_teachers_recipe_and_nothing_else():
    recipe = changed("data.root=/data", "trainer.accelerator=cpu", "trainer.precision=bf16-mixed")
    teacher = source(recipe, "teacher")
    assert teacher.name == "teacher_digits"
    assert teacher.data.arguments["root"] == "/data"
    assert (teacher.trainer.accelerator, teacher.trainer.devices) == ("cpu", 1)
    assert (teacher.seed, teacher.trainer.precision) == (0, "32-true")
    assert teacher.trainer.max_epochs == load("teacher_digits").trainer.max_epochs
    assert content_key(teacher) == content_key(load("teacher_digits"))
    far = source(changed("trainer.strategy=ddp", "trainer.num_nodes=2"), "teacher").trainer
    assert (far.strategy, far.num_nodes) == ("ddp", 2)
    other = loads(TEXT.replace("name: digits", "name: fake"), overrides=["data.root=/data"])
    assert "root" not in source(other, "teacher").data.arguments  # another data set lies elsewhere


def test_a_teachers_recipe_keeps_its_machine_where_nothing_is_said(tmp_path: Path):
    (tmp_path / "t.yaml").write_text(
        "protocol: digits_20\nmodels: {a: {arch: resnet20}}\nlosses: [ce]\ntrainer: {devices: 1}\n"
    )
    text = TEXT.replace("teacher_digits", "t").replace(", devices: 1", "")
    assert source(loads(text, folder=tmp_path), "teacher").trainer.devices == 1


def test_tuning_is_a_recipe_of_its_own():
    text = TEXT.replace("weights: teacher_digits", "weights: random, image_size: 32, tune: {epochs: 5, lr: 1e-4}")
    recipe = tuning(loads(text, overrides=["data.root=/data", "trainer.precision=bf16-mixed"]), "teacher")
    assert recipe.name == "tune_resnet20_digits"
    assert recipe.trained == ["teacher"]
    assert [edge.loss for edge in recipe.losses] == ["ce"]
    assert (recipe.trainer.max_epochs, recipe.trainer.precision, recipe.trainer.devices) == (5, "bf16-mixed", 1)
    assert (recipe.lr, recipe.optimizer.name, recipe.seed) == (1e-4, "adamw", 0)
    assert recipe.optimizer.arguments == {"weight_decay": 0.05}
    assert recipe.data.arguments == {"batch_size": 32, "root": "/data"}
    assert recipe.models["teacher"].image_size == 32
    own = loads(text.replace("1e-4}", "1e-4, optimizer: {name: sgd, nesterov: true, momentum: 0.9}}"))
    assert tuning(own, "teacher").optimizer.arguments == {"nesterov": True, "momentum": 0.9}
    said = loads(text, overrides=["models.teacher.frozen=true"])
    assert tuning(said, "teacher").trained == ["teacher"]
    kept = loads(text, overrides=["models.teacher.cache=true"])  # what learns cannot be kept
    assert tuning(kept, "teacher").models["teacher"].cache is None


def test_the_schema_knows_every_loss_optimiser_and_data_set():
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    losses = schema["$defs"]["Loss"]["anyOf"][1]["properties"]
    assert {"weight", "from", "to", "head", "temperature"} <= losses["kd"]["properties"].keys()
    assert losses["kd"]["additionalProperties"] is False
    names = {one["properties"]["name"]["const"] for one in schema["$defs"]["OptimizerSpec"]["anyOf"]}
    assert {"sgd", "adamw"} <= names
    data = {one["properties"]["name"]["const"]: one["properties"] for one in schema["$defs"]["DataSpec"]["anyOf"]}
    assert {"cifar100", "folder"} <= data.keys()
    assert data["folder"]["policy"]["anyOf"][0]["enum"] == sorted(POLICIES)
    refs = {part.split('"')[0] for part in json.dumps(schema).split('"#/$defs/')[1:]}
    assert refs <= schema["$defs"].keys()
    assert schema["required"] == ["models"]  # the losses may come with stages


def test_guards_leave_this_machine_with_a_recipe_and_are_no_part_of_what_comes_out():
    """A run of a weak teacher could not be made again from its card."""
    guarded = changed("trainer.check_teachers=false", "trainer.on_nonfinite=skip", "trainer.accelerator=cpu")
    trainer = portable(yaml.safe_load(resolved(guarded)))["trainer"]
    assert trainer == {"max_epochs": 10, "check_teachers": False, "on_nonfinite": "skip"}
    assert content_key(guarded) == content_key(changed())
    assert fingerprint(guarded) == fingerprint(changed())


def test_one_batch_and_all_of_them_are_two_keys():
    for word in ("trainer.limit_train_batches", "trainer.limit_val_batches"):
        one, whole = changed(f"{word}=1"), changed(f"{word}=1.0")
        assert content_key(one) != content_key(whole)
        assert content_key(changed(f"{word}=2")) != content_key(one)


def test_the_order_of_turns_is_part_of_a_run():
    text = "protocol: digits_20\nmodels: {MODELS}\nlosses: [ce, dml: {among: [a, b]}]\n"
    nets = ["a: {arch: resnet8}", "b: {arch: resnet14}"]
    both = [text.replace("MODELS", ", ".join(order)) for order in (nets, nets[::-1])]
    assert len({content_key(loads(one)) for one in both}) == 1
    assert len({content_key(loads(one, overrides=["trainer.update=sequential"])) for one in both}) == 2
