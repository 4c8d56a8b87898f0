"""From a suite to its runs: a recipe for every pair, method and seed, and one for every teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kdkit.bench.items import as_item, as_model, slug, told
from kdkit.bench.methods import Template, protocol, template
from kdkit.bench.overrides import changes, check_overrides, concerns
from kdkit.bench.suite import TEACHER, Method, Pair, Read
from kdkit.recipe import Recipe, code_of, content_key, fingerprint, load, loads, of_tree, packaged, resolved, source
from kdkit.recipe.errors import Mark, Problem, RecipeError
from kdkit.recipe.own_code import PAPERS
from kdkit.recipe.schema import Origin
from kdkit.recipe.syntax import Item
from kdkit.recipe.tree import edge_name, normalise
from kdkit.registry import KdkitError


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        pair: its title.
        method: its name; `teacher` for the run that makes the pair's teacher.
        seed: of the run.
        recipe: whole.
        content: the key of all that determines the result.
        column: the fingerprint of all but method and seed; only cells that share it may be compared.
        protocol: its name.
        protocol_epochs: length of a run where no override changes it.
        ends: the pair's teacher and student, their architectures, with options if they have any.
        node: the model that the table is about.
        needs: content of the teacher's run that comes first, if the suite trains it.
        changes: overrides of the suite that changed what it learns.
        written: whether its losses are written out in the suite or beside it.
        told: more words for its row: those of a `trial` of `kdkit tune`, or of how it was `tuned`.
    """

    pair: str
    method: str
    seed: int
    recipe: Recipe
    content: str
    column: str
    protocol: str
    protocol_epochs: int
    ends: tuple[str, str]
    node: str
    needs: str | None = None
    changes: tuple[str, ...] = ()
    written: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trial(self) -> bool:
        """Whether it is scored on held-out training images."""
        return "trial" in self.told

    @property
    def key(self) -> tuple[str, str]:
        """What makes it the same run in the same column."""
        return self.content, self.column + mark(self.told)

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process as text: the classes that check a recipe are made at run time."""
        words = {part.name: getattr(self, part.name) for part in fields(self)}
        return _again, ({**words, "recipe": resolved(self.recipe)}, self.recipe.origin)


def mark(words: Mapping[str, Any]) -> str:
    """What tells a tuned run from the published one, which may be the same, and from one of fewer trials; a study's."""
    return f"*{words['tuned']['trials']}" if "tuned" in words else f"#{words['study']}" if "study" in words else ""


def _again(words: dict[str, Any], of: Origin) -> Cell:
    return Cell(**{**words, "recipe": loads(words["recipe"], name=of.name, folder=of.folder, lines=of.tree)})


def expand(read_suite: Read, teachers: Path) -> list[Cell]:
    """Every run of a suite, in the order of what its table needs most: all methods of a seed, then the next seed.

    Args:
        read_suite: the suite.
        teachers: the folder that recipes of teachers are written to.

    Raises:
        RecipeError: all that is wrong with any of its recipes.
    """
    suite = read_suite.suite
    found: list[Problem] = []
    first: list[list[Cell]] = []
    for i, pair in enumerate(suite.pairs):
        try:
            first.append(list(_column(read_suite, i, pair, teachers)))
        except RecipeError as error:
            found += error.problems
    if found:
        raise RecipeError(found)
    check_overrides(read_suite, [cell.recipe for column in first for cell in column])
    for column in first:
        _check_twins(read_suite, column)
    cells = [cell for column in first for cell in column if cell.method == TEACHER or cell.seed == read_suite.seeds[0]]
    for seed in read_suite.seeds[1:]:
        cells += [reseeded(cell, seed) for column in first for cell in column if cell.method != TEACHER]
    return cells


def _check_twins(read_suite: Read, column: list[Cell]) -> None:
    """Two methods of one pair that are the same run would share one row."""
    seen: dict[str, str] = {}
    for cell in column:
        if (twin := seen.setdefault(cell.content, cell.method)) != cell.method:
            message = f"{cell.method} and {twin} are the same recipe for {cell.pair}; leave one of them out"
            raise RecipeError([Problem.at(read_suite.tree.value["methods"].mark, "methods", message)])


