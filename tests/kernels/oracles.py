"""Float64 NumPy references with analytic gradients, written without looking at the kernels."""

import numpy as np


def f64(*arrays):
    return [None if a is None else np.asarray(a).astype(np.float64) for a in arrays]


def logits(hidden, weight, bias=None, softcap=None):
    hidden, weight, bias = f64(hidden, weight, bias)
    z = hidden @ weight.T
    z = z if bias is None else z + bias
    return z if softcap is None else softcap * np.tanh(z / softcap)


def log_softmax(z):
    top = z.max(-1, keepdims=True)
    return z - top - np.log(np.exp(z - top).sum(-1, keepdims=True))


def gradients(dz, z, hidden, weight, softcap=None):
    """Of hidden, weight and bias, from the cotangent of the (capped) logits."""
    hidden, weight = f64(hidden, weight)
    if softcap is not None:
        dz = dz * (1 - (z / softcap) ** 2)
    flat = dz.reshape(-1, dz.shape[-1])
    return dz @ weight, flat.T @ hidden.reshape(-1, hidden.shape[-1]), flat.sum(0)


def cross_entropy(hidden, weight, targets, cotangent, bias=None, softcap=None):
    """logp, (hit, mean, second moment), gradients; targets all inside the vocabulary."""
    z = logits(hidden, weight, bias, softcap)
    every = log_softmax(z)
    p, onehot = np.exp(every), np.eye(z.shape[-1])[targets]
    logp = (onehot * every).sum(-1)
    stats = (every.argmax(-1) == targets), (p * every).sum(-1), (p * every**2).sum(-1)
    dz = np.asarray(cotangent, np.float64)[..., None] * (onehot - p)
    return logp, stats, gradients(dz, z, hidden, weight, softcap)


def kl(p_side, q_side, cotangent):
    """KL(p || q), gradients of p's and of q's arguments; a side is (hidden, weight, bias, cap)."""
    (hp, wp, bp, cp), (hq, wq, bq, cq) = p_side, q_side
    zp, zq = logits(hp, wp, bp, cp), logits(hq, wq, bq, cq)
    logp, logq = log_softmax(zp), log_softmax(zq)
    p, gap = np.exp(logp), logp - logq
    value = (p * gap).sum(-1)
    g = np.asarray(cotangent, np.float64)[..., None]
    to_p = gradients(g * p * (gap - value[..., None]), zp, hp, wp, cp)
    to_q = gradients(g * (np.exp(logq) - p), zq, hq, wq, cq)
    return value, to_p, to_q
