"""Named recipes: `methods.get("npo", beta=0.1)`, `methods.names()`."""

from jaxforget.methods.catalogue import from_config, get, markdown, names, register, table
from jaxforget.methods.finishing import FINISHERS
from jaxforget.methods.method import COMBINERS, Method, from_parts
from jaxforget.methods.recipe import Built, Recipe, weighted
from jaxforget.methods.recipes import RECIPES

__all__ = [
    "COMBINERS",
    "Built",
    "FINISHERS",
    "RECIPES",
    "Method",
    "Recipe",
    "from_config",
    "from_parts",
    "get",
    "markdown",
    "names",
    "register",
    "table",
    "weighted",
]
