"""Teaching a token and steering towards it, against float64 NumPy; which layers are edited."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.edits.new_token import Stage, perturbed, token_loss, train_row, with_row
from jaxforget.edits.steering import Search, wanted_outputs
from jaxforget.edits.unierase import chosen_layers
from jaxforget.engine.errors import UserError
from jaxforget.engine.types import Head, Scores, TokenBatch
from jaxforget.objectives.steering import shortened, steering_losses

VOCAB, WIDTH, LENGTH, TOKEN = 7, 4, 6, 6


def params(tied=False):
    rng = np.random.default_rng(0)
    leaves = {"embed": {"w": rng.normal(size=(VOCAB, WIDTH))}}
    if not tied:
        leaves["head"] = {"w": rng.normal(size=(VOCAB, WIDTH))}
    leaves["layers"] = {"mlp": {"down": {"w": rng.normal(size=(2, WIDTH, WIDTH))}}}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), leaves)


def score(p, batch, residual=None, push=None):
    """Each place sees the mean of what stands up to it; layer 0 is that mean."""
    x = p["embed"]["w"][batch.tokens]
    if push is not None:
        here = jnp.arange(x.shape[1])[None, :] == push.at[:, None]
        x = x + jnp.where(here[:, :, None], push.by[:, None, :], 0.0)
    inner = x
    seen = jnp.cumsum(x, axis=1) / jnp.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
    hidden = jnp.tanh(seen @ p["layers"]["mlp"]["down"]["w"][0])
    head = p.get("head", p["embed"])["w"]
    targets, mask = batch.targets, batch.mask
    if batch.max_targets is not None:
        slots = jnp.argsort(mask == 0, axis=1, stable=True)[:, : batch.max_targets]
        targets, mask = (jnp.take_along_axis(a, slots, axis=1) for a in (targets, mask))
        hidden, inner = (jnp.take_along_axis(a, slots[:, :, None], axis=1) for a in (hidden, inner))
    logp = jax.nn.log_softmax(hidden @ head.T)
    logp = jnp.take_along_axis(logp, targets[:, :, None], axis=2)[:, :, 0]
    return Scores(
        logp=jnp.where(mask != 0, logp, 0.0),
        mask=mask,
        segments=batch.segments,
        example=batch.example,
        hidden=hidden,
        head=Head(head),
        residual=inner if residual is not None else None,
    )


def batch(tokens, targets, mask):
    shape = np.shape(tokens)
    return TokenBatch(
        tokens=jnp.asarray(tokens, jnp.int32),
        targets=jnp.asarray(targets, jnp.int32),
        segments=jnp.ones(shape, jnp.int32),
        positions=jnp.broadcast_to(jnp.arange(shape[1]), shape),
        mask=jnp.asarray(mask, jnp.float32),
        example=jnp.arange(shape[0])[:, None],
    )


def wide(p):
    return jax.tree.map(np.float64, p)


def logits(p, tokens, push=None, at=None):
    x = p["embed"]["w"][np.asarray(tokens)].copy()
    if push is not None:
        x[at] += push
    seen = np.cumsum(x, axis=0) / np.arange(1, len(x) + 1)[:, None]
    out = np.tanh(seen @ p["layers"]["mlp"]["down"]["w"][0]) @ p.get("head", p["embed"])["w"].T
    return out - np.log(np.exp(out).sum(-1, keepdims=True))


REFUSALS = batch(
    [[1, 2, TOKEN, 3, 4, 0], [5, TOKEN, 0, 2, 0, 0]],
    [[2, TOKEN, 3, 4, TOKEN, 0], [TOKEN, 0, 2, TOKEN, 0, 0]],
    [[0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 0, 0]],
)


def numpy_loss(p, row):
    p = wide(p)
    for name in ("embed", "head"):
        if name in p:
            p[name]["w"][TOKEN] = row
    values = []
    for tokens, targets, mask in zip(
        *map(np.asarray, (REFUSALS.tokens, REFUSALS.targets, REFUSALS.mask)), strict=True
    ):
        every = logits(p, tokens)
        values += [-every[i, targets[i]] for i in np.nonzero(mask)[0]]
    return np.mean(values)


@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_of_the_token_is_the_mean_over_refusal_and_closing_token(tied):
    p, row = params(tied), np.random.default_rng(1).normal(size=WIDTH)
    loss = lambda r: token_loss(score, p, TOKEN, r, REFUSALS)  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.float32(row))
    np.testing.assert_allclose(value, numpy_loss(p, row), rtol=1e-5)
    step = 1e-5 * np.eye(WIDTH)
    want = [(numpy_loss(p, row + e) - numpy_loss(p, row - e)) / 2e-5 for e in step]
    np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-5)


def test_training_the_row_is_adam_and_begins_anew_in_every_stage():
    p = params()
    stages = [Stage([REFUSALS] * 4, 0.05), Stage([REFUSALS] * 3, 0.01)]
    row, losses = train_row(score, p, {}, TOKEN, stages, key=jax.random.key(0))
    mine, seen = np.float64(p["embed"]["w"][TOKEN]), []
    for stage in stages:
        first = second = np.zeros(WIDTH)
        for count, _ in enumerate(stage.batches, 1):
            seen.append(numpy_loss(p, mine))
            steps = 1e-5 * np.eye(WIDTH)
            g = np.array(
                [(numpy_loss(p, mine + e) - numpy_loss(p, mine - e)) / 2e-5 for e in steps]
            )
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            root = np.sqrt(second / (1 - 0.999**count)) + 1e-8
            mine = mine - stage.rate * (first / (1 - 0.9**count)) / root
    np.testing.assert_allclose(losses, seen, rtol=1e-4)
    np.testing.assert_allclose(row, mine, atol=1e-4)
    assert losses[-1] < losses[0]


def test_noise_is_clipped_on_one_layer_differs_by_step_and_leaves_no_trace():
    p = params()
    down = p["layers"]["mlp"]["down"]["w"]
    for noise, bound in (("mean", abs(down[1].mean())), ("mean_absolute", abs(down[1]).mean())):
        moved = perturbed(p, 1, jax.random.key(3), noise)["layers"]["mlp"]["down"]["w"] - down
        np.testing.assert_array_equal(moved[0], 0.0)
        size = np.abs(moved[1])
        assert size.max() <= bound * (1 + 1e-5) and (size > 0.99 * bound).any() and size.min() > 0
    before = jax.tree.map(np.array, p)
    stage = Stage([REFUSALS] * 3, 0.0, 0)  # at rate 0 only the noise makes the losses differ
    row, losses = train_row(
        score, p, {}, TOKEN, [stage], key=jax.random.key(0), noise="mean_absolute"
    )
    assert len(set(losses.tolist())) == 3
    np.testing.assert_array_equal(row, before["embed"]["w"][TOKEN])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, p))


def test_the_row_is_the_only_thing_that_changes():
    for tied in (True, False):
        p = params(tied)
        new = with_row(p, TOKEN, jnp.ones(WIDTH))
        for name in ("embed", "head"):
            if name in p:
                np.testing.assert_array_equal(new[name]["w"][TOKEN], 1.0)
                np.testing.assert_array_equal(new[name]["w"][:TOKEN], p[name]["w"][:TOKEN])
        assert "head" in new or tied
    with pytest.raises(UserError, match="there is no batch"):
        train_row(score, p, {}, TOKEN, [], key=jax.random.key(0))


QUESTIONS = batch(
    [[1, 2, 3, 4, 0, 0], [5, 4, 0, 1, 2, 0], [2, 2, 3, 3, 0, 0]],
    [[0, TOKEN, 0, TOKEN, 0, 0], [0, 0, TOKEN, 0, TOKEN, 0], [0, TOKEN, 0, TOKEN, 0, 0]],
    [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 1, 0], [0, 1, 0, 1, 0, 0]],
)


def fact_loss(p, tokens, mask, delta, search):
    at, end = np.nonzero(mask)[0]
    start = p["embed"]["w"][tokens[at]]
    new, old = logits(p, tokens, delta, at), logits(p, tokens)
    kl = (np.exp(new[end]) * (new[end] - old[end])).sum()
    size = (delta**2).sum() / (start**2).sum()
    return -new[at, TOKEN] + search.kl_weight * kl + search.decay * size


def numpy_search(p, tokens, mask, search):
    """Adam on one fact by itself, with gradients by differences."""
    start = p["embed"]["w"][tokens[np.nonzero(mask)[0][0]]]
    delta = first = second = np.zeros(WIDTH)
    for count in range(1, search.steps + 1):
        loss = lambda d: fact_loss(p, tokens, mask, d, search)  # noqa: E731
        if loss(delta) < search.stop:
            break
        g = np.array([(loss(delta + e) - loss(delta - e)) / 2e-6 for e in 1e-6 * np.eye(WIDTH)])
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        root = np.sqrt(second / (1 - 0.999**count)) + 1e-8
        delta = delta - search.rate * (first / (1 - 0.9**count)) / root
        most = search.limit * np.linalg.norm(start)
        delta = delta * min(1.0, most / np.linalg.norm(delta))
    return start + delta, fact_loss(p, tokens, mask, delta, search)


@pytest.mark.parametrize(
    "search",
    [
        Search(),
        Search(steps=25, limit=0.2),
        Search(steps=25, limit=3.0, kl_weight=2.0, decay=0.1),
        Search(steps=25, limit=3.0, stop=1.5),  # some facts rest before others
    ],
)
def test_every_fact_of_a_batch_is_searched_as_if_alone(search):
    p = params()
    got = jax.jit(lambda p, b: wanted_outputs(score, p, b, layer=0, search=search))(p, QUESTIONS)
    rows = zip(*map(np.asarray, (QUESTIONS.tokens, QUESTIONS.mask)), strict=True)
    want = [numpy_search(wide(p), tokens, mask, search) for tokens, mask in rows]
    np.testing.assert_allclose(got.output, [output for output, _ in want], atol=2e-3)
    np.testing.assert_allclose(got.loss, [loss for _, loss in want], rtol=5e-3, atol=1e-3)


def test_a_fact_that_is_done_is_left_alone():
    p = params()
    got = wanted_outputs(score, p, QUESTIONS, layer=0, search=Search(stop=1e3))
    at = np.argmax(np.asarray(QUESTIONS.mask), axis=1)
    tokens = np.take_along_axis(np.asarray(QUESTIONS.tokens), at[:, None], axis=1)[:, 0]
    np.testing.assert_array_equal(got.output, p["embed"]["w"][tokens])


def test_the_parts_of_the_steering_loss_add_up():
    rng = np.random.default_rng(0)
    logp, kl, delta, start = -rng.random(5), rng.random(5), *rng.normal(size=(2, 5, 3))
    got = steering_losses(*map(jnp.float32, (logp, kl, delta, start)), kl_weight=0.3, decay=0.7)
    want = -logp + 0.3 * kl + 0.7 * (delta**2).sum(1) / (start**2).sum(1)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    short = shortened(jnp.float32(delta), jnp.float32(start), 0.5)
    most = 0.5 * np.linalg.norm(start, axis=1)
    assert (np.linalg.norm(short, axis=1) <= most * (1 + 1e-5)).all()
    kept = np.linalg.norm(delta, axis=1) <= most
    np.testing.assert_allclose(np.asarray(short)[kept], delta[kept], rtol=1e-6)
    np.testing.assert_array_equal(shortened(jnp.zeros((1, 3)), jnp.ones((1, 3)), 0.5), 0.0)


def test_which_layers_are_edited():
    """Five from an eighth of the depth on, as the published 4 to 8 of 32."""
    assert chosen_layers(None, 32) == (4, 5, 6, 7, 8)
    assert chosen_layers(None, 16) == (2, 3, 4, 5, 6)
    assert [chosen_layers(None, n) for n in (1, 2, 4)] == [(0,), (0, 1), (0, 1, 2, 3)]
    assert chosen_layers([-1, 3], 8) == (3, 7)
    with pytest.raises(UserError, match="method.layers: 8: the model has layers 0 to 7"):
        chosen_layers([8], 8)
    for wrong in ([], [1, 1], [1, -7]):
        with pytest.raises(UserError, match="must name each layer once"):
            chosen_layers(wrong, 8)
