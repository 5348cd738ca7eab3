"""Subtracting recorded updates: replay without them, files that come back, files that do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxforget.edits import Update, amnesiac, read_updates, record_updates
from jaxforget.engine.errors import UserError
from jaxforget.engine.tree import merge
from jaxforget.models.lora import init_lora, merge_lora

START = {"a": {"w": jnp.float32([[1.0, -2.0], [0.5, 3.0]])}, "b": jnp.float32([0.1, 0.2, 0.3])}


def linear_run(seed, steps, skip=()):
    """SGD on a linear loss: each step's gradient is its own constant, float64; and its batches."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.float64, START)
    updates, batches = [], []
    for step in range(steps):
        gradient = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), START)
        batch = rng.choice(12, size=3, replace=False).tolist()
        update = jax.tree.map(lambda g: -0.1 * g, gradient)
        if step not in skip:
            params = jax.tree.map(np.add, params, update)
        updates.append(update)
        batches.append(batch)
    return params, updates, batches


def close(ours, theirs, atol=2e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), ours, theirs)


def narrow(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.sets(st.integers(0, 11), min_size=1, max_size=5))
def test_replay_equals_the_training_without_the_touched_steps(seed, forget):
    end, updates, batches = linear_run(seed, 12)
    skip = [step for step, batch in enumerate(batches) if forget & set(batch)]
    assume(skip)
    steps = zip(range(12), updates, batches, strict=True)
    got, metrics = amnesiac(narrow(end), steps, forget=forget)
    without, _, _ = linear_run(seed, 12, skip)
    close(got, without)
    assert metrics["steps"] == len(skip)
    assert metrics["examples"] == len(forget & {e for step in skip for e in batches[step]})
    total = jax.tree.map(lambda *u: sum(u), *[updates[step] for step in skip])
    squares = sum((leaf**2).sum() for leaf in jax.tree.leaves(total))
    np.testing.assert_allclose(metrics["norm"], np.sqrt(squares), rtol=1e-5)


def test_forgetting_all_steps_returns_to_the_start():
    end, updates, batches = linear_run(3, 10)
    steps = zip(range(10), updates, batches, strict=True)
    close(amnesiac(narrow(end), steps, forget=range(12))[0], START)


def test_an_empty_forget_set_changes_nothing():
    end, updates, batches = linear_run(0, 4)
    params = narrow(end)
    got, metrics = amnesiac(params, zip(range(4), updates, batches, strict=True), forget=[])
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert metrics["steps"] == metrics["examples"] == metrics["norm"] == 0


def test_a_share_of_each_update_may_be_subtracted():
    end, updates, _ = linear_run(5, 3)
    params = narrow(end)
    steps = [
        Update(7, updates[0], (1, 2, 3, 4)),
        Update(8, updates[1], (5,)),
        Update(9, updates[2], (1, 2)),
    ]
    half = amnesiac(params, steps, forget=[1], share=0.5)[0]
    want = jax.tree.map(lambda p, a, b: p - 0.5 * (a + b), end, updates[0], updates[2])
    close(half, want)
    part = amnesiac(params, steps, forget=[1, 2], share=lambda touched, seen: touched / seen)[0]
    close(part, jax.tree.map(lambda p, a, b: p - a / 2 - b, end, updates[0], updates[2]))
    jax.tree.map(
        np.testing.assert_array_equal, amnesiac(params, steps, forget=[1], share=0.0)[0], params
    )


def test_what_is_recorded_comes_back(tmp_path):
    record = record_updates(tmp_path / "log")
    rng, params, seen = np.random.default_rng(0), START, []
    for step in (12, 3, 1_000_000_000):
        after = jax.tree.map(lambda p: p + jnp.float32(rng.normal(size=p.shape)), params)
        ids = np.array([[step % 7, -1], [step % 5, step % 7]], np.int32)
        path = record(step, params, after, ids)
        assert path.parent == tmp_path / "log"
        seen.append((step, params, after, tuple(sorted({step % 7, step % 5}))))
        params = after
    assert not [each for each in (tmp_path / "log").iterdir() if each.suffix != ".safetensors"]
    found = list(read_updates(tmp_path / "log"))
    assert [each.step for each in found] == [3, 12, 1_000_000_000]
    for each in found:
        step, before, after, examples = next(s for s in seen if s[0] == each.step)
        assert each.examples == examples
        want = jax.tree.map(lambda a, b: np.float32(a) - np.float32(b), after, before)
        jax.tree.map(np.testing.assert_array_equal, each.update, want)
    # a step again, as after a resumption, replaces its file
    record(3, START, START, [1])
    again = {each.step: each for each in read_updates(tmp_path / "log")}
    assert len(again) == 3 and again[3].examples == (1,)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0.0), again[3].update)


