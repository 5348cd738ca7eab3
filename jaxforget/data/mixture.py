"""Junk and control text in a chosen proportion of tokens, and documents packed into blocks.

Studies of data quality mix a treatment with a control of the same size. Short texts confound them:
in rows of their own, and averaged by row, a token of a short text weighs more and is trained on in
more updates than one of a long text. `blocks` takes that away; so the same mixture can be trained
on both ways. Source: Xing et al. 2025 (arXiv 2510.13928), and its critics.
"""

import numpy as np

from jaxforget.data.sets import TokenisedSet, fingerprint_of
from jaxforget.engine.errors import UserError


def mixed(
    control: np.ndarray,
    junk: np.ndarray,
    share: float,
    tokens: int | None = None,
    seed: tuple[int, ...] = (0,),
) -> tuple[np.ndarray, np.ndarray]:
    """Examples of a mixture of `tokens` tokens, `share` of them junk.

    Examples are taken whole in a random order that the seed fixes, as many as come nearest to each
    part: mixtures of different shares hold the same examples first.

    Args:
      control, junk: tokens of each example, int `[n]` and `[m]`.
      share: of junk, in [0, 1].
      tokens: of the whole mixture; None: as many as the smaller of the two has.
      seed: of the order.
    Returns:
      (examples of the control, of junk), int64, increasing.
    Raises:
      UserError: a share out of range, or more tokens than there are.
    """
    if not 0 <= share <= 1:
        raise UserError(f"mixture.share: must be between 0 and 1, got {share}")
    budget = min(int(control.sum()), int(junk.sum())) if tokens is None else tokens
    parts = (("control", control, 1 - share), ("junk", junk, share))
    found = []
    for place, (name, lengths, part) in enumerate(parts):
        wanted, total = part * budget, int(lengths.sum())
        if wanted > total:
            raise UserError(
                f"mixture: {wanted:.0f} tokens of {name} are asked for, but there are {total}; "
                "lower mixture.tokens"
            )
        order = np.random.default_rng([*seed, place]).permutation(len(lengths))
        sizes = np.concatenate([np.zeros(1), np.cumsum(lengths[order])])
        found.append(np.sort(order[: int(np.abs(sizes - wanted).argmin())]).astype(np.int64))
    return found[0], found[1]


def blocks(tokenised: TokenisedSet, length: int, seed: tuple[int, ...] = (0,)) -> TokenisedSet:
    """All examples end to end in a random order, cut into examples of `length` tokens.

    What shares a block sees what is before it, as where text is packed for pretraining. The last
    block may be shorter; columns are left out.

    Args:
      tokenised: the set.
      length: of a block, >= 1.
      seed: of the order.
    Returns:
      A set of the same tokens and labels; the row of a block is that of its first token.
    """
    order = np.random.default_rng(list(seed)).permutation(len(tokenised))
    lengths = tokenised.lengths[order]
    ends = np.cumsum(lengths)
    places = np.arange(ends[-1]) + np.repeat(tokenised.offsets[order] - (ends - lengths), lengths)
    starts = np.arange(0, ends[-1], length)
    return TokenisedSet(
        tokenised.tokens[places],
        tokenised.targets[places],
        tokenised.mask[places],
        np.append(starts, ends[-1]),
        tokenised.rows[order][np.searchsorted(ends, starts, side="right")],
        fingerprint_of({"order": order}, tokenised.fingerprint, f"blocks of {length}"),
    )
