"""Stages: recipes in little, one after the other on the same models, told as losses that have a time.

```yaml
stages:
  - {name: hints, epochs: 0.3, losses: [hint: {head: conv_bn_relu}]}
  - {name: learning, losses: [ce, kd]}
```

becomes `losses: [hint: {when: {to: 0.3}, …}, ce: {when: {from: 0.3}}, …]`; of a stage there remain its name,
its time and who learns in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kdkit.recipe.errors import Problem, RecipeError
from kdkit.recipe.syntax import Item
from kdkit.registry import nearest

WORDS = ["name", "epochs", "losses", "train"]
KNOWN = f"; known: {', '.join(WORDS)}"

Edges = Callable[[Item], Item]


def unfold(root: Item, edges: Edges, name_of: Callable[[Item], str]) -> Item:
    """The recipe with the losses of its stages among its `losses`, each with its stage's time.

    Args:
        root: a recipe whose `losses` are normalised.
        edges: normalises a stage's `losses`.
        name_of: what an edge is called.

    Raises:
        RecipeError: lengths that do not go together, losses that are no list or have a time of their own.
    """
    stages = root.value.get("stages") if isinstance(root.value, dict) else None
    if stages is None or not isinstance(stages.value, list):
        return root
    if not all(isinstance(stage.value, dict) for stage in stages.value):
        return root  # the schema tells it, with whatever else is wrong
    above = root.value.get("losses")
    losses = list(above.value) if above is not None and isinstance(above.value, list) else []
    names, kept, start = {name_of(edge) for edge in losses}, [], 0.0
    for i, stage in enumerate(stages.value):
        words = dict(stage.value)
        if "when" in words:  # a resolved recipe: unfolded before
            if late := next((words[word] for word in ("epochs", "losses") if word in words), None):
                message = "a stage has `epochs`, or the time that a run wrote (`when`) and its losses among the others'"
                raise RecipeError([Problem.at(late.mark, f"stages.{i}", message)])
            kept.append(stage)
            continue
        if unknown := [
            Problem.at(value.mark, f"stages.{i}.{word}", f"unknown key {word!r}{nearest(word, WORDS) or KNOWN}")
            for word, value in words.items()
            if word not in WORDS
        ]:
            raise RecipeError(unknown)
        title = words.get("name") or Item(f"stage{i + 1}", stage.mark)
        when, start = _time(words.pop("epochs", None), start, stage, last=i + 1 == len(stages.value))
        for edge in _of_stage(words.pop("losses", None), edges):
            if "when" in edge.value:
                message = (
                    "a stage's losses have its time; leave out `when`, or put the loss under the recipe's `losses`"
                )
                raise RecipeError([Problem.at(edge.value["when"].mark, f"stages.{title.value}.losses", message)])
            name = name_of(edge)
            named = {} if name not in names else {"name": Item(f"{name}_{title.value}", edge.mark)}
            names.add(named["name"].value if named else name)
            losses.append(Item({**edge.value, **named, "when": when}, edge.mark))
        kept.append(Item({"name": title, **words, "when": when}, stage.mark))
    _distinct(kept)
    mark = above.mark if above is not None else stages.mark
    return Item({**root.value, "losses": Item(losses, mark), "stages": Item(kept, stages.mark)}, root.mark)


def _distinct(stages: Sequence[Item]) -> None:
    """Raise `RecipeError` where two are called the same."""
    names = [stage.value["name"] for stage in stages if "name" in stage.value]
    if twice := [
        Problem.at(name.mark, "stages", f"{name.value!r} stands twice; give one of them another name")
        for i, name in enumerate(names)
        if name.value in [before.value for before in names[:i]]
    ]:
        raise RecipeError(twice)


def of_stage(root: Item, loc: tuple[int | str, ...], text: str) -> Problem | None:
    """A problem of a loss's time, where that is its stage's: told of the stage, which is what was written."""
    when = root.deepest(loc)
    for stage in stages.value if (stages := root.child("stages")) is not None else ():
        if stage.child("when") == when:
            told = f"{text.removeprefix('when.from: ')}; shorten the stages before it, or make the run longer"
            return Problem.at(stage.mark, f"stages.{stage.value['name'].value}", told)
    return None


def _of_stage(losses: Item | None, edges: Edges) -> list[Item]:
    if losses is None or losses.value is None:
        return []
    normal = edges(losses)
    if not isinstance(normal.value, list):
        raise RecipeError([Problem.at(losses.mark, "stages", f"losses must be a list, got {losses.plain!r}")])
    return normal.value


def _time(epochs: Item | None, start: float, stage: Item, *, last: bool) -> tuple[Item, float]:
    """A stage's time, and when it ends: lengths are epochs, or shares of the run below 1; the last one may be open."""
    begin = {"from": Item(start, stage.mark)} if start else {}
    if epochs is None or epochs.value is None:
        if not last:
            raise RecipeError([Problem.at(stage.mark, "stages", "only the last stage may do without `epochs`")])
        return Item(begin, stage.mark), start
    length = epochs.value
    if isinstance(length, bool) or not isinstance(length, (int, float)) or length <= 0:
        raise RecipeError([Problem.at(epochs.mark, "stages", f"epochs must be a number above 0, got {epochs.plain!r}")])
    end = round(start + length, 9)
    mixed = (start < 1) != (end < 1) and not (last and end == 1)
    if start and (mixed or length < 1 <= start):
        message = "lengths must all be epochs, or all shares of the run that come to 1 at most"
        raise RecipeError([Problem.at(epochs.mark, "stages", f"{message}, got {length:g} after {start:g}")])
    if start < 1 and end == 1 and length < 1:
        return Item(begin, stage.mark), end  # shares that come to the whole
    return Item({**begin, "to": Item(end, epochs.mark)}, stage.mark), end
