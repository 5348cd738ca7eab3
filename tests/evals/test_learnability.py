"""LQS against the closed form of quadratic losses, and against what weighing an example does."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxforget.engine.errors import UserError
from jaxforget.evals.learnability import lqs

ETA, STEPS = 0.1, 7
rng = np.random.default_rng(0)
START = {"w": rng.normal(size=3).astype(np.float32)}
PROXY = [
    (rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32))
    for _ in range(STEPS)
]
TARGET = [
    (rng.normal(size=(n, 3)).astype(np.float32), rng.normal(size=n).astype(np.float32))
    for n in (5, 2)
]
EXAMPLES = (rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=6).astype(np.float32))
ROWS = [
    (np.array([4, 0, 2]), tuple(part[[4, 0, 2]] for part in EXAMPLES)),
    (np.array([1, 3, 5, -1]), tuple(part[[1, 3, 5, 0]] for part in EXAMPLES)),
]


def sums(params, batch):
    x, y = batch
    return 0.5 * jnp.square(x @ params["w"] - y).sum(), jnp.float32(len(y))


def slope(w, x, y):
    return x.T @ (x @ w - y) / len(y)


def by_hand():
    """gamma, learnability and quality in float64, with lambda in closed form."""
    whole = [np.concatenate(parts).astype(float) for parts in zip(*TARGET, strict=True)]
    thetas = [START["w"].astype(float)]
    for x, y in PROXY:
        thetas.append(thetas[-1] - ETA * slope(thetas[-1], x.astype(float), y.astype(float)))
    pulls = [slope(thetas[-1], *whole)]
    for theta, (x, y) in zip(thetas[-2::-1], PROXY[::-1], strict=True):
        hessian = x.T.astype(float) @ x.astype(float) / len(y)
        pulls.append(pulls[-1] + slope(theta, *whole) - ETA * hessian @ pulls[-1])
    pulls = pulls[::-1]  # by step
    x, y = (part.astype(float) for part in EXAMPLES)
    own = [[slope(theta, x[i : i + 1], y[i : i + 1]) for i in range(6)] for theta in thetas]
    norms = np.linalg.norm(own, axis=2)
    found = np.zeros((3, 6))
    for t in range(STEPS):
        dots = own[t] @ pulls[t + 1]
        found[0] += dots / norms[t + 1]
        found[1] += norms[t] / norms[t + 1]
        found[2] += dots / norms[t] / np.linalg.norm(pulls[t + 1])
    return found, pulls, own


def scored(**changes):
    options = {"proxy": PROXY, "target": TARGET, "examples": ROWS, "learning_rate": ETA}
    return lqs(sums, START, **{**options, **changes})


def test_scores_are_the_closed_form_of_a_quadratic():
    (score, learnability, quality), pulls, _ = by_hand()
    found = scored()
    np.testing.assert_allclose(found.score, score, rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(found.learnability, learnability, rtol=2e-4)
    np.testing.assert_allclose(found.quality, quality, rtol=2e-4, atol=1e-5)
    sizes = np.linalg.norm(pulls[1:], axis=1)[::-1]
    np.testing.assert_allclose(found.reliability, sizes, rtol=1e-5)


def test_weighing_an_example_more_does_what_its_product_says():
    """Of the hand-worked products, by finite differences of the target's losses along the path."""
    _, pulls, own = by_hand()
    whole = [np.concatenate(parts).astype(float) for parts in zip(*TARGET, strict=True)]
    x, y = (part.astype(float) for part in EXAMPLES)

    def lost(step, example, weight):
        w, total = START["w"].astype(float), 0.0
        for t in range(STEPS + 1):
            total += 0.5 * np.square(whole[0] @ w - whole[1]).mean() if t > step else 0.0
            if t == STEPS:
                break
            more = slope(w, x[example : example + 1], y[example : example + 1])
            batch = [part.astype(float) for part in PROXY[t]]
            w = w - ETA * (slope(w, *batch) + (weight * more if t == step else 0.0))
        return total

    for step, example in ((0, 1), (3, 4), (STEPS - 1, 2)):
        change = (lost(step, example, 1e-5) - lost(step, example, -1e-5)) / 2e-5
        assert change == pytest.approx(-ETA * own[step][example] @ pulls[step + 1], rel=1e-5)


def test_visits_may_be_fewer():
    found = scored(every=3)
    assert found.reliability.shape == (3,)  # steps 6, 3 and 0 of seven
    assert not np.allclose(found.score, scored().score)


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(UserError, match="target set"):
        scored(target=[])
    with pytest.raises(UserError, match="must be above 0"):
        scored(learning_rate=0.0)
    with pytest.raises(UserError, match="not finite"):
        scored(learning_rate=1e30)
