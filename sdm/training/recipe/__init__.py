"""Recipes: the TOML file that decides what a training run produces, read and checked.

`limits` has the ranges of numbers, `sources` and `sections` the settings classes, `reading` how a section is read;
`range_recipe`, `dataset_recipe` and `species_recipe` the three kinds of recipe. PyTorch is not imported here.
"""

from sdm.training.recipe.dataset_recipe import DatasetRecipe
from sdm.training.recipe.range_recipe import Recipe
from sdm.training.recipe.species_recipe import SpeciesRecipe

__all__ = ["DatasetRecipe", "Recipe", "SpeciesRecipe"]
