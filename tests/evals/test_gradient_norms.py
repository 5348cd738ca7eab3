"""Norms of single gradients: a closed form, the decoder example by example, batches of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals import small

from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Scores, TokenBatch
from jaxforget.evals.gradient_norms import gradient_norms

VOCAB = 512


@pytest.fixture(scope="module")
def tokenised():
    records = small.records()
    return small.tokens([*records["retain"][:3], *records["world_facts"][:2]])


def bigram(params, batch):
    """A softmax over the next token given this one: two tables that add up, and a bias."""
    table = params["layers"]["table"].sum(0)
    logits = table[batch.tokens] + params["bias"][None, None]
    logp = jax.nn.log_softmax(logits)
    chosen = jnp.take_along_axis(logp, batch.targets[..., None], -1)[..., 0]
    return Scores(
        logp=chosen * batch.mask,
        mask=batch.mask,
        segments=batch.segments,
        example=batch.example,
    )


def by_hand(params, tokenised):
    """(norm over everything, mean of the three tensors' norms) of each example in float64."""
    table = np.asarray(params["layers"]["table"], np.float64).sum(0)
    bias = np.asarray(params["bias"], np.float64)
    whole, mean = [], []
    for a, b in zip(tokenised.offsets[:-1], tokenised.offsets[1:], strict=True):
        labelled = tokenised.mask[a:b]
        tokens, targets = tokenised.tokens[a:b][labelled], tokenised.targets[a:b][labelled]
        logits = table[tokens] + bias
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = p / p.sum(1, keepdims=True)
        error[np.arange(len(targets)), targets] -= 1
        error /= len(targets)
        gradient = np.zeros((VOCAB, VOCAB))
        np.add.at(gradient, tokens, error)
        squares = (gradient**2).sum(), (error.sum(0) ** 2).sum()
        whole.append(np.sqrt(2 * squares[0] + squares[1]))
        mean.append((2 * np.sqrt(squares[0]) + np.sqrt(squares[1])) / 3)
    return whole, mean


def test_norms_of_a_bigram_model_have_a_closed_form(tokenised):
    rng = np.random.default_rng(0)
    params = {
        "layers": {"table": jnp.asarray(rng.normal(0, 1, (2, VOCAB, VOCAB)), jnp.float32)},
        "bias": jnp.asarray(rng.normal(0, 1, VOCAB), jnp.float32),
    }
    whole, mean = by_hand(params, tokenised)
    np.testing.assert_allclose(gradient_norms(bigram, params, tokenised), whole, rtol=1e-6)
    peer = gradient_norms(bigram, params, tokenised, peer_compat=True)
    np.testing.assert_allclose(peer, mean, rtol=1e-6)
    assert (peer < 0.9 * np.asarray(whole)).all()


def test_batches_change_nothing_and_progress_is_told(tokenised):
    lm, told = small.model(), []
    many = gradient_norms(lm.score, lm.params, tokenised, rows=5, at_once=2)
    tell = lambda *at: told.append(at)  # noqa: E731
    got = gradient_norms(lm.score, lm.params, tokenised, rows=2, counted=tell)
    np.testing.assert_allclose(got, many, rtol=1e-5)
    assert told[-1] == (5, 5) and all(done <= 5 for done, _ in told)

    def loss(params, tokens, targets, mask):
        batch = TokenBatch(
            tokens=tokens[None],
            targets=targets[None],
            segments=jnp.ones_like(tokens)[None],
            positions=jnp.arange(len(tokens))[None],
            mask=mask[None].astype(jnp.float32),
            example=jnp.zeros((1, 1), jnp.int32),
        )
        return -lm.score(params, batch).logp.sum() / mask.sum()

    span = slice(*tokenised.offsets[1:3])
    columns = (tokenised.tokens, tokenised.targets, tokenised.mask)
    alone = (jnp.asarray(column[span]) for column in columns)
    gradient = jax.jit(jax.grad(loss))(lm.params, *alone)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(got[1], np.linalg.norm(np.concatenate(leaves)), rtol=2e-5)


def test_impossible_sizes_are_refused(tokenised):
    with pytest.raises(UserError, match="are 0, 1"):
        gradient_norms(bigram, {}, tokenised, rows=0)
