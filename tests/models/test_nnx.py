"""NNX modules behave as score functions: same values, same gradients, plain parameters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from golden_models import rows

from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import flatten, merge, split
from jaxforget.models.nnx import from_module

V, D = 13, 8


class Transformer(nnx.Module):
    """Attention within segments, learned positions, list of blocks, head with a bias."""

    def __init__(self, rngs, tied=False):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.place = nnx.Embed(32, D, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(D, 3 * D, rngs=rngs) for _ in range(2)])
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = None if tied else nnx.Linear(D, V, rngs=rngs)
        if self.head is not None:
            self.head.bias[...] = jnp.linspace(-1, 1, V)

    def states(self, tokens, *, positions, segments):
        x = self.embed(tokens) + self.place(positions)
        sees = segments[:, :, None] == segments[:, None, :]
        sees &= positions[:, :, None] >= positions[:, None, :]
        for block in self.blocks:
            q, k, v = jnp.split(block(x), 3, axis=-1)
            weights = jax.nn.softmax(jnp.where(sees, q @ k.swapaxes(1, 2), -1e9))
            x = self.drop(x + weights @ v)
        return x

    def __call__(self, tokens, *, positions, segments):
        x = self.states(tokens, positions=positions, segments=segments)
        return self.embed.attend(x) if self.head is None else self.head(x)


class Classifier(nnx.Module):
    """One token in, one label out: no positions, no segments, BatchNorm inside."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(V, D, rngs=rngs)
        self.inner = nnx.Linear(D, D, rngs=rngs)
        self.norm = nnx.BatchNorm(D, rngs=rngs)
        self.outer = nnx.Linear(D, 3, rngs=rngs)

    def __call__(self, tokens):
        return self.outer(jax.nn.relu(self.norm(self.inner(self.embed(tokens)))))


def states(module, tokens, *, positions, segments):
    return module.states(tokens, positions=positions, segments=segments)


def texts(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, V, length) for length in lengths]


def oracle(module, batch):
    """float64 log-probabilities of all tokens, from the module itself in evaluation mode."""
    module.eval()
    logits = module(batch.tokens, positions=batch.positions, segments=batch.segments)
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


