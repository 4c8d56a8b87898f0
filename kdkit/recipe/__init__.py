"""Recipes: YAML in, checked word by word, an experiment out; errors name file, line and the nearest right word.

Torch is imported when a recipe is read, not before.
"""

from kdkit.recipe.blame import blaming as blaming
from kdkit.recipe.build import Experiment as Experiment
from kdkit.recipe.build import build as build
from kdkit.recipe.errors import Problem as Problem
from kdkit.recipe.errors import RecipeError as RecipeError
from kdkit.recipe.find import RecipeInfo as RecipeInfo
from kdkit.recipe.find import packaged as packaged
from kdkit.recipe.json_schema import json_schema as json_schema
from kdkit.recipe.load import load as load
from kdkit.recipe.load import loads as loads
from kdkit.recipe.load import of_tree as of_tree
from kdkit.recipe.own_code import code_of as code_of
from kdkit.recipe.schema import Recipe as Recipe
from kdkit.recipe.sources import source as source
from kdkit.recipe.sources import tuning as tuning
from kdkit.recipe.start import start as start
from kdkit.recipe.write import content_key as content_key
from kdkit.recipe.write import fingerprint as fingerprint
from kdkit.recipe.write import resolved as resolved
