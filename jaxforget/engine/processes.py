"""Several processes as one run: the first one writes, the others wait, and all fail together.

What is agreed on here passes through the coordination service, whose patience has no end; the
devices' own collectives give up when one process is half a minute late.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator

import jax

from jaxforget.engine.errors import UserError

_YEAR = 365 * 24 * 3600 * 1000  # ms; a process that dies ends the wait of all others
_meetings = itertools.count()  # every process meets the others in the same order


def all_agree(ok: bool) -> bool:
    """Is `ok` true on every process? Waits for all of them."""
    if jax.process_count() == 1:
        return ok
    from jax._src.distributed import global_state  # JAX has no public door to it

    client, meeting = global_state.client, f"jaxforget/{next(_meetings)}"
    assert client is not None
    client.key_value_set(f"{meeting}/{jax.process_index()}", str(ok))
    names = [f"{meeting}/{process}" for process in range(jax.process_count())]
    return all(client.blocking_key_value_get(name, _YEAR) == "True" for name in names)


def on_first(action: Callable[[], object]) -> None:
    """Run `action` on the first process alone; the others wait for it.

    Raises:
      UserError: on the other processes, where `action` failed on the first (which raises what
        `action` raised).
    """
    if jax.process_index() != 0:
        if not all_agree(True):
            raise UserError("the first process failed; its message says why")
        return
    done = False
    try:
        action()
        done = True
    finally:
        all_agree(done)


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """The body runs on the first process, then on all others, which find the files it made.

    The others go on even where the first failed, so that each process tells what it found.
    """
    first = jax.process_index() == 0
    if not first:
        all_agree(True)
    try:
        yield
    finally:
        if first:
            all_agree(True)
