"""Pieces of a training step as pure functions: gradients of terms, accumulation, guarded update."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxforget.engine.partwise import Entrywise, update_in_parts
from jaxforget.engine.tree import Params
from jaxforget.engine.types import (
    Batches,
    Combiner,
    Metrics,
    Objective,
    Reference,
    ScoreFn,
    Separable,
    Skips,
    State,
    Terms,
    Totals,
)

type Gradients = dict[str, Params]
"""Gradient of each term by its name; of the weighted sum alone under `SUM`."""

SUM = "sum"


def with_totals(batches: Batches) -> Batches:
    """Attach each batch's own counts, so that its micro-batches share them as denominators."""
    return {
        role: replace(
            batch,
            totals=Totals(
                tokens=batch.mask.astype(jnp.float32).sum(),
                examples=(batch.example >= 0).astype(jnp.float32).sum(),
            ),
        )
        for role, batch in batches.items()
    }


def split_rows(tree: Any, parts: int) -> Any:
    """Leaves `[B, ...]` -> `[parts, B / parts, ...]` such that every shard keeps its own rows."""

    def divide(leaf: Array) -> Array:
        rows = leaf.shape[0]
        if rows % parts:
            raise ValueError(f"{rows} rows cannot be divided into {parts} micro-batches")
        return leaf.reshape(rows // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)

    return jax.tree.map(divide, tree)


def term_gradients(
    objective: Objective,
    combiner: Combiner,
    score: ScoreFn,
    params: Params,
    batches: Batches,
    reference: Reference,
) -> tuple[Gradients, Terms, Metrics]:
    """Terms and their gradients.

    A combiner that is a plain weighted sum costs one forward and one backward pass. So do the
    gradients of single terms where each term has rows of its own (see `Separable`); where terms
    share rows, each is pulled back through the same linearisation once.
    """

    def terms_of(trained: Params) -> tuple[Terms, Metrics]:
        return objective(score, trained, batches, reference)

    if combiner.weights is not None:
        weights = combiner.weights

        def weighted(trained: Params) -> tuple[Array, tuple[Terms, Metrics]]:
            terms, metrics = terms_of(trained)
            total = sum((weights[name] * term for name, term in terms.items()), jnp.zeros(()))
            return total, (terms, metrics)

        gradient, (terms, metrics) = jax.grad(weighted, has_aux=True)(params)
        return {SUM: gradient}, terms, metrics

    single = objective.apart if isinstance(objective, Separable) else None
    if single is not None:
        return _each_alone(single, score, params, batches, reference)
    terms, pull_back, metrics = jax.vjp(terms_of, params, has_aux=True)
    gradients = {}
    for name in terms:
        seed = {other: jnp.float32(other == name) for other in terms}
        (gradients[name],) = pull_back(seed)
    return gradients, terms, metrics


def _each_alone(
    objectives: Mapping[str, Objective],
    score: ScoreFn,
    params: Params,
    batches: Batches,
    reference: Reference,
) -> tuple[Gradients, Terms, Metrics]:
    gradients: Gradients = {}
    terms: Terms = {}
    metrics: Metrics = {}
    for name, objective in objectives.items():

        def term(
            trained: Params, name: str = name, objective: Objective = objective
        ) -> tuple[Array, Metrics]:
            found, more = objective(score, trained, batches, reference)
            return found[name], more

        (terms[name], more), gradient = jax.value_and_grad(term, has_aux=True)(params)
        # one pass after the other, or the activations of all are held at once
        gradients[name], params = jax.lax.optimization_barrier((gradient, params))
        metrics |= more
    return gradients, terms, metrics


def micro_batch_means(objective: Objective, parts: int) -> Objective:
    """The peer's reduction: the mean over the micro-batches of their own means.

    Ours is one mean over the whole step; here a target in a short micro-batch weighs more.

    Args:
      objective: of whole steps.
      parts: micro-batches of a step.
    Returns:
      The same terms of one micro-batch, as its share of a step; counts of tokens stay counts.
    Source: open-unlearning on transformers 4.45, where each micro-batch's loss is divided by
      the number of them.
    """

    def averaged(
        score: ScoreFn, params: Params, batches: Batches, reference: Reference
    ) -> tuple[Terms, Metrics]:
        own = {role: replace(batch, totals=None) for role, batch in batches.items()}
        terms, metrics = objective(score, params, own, reference)
        means = {
            name: value if name.endswith("_tokens") else value / parts
            for name, value in metrics.items()
        }
        return {name: term / parts for name, term in terms.items()}, means

    return averaged


def accumulated_gradients(
    objective: Objective,
    combiner: Combiner,
    score: ScoreFn,
    params: Params,
    batches: Batches,
    reference: Reference,
    parts: int,
) -> tuple[Gradients, Terms, Metrics]:
    """`term_gradients` over `parts` micro-batches, summed inside one compiled loop.

    Because every term is a share of the whole step's mean, the sum equals the undivided step
    up to rounding, whatever the lengths of the examples in each micro-batch.
    """
    return _accumulated(
        lambda some, refs: term_gradients(objective, combiner, score, params, some, refs),
        batches,
        reference,
        parts,
    )


def accumulated_terms(
    objective: Objective,
    score: ScoreFn,
    params: Params,
    batches: Batches,
    reference: Reference,
    parts: int,
) -> Terms:
    """The terms of a whole step without their gradients, over `parts` micro-batches."""
    return _accumulated(
        lambda some, refs: objective(score, params, some, refs)[0], batches, reference, parts
    )


def _accumulated[T](
    one: Callable[[Batches, Reference], T], batches: Batches, reference: Reference, parts: int
) -> T:
    """The sum of `one` over micro-batches that carry the whole step's counts."""
    batches = with_totals(batches)
    if parts == 1:
        return one(batches, reference)
    rows = {role: replace(batch, totals=None) for role, batch in batches.items()}
    heads = {role: ref.head for role, ref in reference.items()}
    columns = {role: replace(ref, head=None) for role, ref in reference.items()}

    def share(micro: tuple[Batches, Reference]) -> T:
        some = {role: replace(b, totals=batches[role].totals) for role, b in micro[0].items()}
        return one(some, {role: replace(ref, head=heads[role]) for role, ref in micro[1].items()})

    micros = split_rows((rows, columns), parts)
    first = jax.tree.map(lambda leaf: leaf[0], micros)
    shapes = jax.eval_shape(share, first)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def body(total: T, micro: Any) -> tuple[T, None]:
        return jax.tree.map(jnp.add, total, share(micro)), None

    return jax.lax.scan(body, zeros, micros)[0]


def guarded_update(
    state: State,
    gradients: Gradients,
    loss: Array,
    combiner: Combiner,
    optimizer: optax.GradientTransformation,
) -> tuple[State, Metrics]:
    """Combine, optimise, finish; a loss, gradient or update that is not finite changes nothing.

    A refused step still counts as a step, so that the data moves on, and is counted in
    `State.skips`.
    """
    if combiner.weights is not None:
        direction, combiner_state, metrics = gradients[SUM], state.combiner_state, {}
    else:
        direction, combiner_state, metrics = combiner.combine(
            gradients, state.combiner_state, state.params
        )
    gradient_norm = optax.tree.norm(direction)
    finite = jnp.isfinite(loss) & jnp.isfinite(gradient_norm)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    if combiner.finish is None and isinstance(optimizer, Entrywise):
        params, opt_state, update_norm = update_in_parts(
            optimizer, cast(Params, direction), gradient_norm, state.opt_state, state.params, finite
        )
    else:
        update, opt_state = optimizer.update(direction, state.opt_state, state.params)
        if combiner.finish is not None:
            update, combiner_state, more = combiner.finish(
                cast(Params, update), combiner_state, state.params
            )
            metrics = {**metrics, **more}
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), state.params, update)
        update_norm = optax.tree.norm(cast(Params, update))
        finite &= jnp.isfinite(update_norm)
        params, opt_state = keep(params, state.params), keep(opt_state, state.opt_state)
    refused = 1 - finite.astype(jnp.int32)
    skips = Skips(total=state.skips.total + refused, in_a_row=(state.skips.in_a_row + 1) * refused)
    new = replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        combiner_state=keep(combiner_state, state.combiner_state),
        skips=skips,
    )
    norms = {"gradient_norm": gradient_norm, "update_norm": update_norm}
    counts = {"skipped": skips.total, "skipped_in_a_row": skips.in_a_row}
    return new, {**metrics, **norms, **counts}


type Step = Callable[[State, Params, Batches, Reference], tuple[State, Metrics]]
"""(state, frozen leaves, batches, reference) -> (state, scalars to log)."""
