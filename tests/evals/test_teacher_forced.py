"""One pass over a set: every number where it belongs, however rows are packed or divided."""

import dataclasses
import gc
import math
import re
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evals import small

from jaxforget.data.pack import pack_all
from jaxforget.engine import mesh as meshes
from jaxforget.evals import teacher_forced
from jaxforget.evals.teacher_forced import score_set
from jaxforget.models import decoder
from jaxforget.models.inside import Look
from jaxforget_kernels import blocks

FIELDS = ("logp", "hit", "mean", "second_moment", "hidden", "residual")


@pytest.fixture(scope="module")
def lm():
    return small.model()


@pytest.fixture(scope="module")
def tokenised():
    return small.tokens([*small.records()["retain"], *small.records()["world_facts"]])


def table(lm, tokenised, **options):
    return score_set(lm.score, lm.params, tokenised, stats=True, hidden=True, residual=0, **options)


def same(a, b, tolerance=2e-5):
    np.testing.assert_array_equal(a.offsets, b.offsets)
    for name in FIELDS:
        left, right = getattr(a, name), getattr(b, name)
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance, err_msg=name)


def test_it_equals_scoring_each_example_alone(lm, tokenised):
    got = table(lm, tokenised)
    longest = int(tokenised.lengths.max())

    @jax.jit
    def alone(params, tokens, count):
        """Logits, final states and those behind the first layer of one example, then padding."""
        positions = jnp.arange(longest)
        there = (positions < count).astype(jnp.int32)
        hidden, (inner, *_) = decoder.hidden_states(
            params, tokens[None], there[None], positions[None], lm.config, look=Look(0)
        )
        return decoder.logits(hidden, lm.head(params))[0], hidden[0], inner[0]

    for index in range(len(tokenised)):
        span = slice(*tokenised.offsets[index : index + 2])
        tokens, labelled = tokenised.tokens[span], tokenised.mask[span]
        padded = np.pad(tokens, (0, longest - len(tokens)))
        logits, hidden, inner = (
            np.asarray(each[: len(tokens)], np.float64)[labelled]
            for each in alone(lm.params, padded, len(tokens))
        )
        every = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        targets = tokenised.targets[span][labelled]
        mine = slice(*got.offsets[index : index + 2])
        p = np.exp(every)
        want = {
            "logp": every[np.arange(len(targets)), targets],
            "hit": every.argmax(-1) == targets,
            "mean": (p * every).sum(-1),
            "second_moment": (p * every**2).sum(-1),
            "hidden": hidden,
            "residual": inner,
        }
        for name, expected in want.items():
            np.testing.assert_allclose(
                getattr(got, name)[mine], expected, rtol=5e-5, atol=5e-5, err_msg=name
            )


@pytest.mark.parametrize(("rows", "length"), [(1, 64), (3, 128), (20, 256)])
def test_packing_changes_nothing(lm, tokenised, rows, length):
    same(table(lm, tokenised, rows=rows, length=length), table(lm, tokenised))


def test_devices_change_nothing(lm, tokenised):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=4, tensor=2))
    params = meshes.put(lm.params, meshes.shardings(lm.params, mesh))
    put = lambda batch: meshes.put_rows(batch, mesh)  # noqa: E731
    divided = score_set(
        lm.score, params, tokenised, stats=True, hidden=True, residual=0, rows=4, put=put
    )
    same(divided, table(lm, tokenised))


def test_an_example_of_one_target_has_one_number(lm):
    record = small.records()["retain"][0]
    tiny = dataclasses.replace(record, answer="A", extra={})
    tokenised = small.tokens([tiny, record, tiny])
    got = score_set(lm.score, lm.params, tokenised)
    counts = np.diff(got.offsets)
    assert counts[0] == counts[2] == 2 and counts[1] > 2  # the letter and the end
    np.testing.assert_allclose(got.logp[:2], got.logp[-2:], rtol=1e-5)
    assert got.hit is None and got.hidden is None


def test_nothing_is_compiled_twice_and_progress_is_told(lm, tokenised):
    calls = []

    def score(params, batch, **options):
        calls.append(1)
        return lm.score(params, batch, **options)

    told = []
    for _ in range(3):
        score_set(score, lm.params, tokenised, rows=2, counted=lambda *at: told.append(at))
    assert len(calls) == 1
    batches = len(told) // 3
    assert told[:batches] == [(done + 1, batches) for done in range(batches)]


def test_one_pass_gives_everything_and_keeps_no_distribution(lm, tokenised, monkeypatch):
    calls, batch = [], pack_all(tokenised, rows=4, length=384)[0]
    rows, slots, vocab = len(batch.tokens), batch.max_targets, lm.config.vocab_size
    assert slots is not None
    monkeypatch.setattr(blocks, "CPU_BUDGET", rows * slots // 4 * vocab)
    monkeypatch.setattr(blocks, "CPU_WHOLE", 0)

    def score(params, rows, **options):
        calls.append(options)
        return lm.score(params, rows, **options)

    names = ("logp", "hit", "mean", "second_moment")
    run = teacher_forced._compiled(score, names, True, None, None)
    program = run.lower(lm.params, batch).compile().as_text()
    assert calls == [{"stats": True}]
    shapes = re.findall(r"[a-z]+\d+\[([\d,]+)\]", program)
    sizes = [tuple(map(int, shape.split(","))) for shape in shapes]
    wide = [size for size in sizes if vocab in size and lm.config.hidden_size not in size]
    assert max(map(math.prod, wide)) == rows * (slots // 4) * vocab


def test_a_model_nobody_uses_any_more_is_freed(tokenised):
    lm = small.model(1)
    score_set(lm.score, lm.params, tokenised)
    gone = weakref.ref(lm)
    del lm
    gc.collect()
    jax.clear_caches()
    gc.collect()
    assert gone() is None, teacher_forced


@pytest.mark.parametrize(("rows", "length"), [(1, 64), (3, None)])
def test_sharing_questions_changes_nothing(lm, rows, length):
    records = small.records()["retain"]
    others = [
        dataclasses.replace(r, answer=a) for r in records for a in r.extra["perturbed_answer"]
    ]
    tokenised = small.tokens([*others, *records])
    shared = table(lm, tokenised, rows=rows, length=length, share_prompts=True)
    same(shared, table(lm, tokenised))


def test_parameters_on_a_mesh_are_scored_there(lm, tokenised):
    mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=4))
    spread = meshes.put(lm.params, meshes.shardings(lm.params, mesh))
    options = {"stats": True, "hidden": True, "residual": 0, "rows": 3}
    same(score_set(lm.score, spread, tokenised, **options), table(lm, tokenised))
