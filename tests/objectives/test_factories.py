"""Objectives on a toy model: value and gradient against float64, and invariances."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from objectives import toy_lm as toy
from objectives.cases import (
    FORGET,
    PARAMS,
    RETAIN,
    SPECS,
    START,
    batches,
    close,
    evaluate,
    expected_terms,
)

from jaxforget.combiners import weighted_sum
from jaxforget.engine.errors import UserError
from jaxforget.engine.step import accumulated_gradients, split_rows, with_totals
from jaxforget.engine.types import Scores
from jaxforget.objectives import (
    assemble,
    flat_objective,
    npo_objective,
    rmu_objective,
    sequence_logp,
    smoothed_objective,
    undial_objective,
)
from jaxforget.objectives.retain import kl_part


@pytest.mark.parametrize("max_targets", ["bound", None])
@pytest.mark.parametrize("name", SPECS)
def test_value_and_gradient_of_every_term_equal_float64(name, max_targets):
    spec = SPECS[name]
    terms, _, gradients = evaluate(spec, batches(max_targets))
    expected, start = expected_terms(name), toy.float64(PARAMS)
    assert set(terms) == set(expected) == set(spec.terms)
    for term, function in expected.items():
        np.testing.assert_allclose(terms[term], function(start), rtol=2e-6, atol=2e-6)
        close(gradients[term], toy.differences(function, start), 2e-5)


def test_metrics_are_what_they_say():
    _, metrics, _ = evaluate(SPECS["npo_nll"], batches())
    ours = [v.sum() for v in toy.token_logps(toy.float64(PARAMS), FORGET)]
    theirs = [v.sum() for v in toy.token_logps(toy.float64(START), FORGET)]
    powers = [(np.exp(0.7 * a), np.exp(0.7 * b)) for a, b in zip(ours, theirs, strict=True)]
    expected = {
        "forget_logp": np.mean(ours),
        "npo_weight": np.mean([2 * p / (p + r) for p, r in powers]),
        "forget_tokens": sum(labelled.sum() for _, _, labelled in FORGET),
        "retain_tokens": sum(labelled.sum() for _, _, labelled in RETAIN),
    }
    assert set(metrics) == set(expected)
    close({k: metrics[k] for k in expected}, expected, 1e-5)


ORDERS = {
    "forget_order": [5, 2, 6, 0, 1, 4, 3],
    "retain_order": [10, 3, 7, 0, 9, 1, 2, 8, 5, 6, 4],
}


@pytest.mark.parametrize("name", SPECS)
def test_packing_elsewhere_changes_nothing(name):
    close(evaluate(SPECS[name], batches(**ORDERS)), evaluate(SPECS[name], batches()))


@pytest.mark.parametrize("name", ["npo_nll", "dpo_nll", "graddiff_kl", "rmu_adaptive"])
def test_packing_into_more_rows_changes_nothing(name):
    close(evaluate(SPECS[name], batches(**ORDERS, rows=(5, 8))), evaluate(SPECS[name], batches()))


def with_empty_rows(batch, count):
    def grow(leaf, value):
        return jnp.pad(leaf, ((0, count), (0, 0)), constant_values=value)

    filled = {"tokens": 3, "targets": 2, "example": -1}
    fields = ("tokens", "targets", "segments", "positions", "mask", "example")
    return replace(batch, **{f: grow(getattr(batch, f), filled.get(f, 0)) for f in fields})


@pytest.mark.parametrize("name", SPECS)
def test_shares_of_micro_batches_add_up_to_the_whole(name):
    spec, some = SPECS[name], batches()
    whole = evaluate(spec, some)
    totals = {role: batch.totals for role, batch in with_totals(some).items()}
    micros = split_rows(some, 2)
    shares = []
    for i in range(2):
        part = jax.tree.map(lambda leaf, i=i: leaf[i], micros)
        part = {role: replace(batch, totals=totals[role]) for role, batch in part.items()}
        # as many rows as the whole has: the same program
        part = {role: with_empty_rows(batch, 2) for role, batch in part.items()}
        shares.append(evaluate(spec, part))
    close(jax.tree.map(jnp.add, *shares), whole)


@pytest.mark.parametrize("name", ["graddiff_kl", "npo_kl"])
def test_the_engine_accumulates_them_to_the_same_gradient(name):
    spec, some = SPECS[name], batches()
    cached = {role: toy.reference(START, some[role]) for role in spec.needs.reference}
    combiner = weighted_sum({"forget": 1.0, "retain": 0.5})

    @partial(jax.jit, static_argnums=0)
    def step(count):
        return accumulated_gradients(
            spec.objective, combiner, toy.score, PARAMS, some, cached, count
        )

    whole, parts = step(1), step(2)
    close(parts, whole)


@pytest.mark.parametrize("name", SPECS)
def test_rows_divided_over_devices_change_nothing(name):
    some = batches(rows=(8, 16))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    divided = jax.device_put(some, NamedSharding(mesh, P("data")))
    close(evaluate(SPECS[name], divided), evaluate(SPECS[name], batches()), 2e-6)


@pytest.mark.parametrize("name", SPECS)
def test_a_batch_without_targets_has_zero_terms_and_gradients(name):
    empty = {
        role: replace(
            batch,
            mask=jnp.zeros_like(batch.mask),
            segments=jnp.zeros_like(batch.segments),
            example=jnp.full_like(batch.example, -1),
        )
        for role, batch in batches().items()
    }
    for leaf in jax.tree.leaves(evaluate(SPECS[name], empty)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("name", SPECS)
def test_a_row_without_examples_changes_nothing(name):
    grown = {role: with_empty_rows(batch, 1) for role, batch in batches(rows=(3, 3)).items()}
    close(evaluate(SPECS[name], grown), evaluate(SPECS[name], batches()))


def test_one_example_a_row_is_a_row_of_its_own():
    some = {
        "forget": toy.pack(FORGET, 7, 1),
        "retain": toy.pack(RETAIN, 11, 1),
    }
    close(evaluate(SPECS["npo_nll"], some), evaluate(SPECS["npo_nll"], batches()))


def test_sequence_logp_sums_segments_and_ignores_what_is_masked():
    scores = Scores(
        logp=jnp.array([[-1.0, -2.0, -4.0, jnp.nan]]),
        mask=jnp.array([[1.0, 1.0, 1.0, 0.0]]),
        segments=jnp.array([[1, 2, 2, 2]]),
        example=jnp.array([[4, 5, -1]]),
    )
    np.testing.assert_array_equal(sequence_logp(scores), [[-1.0, -6.0, 0.0]])
    gradient = jax.grad(lambda v: sequence_logp(replace(scores, logp=v)).sum())(scores.logp)
    np.testing.assert_array_equal(gradient, [[1.0, 1.0, 1.0, 0.0]])


def test_the_starting_model_has_npo_loss_of_two_log_two_over_beta():
    terms, metrics, gradients = evaluate(SPECS["npo"], batches(), START)
    np.testing.assert_allclose(terms["forget"], 2 / 0.7 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(metrics["npo_weight"], 1.0, rtol=1e-6)

    def mean_logp(p):
        return np.mean([v.sum() for v in toy.token_logps(p, FORGET)])

    close(gradients["forget"], toy.differences(mean_logp, toy.float64(START)), 2e-5)


def test_the_starting_model_has_no_divergence_and_no_gradient_of_it():
    terms, _, gradients = evaluate(SPECS["graddiff_kl"], batches(), START)
    for leaf in jax.tree.leaves((terms["retain"], gradients["retain"])):
        np.testing.assert_allclose(leaf, 0, atol=2e-7)


def test_what_is_missing_is_named():
    some = batches()
    cached = {"forget": toy.reference(START, some["forget"])}
    bare = {"retain": replace(toy.reference(START, some["retain"]), hidden=None, head=None)}
    other = {"forget": toy.reference(START, toy.pack(FORGET, 4, 3, max_targets=None))}
    cases = [
        (SPECS["npo"], some, {}, "reference scores of 'forget'"),
        (SPECS["npo_kl"], some, cached, "reference scores of 'retain'"),
        (SPECS["graddiff_kl"], some, bare, "cache 'hidden'"),
        (SPECS["npo"], some, other, "same packed batch"),
        (SPECS["graddiff"], {"forget": some["forget"]}, {}, "needs a 'retain' batch"),
    ]
    for spec, given, reference, message in cases:
        with pytest.raises(UserError, match=message):
            jax.eval_shape(partial(spec.objective, toy.score), PARAMS, given, reference)


def test_values_that_make_no_sense_are_refused_when_the_objective_is_made():
    with pytest.raises(UserError, match="beta must be above 0"):
        npo_objective(0.0)
    with pytest.raises(UserError, match="Did you mean 'nll'"):
        npo_objective(0.1, retain="nl")
    with pytest.raises(UserError, match="adaptive|above 0"):
        rmu_objective(0, 0.0)
    with pytest.raises(UserError, match="Allowed: tv, kl"):
        flat_objective("tvv")
    with pytest.raises(UserError, match="undial: beta"):
        undial_objective(-1.0)


def test_one_role_is_not_compared_with_two_models():
    parts = {"a": kl_part("forget"), "b": kl_part("forget", random=True)}
    with pytest.raises(UserError, match="'forget'.*starting model and with a random one"):
        assemble(parts)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1])
def test_smoothing_is_a_share(smoothing):
    with pytest.raises(UserError, match=r"must be in \[0, 1\]"):
        smoothed_objective(smoothing)
