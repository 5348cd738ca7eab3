import logging
import pathlib
import threading

import jax
import numpy as np
import optax
import pytest
from engine import toy
from engine.test_step import WEIGHTS, summed

from jaxforget.engine.checkpoint import Checkpoints
from jaxforget.engine.errors import UserError
from jaxforget.engine.mesh import MeshConfig, make_mesh, put, shardings
from jaxforget.engine.state import init_state


def state(seed=0, mesh=None):
    made = init_state(toy.params(seed), optax.adam(1e-3), summed(WEIGHTS), seed=seed)
    return made if mesh is None else put(made, shardings(made, mesh))


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_restore_gives_back_every_bit_and_the_data_beside_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(state()) is None
        checkpoints.save(3, state(1), {"fingerprint": "abc", "steps": 9})
        checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(state(0))
    assert restored.step == 3 and dict(restored.data) == {"fingerprint": "abc", "steps": 9}
    equal(restored.state, state(1))


def test_only_the_newest_are_kept_and_none_is_dropped_in_flight(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(1, 6):
            checkpoints.save(step, state(step), {"steps": step})
        checkpoints.wait()
        assert checkpoints.steps() == [4, 5]
        equal(checkpoints.restore(state()).state, state(5))


def test_a_save_that_goes_well_says_nothing(tmp_path, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(), {})
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_no_save_leaves_its_thread_behind(tmp_path):
    def loops():
        return {thread for thread in threading.enumerate() if "_run_loop" in thread.name}

    before = loops()
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 5):
            checkpoints.save(step, state(), {})
        checkpoints.wait()
        assert loops() <= before


def test_saved_values_survive_the_donation_of_their_buffers(tmp_path):
    mesh = make_mesh(MeshConfig(1))
    with Checkpoints(tmp_path) as checkpoints:
        live = state(1, mesh)
        checkpoints.save(1, live, {})
        overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
        jax.block_until_ready(overwrite(live))
        checkpoints.wait()
        equal(checkpoints.restore(state()).state, state(1))


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1, make_mesh(MeshConfig(8))), {})
        checkpoints.wait()
        like = state(0, make_mesh(MeshConfig(1, 4, 2)))
        restored = checkpoints.restore(like).state
    equal(restored, state(1))
    jax.tree.map(lambda a, b: a.sharding == b.sharding or pytest.fail(str(a)), restored, like)


def damage(folder: pathlib.Path, how):
    files = [f for f in folder.rglob("*") if f.is_file() and f.stat().st_size > 200]
    for file in files:
        data = file.read_bytes()
        file.write_bytes(how(data))


@pytest.mark.parametrize(
    "how",
    [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[:-60] + b"\x55" * 50 + d[-10:]],
    ids=["truncated", "emptied", "overwritten"],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, how, caplog):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"steps": step})
        checkpoints.wait()
    damage(tmp_path / "2", how)
    with Checkpoints(tmp_path) as checkpoints, caplog.at_level(logging.WARNING):
        restored = checkpoints.restore(state())
    assert restored.step == 1 and "checkpoint 2 cannot be read" in caplog.text
    equal(restored.state, state(1))


def test_when_every_checkpoint_is_damaged_the_user_is_told(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.wait()
    damage(tmp_path / "1", lambda d: d[:10])
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="no checkpoint in"):
        checkpoints.restore(state())
