"""What is computed again, and whether layers are looped over, changes programs, not numbers."""

import jax
import numpy as np
import pytest
from golden_models import load, rows
from test_decoder import assert_trees_close, loss_and_gradient, sequences

from jaxforget.models import decoder
from jaxforget.models.decoder import Compute


@pytest.mark.parametrize("case", ["gemma3_text"])
def test_remat_changes_memory_not_numbers(case):
    cfg, params, _ = load(case)
    batch = rows(sequences(case), length=40)
    value, gradient = loss_and_gradient(cfg, params, batch, Compute(remat="none"))
    for remat in ("dots", "full"):
        other, other_gradient = loss_and_gradient(cfg, params, batch, Compute(remat=remat))
        np.testing.assert_allclose(other, value, rtol=1e-6)
        assert_trees_close(other_gradient, gradient, 1e-5)


@pytest.mark.parametrize("case", ["smollm2", "gemma3_text"])
def test_layers_written_out_give_the_same_without_a_loop(case):
    cfg, params, _ = load(case)
    batch = rows(sequences(case), length=40)
    programs, found = [], []
    for unroll in (False, True):
        compute = Compute("float32", unroll=unroll)
        found.append(loss_and_gradient(cfg, params, batch, compute))

        def states(p, compute=compute):
            return decoder.score(p, batch, cfg, compute).hidden

        programs.append(jax.jit(states).lower(params).as_text())
    (value, gradient), (other, other_gradient) = found
    np.testing.assert_allclose(other, value, rtol=1e-6)
    assert_trees_close(other_gradient, gradient, 1e-5)
    assert ["stablehlo.while" in text for text in programs] == [True, False]


def plain_products(jaxpr):
    """Matrix products without batch axes in a program, those of a loop's body once."""
    found = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            found += not eqn.params["dimension_numbers"][1][0]
        for inner in jax.tree.leaves(list(eqn.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            found += plain_products(inner) if hasattr(inner, "eqns") else 0
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
def test_remat_dots_computes_no_projection_again_in_any_derivative(order):
    cfg, params, _ = load("smollm2")
    batch = rows(sequences("smollm2"), length=40)

    def products(remat):
        def derivative(p):
            each = jax.grad(lambda q: decoder.score(q, batch, cfg, Compute(remat=remat)).logp.sum())
            for _ in range(order - 1):
                each = pushed(each)
            return each(p)

        return plain_products(jax.make_jaxpr(derivative)(params).jaxpr)

    def pushed(gradient):
        def along_itself(p):
            here, push = jax.linearize(gradient, p)
            return push(here)

        return along_itself

    assert products("dots") == products("none") < products("full")
