"""The peer's losses: equal to PyTorch's, and to ours where the definitions coincide."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objectives.cases import ALTERNATE, FORGET, PARAMS, RETAIN, SPECS, START, batches, evaluate

from jaxforget.objectives import kl_divergence, undial
from jaxforget.objectives import open_unlearning as peer

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "peer_losses.npz")
Z, REF, ZA, REFA, Y, YA = (
    jnp.asarray(GOLDEN[name]) for name in ("z", "ref", "za", "refa", "y", "ya")
)
BETA = 0.7
LOSSES = {
    "nll": lambda z: peer.nll(z, Y),
    "kl_retain": lambda z: peer.kl_retain(z, REF),
    "npo": lambda z: peer.npo(z, REF, Y, beta=BETA),
    "dpo": lambda z: peer.dpo((ZA, z), (REFA, REF), (YA, Y), beta=BETA),
    "simnpo": lambda z: peer.simnpo(z, Y, beta=BETA, delta=0.3),
    "undial": lambda z: peer.undial(z, REF, Y, beta=BETA),
    "wga": lambda z: peer.weighted_ascent(z, Y, beta=1.5),
    "satimp": lambda z: peer.weighted_ascent(z, Y, beta=1.5, beta_unlearned=0.5),
    "spread": lambda z: peer.squared_spread(z, Y),
}


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_pytorchs(name):
    value, gradient = jax.value_and_grad(LOSSES[name])(Z)
    np.testing.assert_allclose(value, GOLDEN[f"{name}_value"], rtol=2e-6)
    np.testing.assert_allclose(gradient, GOLDEN[f"{name}_gradient"], rtol=2e-5, atol=2e-7)


def padded(some, params, length=6):
    """(logits, labels) of examples as the peer pads them, one a row."""
    tokens = np.zeros((len(some), length), np.int32)
    labels = np.full((len(some), length), peer.IGNORED)
    for row, (ids, targets, labelled) in enumerate(some):
        whole = np.append(ids, targets[-1])
        tokens[row, : len(whole)] = whole
        labels[row, 1 : len(whole)] = np.where(labelled, targets, peer.IGNORED)
    logits = jnp.tanh(params["embed"][tokens] @ params["mix"]) @ params["head"].T
    return logits, jnp.asarray(labels)


def test_ours_agree_where_one_micro_batch_holds_the_step():
    z, y = padded(FORGET, PARAMS)
    ref, _ = padded(FORGET, START)
    za, ya = padded(ALTERNATE, PARAMS)
    refa, _ = padded(ALTERNATE, START)
    zr, yr = padded(RETAIN, PARAMS)
    expected = {
        ("graddiff", "forget"): -peer.nll(z, y),
        ("graddiff", "retain"): peer.nll(zr, yr),
        ("npo", "forget"): peer.npo(z, ref, y, beta=0.7),
        ("simnpo", "forget"): peer.simnpo(z, y, beta=2.5, delta=0.3),
        ("dpo", "forget"): peer.dpo((za, z), (refa, ref), (ya, y), beta=0.4),
        ("wga", "forget"): peer.weighted_ascent(z, y, beta=0.8),
        ("satimp", "forget"): peer.weighted_ascent(z, y, beta=1.5, beta_unlearned=0.5),
    }
    for (name, term), value in expected.items():
        ours, _, _ = evaluate(SPECS[name], batches())
        np.testing.assert_allclose(ours[term], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_ours_differ_where_the_peer_counts_prompts_and_padding():
    logits, _ = padded(RETAIN, PARAMS)
    start, _ = padded(RETAIN, START)
    ours = evaluate(SPECS["graddiff_kl"], batches())[0]["retain"]
    theirs = peer.kl_retain(logits, start)
    assert abs(float(ours) - float(theirs)) > 1e-2
    longer = [padded(RETAIN, params, length=9)[0] for params in (PARAMS, START)]
    assert abs(float(peer.kl_retain(*longer)) - float(theirs)) > 1e-3  # padding moves theirs


def test_a_label_of_minus_100_names_a_word_in_undial():
    labels = jnp.full(Y.shape, peer.IGNORED)
    lowered = peer.undial(Z, REF, labels, beta=50.0)
    other = REF.at[..., REF.shape[-1] + peer.IGNORED].add(-50.0)
    np.testing.assert_allclose(lowered, peer.undial(Z, other, labels, beta=0.0), rtol=1e-5)


def test_switches_turn_ours_into_theirs():
    mask = jnp.zeros(REF.shape[:2]).at[:, 3:].set(1)
    ours = kl_divergence(REF, Z, mask=mask)
    assert abs(float(ours) - float(peer.kl_retain(Z, REF))) > 1e-3
    theirs = kl_divergence(REF, Z, mask=mask, peer_compat=True)
    np.testing.assert_allclose(theirs, GOLDEN["kl_retain_value"], rtol=2e-6)
    flat, start = (each.reshape(-1, each.shape[-1]) for each in (Z[:, :-1], REF[:, :-1]))
    labels = Y[:, 1:].reshape(-1)
    assert (labels == peer.IGNORED).any()
    theirs = undial(flat, start, labels, BETA, peer_compat=True)
    np.testing.assert_allclose(theirs.mean(), GOLDEN["undial_value"], rtol=2e-6)
    ours = undial(flat, start, labels, BETA)
    np.testing.assert_array_equal(ours == theirs, labels != peer.IGNORED)