@pytest.mark.parametrize("ends", ["logits", "hidden"])
def test_scores_and_statistics_are_those_of_the_module(ends):
    module = Transformer(nnx.Rngs(0))
    options = {"hidden": states, "head": "head/kernel"} if ends == "hidden" else {}
    score, params = from_module(module, **options)
    batch = rows(texts(6, 5), texts(9), length=12, first_target=2)
    scores = jax.jit(lambda p, b: score(p, b, stats=True))(params, batch)
    table, mask = oracle(module, batch), np.asarray(batch.mask)
    chosen = np.take_along_axis(table, np.asarray(batch.targets)[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.logp, chosen * mask, atol=1e-5)
    p = np.exp(table)
    stats = scores.stats
    hits = table.argmax(-1) == np.asarray(batch.targets)
    np.testing.assert_array_equal(np.asarray(stats.hit)[mask > 0], hits[mask > 0])
    np.testing.assert_allclose(stats.mean * mask, (p * table).sum(-1) * mask, atol=1e-5)
    second = (p * table**2).sum(-1) * mask
    np.testing.assert_allclose(stats.second_moment * mask, second, atol=2e-5)
    assert (scores.head is None) == (scores.hidden is None) == (ends == "logits")
    assert score(params, batch).stats is None


def test_tied_heads_are_read_as_the_embedding_is_stored():
    module = Transformer(nnx.Rngs(1), tied=True)
    score, params = from_module(module, hidden=states, head="embed/embedding")
    plain, _ = from_module(module)
    batch = rows(texts(7), length=8)
    np.testing.assert_allclose(score(params, batch).logp, plain(params, batch).logp, atol=1e-5)
    assert score(params, batch).head.bias is None


@pytest.mark.parametrize("ends", ["logits", "hidden"])
def test_gradients_equal_those_nnx_takes(ends):
    module = Transformer(nnx.Rngs(2))
    module.eval()
    options = {"hidden": states, "head": "head/kernel"} if ends == "hidden" else {}
    score, params = from_module(module, **options)
    batch = rows(texts(6, 5), texts(9), length=12)

    def direct(module):
        logits = module(batch.tokens, positions=batch.positions, segments=batch.segments)
        table = jax.nn.log_softmax(logits)
        return jnp.sum(
            batch.mask * jnp.take_along_axis(table, batch.targets[..., None], -1)[..., 0]
        )

    gradient = jax.jit(jax.grad(lambda p: jnp.sum(score(p, batch).logp)))(params)
    expected = nnx.grad(direct)(module)
    paths = {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(expected)}
    assert paths.keys() == flatten(gradient).keys() == flatten(params).keys()
    for path, leaf in flatten(gradient).items():
        np.testing.assert_allclose(leaf, paths[path], atol=2e-5, err_msg=path)


def test_parameters_are_plain_and_survive_splitting_and_merging():
    score, params = from_module(Transformer(nnx.Rngs(0)))
    assert {"blocks/0/kernel", "blocks/1/kernel"} <= flatten(params).keys()
    assert all(isinstance(leaf, jax.Array) for leaf in flatten(params).values())
    chosen, others = split(params, lambda path: path.startswith("blocks/"))
    batch = rows(texts(5), length=6)
    np.testing.assert_array_equal(
        score(merge(others, chosen), batch).logp, score(params, batch).logp
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_allclose(score(zero, batch).logp[0, :4], -np.log(V), rtol=1e-6)


def test_max_targets_gathers_the_labelled_slots_in_order():
    score, params = from_module(Transformer(nnx.Rngs(3)))
    batch = rows(texts(6, 5), texts(9), length=12, first_target=3)
    full = score(params, batch)
    few = score(params, dataclasses.replace(batch, max_targets=6))
    assert few.logp.shape == (2, 6)
    for row in range(2):
        where = np.flatnonzero(batch.mask[row])
        np.testing.assert_allclose(few.logp[row, : len(where)], full.logp[row, where], atol=1e-6)
        np.testing.assert_array_equal(few.segments[row, : len(where)], batch.segments[row, where])
        assert np.all(few.mask[row, len(where) :] == 0) and np.all(few.logp[row, len(where) :] == 0)


def test_a_classifier_is_a_sequence_of_length_one_scored_with_its_running_averages():
    module = Classifier(nnx.Rngs(4))
    module.train()
    module(jnp.arange(12)[:, None] % V)  # moves the averages of BatchNorm
    score, params = from_module(module)
    assert not any("mean" in path or "var" in path for path in flatten(params))
    labels = [np.array([token, token % 3]) for token in range(5)]
    batch = rows(*([label] for label in labels), length=1)
    scores = jax.jit(score)(params, batch)
    alone = jax.jit(score)(params, rows([labels[2]], length=1))
    np.testing.assert_allclose(scores.logp[2:3], alone.logp, atol=1e-6)
    assert not module.norm.use_running_average  # the caller's module stays as it was
    module.eval()
    table = np.asarray(jax.nn.log_softmax(module(jnp.arange(5)[:, None])), np.float64)
    np.testing.assert_allclose(
        scores.logp[:, 0], table[np.arange(5), 0, np.arange(5) % 3], atol=1e-6
    )


def test_modules_without_segments_refuse_packed_rows_when_traced():
    score, params = from_module(Classifier(nnx.Rngs(0)))
    with pytest.raises(UserError, match="takes no segments, so rows must hold one example"):
        jax.eval_shape(score, params, rows(texts(3, 3), length=6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": states}, "hidden and head belong together"),
        ({"head": "head/kernel"}, "hidden and head belong together"),
        ({"hidden": states, "head": "head/kernl"}, "'head/kernl': Did you mean 'head/kernel'"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(UserError, match=message):
        from_module(Transformer(nnx.Rngs(0)), **options)


def test_shapes_that_do_not_fit_are_named_when_traced():
    batch = rows(texts(3), length=4)
    module = Transformer(nnx.Rngs(0))
    score, params = from_module(module, hidden=states, head="blocks/0/bias")
    with pytest.raises(UserError, match=r"'blocks/0/bias' has shape \(24,\), which does not fit"):
        jax.eval_shape(score, params, batch)
    pooled = lambda model, tokens, *, positions, segments: states(  # noqa: E731
        model, tokens, positions=positions, segments=segments
    )[:, 0]
    score, params = from_module(module, hidden=pooled, head="head/kernel")
    with pytest.raises(UserError, match=r"Transformer gave an array of shape \(1, 8\) for tokens"):
        jax.eval_shape(score, params, batch)
