"""A toy model with the interface of a real one: embedding -> tanh -> head, no attention."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.engine.types import Scores, TokenBatch


def score(params, batch):
    """Log-probability of each target from its input token alone."""
    hidden = jnp.tanh(params["embed"]["w"][batch.tokens] @ params["mix"]["w"])
    logits = hidden @ params["head"]["w"].T
    logp = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(logp, batch.targets[..., None], axis=-1)[..., 0]
    return Scores(
        logp=picked * batch.mask,
        mask=batch.mask,
        segments=batch.segments,
        example=batch.example,
        totals=batch.totals,
    )


def params(seed=0, vocab=16, width=8):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "embed": {"w": normal(vocab, width)},
        "mix": {"w": normal(width, width)},
        "head": {"w": normal(vocab, width)},
    }


def batch(seed=0, rows=8, length=6, vocab=16, examples=2):
    """Random rows of `examples` equal segments, the first target of each unlabelled."""
    rng = np.random.default_rng(seed)
    half = length // examples
    segments = np.repeat(np.arange(1, examples + 1), half)[None].repeat(rows, 0)
    positions = np.tile(np.arange(half), examples)[None].repeat(rows, 0)
    mask = (positions > 0) * rng.integers(0, 2, (rows, length))
    return TokenBatch(
        tokens=rng.integers(0, vocab, (rows, length)).astype(np.int32),
        targets=rng.integers(0, vocab, (rows, length)).astype(np.int32),
        segments=segments.astype(np.int32),
        positions=positions.astype(np.int32),
        mask=mask.astype(np.float32),
        example=np.arange(rows * examples).reshape(rows, examples).astype(np.int32),
    )


def objective(score_fn, params, batches, reference):
    """Token-mean NLL of retain and its negative on forget, as shares of the step."""
    terms = {}
    for role, sign in (("forget", -1.0), ("retain", 1.0)):
        scores = score_fn(params, batches[role])
        tokens = scores.mask.sum() if scores.totals is None else scores.totals.tokens
        terms[role] = -sign * (scores.logp * scores.mask).sum() / jnp.maximum(tokens, 1)
    return terms, {}
