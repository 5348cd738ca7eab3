"""Named recipes: `methods.get("npo", beta=0.1)`, `methods.names()`."""

from jaxforget.methods.recipes import (
    RECIPES,
    Method,
    Recipe,
    from_config,
    from_parts,
    get,
    markdown,
    names,
    table,
)

__all__ = [
    "RECIPES",
    "Method",
    "Recipe",
    "from_config",
    "from_parts",
    "get",
    "markdown",
    "names",
    "table",
]
