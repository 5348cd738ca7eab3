"""Membership inference: can the examples to forget be told from others that were never seen?

Scores are `[n]`, one an example, and all point the same way: higher is more like a member of the
training data. Judges compare the scores of `members` (the forget set) with those of `others` (a
holdout set); 0.5 is the AUC of a model that cannot have seen either.
"""

import zlib
from collections.abc import Sequence

import numpy as np

from jaxforget.engine.errors import UserError
from jaxforget.evals.checks import bodies, checked, paired
from jaxforget.evals.statistics import Interval, bootstrap

_TINY = 1e-10  # the peer's guard against division by zero


def mia_loss(nll: np.ndarray) -> np.ndarray:
    """Minus the mean NLL per token (nats) `[n]`. Source: Yeom et al. 2018 (arXiv 1709.01604)."""
    return -checked("loss attack", nll)


def mia_zlib(nll: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Minus the mean NLL over the size of the compressed text: what is easy for anyone counts less.

    Args:
      nll: `[n]`, mean NLL per token, nats.
      texts: the scored texts `[n]`.
    Returns:
      float64 `[n]`, nats per byte of zlib's output.
    Raises:
      UserError: not as many texts as values, or a value that is not finite.
    Source: Carlini et al. 2021 (arXiv 2012.07805), section 5.2.
    """
    sizes = np.asarray([len(zlib.compress(text.encode())) for text in texts], np.float64)
    loss, sizes = paired("zlib attack", nll, sizes)
    return -loss / sizes


def mia_min_k(
    logp: np.ndarray,
    offsets: np.ndarray,
    *,
    share: float = 0.2,
    ended: np.ndarray | bool = False,
) -> np.ndarray:
    """Mean log-probability of an example's least likely tokens.

    Args:
      logp: `[M]`, nats.
      offsets: int `[n + 1]`; every example has at least one target.
      share: of the tokens of an example, in (0, 1]; at least one token is taken. The paper
        prefers 0.2; the code of MUSE and the peer take 0.4.
      ended: bool `[n]`, or one for all: is an example's last target the end of the text, which
        is left out (unless it is all there is)? The peer always leaves the last out.
    Returns:
      float64 `[n]`, nats.
    Raises:
      UserError: `share` out of range, an example without targets, a value that is not finite.
    Source: Shi et al. 2023, Min-K% Prob (arXiv 2310.16789).
    """
    return _lowest("min-k attack", logp, offsets, share, ended)


def mia_min_k_plus_plus(
    logp: np.ndarray,
    mean: np.ndarray,
    second_moment: np.ndarray,
    offsets: np.ndarray,
    *,
    share: float = 0.2,
    ended: np.ndarray | bool = False,
) -> np.ndarray:
    """`mia_min_k` of (log p - mean) / deviation, both over the model's own distribution.

    Args:
      logp: `[M]`, of the targets, nats.
      mean: `[M]`, E_p[log p] at each target, nats.
      second_moment: `[M]`, E_p[(log p)^2], nats^2.
      offsets, share, ended: as for `mia_min_k`.
    Returns:
      float64 `[n]`. Variances count as at least 1e-6 nats^2, which is what float32 moments
      can tell from none.
    Raises:
      UserError: as `mia_min_k`; columns of different lengths.
    Source: Zhang et al. 2024, Min-K%++ (arXiv 2404.02936), eq. 3.
    """
    name = "min-k++ attack"
    logp, mean, second_moment = paired(name, logp, mean, second_moment)
    deviation = np.sqrt(np.maximum(second_moment - mean**2, 1e-6))
    return _lowest(name, (logp - mean) / deviation, offsets, share, ended)


def _lowest(
    name: str, values: np.ndarray, offsets: np.ndarray, share: float, ended: np.ndarray | bool
) -> np.ndarray:
    if not 0 < share <= 1:
        raise UserError(f"{name}: share must be in (0, 1], is {share}")
    counts = np.diff(offsets)
    kept = np.broadcast_to(np.asarray(ended, bool), counts.shape) & (counts > 1)
    parts = bodies(name, values, offsets, kept)
    if not all(len(part) for part in parts):
        raise UserError(f"{name}: example {int(counts.argmin())} has no target")
    lowest = (np.sort(part)[: max(1, int(share * len(part)))] for part in parts)
    return np.asarray([part.mean() for part in lowest])


def mia_reference(nll: np.ndarray, reference_nll: np.ndarray) -> np.ndarray:
    """How much likelier an example is than to a model that has not seen it, nats per token.

    Args:
      nll, reference_nll: `[n]`, mean NLL per token of both models, nats.
    Source: Carlini et al. 2021 (arXiv 2012.07805), section 5.2.
    """
    ours, theirs = paired("reference attack", nll, reference_nll)
    return theirs - ours


def mia_gradient_norm(norms: np.ndarray) -> np.ndarray:
    """Minus the gradient norm of the mean NLL `[n]`: what was learned pulls no more.

    Args:
      norms: see `gradient_norms.gradient_norms`.
    """
    return -checked("gradient norm attack", norms)


def roc_auc(members: np.ndarray, others: np.ndarray, *, axis: int = -1) -> np.ndarray | float:
    """Probability that a member scores higher than another, ties counting one half.

    Args:
      members: scores, `[n]`, or more with the examples along `axis`.
      others: scores `[m]`, likewise.
      axis: along which the examples lie.
    Returns:
      float in [0, 1], or an array without `axis`.
    Raises:
      UserError: a side without examples, or a value that is not finite.
    """
    from scipy.stats import rankdata

    members, others = (checked("AUC", np.moveaxis(x, axis, -1)) for x in (members, others))
    count, rest = members.shape[-1], others.shape[-1]
    ranks = rankdata(np.concatenate([members, others], -1), axis=-1)[..., :count]
    area = (ranks.sum(-1) - count * (count + 1) / 2) / (count * rest)
    return float(area) if area.ndim == 0 else area


def auc_interval(members: np.ndarray, others: np.ndarray, *, seed: int = 0) -> Interval:
    """`bootstrap` of `roc_auc`, in a third of the time: resamples need not be sorted.

    Args:
      members, others: scores `[n]` and `[m]`, two or more each.
      seed: of the draws.
    """
    sides = [checked("AUC", side) for side in (members, others)]
    values, ranks = np.unique(np.concatenate(sides), return_inverse=True)

    def area(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
        found = (np.moveaxis(side, axis, -1).astype(np.int64) for side in (first, second))
        mine, theirs = (_counts(side, len(values)) for side in found)
        below = np.cumsum(theirs, axis=-1) - theirs / 2
        return (mine * below).sum(-1) / (mine.sum(-1) * theirs.sum(-1))

    return bootstrap(*np.split(ranks, [len(sides[0])]), statistic=area, seed=seed)


def _counts(ranks: np.ndarray, most: int) -> np.ndarray:
    """How often each of 0..most-1 is along the last axis: int64 `[.., most]`."""
    lead = ranks.shape[:-1]
    rows = np.arange(ranks[..., 0].size).reshape(*lead, 1)
    flat = np.bincount((ranks + rows * most).ravel(), minlength=rows.size * most)
    return flat.reshape(*lead, most)


def tpr_at_fpr(members: np.ndarray, others: np.ndarray, *, fpr: float = 0.01) -> float:
    """Share of members an attacker names while at most `fpr` of the others are named with them.

    Args:
      members: scores `[n]`.
      others: scores `[m]`.
      fpr: false positive rate, in [0, 1]; below 1/m no other at all may be named.
    Returns:
      In [0, 1]: the best threshold among the scores, without interpolation between them.
    Raises:
      UserError: as `roc_auc`; `fpr` out of range.
    Source: Carlini et al. 2022 (arXiv 2112.03570), section 4.
    """
    if not 0 <= fpr <= 1:
        raise UserError(f"TPR at low FPR: fpr must be in [0, 1], is {fpr}")
    found, false = _rates(members, others)
    return float(found[false <= fpr].max())


def balanced_accuracy(
    members: np.ndarray, others: np.ndarray, *, threshold: float | None = None
) -> float:
    """Mean of the shares of members and of others that are recognised.

    Args:
      members: scores `[n]`.
      others: scores `[m]`.
      threshold: who scores at least this is called a member; None: the best threshold for these
        very examples, an upper bound of any attacker's.
    Returns:
      In [0, 1]; 0.5 is guessing.
    Raises:
      UserError: as `roc_auc`.
    """
    if threshold is None:
        found, false = _rates(members, others)
        return float(((found + 1 - false) / 2).max())
    members, others = checked("accuracy", members), checked("accuracy", others)
    return float(((members >= threshold).mean() + (others < threshold).mean()) / 2)


def _rates(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positive rate at every threshold, from one that names nobody."""
    members, others = np.sort(checked("ROC", members)), np.sort(checked("ROC", others))
    at = np.append(np.unique(np.concatenate([members, others])), np.inf)
    rates = [1 - np.searchsorted(side, at, side="left") / len(side) for side in (members, others)]
    return rates[0], rates[1]


def privleak(auc: float, oracle_auc: float = 0.5, *, peer_compat: bool = False) -> float:
    """MUSE's PrivLeak: how far the attack's failure is from the oracle's, in per cent of it.

    Args:
      auc: of `mia_min_k` between the forget set (members) and a holdout set.
      oracle_auc: the same of a model that never saw the forget set; without one 0.5, which it
        tends to.
      peer_compat: the peer's denominator, 1e-10 larger: finite where the oracle's AUC is 1.
    Returns:
      100 (x - x_oracle) / x_oracle with x = 1 - AUC: 0 is the goal, below it the forget set still
      looks like members, above it so unlike any text that this betrays it.
    Raises:
      UserError: an AUC outside [0, 1], or an oracle's of 1.
    Source: Shi et al. 2024, MUSE (arXiv 2407.06460), section 2.
    """
    for value in (auc, oracle_auc):
        if not 0 <= value <= 1:
            raise UserError(f"PrivLeak: an AUC must be in [0, 1], is {value}")
    if oracle_auc == 1 and not peer_compat:
        raise UserError("PrivLeak: the oracle's AUC is 1, so it has no failures to compare with")
    goal = 1 - oracle_auc
    return float(100 * ((1 - auc) - goal) / (goal + (_TINY if peer_compat else 0.0)))
