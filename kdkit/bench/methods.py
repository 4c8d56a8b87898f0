"""What a method of a suite is: losses, and the models, stages and other words that come with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdkit.bench.items import as_item
from kdkit.bench.suite import ALONE, OTHERS, TEACHER, Method, Read
from kdkit.recipe import Recipe, load, packaged
from kdkit.recipe.errors import Mark, Problem, RecipeError
from kdkit.recipe.find import find_protocol
from kdkit.recipe.load import with_protocol
from kdkit.recipe.named import find_loss
from kdkit.recipe.syntax import Item, read
from kdkit.recipe.tree import normalise
from kdkit.registry import KdkitError, nearest, reads

MINE = {"losses", "models", "trainer", *OTHERS}  # words of a method's recipe that come along
THEIRS = {"protocol", "seed"}  # words that the suite has of its own
NET = {"arch", "weights", "tune", "num_classes", "options", "cache", "mean", "std", "image_size"}  # of a pair's model
PACE = ("optimizer", "lr")  # how a model learns, which is one for all methods


@dataclass(frozen=True)
class Template:
    """What is a method's own, before a pair's models are put into it.

    Attributes:
        losses: as in a recipe.
        models: of its recipe; none where the losses alone say which they need.
        others: more words of a recipe.
    """

    losses: Item
    models: dict[str, Item] = field(default_factory=dict)
    others: dict[str, Item] = field(default_factory=dict)

    def between(self, teacher: Item, student: Item, folder: Path, mark: Mark) -> dict[str, Item]:
        """Its models, with a pair's teacher and student where it has its own.

        Every model that is the same net as its `student` and is trained is the pair's student, too; likewise every
        frozen one that is the same as `teacher`.

        Args:
            teacher: of the pair.
            student: of the pair.
            folder: where losses are looked up.
            mark: where the pair stands.
        """
        if not self.models:
            models = {"student": student}
            return {"teacher": teacher, **models} if _taught(self.losses, folder, mark) else models
        return {name: self._placed(name, words, teacher, student) for name, words in self.models.items()}

    def _placed(self, name: str, words: Item, teacher: Item, student: Item) -> Item:
        if self._is(TEACHER, name):
            return _instead(words, teacher)
        if not self._is(ALONE, name):
            return words
        options = words.plain.get("options", {})
        return _around(words, student) if "backbone" in options else _instead(words, student)

    def _is(self, whose: str, name: str) -> bool:
        """Whether a model is the one of that name, or said alike; a slow copy is of none but its source."""
        if "arch" not in self.models[name].value or whose not in self.models:
            return False
        return _net(name, self.models[name]) == _net(whose, self.models[whose])


def _net(name: str, words: Item) -> tuple[dict[str, Any], bool]:
    """Which net a model is, and whether it stays as it is."""
    said = {key: part for key, part in words.plain.items() if key in NET and key != "cache"}
    return said, bool(words.plain.get("frozen", name.startswith(TEACHER)))


def _instead(words: Item, model: Item) -> Item:
    """A pair's model, with what a method says of how it takes part."""
    return Item({**{key: part for key, part in words.value.items() if key not in NET}, **model.value}, model.mark)


def _around(words: Item, model: Item) -> Item:
    """A net around another one, which is a pair's model."""
    options = words.plain["options"]
    if model.plain.get("weights", "random") != "random":
        message = f"the student loses its weights inside {words.plain['arch']}; leave them out, or that method"
        raise RecipeError([Problem.at(model.mark, "pairs", message)])
    inner: Any = model.plain["arch"]
    if model.plain.get("options"):
        inner = {"arch": inner, **model.plain["options"]}
    around = as_item({**options, "backbone": inner}, words.mark)
    return Item({**_instead(words, model).value, "arch": words.value["arch"], "options": around}, words.mark)


def template(read_suite: Read, method: Method) -> Template:
    """What a method's name, its recipe or its losses in the suite mean.

    Raises:
        RecipeError: no such recipe, or one that is not a method's alone.
    """
    if method.losses is not None:
        return Template(method.losses)
    if method.file is not None:
        return _of_file(method, method.file)
    if method.name == ALONE:
        return Template(as_item(["ce"], method.mark))
    path = _packaged(read_suite, method)
    if found := list(_without_student(load(path), method.mark)):
        raise RecipeError(found)
    return _of_words(with_protocol(read(path), path.parent)[0])


