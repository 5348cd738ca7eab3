"""Step order: pure functions from state to state."""

from jaxforget.loops.plain import plain as plain
