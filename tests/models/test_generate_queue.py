"""Many answers in one program, begun ones among them, are those of each prompt alone."""

import dataclasses

import jax
import numpy as np
import pytest
from generating import VARIED, N, oracle, prompts
from golden_models import load

from jaxforget.engine import mesh as meshes
from jaxforget.engine.tree import merge
from jaxforget.models import generate as generate_of
from jaxforget.models import generate_loop, generate_queue, prompt_rows
from jaxforget.models.generate import generate_many


def test_many_prompts_keep_their_order_and_few_programs_are_compiled():
    cfg, params, _ = load("llama32")
    some = prompts(9, 2, 30, 14, 5, 33, 1)
    eos = (oracle(params, cfg, some[3])[5],)
    before = generate_queue.program()._cache_size()
    many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=eos, batch_size=3)
    assert generate_queue.program()._cache_size() == before + 1
    for prompt, made in zip(some, many, strict=True):
        assert made.tolist() == oracle(params, cfg, prompt, eos)
    assert generate_many(params, cfg, [], max_new_tokens=N, eos_ids=()) == []


@pytest.mark.parametrize("case", VARIED)
def test_a_slot_that_is_done_takes_the_next_prompt(case, monkeypatch):
    """Many more prompts than slots, of all lengths, ending early, late or not at all."""
    cfg, params, _ = load(case)
    some = prompts(*(1 + (7 * n) % 19 for n in range(21)))
    ends = [oracle(params, cfg, prompt) for prompt in some]
    eos = (ends[0][1], ends[4][3], ends[9][0])
    steps = []
    original = generate_queue.extend

    def counting(params, tokens, *args):
        if tokens.shape[1] == 1:  # a step, not a prompt
            jax.debug.callback(lambda: steps.append(len(tokens)))
        return original(params, tokens, *args)

    monkeypatch.setattr(generate_queue, "extend", counting)
    generate_queue.program.cache_clear()
    many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=eos, batch_size=4)
    jax.effects_barrier()
    generate_queue.program.cache_clear()
    wanted = [oracle(params, cfg, prompt, eos) for prompt in some]
    for made, want in zip(many, wanted, strict=True):
        assert made.tolist() == want
    # what four slots compute: the tokens that there are, and fewer idle ones than a tail has
    assert set(steps) == {4, 1}
    assert sum(map(len, wanted)) <= sum(steps) <= sum(map(len, wanted)) + 2 * N


def test_prompts_of_one_width_behind_what_they_share_make_a_queue():
    ahead = np.full(48, 7, np.int32)
    some = [np.concatenate([ahead, own]) for own in prompts(*[20] * 17, *[32] * 9, *[33] * 5)]
    # 24 at least of each, three at a time; 68 and 80 tokens differ in width, but not behind 48
    assert [len(each) for each in prompt_rows.alike(some, 3, queues=True)] == [26, 5]
    assert [len(each) for each in prompt_rows.alike(some[20:], 3, queues=True)] == [11]
    assert [len(each) for each in prompt_rows.alike(some, 16, queues=False)] == [16, 15]


@pytest.mark.parametrize("case", VARIED)
def test_what_all_prompts_begin_with_is_computed_once(case, monkeypatch):
    cfg, params, _ = load(case)
    (ahead,) = prompts(18, seed=4)
    some = [np.concatenate([ahead, own]) for own in prompts(3, 1, 7, 2, 5, seed=5)]
    widths = []
    original = generate_queue.beginning

    def watched(params, shared, *args):
        widths.append(len(shared))
        return original(params, shared, *args)

    monkeypatch.setattr(generate_queue, "beginning", watched)
    generate_queue.program.cache_clear()
    many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=(), batch_size=2)
    generate_queue.program.cache_clear()
    assert widths == [16]  # a multiple of 8 of the 18 tokens
    for prompt, answer in zip(some, many, strict=True):
        assert answer.tolist() == oracle(params, cfg, prompt)


@pytest.mark.parametrize("divided", [False, True])
def test_worked_examples_before_all_prompts_are_computed_once_in_batches_too(divided, monkeypatch):
    cfg, params, _ = load("llama32")
    (ahead,) = prompts(18, seed=4)
    some = [np.concatenate([ahead, own]) for own in prompts(3, 1, 7, 2, seed=5)]
    widths = []
    original = generate_loop.prefill

    def watched(params, theirs, *args):
        widths.append(theirs.shape)
        return original(params, theirs, *args)

    monkeypatch.setattr(generate_loop, "prefill", watched)
    monkeypatch.setattr(generate_of, "_SHARED_IN_BATCHES", 16)
    generate_loop.program.cache_clear()
    if divided:
        mesh = meshes.make_mesh(meshes.MeshConfig(data=4, fsdp=1, tensor=2))
        params = meshes.put(params, meshes.shardings(params, mesh))
    many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=(), batch_size=4)
    generate_loop.program.cache_clear()
    assert sorted(set(widths)) == [(1, 16), (4, 32)]
    for prompt, answer in zip(some, many, strict=True):
        assert answer.tolist() == oracle(load("llama32")[1], cfg, prompt)


