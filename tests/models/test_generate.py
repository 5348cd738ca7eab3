"""Cached generation equals running the whole text again, whatever lies around a row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generating import VARIED, N, last_logits, left_padded, oracle, prompts
from golden_models import load

from jaxforget.engine import mesh as meshes
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import merge
from jaxforget.models import decoder, generate_loop
from jaxforget.models import generate as generate_of
from jaxforget.models.generate import generate, generate_many
from jaxforget.models.lora import init_lora


@pytest.mark.parametrize("case", VARIED)
def test_greedy_equals_running_the_whole_text_again(case):
    cfg, params, _ = load(case)
    some = prompts(3, 11, 1, 20)
    tokens, lengths = generate(params, cfg, *left_padded(some, 20), max_new_tokens=N, eos_ids=())
    np.testing.assert_array_equal(lengths, [N] * 4)
    for row, prompt in enumerate(some):
        assert tokens[row].tolist() == oracle(params, cfg, prompt), row


@pytest.mark.parametrize("case", ["gemma2", "gpt2"])
def test_more_padding_changes_nothing(case):
    cfg, params, _ = load(case)
    some = prompts(5, 9, seed=1)
    few, many = (
        generate(params, cfg, *left_padded(some, width), max_new_tokens=N, eos_ids=())[0]
        for width in (9, 17)
    )
    np.testing.assert_array_equal(few, many)


def test_rows_end_behind_their_first_end_token_and_are_padded_from_there():
    cfg, params, _ = load("llama32")
    some = prompts(4, 8, 6)
    free = [oracle(params, cfg, prompt) for prompt in some]
    eos = (free[0][4], free[1][2])
    tokens, lengths = generate(
        params, cfg, *left_padded(some, 8), max_new_tokens=N, eos_ids=eos, pad_id=93
    )
    for row, prompt in enumerate(some):
        expected = oracle(params, cfg, prompt, eos)
        assert lengths[row] == len(expected) and len(expected) < N or row == 2
        assert tokens[row].tolist() == expected + [93] * (N - len(expected))


def test_the_loop_stops_when_every_row_has_ended(monkeypatch):
    cfg, params, _ = load("llama32")
    steps = []
    original = generate_loop.extend

    def counting(*args):
        jax.debug.callback(lambda: steps.append(1))
        return original(*args)

    monkeypatch.setattr(generate_loop, "extend", counting)
    generate_loop.program.cache_clear()
    jax.clear_caches()
    some = prompts(4, 8)
    ends = [oracle(params, cfg, prompt) for prompt in some]
    eos = (ends[0][2], ends[1][3])
    longest = max(len(oracle(params, cfg, prompt, eos)) for prompt in some)
    _, lengths = generate(params, cfg, *left_padded(some, 8), max_new_tokens=20, eos_ids=eos)
    jax.effects_barrier()
    generate_loop.program.cache_clear()
    assert int(lengths.max()) == longest <= 4
    assert len(steps) == longest - 1


def test_adapters_are_used():
    cfg, params, _ = load("llama32")
    trained, extra = init_lora(jax.random.key(0), params, rank=4, alpha=64.0, targets="attn|mlp")
    trained = jax.tree.map(lambda leaf: leaf + 0.05, trained)
    adapted = merge(merge(params, extra), trained)
    (prompt,) = prompts(6)
    (made,) = generate_many(adapted, cfg, [prompt], max_new_tokens=N, eos_ids=(), batch_size=1)
    assert made.tolist() == oracle(adapted, cfg, prompt) != oracle(params, cfg, prompt)


def test_samples_go_on_as_they_began():
    cfg, params, _ = load("gpt2")
    some = prompts(4, 4, 9, 2, 7)
    options = {"max_new_tokens": N, "eos_ids": (), "temperature": 1.5, "key": jax.random.key(5)}
    whole = generate_many(params, cfg, some, **options)
    begun = [answer[: 2 * n] for n, answer in enumerate(whole)]
    for batch_size in (2, 8):
        again = generate_many(params, cfg, some, begun=begun, batch_size=batch_size, **options)
        for left, right in zip(whole, again, strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_samples_depend_on_key_and_place_alone(batch_size):
    cfg, params, _ = load("gpt2")
    some = prompts(4, 4, 9, 2, 7)
    options = {"max_new_tokens": N, "eos_ids": (), "temperature": 1.5, "top_p": 0.95}
    whole = generate_many(params, cfg, some, key=jax.random.key(5), batch_size=5, **options)
    other = generate_many(
        params, cfg, some, key=jax.random.key(5), batch_size=batch_size, **options
    )
    for left, right in zip(whole, other, strict=True):
        np.testing.assert_array_equal(left, right)
    fresh = generate_many(params, cfg, some, key=jax.random.key(6), batch_size=5, **options)
    assert any(not np.array_equal(left, right) for left, right in zip(whole, fresh, strict=True))


def allowed(logits, temperature, top_p, top_k):
    """float64: probabilities after temperature, top-k and top-p."""
    wide = np.asarray(logits, np.float64) / temperature
    p = np.exp(wide - wide.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = np.zeros(len(p), bool)
    mass = 0.0
    for rank, token in enumerate(order):
        if (top_k and rank >= top_k) or mass >= top_p:
            break
        keep[token] = True
        mass += p[token]
    return np.where(keep, p, 0) / p[keep].sum()


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (2.0, 0.6, 0), (3.0, 1.0, 3), (3.0, 0.8, 9)]
)
def test_samples_have_the_stated_distribution(temperature, top_p, top_k):
    cfg, params, _ = load("gpt2")
    (prompt,) = prompts(5)
    text = np.zeros(48, np.int32)
    text[:5] = prompt
    p = allowed(last_logits(params, jnp.asarray(text), 5, cfg), temperature, top_p, top_k)
    rows, parts = 1024, []
    for part in range(4):
        tokens, _ = generate(
            params,
            cfg,
            np.tile(prompt, (rows, 1)),
            np.ones((rows, 5), bool),
            max_new_tokens=1,
            eos_ids=(),
            key=jax.random.key(0),
            rows=part * rows + np.arange(rows),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        )
        parts.append(np.asarray(tokens)[:, 0])
    drawn = np.concatenate(parts)
    seen = np.bincount(drawn, minlength=len(p)) / len(drawn)
    assert np.all(seen[p == 0] == 0)
    assert np.abs(seen - p).max() < 5 * np.sqrt(0.25 / len(drawn))


@pytest.mark.parametrize("case", ["smollm2"])
def test_bfloat16_runs_and_mostly_agrees_in_its_first_token(case):
    cfg, params, _ = load(case)
    some = prompts(*range(2, 18))
    exact, rough = (
        generate_many(
            params,
            cfg,
            some,
            max_new_tokens=1,
            eos_ids=(),
            compute=decoder.Compute(dtype),
        )
        for dtype in decoder.DTYPES
    )
    assert np.mean([a[0] == b[0] for a, b in zip(exact, rough, strict=True)]) > 0.8


def test_sharded_parameters_generate_the_same():
    cfg, params, _ = load("llama32")
    some = prompts(4, 8, 6, 7)
    arguments = {"max_new_tokens": N, "eos_ids": (), "batch_size": 4}
    alone = generate_many(params, cfg, some, **arguments)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        spread = meshes.put(params, meshes.shardings(params, mesh))
        together = generate_many(spread, cfg, some, **arguments)
    for left, right in zip(alone, together, strict=True):
        np.testing.assert_array_equal(left, right)


def test_too_many_learned_positions_are_refused_and_rotary_ones_warned_of(caplog):
    cfg, params, _ = load("gpt2")
    arguments = {"max_new_tokens": N, "eos_ids": ()}
    with pytest.raises(UserError, match="prompt of 60 tokens .* 12 exceed the 64 positions"):
        generate_many(params, cfg, prompts(60), **arguments)
    cfg, params, _ = load("llama32")
    short = dataclasses.replace(cfg, max_positions=8)
    generate_many(params, short, prompts(2), batch_size=1, **arguments)
    assert "exceed the 8 positions the model was made for" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"temperature": 1.0}, "needs a random key"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be >= 0"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"prompts": [np.array([], np.int32)]}, "prompt 0 is empty"),
        ({"prompts": [np.array([4, 96], np.int32)]}, "prompt 0 holds token 96; allowed: 0 to 95"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    cfg, params, _ = load("gpt2")
    arguments = {"prompts": prompts(3), "max_new_tokens": 2, "eos_ids": (), **options}
    with pytest.raises(UserError, match=message):
        generate_many(params, cfg, **arguments)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (7, 8)])
def test_few_prompts_take_few_rows(monkeypatch, count, rows):
    """Rows beyond the next power of two would be computed for nobody."""
    cfg, params, _ = load("llama32")
    seen = []

    def batch(how, params, cfg, shared, prompts, mask, begun, numbers):
        seen.append(mask.shape[0])
        return np.zeros((len(mask), N), np.int32), np.ones(len(mask), np.int32)

    monkeypatch.setattr(generate_of._How, "batch", batch)
    made = generate_many(
        params, cfg, prompts(*[4] * count), max_new_tokens=N, eos_ids=(), batch_size=8
    )
    assert seen == [rows] and len(made) == count
