"""A tiny language model without attention, packing by hand, and float64 losses for both."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxforget.engine.slots import slots_of
from jaxforget.engine.types import Head, ReferenceScores, Scores, Tiles, TokenBatch, TokenStats
from jaxforget_kernels import linear_cross_entropy

VOCAB, WIDTH, LENGTH = 7, 3, 16
BOUND = 13  # targets of a row, one more than any has here


def params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"embed": (VOCAB, WIDTH), "mix": (WIDTH, WIDTH), "head": (VOCAB, WIDTH)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def score(p, batch, residual=None):
    rows, length = batch.tokens.shape
    inner = (p["embed"][batch.tokens].reshape(-1, WIDTH) @ p["mix"]).reshape(rows, length, WIDTH)
    hidden = jnp.tanh(inner)
    targets, mask, segments = batch.targets, batch.mask, batch.segments
    slots = slots_of(batch)
    if slots is not None:
        targets, mask, segments = (
            jnp.take_along_axis(x, slots, axis=1) for x in (targets, mask, segments)
        )
        segments = jnp.where(mask != 0, segments, 0)
        hidden, inner = (jnp.take_along_axis(x, slots[:, :, None], axis=1) for x in (hidden, inner))
    logp, stats = linear_cross_entropy(hidden, p["head"], targets, stats=True)
    return Scores(
        logp=jnp.where(mask != 0, logp, 0.0),
        mask=mask,
        segments=segments,
        example=batch.example,
        hidden=hidden,
        head=Head(p["head"]),
        stats=TokenStats(*stats),
        targets=targets,
        residual=None if residual is None else inner,
        totals=batch.totals,
    )


def examples(seed, count, longest=4):
    """Examples as (tokens, targets, labelled), a prompt token first."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        n = int(rng.integers(2, longest + 1))
        ids = rng.integers(0, VOCAB, size=n + 1)
        made.append((ids[:-1], ids[1:], np.arange(n) > 0))
    return made


def pack(some, rows, slots, max_targets="bound", order=None):
    """Examples dealt to rows in turn, in the given order; `slots` examples a row at most."""
    order = range(len(some)) if order is None else order
    shape = rows, LENGTH
    tokens, targets, segments, positions = (np.zeros(shape, np.int32) for _ in range(4))
    mask, example = np.zeros(shape, np.float32), np.full((rows, slots), -1, np.int32)
    used, packed = [0] * rows, [0] * rows
    for turn, number in enumerate(order):
        row = turn % rows
        ids, wanted, labelled = some[number]
        at = slice(used[row], used[row] + len(ids))
        tokens[row, at], targets[row, at], mask[row, at] = ids, wanted, labelled
        segments[row, at], positions[row, at] = packed[row] + 1, np.arange(len(ids))
        example[row, packed[row]] = number
        used[row], packed[row] = used[row] + len(ids), packed[row] + 1
    assert mask.sum(1).max() < BOUND
    bound = BOUND if max_targets == "bound" else max_targets
    arrays = (jnp.asarray(a) for a in (tokens, targets, segments, positions, mask, example))
    return TokenBatch(*arrays, max_targets=bound)


def tiled(batch, short=2):
    """The batch with a tile for the first tokens of each segment, and one for what follows."""
    rows, length = batch.tokens.shape
    begins = [
        (row, place)
        for row in range(rows)
        for place in range(length)
        if batch.segments[row, place] > 0 and batch.positions[row, place] == 0
    ]
    most = max(sum(1 for row, _ in begins if row == r) for r in range(rows))
    kinds, back = [], np.zeros((rows, length), np.int32)
    for first, size in ((0, short), (short, LENGTH)):
        queries = np.full((rows, most, size), -1, np.int32)
        keys = np.full((rows, most, first + size), -1, np.int32)
        used = [0] * rows
        for row, begin in begins:
            own = int((batch.segments[row] == batch.segments[row, begin]).sum())
            asked = np.arange(begin + first, begin + min(own, first + size))
            seen = np.arange(begin, begin + min(own, first + size))
            at, used[row] = used[row], used[row] + 1
            queries[row, at, : len(asked)], keys[row, at, : len(seen)] = asked, seen
            before = sum(q.shape[1] * q.shape[2] for q, _ in kinds)
            back[row, asked] = before + at * size + np.arange(len(asked))
        kinds.append((queries, keys))
    columns = [tuple(jnp.asarray(kind[i]) for kind in kinds) for i in (0, 1)]
    return replace(batch, tiles=Tiles(*columns, jnp.asarray(back)))


@jax.jit
def reference(p, batch):
    s = score(p, batch, residual=0)
    return ReferenceScores(logp=s.logp, hidden=s.hidden, head=s.head, residual=s.residual)


# --- float64, example by example ---


def log_softmax(p, tokens):
    hidden = np.tanh(p["embed"][tokens] @ p["mix"])
    z = hidden @ p["head"].T
    return (
        z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1))[:, None]
    )


def token_logps(p, some):
    """Log-probabilities of the labelled targets, one array an example."""
    return [
        log_softmax(p, tokens)[np.arange(len(tokens)), targets][labelled]
        for tokens, targets, labelled in some
    ]


def nll64(p, some):
    return -np.concatenate(token_logps(p, some)).mean()


def npo64(p, start, some, beta):
    pairs = zip(token_logps(p, some), token_logps(start, some), strict=True)
    gaps = [a.sum() - b.sum() for a, b in pairs]
    return np.mean([2 / beta * np.logaddexp(0, beta * gap) for gap in gaps])


def kl64(p, start, some, temperature=1.0):
    values = []
    for tokens, _, labelled in some:
        mine, theirs = (softer(log_softmax(q, tokens)[labelled], temperature) for q in (p, start))
        values.extend((np.exp(theirs) * (theirs - mine)).sum(-1))
    return np.mean(values)


def softer(logp, temperature):
    """Log-probabilities of softmax(logits / temperature)."""
    cooled = logp / temperature
    return cooled - np.log(np.exp(cooled).sum(-1, keepdims=True))


def float64(p):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)


def differences(function, p, step=1e-5):
    """Gradient of a float64 function of parameters by central differences."""
    gradient = jax.tree.map(np.zeros_like, p)
    for name, leaf in p.items():
        for index in np.ndindex(leaf.shape):
            sides = []
            for sign in (1, -1):
                moved = {**p, name: leaf.copy()}
                moved[name][index] += sign * step
                sides.append(function(moved))
            gradient[name][index] = (sides[0] - sides[1]) / (2 * step)
    return gradient