def _column(read_suite: Read, i: int, pair: Pair, teachers: Path) -> Iterator[Cell]:
    """The teacher and every method of a pair, with the first seed."""
    item = read_suite.tree.value["pairs"].value[i]
    teacher = as_model(item.value["teacher"])
    student = as_model(item.value["student"])
    make = _Maker(read_suite, pair, item.mark)
    trains = "weights" not in teacher.value
    if trains:
        losses = Item([Item("ce", item.mark)], item.mark)
        made = make.recipe(f"{slug(teacher)}_{read_suite.suite.protocol}", {"net": teacher}, losses, teacher=True)
        weights = _published(made) or str(_written(made, teachers))
        teacher = Item({**teacher.value, "weights": Item(weights, item.mark)}, item.mark)
    usual = Template(as_item(["ce", "kd"], item.mark))
    plain = make.method(Method("kd", item.mark), usual, teacher, student, 0)
    column, needs = fingerprint(plain), None
    ends = (told(teacher), told(student))
    under = read_suite.suite.protocol, _protocol_epochs(read_suite), ends
    if trains:
        made = source(plain, TEACHER)
        needs = content_key(made)
        told_of = changes(read_suite.suite.overrides, made)
        yield Cell(pair.title, TEACHER, made.seed, made, needs, column, *under, made.trained[0], changes=told_of)
    wrong: list[Problem] = []
    for method in read_suite.methods:
        try:
            recipe = make.method(method, template(read_suite, method), teacher, student, read_suite.seeds[0])
        except RecipeError as error:
            wrong += error.problems
            continue
        node = "student" if "student" in recipe.models else recipe.trained[0]
        uses = needs if any(spec.weights == plain.models[TEACHER].weights for spec in recipe.models.values()) else None
        told_of = changes([*read_suite.suite.overrides, *pair.overrides], recipe)
        written, key = method.own, content_key(recipe)
        yield Cell(pair.title, method.name, recipe.seed, recipe, key, column, *under, node, uses, told_of, written)
    if wrong:
        raise RecipeError(wrong)


@dataclass(frozen=True)
class _Maker:
    """Makes the recipes of a pair."""

    read_suite: Read
    pair: Pair
    mark: Mark

    def method(self, method: Method, own: Template, teacher: Item, student: Item, seed: int) -> Recipe:
        """The recipe of one method: its losses, between this pair's models."""
        models = own.between(teacher, student, self.read_suite.folder, self.mark)
        title = f"{self.pair.title}-{method.name}"
        return self.recipe(title, models, own.losses, seed=seed, others=own.others)

    def recipe(
        self,
        name: str,
        models: dict[str, Item],
        losses: Item,
        *,
        seed: int = 0,
        teacher: bool = False,
        others: Mapping[str, Item] | None = None,
    ) -> Recipe:
        """A recipe of the suite's protocol, with those overrides that are about something it has."""
        words = {
            "protocol": self.read_suite.tree.value["protocol"],
            "models": Item(models, self.mark),
            "losses": losses,
        }
        words |= {**(others or {}), "seed": Item(seed, self.mark)}
        root = Item(words, self.read_suite.tree.mark)
        given = [*self.read_suite.suite.overrides, *([] if teacher else self.pair.overrides)]
        titles = [edge_name(edge) for edge in normalise(root).value["losses"].value]
        kept = [text for text in given if concerns(text, list(models), titles, list(others or ()))]
        return of_tree(root, name=name, folder=self.read_suite.folder, overrides=kept, known=())


def _protocol_epochs(read_suite: Read) -> int:
    return int(protocol(read_suite).value["trainer"].plain["max_epochs"])


def _published(recipe: Recipe) -> str | None:
    """The packaged recipe that says the same as a teacher's, whose result may be there already."""
    key = content_key(recipe)
    names = [info.name for info in packaged() if info.name.startswith(f"{TEACHER}_")]
    return next((name for name in names if content_key(load(name)) == key), None)


def _written(recipe: Recipe, folder: Path) -> Path:
    """A file with the recipe; folders of the data and words of the machine come from who asks for its weights."""
    from kdkit.runs.folder import write_json, write_text

    path = (folder / content_key(recipe)[:12] / f"{recipe.name}.yaml").resolve()
    try:
        write_text(path, resolved(recipe))
        if code := code_of(recipe):
            write_json(path.with_name(PAPERS), {"code": code})
    except OSError as error:
        raise KdkitError(
            f"{path.parent} cannot be written ({error.strerror}); give another folder with --out"
        ) from error
    return path


def reseeded(cell: Cell, seed: int) -> Cell:
    """The same run with another seed."""
    recipe = cell.recipe.model_copy(update={"seed": seed})
    return replace(cell, seed=seed, recipe=recipe, content=content_key(recipe))
