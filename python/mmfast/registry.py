"""Finds recipes by name, so that prepare, train and generate need to import none.

A recipe is a package `mmfast.recipes.<name>` with a module-level object `RECIPE`. Adding a published
system means adding its folder; nothing here changes.
"""

import difflib
import pkgutil
from importlib import import_module
from typing import Any

from mmfast.errors import UsageError


def recipe_names() -> list[str]:
    """Names of all recipes in the package, sorted; imports none of them."""
    package = import_module("mmfast.recipes")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)


def get_recipe(name: str) -> Any:
    """The recipe's `RECIPE` object; `UsageError` with the nearest name if there is none."""
    names = recipe_names()
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean `{nearest[0]}`?)" if nearest else ""
        raise UsageError(f"unknown recipe `{name}`{hint}; there are: {', '.join(names)}")
    return import_module(f"mmfast.recipes.{name}").RECIPE
