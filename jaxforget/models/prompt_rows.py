"""Prompts of any length, arranged in rows of few shapes, so that few programs are compiled."""

from collections.abc import Sequence

import numpy as np

from jaxforget.models.generate_queue import CHUNK, refilled

_SHARED_MULTIPLE = 8


def alike(prompts: Sequence[np.ndarray], batch_size: int, *, queues: bool) -> list[list[int]]:
    """Prompts of similar length: a queue each of more than a batch, or batches.

    Few of one length join the next longer ones, so that few programs are compiled. In queues the
    length is that of what follows the beginning that all share.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    if not queues:
        return [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    ahead = len(shared_beginning(prompts)) if prompts else 0
    widths = [rounded(len(prompt) - ahead) for prompt in prompts]
    found: list[list[int]] = []
    for index in order:
        last = found[-1] if found else []
        wider = last and widths[last[-1]] < widths[index]
        if not found or (wider and len(last) >= 8 * batch_size):
            found.append([])
        found[-1].append(index)
    return found


def shared_beginning(prompts: Sequence[np.ndarray]) -> np.ndarray:
    """What all prompts begin with, so that a token is left of each; nothing where that is little.

    Its length is a multiple of `_SHARED_MULTIPLE`, so that few programs are compiled.
    """
    least = min(len(prompt) for prompt in prompts) - 1
    starts = np.stack([np.asarray(prompt[:least], np.int32) for prompt in prompts])
    alike = np.append((starts == starts[:1]).all(axis=0), False)
    return starts[0, : int(alike.argmin()) // _SHARED_MULTIPLE * _SHARED_MULTIPLE]


def rounded(length: int) -> int:
    """The multiple of `CHUNK` that is not below a length."""
    return -(-length // CHUNK) * CHUNK


def queue_places(count: int, slots: int) -> int:
    """Room for so many prompts and the empty ones behind them: a power of two, for few programs."""
    return power_of_two(count + refilled(slots))


def power_of_two(count: int) -> int:
    """The least that is not below a count."""
    return 1 << (count - 1).bit_length()


def left_padded(
    texts: Sequence[np.ndarray], chosen: list[int], places: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts in rows of one width, their real tokens, and the rows' numbers `chosen`."""
    width = rounded(max(map(len, texts)))
    tokens = np.zeros((places, width), np.int32)
    mask = np.zeros((places, width), bool)
    rows = np.zeros(places, np.int32)
    rows[: len(chosen)] = chosen
    for place, own in enumerate(texts):
        tokens[place, width - len(own) :] = own
        mask[place, width - len(own) :] = True
    return tokens, mask, rows
