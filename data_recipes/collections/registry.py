"""All recipes by name."""

from data_recipes.collections import bids_pet, brainweb, dicom_pet, petct, raw_data, udpet, voxel_phantom
from data_recipes.collections.recipe import Recipe
from data_recipes.errors import UsageError

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        brainweb.RECIPE, udpet.RECIPE, petct.AUTOPET, bids_pet.RECIPE, dicom_pet.RECIPE, voxel_phantom.RECIPE, petct.IBSI,
        raw_data.NEMA_MMR, raw_data.PETRIC,
    )
}  # fmt: skip


def recipe_named(name: str) -> Recipe:
    """A recipe; `UsageError` where there is none of that name."""
    if name not in RECIPES:
        raise UsageError(f"NAME: there is no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name]
