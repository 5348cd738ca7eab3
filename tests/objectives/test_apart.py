"""Gradients of single terms where each has rows of its own: the same, for one pass over them."""

import jax
import pytest
from objectives import toy_lm as toy
from objectives.cases import PARAMS, SPECS, batches, close

from jaxforget.combiners import pcgrad, weighted_sum
from jaxforget.engine.step import term_gradients
from jaxforget.objectives import assemble


@pytest.mark.parametrize("name", ["graddiff", "satimp"])
def test_terms_gradients_and_metrics_are_those_of_one_shared_pass(name):
    spec = SPECS[name]
    some = {role: batches()[role] for role in spec.needs.roles}
    weights = dict.fromkeys(spec.terms, 1.0)
    assert spec.objective.apart is not None
    found, shared = (
        jax.jit(lambda p, f=f: term_gradients(f, pcgrad(weights), toy.score, p, some, {}))(PARAMS)
        for f in (spec.objective, lambda *arguments: spec.objective(*arguments))
    )
    assert list(found[1]) == list(spec.terms) and set(found[2]) == set(shared[2])
    close(found, shared, 1e-5)


def test_they_cost_what_a_weighted_sum_costs():
    spec = SPECS["graddiff"]
    some = {role: batches()[role] for role in spec.needs.roles}
    weights = dict.fromkeys(spec.terms, 1.0)

    def products(objective, combiner):
        step = jax.jit(lambda p: term_gradients(objective, combiner, toy.score, p, some, {}))
        return step.lower(PARAMS).compile().cost_analysis()["flops"]

    plain = products(spec.objective, weighted_sum(weights))
    assert products(spec.objective, pcgrad(weights)) < 1.1 * plain
    shared = products(lambda *arguments: spec.objective(*arguments), pcgrad(weights))
    assert shared > 1.3 * plain


def test_terms_that_share_rows_are_not_taken_apart():
    assert SPECS["dpo"].objective.apart is None  # one term
    assert SPECS["llmu"].objective.apart is not None
    forget = SPECS["graddiff"].objective.terms["forget"]
    assert assemble({"one": forget, "other": forget}).objective.apart is None