@pytest.mark.parametrize("batch_size", [3, 32])
@pytest.mark.parametrize("case", ["llama32", "gemma3_text", "gpt2"])
def test_what_answers_begin_with_is_run_at_once(case, batch_size, monkeypatch):
    """Beginnings of every length, whole answers and none, in a queue and in a batch."""
    cfg, params, _ = load(case)
    some = prompts(*(1 + (7 * n) % 36 for n in range(2 * (N + 1))), seed=3)
    ends = [oracle(params, cfg, prompt) for prompt in some]
    eos = (ends[3][2], ends[5][9])
    wanted = [oracle(params, cfg, prompt, eos) for prompt in some]
    begun = [np.asarray(want[: n // 2], np.int32) for n, want in enumerate(wanted)]
    steps = []
    for module in (generate_loop, generate_queue):

        def counting(params, tokens, *args, original=module.extend):
            if tokens.shape[1] == 1:
                jax.debug.callback(lambda: steps.append(1))
            return original(params, tokens, *args)

        monkeypatch.setattr(module, "extend", counting)
        module.program.cache_clear()
    options = {"max_new_tokens": N, "eos_ids": eos, "batch_size": batch_size}
    plain = generate_many(params, cfg, some, **options)
    jax.effects_barrier()
    alone, steps[:] = len(steps), []
    many = generate_many(params, cfg, some, begun=begun, **options)
    jax.effects_barrier()
    for module in (generate_loop, generate_queue):
        module.program.cache_clear()
    for want, without, made in zip(wanted, plain, many, strict=True):
        assert without.tolist() == made.tolist() == want
    assert len(steps) < 0.6 * alone or batch_size == 32


def test_what_answers_begin_with_is_kept_whatever_the_model_thinks_of_it():
    cfg, params, _ = load("llama32")
    some = prompts(5, 9, 30, 4, 7)
    eos = (int(some[0][0]),)
    forced = [*prompts(3, 0, N, N + 5, seed=8), np.asarray([4, *eos, 5, 6], np.int32)]
    for batch_size in (2, 8):
        made = generate_many(
            params, cfg, some, begun=forced, max_new_tokens=N, eos_ids=eos, batch_size=batch_size
        )
        for prompt, begun, answer in zip(some[:2], forced, made, strict=False):
            more = oracle(params, cfg, np.append(prompt, begun), eos, N - len(begun))
            assert answer.tolist() == [*begun, *more]
        assert [answer.tolist() for answer in made[2:]] == [
            forced[2].tolist(),
            forced[3][:N].tolist(),
            [4, *eos],
        ]


@pytest.mark.parametrize("reach", [8, pytest.param(16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", ["llama32", "gemma3_text"])
def test_attention_reaches_as_far_as_is_written(case, reach, monkeypatch):
    """Through every length of the cache that has a program of its own, to its last slot."""
    cfg, params, _ = load(case)
    some = prompts(1, 20, 3, 36, 9, 11, 30)
    monkeypatch.setattr(generate_loop, "_REACH", reach)
    for batch_size in (3, 8):
        for module in (generate_loop, generate_queue):
            module.program.cache_clear()
        many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=(), batch_size=batch_size)
        for prompt, made in zip(some, many, strict=True):
            assert made.tolist() == oracle(params, cfg, prompt)
    for module in (generate_loop, generate_queue):
        module.program.cache_clear()


def test_prompts_up_to_the_last_learned_position():
    """Places behind it, which are computed as chunks are whole, spoil nothing."""
    cfg, params, _ = load("gpt2")
    cfg = dataclasses.replace(cfg, max_positions=50)
    params = merge(params, {"embed": {"pos": params["embed"]["pos"][:50]}})
    longest = cfg.max_positions - N
    some = prompts(longest, 4, longest - 1, 7)
    for batch_size in (2, 8):
        many = generate_many(params, cfg, some, max_new_tokens=N, eos_ids=(), batch_size=batch_size)
        for prompt, made in zip(some, many, strict=True):
            assert made.tolist() == oracle(params, cfg, prompt)