def protocol(read_suite: Read) -> Item:
    """The words of a suite's protocol."""
    word = read_suite.tree.value["protocol"]
    path = find_protocol(str(word.value), read_suite.folder)
    if path is None:  # told with its nearest names where the first recipe is made
        raise RecipeError([Problem.at(word.mark, "protocol", f"no protocol is called {word.value!r}")])
    found = read(path)
    for told in ("data.name", "trainer.max_epochs"):
        section, _, key = told.partition(".")
        if (words := found.child(section)) is None or words.child(key) is None:
            message = f"a suite's protocol says {told}, and {word.value} does not; say it there"
            raise RecipeError([Problem.at(word.mark, "protocol", message)])
    return found


def _of_words(whole: Item) -> Template:
    others = {word: whole.value[word] for word in OTHERS if word in whole.value}
    update = whole.value["trainer"].child("update") if "trainer" in whole.value else None
    if update is not None:
        others["trainer"] = Item({"update": update}, update.mark)
    losses = whole.value.get("losses") or Item([], whole.mark)  # its stages may have them all
    return Template(losses, dict(whole.value["models"].value), others)


def _of_file(method: Method, file: Path) -> Template:
    recipe = load(file)  # what is wrong with it by itself is told first
    tree = read(file)
    if found := list(_not_a_methods(tree, recipe)):
        raise RecipeError(found)
    return _of_words(tree)


def _not_a_methods(tree: Item, recipe: Recipe) -> Iterator[Problem]:
    said = "is one for all methods of a suite, which its protocol and `overrides` say; leave it out here"
    for word, item in tree.value.items():
        if word not in MINE | THEIRS:
            yield Problem.at(item.mark, word, said)
    for word, item in tree.value["trainer"].value.items() if "trainer" in tree.value else ():
        if word != "update":
            yield Problem.at(item.mark, f"trainer.{word}", said)
    yield from _in_its_protocol(tree, recipe.origin.folder)
    models = tree.child("models")
    yield from _without_student(recipe, (models or tree).mark)
    student = models and models.child(ALONE)
    for word in PACE:
        if student is not None and (item := student.child(word)) is not None:
            yield Problem.at(item.mark, f"models.{ALONE}.{word}", said)


def _in_its_protocol(tree: Item, folder: Path) -> Iterator[Problem]:
    """What of a method a suite would not see, for it has a protocol of its own."""
    word = tree.child("protocol")
    path = find_protocol(str(word.value), folder) if word is not None and word.value is not None else None
    under = dict(read(path).value) if path is not None else {}
    if (update := under.pop("trainer", Item({}, tree.mark)).child("update")) is not None:
        under["trainer.update"] = update
    for word, item in under.items():
        if word in {*MINE, "trainer.update"}:
            message = "is a method's own, and a suite has a protocol of its own; say it in the method's recipe"
            yield Problem.at(item.mark, word, message)


def _without_student(recipe: Recipe, mark: Mark) -> Iterator[Problem]:
    if ALONE not in recipe.trained:
        message = f"a suite puts its pairs' students in place of the trained model `{ALONE}`, and {recipe.name} trains"
        yield Problem.at(mark, "models", f"{message} {', '.join(recipe.trained)}")


def _packaged(read_suite: Read, method: Method) -> Path:
    known = {info.name: info.path for info in packaged()}
    data = protocol(read_suite).value["data"].plain["name"]
    wanted = (method.name, f"{method.name}_{data}", f"{method.name}_cifar100")
    path = next((known[name] for name in wanted if name in known), None)
    if path is None:
        methods = list(dict.fromkeys(name.rpartition("_")[0] for name in known))
        hint = nearest(method.name, methods) or "; `kdkit recipes` lists them"
        if (read_suite.folder / f"{method.name}.yaml").is_file():
            hint = f"; did you mean {method.name}.yaml? A file is given with its ending"
        message = (
            f"no packaged recipe is called {wanted[1]!r}{hint}\n  or write its losses out: `{method.name}: [ce, …]`"
        )
        raise RecipeError([Problem.at(method.mark, f"methods.{method.name}", message)])
    return path


def _taught(losses: Item, folder: Path, mark: Mark) -> bool:
    """Whether a loss asks for a teacher."""
    for edge in normalise(Item({"losses": losses}, mark)).value["losses"].value:
        try:
            cls, _ = find_loss(str(edge.value["loss"].value), folder)
        except KdkitError as error:
            raise RecipeError([Problem.at(edge.mark, "methods", str(error))]) from None
        if any(word.startswith(TEACHER) for word in reads(cls)):
            return True
    return False
