"""What is computed again, and whether layers are looped over, changes programs, not numbers."""

import jax
import numpy as np
import pytest
from golden_models import load, rows
from test_decoder import assert_trees_close, loss_and_gradient, sequences

from jaxforget.engine.tree import flatten, unflatten
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
def test_layers_written_out_give_the_same_without_a_loop(case, monkeypatch):
    cfg, params, _ = load(case)
    batch = rows(sequences(case), length=40)
    programs, found = [], []
    for few, unroll in ((0, False), (0, True), (cfg.layers, False)):
        monkeypatch.setattr(decoder, "FEW_LAYERS", few)
        compute = Compute("float32", unroll=unroll)
        found.append(loss_and_gradient(cfg, params, batch, compute))

        def states(p, compute=compute):
            return decoder.score(p, batch, cfg, compute).hidden

        programs.append(jax.jit(states).lower(params).as_text())
    (value, gradient), *others = found
    for other, other_gradient in others:
        np.testing.assert_allclose(other, value, rtol=1e-6)
        assert_trees_close(other_gradient, gradient, 1e-5)
    assert ["stablehlo.while" in text for text in programs] == [True, False, False]


def compiled_gradient(batch, remat, trained):
    """The gradient of the log-probabilities for some of the weights, and what it holds."""
    cfg, params, _ = load("smollm2")

    def loss(part):
        flat = {**flatten(params), **part}
        return decoder.score(unflatten(flat), batch, cfg, Compute(remat=remat)).logp.sum()

    part = {path: leaf for path, leaf in flatten(params).items() if trained in path}
    program = jax.jit(jax.grad(loss)).lower(part).compile()
    text, memory = program.as_text(), program.memory_analysis()
    assert text is not None and memory is not None
    return text, memory.temp_size_in_bytes


def test_what_is_computed_again_is_not_kept_in_layers_written_out():
    batch = rows(*([each] for each in sequences("smollm2") * 8), length=64)

    held = {remat: compiled_gradient(batch, remat, "")[1] for remat in ("full", "none")}
    assert held["full"] < 0.8 * held["none"]


def test_below_the_first_trained_weight_there_is_no_backward_pass(monkeypatch):
    batch = rows(*([each] for each in sequences("smollm2")), length=24)
    written = compiled_gradient(batch, "none", "layers/mlp/down")[0]
    monkeypatch.setattr(decoder, "FEW_LAYERS", 0)
    looped = compiled_gradient(batch, "none", "layers/mlp/down")[0]
    # a loop's bodies are counted once; written out, the first layer adds its forward pass and one
    # product backward instead of both its passes
    assert written.count(" dot(") < 1.5 * looped.count(" dot(")


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
