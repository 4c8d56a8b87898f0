"""Every image of a recipe's data read once, before a run meets the broken ones one by one."""

from __future__ import annotations

import sys

from rich.progress import track

from kdkit import data
from kdkit.console import tell
from kdkit.data.pixels import problems
from kdkit.recipe import Recipe, blaming
from kdkit.registry import KdkitError


def read_images(recipe: Recipe) -> int:
    """Read all that is trained and tested on, and tell each image that cannot be read; returns how many were read.

    Raises:
        KdkitError: there are no such data, or some of their images are broken.
    """
    with blaming(recipe, "data"):
        module = data.build(recipe.data.name, seed=recipe.seed, fake=recipe.data.fake, **recipe.data.arguments)
        files = module.image_files()
    found = track(problems(files), "reading images", len(files), disable=not sys.stdout.isatty())
    broken = 0
    for problem in filter(None, found):
        tell(problem, sys.stderr)
        broken += 1
    if broken:
        raise KdkitError(f"{broken:,} of {len(files):,} images cannot be read; mend or remove them")
    return len(files)
