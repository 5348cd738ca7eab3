"""What an installed package's entry point would name."""

from jaxforget import methods


def add():
    """Register one method."""
    npo = methods.RECIPES["npo"]
    recipe = methods.Recipe("From a package", "me", "f", npo.parameters, npo.build)
    methods.register("from_a_package", recipe)