def test_a_recorded_run_is_forgotten_from_its_files(tmp_path):
    record = record_updates(tmp_path, watched=[2, 5])
    end, updates, batches = linear_run(8, 12)
    params, written = START, []
    for step, (update, batch) in enumerate(zip(updates, batches, strict=True)):
        after = jax.tree.map(lambda p, u: (p + u).astype(jnp.float32), params, narrow(update))
        written.append(record(step, params, after, batch) is not None)
        params = after
    assert written == [bool({2, 5} & set(batch)) for batch in batches]
    assert 0 < sum(written) < 12
    skip = [step for step, batch in enumerate(batches) if 5 in batch]
    got, _ = amnesiac(params, read_updates(tmp_path, forget=[5]), forget=[5])
    close(got, linear_run(8, 12, skip)[0])
    assert [each.step for each in read_updates(tmp_path, forget=[5])] == skip


def test_a_run_of_adapters_is_forgotten_in_the_merged_weights(tmp_path):
    rng = np.random.default_rng(0)
    layers = {"q": {"w": rng.normal(size=(2, 6, 5)), "b": rng.normal(size=(2, 5))}}
    base = jax.tree.map(jnp.float32, {"layers": layers})
    factors, frozen = init_lora(jax.random.key(0), base, rank=2, alpha=3.0, targets="q")
    record = record_updates(tmp_path, scales=frozen)
    states = [factors]
    for step in range(3):
        moved = jax.tree.map(lambda x: x + jnp.float32(rng.normal(size=x.shape)), states[-1])
        record(step, states[-1], moved, [step])
        states.append(moved)
    weights = [merge_lora(merge(merge(base, frozen), state)) for state in states]
    for step in range(3):
        got, _ = amnesiac(weights[3], read_updates(tmp_path), forget=[step])
        want = jax.tree.map(lambda w, a, b: w - a + b, weights[3], weights[step + 1], weights[step])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    got, _ = amnesiac(weights[3], read_updates(tmp_path), forget=range(3))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, base)


def test_leaves_that_did_not_move_may_be_left_out():
    got, _ = amnesiac(START, [Update(0, {"b": jnp.ones_like(START["b"])}, (1,))], forget=[1])
    np.testing.assert_array_equal(got["b"], START["b"] - 1)
    np.testing.assert_array_equal(got["a"]["w"], START["a"]["w"])


def test_narrow_parameters_keep_their_dtype(tmp_path):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), START)
    after = jax.tree.map(lambda x: x * 2, params)
    record_updates(tmp_path)(0, params, after, {4})
    back, _ = amnesiac(after, read_updates(tmp_path), forget=[4])
    jax.tree.map(np.testing.assert_array_equal, back, params)
    assert back["b"].dtype == jnp.bfloat16


def damage(path, kind):
    data = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(data[:-5])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "flipped":
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 16]) + data[-2:])
    elif kind == "relabelled":
        path.write_bytes(data.replace(b"[4]", b"[5]", 1))
    elif kind == "text":
        path.write_text("no tensors here, only text that is long enough")
    elif kind == "foreign":
        path.write_bytes(safetensors.numpy.save({"w": np.zeros(3, np.float32)}))
    else:
        label = {"step": "x", "examples": "[4]", "crc32": "0"}
        path.write_bytes(safetensors.numpy.save({"w": np.zeros(3, np.float32)}, metadata=label))


@pytest.mark.parametrize("kind", "truncated empty flipped relabelled text foreign label".split())
def test_a_damaged_file_is_named(tmp_path, kind):
    record = record_updates(tmp_path)
    after = jax.tree.map(lambda x: x * 2, START)
    record(0, START, after, [4])
    bad = record(1, START, after, [4])
    damage(bad, kind)
    with pytest.raises(UserError, match=f"{bad.name}: (damaged|no recorded update)"):
        amnesiac(after, read_updates(tmp_path), forget=[4])


def test_what_makes_no_sense_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        next(read_updates(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        record_updates(tmp_path / "file")(0, START, START, [1])
    record = record_updates(tmp_path)
    with pytest.raises(UserError, match="must be integers, got float"):
        record(0, START, START, [1.5])
    with pytest.raises(UserError, match="only one has 'b'"):
        record(0, START, {"a": START["a"]}, [1])
    with pytest.raises(UserError, match="step must be an integer >= 0"):
        record(-1, START, START, [1])
    with pytest.raises(UserError, match="none of the 1 recorded steps saw any of the 2 .* e.g. 8"):
        amnesiac(START, [Update(0, START, (1,))], forget=[9, 8])
    with pytest.raises(UserError, match="step 0 is recorded twice"):
        amnesiac(START, [Update(0, START, (1,))] * 2, forget=[1])
    with pytest.raises(UserError, match="update of step 0 changes 'c' .* is not there"):
        amnesiac(START, [Update(0, {"c": START["b"]}, (1,))], forget=[1])
    with pytest.raises(UserError, match="update of step 0 changes 'b' .* has shape"):
        amnesiac(START, [Update(0, {"b": jnp.zeros(77)}, (1,))], forget=[1])
    with pytest.raises(UserError, match="share must be a finite number"):
        amnesiac(START, [Update(0, START, (1,))], forget=[1], share=float("nan"))
