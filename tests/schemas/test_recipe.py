"""A recipe's options, as a caller of the public face states them."""

from __future__ import annotations

from typing import get_type_hints

from meteora_registry.schemas.recipe import Recipe, RecipeOptions


def test_options_of_a_fuse_are_the_fields_of_a_recipe_beside_its_members_and_base() -> None:
    own = {"meteora_recipe", "members", "base", "base_folder"}
    fields = {name: hint for name, hint in get_type_hints(Recipe).items() if name in Recipe.model_fields}
    assert get_type_hints(RecipeOptions) == {name: fields[name] for name in fields if name not in own}
